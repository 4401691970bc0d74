package sandbox

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// ErrUnsupported means that the kernel has no landlock, or that it is switched
// off. The process has given up new privileges all the same.
var ErrUnsupported = errors.New("the kernel has no landlock")

// Access is what may still be named. A folder stands for all below it. What is not
// there is left out.
type Access struct {
	// Read are files and folders to read.
	Read []string
	// Images are files and folders to read, write, cut and, in a folder, make
	// regular files.
	Images []string
	// Sockets are folders to remove sockets and their locks from.
	Sockets []string
}

const (
	read   = ll.AccessFSReadFile | ll.AccessFSReadDir
	images = read | ll.AccessFSWriteFile | ll.AccessFSTruncate | ll.AccessFSMakeReg
	// ofFolders are the rights that a rule for a file cannot have.
	ofFolders = ll.AccessFSReadDir | ll.AccessFSMakeReg | ll.AccessFSRemoveFile
)

// Enter leaves this process, all its threads and its children, with a and nothing
// else of the file system: no other file can be opened, made, renamed, removed or
// executed. No set-user-ID program gives them rights any more.
//
// Errors: ErrUnsupported.
//
// Source: landlock(7), PR_SET_NO_NEW_PRIVS(2const).
func Enter(a Access) error {
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
	return nil
}
