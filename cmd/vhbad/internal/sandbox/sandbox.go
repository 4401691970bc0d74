package sandbox

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// ErrUnsupported means that the kernel has no landlock, or that it is switched
// off. The process has given up new privileges all the same.
var ErrUnsupported = errors.New("the kernel has no landlock")

// Access is what may still be named. A folder includes everything below it. What does not
// exist is left out.
type Access struct {
	// Read are files and folders to read.
	Read []string
	// Images are files and folders to read, write and truncate; in a folder, regular files
	// may also be made.
	Images []string
	// Sockets are folders in which sockets and their locks may be removed.
	Sockets []string
}

const (
	read   = ll.AccessFSReadFile | ll.AccessFSReadDir
	images = read | ll.AccessFSWriteFile | ll.AccessFSTruncate | ll.AccessFSMakeReg
	// ofFolders are the rights that only a rule for a folder can have.
	ofFolders = ll.AccessFSReadDir | ll.AccessFSMakeReg | ll.AccessFSRemoveFile
)

// entered is what Enter has left of the file system; nil if Enter has not restricted it.
var entered atomic.Pointer[Access]

// Enter leaves this process, all its threads and its children, with a and nothing else of
// the file system: no other file can be opened, made, renamed, removed or executed.
// Set-user-ID programs no longer give them rights, and they cannot connect to anything by
// TCP.
//
// Errors: ErrUnsupported.
//
// Source: landlock(7), PR_SET_NO_NEW_PRIVS(2const).
func Enter(a Access) error {
	// The local time zone is in a file that is read when the zone is first needed.
	_, _ = time.Now().Zone()
	// Landlock sets it too, but not where there is no landlock.
	if err := ll.AllThreadsPrctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("give up new privileges: %w", err)
	}
	if version, err := ll.LandlockGetABIVersion(); err != nil || version < 1 {
		return ErrUnsupported
	}
	var rules []landlock.Rule
	for _, part := range []struct {
		access landlock.AccessFSSet
		paths  []string
	}{
		{read, a.Read}, {images, a.Images}, {ll.AccessFSRemoveFile, a.Sockets},
	} {
		for _, path := range part.paths {
			var st syscall.Stat_t
			if err := syscall.Stat(path, &st); err != nil {
				continue // not there, or not for this user anyway
			}
			access := part.access
			if st.Mode&syscall.S_IFMT != syscall.S_IFDIR {
				access &^= ofFolders
			}
			if access != 0 {
				rules = append(rules, landlock.PathAccess(access, path).IgnoreIfMissing())
			}
		}
	}
	// Version 8 of the interface is the last that leaves the service manager's
	// socket alone.
	if err := landlock.V8.BestEffort().RestrictPaths(rules...); err != nil {
		return fmt.Errorf("landlock: %w", err)
	}
	if err := landlock.MustConfig(landlock.AccessNetSet(ll.AccessNetConnectTCP)).BestEffort().Restrict(); err != nil {
		return fmt.Errorf("landlock: %w", err)
	}
	entered.Store(&a)
	return nil
}

// Entered reports whether Enter has restricted the file system.
func Entered() bool { return entered.Load() != nil }

// Reaches reports whether an image can be opened, as far as the sandbox is concerned; the
// file's permissions may still forbid it. Any goroutine may call it.
//
// Errors: one for whoever has named the path. It says where images may be, and how to have
// them elsewhere.
func Reaches(path string) error {
	a := entered.Load()
	if a == nil {
		return nil
	}
	at := resolve(path)
	for _, left := range a.Images {
		if left = resolve(left); at == left || left == "/" || strings.HasPrefix(at, left+"/") {
			return nil
		}
	}
	folders := slices.Compact(slices.Sorted(slices.Values(a.Images)))
	has := "no images" // with disks in memory only
	if len(folders) > 0 {
		has = "images in " + strings.Join(folders, ", ") + " only"
	}
	return fmt.Errorf("%s: the sandbox, which cannot be left, has %s: restart with --sandbox-path %s, or with a path of sandbox in the configuration",
		path, has, filepath.Dir(at))
}

// resolve returns where path leads, as far as it exists.
func resolve(path string) string {
	path, err := filepath.Abs(path)
	if err != nil {
		return path // the working directory is gone: nothing is there
	}
	if target, err := filepath.EvalSymlinks(path); err == nil {
		return target
	}
	if folder, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
		return filepath.Join(folder, filepath.Base(path))
	}
	return path
}
