package admin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrInUse means that another process serves a socket.
var ErrInUse = errors.New("already served by another process")

// dialTimeout bounds the question whether anybody listens at a path.
const dialTimeout = 2 * time.Second

// A lockedListener is a unix listener that owns its path's lock until closed.
type lockedListener struct {
	*net.UnixListener
	lock *pathLock
	once sync.Once
	err  error
}

// Close implements net.Listener: it removes the socket and gives up the path.
func (l *lockedListener) Close() error {
	l.once.Do(func() { l.err = errors.Join(l.UnixListener.Close(), l.lock.release()) })
	return l.err
}

// ListenUnix listens on a unix socket at path, with the given permissions from
// the start; zero leaves them to the umask. A socket that nobody serves any more
// is replaced.
//
// Errors: ErrInUse; fs.ErrExist if something else than a socket is there.
func ListenUnix(ctx context.Context, path string, perm fs.FileMode) (net.Listener, error) {
	lock, err := lockPath(path + ".lock")
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	l, err := listenLocked(ctx, path, perm)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("socket %s: %w", path, err), lock.release())
	}
	return &lockedListener{UnixListener: l, lock: lock}, nil
}

// listenLocked listens while the lock file, which no tool can check, is held.
func listenLocked(ctx context.Context, path string, perm fs.FileMode) (*net.UnixListener, error) {
	if err := removeStale(ctx, path); err != nil {
		return nil, err
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		if perm == 0 {
			return nil
		}
		var err error
		// bind(2) gives the file the mode of the socket, so there is no moment at
		// which others could connect.
		if cerr := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), uint32(perm)) }); cerr != nil {
			return cerr
		}
		return err
	}}
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, plain(err)
	}
	return l.(*net.UnixListener), nil
}

// plain drops what net wraps around a system call's error.
func plain(err error) error {
	if oe, ok := errors.AsType[*net.OpError](err); ok {
		return oe.Err
	}
	return err
}

// removeStale removes a socket that nobody listens on.
func removeStale(ctx context.Context, path string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if fi.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%w, and is no socket: remove it or choose another path", fs.ErrExist)
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err == nil {
		_ = c.Close()
		return fmt.Errorf("%w: stop it or choose another path", ErrInUse)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("is anybody listening there? %w", plain(err))
	}
	return os.Remove(path)
}

// A pathLock is an exclusive lock on a file made for it. The kernel drops it
// when the process dies, however it dies.
type pathLock struct {
	f *os.File
}

// lockTries bounds how often lockPath meets a lock file that is being removed.
const lockTries = 100

func lockPath(path string) (*pathLock, error) {
	for range lockTries {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, fmt.Errorf("lock file: %w", err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			holder := readHolder(f)
			_ = f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, fmt.Errorf("%w%s: stop it or choose another path", ErrInUse, holder)
			}
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if isAt(f, path) {
			if err := writeHolder(f); err != nil {
				_ = f.Close()
				return nil, fmt.Errorf("lock file: %w", err)
			}
			return &pathLock{f: f}, nil
		}
		_ = f.Close() // its owner removed it between our open and our lock
	}
	return nil, fmt.Errorf("lock file %s comes and goes", path)
}

// isAt reports whether f is still what path names.
func isAt(f *os.File, path string) bool {
	mine, err := f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Lstat(path)
	return err == nil && os.SameFile(mine, there)
}

func writeHolder(f *os.File) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

func readHolder(f *os.File) string {
	var b [32]byte
	n, _ := f.ReadAt(b[:], 0)
	if pid, err := strconv.Atoi(strings.TrimSpace(string(b[:n]))); err == nil {
		return fmt.Sprintf(" (process %d)", pid)
	}
	return ""
}

// release removes the file while the lock is held, so that nobody can lock it
// and lose it afterwards.
func (l *pathLock) release() error {
	var err error
	if isAt(l.f, l.f.Name()) {
		err = os.Remove(l.f.Name())
	}
	return errors.Join(err, l.f.Close())
}
