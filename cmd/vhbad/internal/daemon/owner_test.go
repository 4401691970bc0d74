package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
)

// Users and groups that need no entry in a user database.
const (
	someUser, someGroup = 61234, 61235
	otherUser           = 61236
)

// dialAs connects to a unix socket as a user and a group would that have no other
// rights. It is for root.
func dialAs(path string, user, group int) (net.Conn, error) {
	type result struct {
		nc  net.Conn
		err error
	}
	done := make(chan result)
	go func() {
		// The thread ends with this goroutine, which never unlocks it: nobody else gets
		// its identity.
		runtime.LockOSThread()
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			done <- result{err: err}
			return
		}
		f := os.NewFile(uintptr(fd), path)
		defer func() { _ = f.Close() }()
		// For this thread alone: the package syscall would ask for all of them.
		if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); errno != 0 {
			done <- result{err: fmt.Errorf("setgroups: %w", errno)}
			return
		}
		for _, set := range []struct{ call, id int }{{unix.SYS_SETFSGID, group}, {unix.SYS_SETFSUID, user}} {
			// They return what was before; the rights go with the user.
			_, _, _ = unix.RawSyscall(uintptr(set.call), uintptr(set.id), 0, 0)
		}
		if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
			done <- result{err: err}
			return
		}
		nc, err := net.FileConn(f)
		done <- result{nc, err}
	}()
	r := <-done
	return r.nc, r.err
}

// TestListen_AnotherOwner: root gives a socket to another user or group, by number,
// and the disk is for those alone whom its mode lets in. Nobody else can give a socket
// away: then the daemon does not start, says why and leaves no socket.
func TestListen_AnotherOwner(t *testing.T) {
	for _, tt := range []struct {
		query            string
		mode             fs.FileMode
		user, group      int // of the socket; -1 is whoever runs the test
		ownerIn, groupIn bool
		otherIn          bool
	}{
		{fmt.Sprintf("owner=%d", someUser), 0o660, someUser, -1, true, false, false},
		{fmt.Sprintf("owner=%d:%d", someUser, someGroup), 0o660, someUser, someGroup, true, true, false},
		{fmt.Sprintf("mode=0600&owner=%d:%d", someUser, someGroup), 0o600, someUser, someGroup, true, false, false},
		{fmt.Sprintf("owner=:%d&mode=0620", someGroup), 0o620, -1, someGroup, false, true, false},
		{fmt.Sprintf("owner=%d:%d&mode=0666", someUser, someGroup), 0o666, someUser, someGroup, true, true, true},
	} {
		t.Run(tt.query, func(t *testing.T) {
			s := newSettings(t, "d=memory:1MiB")
			a, err := config.ParseAddress("unix://" + s.socket() + "?" + tt.query)
			if err != nil {
				t.Fatal(err)
			}
			s.Listen = []config.Address{a}
			for _, dir := range []string{filepath.Dir(s.dir), s.dir} { // so that others get as far as the socket
				if err := os.Chmod(dir, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if os.Geteuid() != 0 {
				d, err := s.start(t)
				if err == nil {
					stopper(t, d)()
					t.Fatal("a socket was given away without the right to do so")
				}
				if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), s.socket()) {
					t.Errorf("error %v, want one of permissions that names the socket", err)
				}
				if left := s.sockets(t); len(left) != 0 {
					t.Errorf("left behind: %v", left)
				}
				return
			}
			s.mustStart(t)
			fi, err := os.Stat(s.socket())
			if err != nil {
				t.Fatal(err)
			}
			st := fi.Sys().(*syscall.Stat_t)
			user, group := os.Getuid(), os.Getgid()
			if tt.user >= 0 {
				user = tt.user
			}
			if tt.group >= 0 {
				group = tt.group
			}
			if fi.Mode().Perm() != tt.mode || int(st.Uid) != user || int(st.Gid) != group {
				t.Errorf("mode %#o, owner %d:%d; want %#o, %d:%d", fi.Mode().Perm(), st.Uid, st.Gid, tt.mode, user, group)
			}
			for _, who := range []struct {
				user, group int
				in          bool
			}{{someUser, otherUser, tt.ownerIn}, {otherUser, someGroup, tt.groupIn}, {otherUser, otherUser, tt.otherIn}} {
				nc, err := dialAs(s.socket(), who.user, who.group)
				if !who.in {
					if !errors.Is(err, unix.EACCES) {
						t.Errorf("%d:%d: %v, want %v", who.user, who.group, err, unix.EACCES)
					}
					continue
				}
				if err != nil {
					t.Errorf("%d:%d: %v", who.user, who.group, err)
					continue
				}
				if _, err := negotiate(t, nc, "d").do(cmdRead, 0, 4096, nil); err != nil {
					t.Errorf("%d:%d: a read: %v", who.user, who.group, err)
				}
			}
		})
	}
}
