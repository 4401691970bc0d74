package admin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrInUse means that another process serves a socket.
var ErrInUse = errors.New("already served by another process")

// dialTimeout bounds the check whether anybody listens at a path.
const dialTimeout = 2 * time.Second

// A Listener is a unix listener that owns its path's lock until closed.
type Listener struct {
	*net.UnixListener
	lock *pathLock
	// left is set while the path is another process's.
	left atomic.Bool
	// renewed is set while the socket at the path comes from Renew and is nobody else's
	// yet.
	renewed atomic.Bool
	// relocked is the same for the lock file, if it comes from Adopt.
	relocked atomic.Bool
	once     sync.Once
	err      error
}

// Close implements net.Listener. It removes the socket and gives up the path, unless they
// are another process's.
func (l *Listener) Close() error {
	l.once.Do(func() {
		release := l.lock.release
		if l.left.Load() && !l.relocked.Load() {
			release = l.lock.f.Close
		}
		l.SetUnlinkOnClose(!l.left.Load() || l.renewed.Load())
		l.err = errors.Join(l.UnixListener.Close(), release())
	})
	return l.err
}

// Leave makes Close leave the socket and the lock to another process, which shares them.
func (l *Listener) Leave() { l.left.Store(true) }

// Keep undoes Leave: the path is this process's, and the lock file says so.
func (l *Listener) Keep() error {
	l.left.Store(false)
	l.renewed.Store(false)
	l.relocked.Store(false)
	return writeHolder(l.lock.f)
}

// LockConn gives access to the descriptor of the lock, which another process
// can share.
func (l *Listener) LockConn() (syscall.RawConn, error) { return l.lock.f.SyscallConn() }

// Adopt makes a Listener from a socket and the lock of its path, both shared with the
// process that they come from. Close leaves them to that process until Keep is called. A
// lock file that somebody has removed is made again; Close then removes it, whether or not
// Keep was called. Adopt takes ownership of the two files, even if it fails.
//
// Errors: socket is not a listening unix socket, or lock is not the lock of its path.
func Adopt(socket, lock *os.File) (*Listener, error) {
	l, err := net.FileListener(socket)
	_ = socket.Close() // the listener has a duplicate
	if err != nil {
		return nil, errors.Join(plain(err), lock.Close())
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(fmt.Errorf("%s is no unix socket", l.Addr()), l.Close(), lock.Close())
	}
	a := &Listener{UnixListener: u, lock: &pathLock{f: lock, path: u.Addr().String() + lockSuffix}}
	a.Leave()
	if err := a.relock(); err != nil {
		return nil, errors.Join(err, l.Close(), lock.Close())
	}
	return a, nil
}

// relock makes the lock file again where somebody has removed it.
//
// Errors: there is another file, or another process is about to serve the path.
func (l *Listener) relock() error {
	path := l.lock.path
	if isAt(l.lock.f, path) {
		return nil
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("lock file %s is another file than that of the socket", path)
	}
	again, err := lockPath(path)
	if err != nil {
		return fmt.Errorf("lock file %s has been removed: %w", path, err)
	}
	_ = l.lock.f.Close() // nobody can find it any more
	l.lock = again
	l.relocked.Store(true)
	return nil
}

// Renew creates the socket of a Listener from Adopt again, as s says, where somebody has
// removed it. Close then removes it, whether or not Keep was called; a process that shares
// the old socket keeps that one.
//
// Errors: as ListenUnix, and l is then unchanged.
func (l *Listener) Renew(ctx context.Context, s UnixSocket) error {
	u, err := s.listenLocked(ctx)
	if err != nil {
		return fmt.Errorf("socket %s: %w", s.Path, err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.UnixListener.Close() // nothing has been accepted
	l.UnixListener = u
	l.renewed.Store(true)
	return nil
}

// A UnixSocket says how a unix socket is to be made.
type UnixSocket struct {
	Path string
	// Perm are the permissions from the start; zero leaves them to the umask.
	Perm fs.FileMode
	// UID and GID are the owner, -1 for whoever makes it.
	UID, GID int
}

// ListenUnix listens on a unix socket at path, with the given permissions from the start;
// zero leaves them to the umask. A socket that nobody serves any more is replaced.
//
// Errors: ErrInUse; fs.ErrExist if something other than a socket is there.
func ListenUnix(ctx context.Context, path string, perm fs.FileMode) (*Listener, error) {
	return UnixSocket{Path: path, Perm: perm, UID: -1, GID: -1}.Listen(ctx)
}

// Listen is ListenUnix for a socket with an owner.
func (s UnixSocket) Listen(ctx context.Context) (*Listener, error) {
	lock, err := lockPath(s.Path + lockSuffix)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", s.Path, err)
	}
	l, err := s.listenLocked(ctx)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("socket %s: %w", s.Path, err), lock.release())
	}
	return &Listener{UnixListener: l, lock: lock}, nil
}

// listenLocked listens while the lock file is held.
//
// +checklocksignore: no tool can check that.
func (s UnixSocket) listenLocked(ctx context.Context) (*net.UnixListener, error) {
	if err := removeStale(ctx, s.Path); err != nil {
		return nil, err
	}
	l, err := s.bind(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.Shape(); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// bind makes the socket. It never has a permission that Shape would not give it.
func (s UnixSocket) bind(ctx context.Context) (*net.UnixListener, error) {
	perm := s.Perm
	if s.UID >= 0 || s.GID >= 0 {
		perm = 0o600 // nobody else may connect before it has its owner
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		if perm == 0 {
			return nil
		}
		var err error
		// bind(2) gives the file the mode of the socket less the umask, so there is
		// no moment at which others could connect.
		if cerr := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), uint32(perm)) }); cerr != nil {
			return cerr
		}
		return err
	}}
	l, err := lc.Listen(ctx, "unix", s.Path)
	if err != nil {
		return nil, plain(err)
	}
	return l.(*net.UnixListener), nil
}

// Current returns an existing socket as it is now; its Shape undoes the Shape of another.
func Current(path string) (UnixSocket, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return UnixSocket{}, err
	}
	return UnixSocket{Path: path, Perm: fs.FileMode(st.Mode) & fs.ModePerm, UID: int(st.Uid), GID: int(st.Gid)}, nil
}

// Shape gives an existing socket its owner and permissions.
func (s UnixSocket) Shape() error {
	perm := s.Perm
	if s.UID >= 0 || s.GID >= 0 {
		if err := os.Lchown(s.Path, s.UID, s.GID); err != nil {
			return err
		}
		perm = cmp.Or(perm, ownedPerm)
	}
	if perm == 0 {
		return nil
	}
	return os.Chmod(s.Path, perm)
}

// ownedPerm are the permissions of a socket with an owner if none are specified.
const ownedPerm fs.FileMode = 0o660

// lockSuffix turns a socket's path into that of its lock.
const lockSuffix = ".lock"

// plain strips what net wraps around a system call's error.
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

// A pathLock is an exclusive lock on a file created for it. The kernel drops the lock when
// the process dies, however it dies.
type pathLock struct {
	f    *os.File
	path string
}

// lockTries bounds how often lockPath tries again after finding a lock file that is being
// removed.
const lockTries = 100

func lockPath(path string) (*pathLock, error) {
	for range lockTries {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) { // the lock file is not what is amiss
			return nil, fmt.Errorf("%w: make it or choose another path", &fs.PathError{Op: "folder", Path: filepath.Dir(path), Err: errors.Unwrap(err)})
		}
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
			return &pathLock{f: f, path: path}, nil
		}
		_ = f.Close() // its owner removed it between our open and our lock
	}
	return nil, fmt.Errorf("lock file %s comes and goes", path)
}

// isAt reports whether path still names f.
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

// release removes the file while the lock is held, so that nobody can lock the file and
// then lose it.
func (l *pathLock) release() error {
	var err error
	if isAt(l.f, l.path) {
		err = os.Remove(l.path)
	}
	return errors.Join(err, l.f.Close())
}
