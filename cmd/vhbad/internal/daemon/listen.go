package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"github.com/vhbad/vhbad/cmd/vhbad/internal/admin"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/sandbox"
	"github.com/vhbad/vhbad/nbd"
)

// What a listening socket is for.
const (
	purposeNBD   = "nbd"
	purposeAdmin = "admin"
	purposeHTTP  = "http"
)

// A socket is a listening socket and what it is for.
type socket struct {
	net.Listener
	purpose string
	// origin is the configured address that the socket is for; empty if a service manager
	// opened it.
	origin string
	// gone is set before the socket is closed on purpose.
	gone atomic.Bool
}

// origin returns the origin of a socket for an address.
func origin(a config.Address) string {
	return config.Address{Network: a.Network, Target: a.Target}.String()
}

// openNBD opens the addresses of the configuration, or takes them over.
func (d *Daemon) openNBD(ctx context.Context) error {
	for _, a := range d.o.Config.Listen {
		l, err := d.o.Predecessor.take(purposeNBD, origin(a))
		switch {
		case err != nil:
		case l == nil:
			l, err = listen(ctx, a)
			err = d.o.Predecessor.inTheWay(a, err)
		case isRemoved(a):
			err = renew(ctx, l, a)
		case a.Mode != 0 || a.Owner != "":
			var u admin.UnixSocket
			u, err = unixSocket(a)
			d.reshape = append(d.reshape, u)
		}
		if err != nil {
			if l != nil {
				_ = l.Close() // it is the predecessor's
			}
			return fmt.Errorf("listen on %s: %w", a, err)
		}
		d.sockets = append(d.sockets, &socket{Listener: l, purpose: purposeNBD, origin: origin(a)})
	}
	return d.adoptManaged()
}

// isRemoved reports whether the socket file of an address that is being served has been
// removed, so that nobody can connect by it any more.
func isRemoved(a config.Address) bool {
	if a.Network != "unix" {
		return false
	}
	_, err := os.Lstat(a.Target)
	return errors.Is(err, fs.ErrNotExist)
}

// renew creates the socket file of an address again whose listener was taken over.
func renew(ctx context.Context, l net.Listener, a config.Address) error {
	u, err := unixSocket(a)
	if err != nil {
		return err
	}
	own, ok := l.(*admin.Listener)
	if !ok {
		return errors.New("the socket has been removed, and came without its lock")
	}
	return own.Renew(ctx, u)
}

// adoptManaged takes over the sockets that a service manager gave to the
// predecessor, unless it gave the same to this process.
func (d *Daemon) adoptManaged() error {
	for {
		l, err := d.o.Predecessor.take(purposeNBD, "")
		if l == nil || err != nil {
			return err
		}
		for _, s := range d.sockets {
			if s.purpose == purposeNBD && endpointURI(s.Addr()) == endpointURI(l.Addr()) {
				_ = l.Close() // this process has the same socket already
				l = nil
				break
			}
		}
		if l != nil {
			d.sockets = append(d.sockets, &socket{Listener: l, purpose: purposeNBD})
		}
	}
}

// serveNBD serves the sockets of openNBD.
func (d *Daemon) serveNBD(m *machine) {
	d.push("clients", func(ctx context.Context) error {
		err := m.server.Shutdown(ctx)
		d.accepting.Wait()
		return err
	})
	for _, s := range d.sockets {
		if s.purpose == purposeNBD {
			d.serveSocket(m, s)
		}
	}
}

// serveSocket serves one socket until it is closed.
func (d *Daemon) serveSocket(m *machine, s *socket) {
	hint := ""
	if disks := m.list(); len(disks) > 0 {
		hint = attachHint(s.Addr(), disks[0].config(), &d.o.Config.TLS)
	}
	d.mu.Lock()
	d.endpoints = append(d.endpoints, Endpoint{URI: endpointURI(s.Addr()), AttachHint: hint})
	d.mu.Unlock()
	d.accepting.Go(func() {
		err := m.server.Serve(s.Listener)
		if errors.Is(err, nbd.ErrServerClosed) || s.gone.Load() {
			return
		}
		select {
		case d.failed <- err:
		default: // one error is enough to stop for
		}
	})
}

// accept adds a socket to those that are served. The caller holds changing.
func (d *Daemon) accept(m *machine, s *socket) {
	d.sockets = append(d.sockets, s)
	d.serveSocket(m, s)
}

// shut closes a socket that is being served. Connections accepted from it stay. The caller
// holds changing.
func (d *Daemon) shut(s *socket) {
	uri := endpointURI(s.Addr())
	s.gone.Store(true)
	if err := s.Close(); err != nil {
		d.log.Warn("cannot close a listener well", "listener", uri, "error", err)
	}
	d.sockets = slices.DeleteFunc(d.sockets, func(x *socket) bool { return x == s })
	d.mu.Lock()
	defer d.mu.Unlock()
	if i := slices.IndexFunc(d.endpoints, func(e Endpoint) bool { return e.URI == uri }); i >= 0 {
		d.endpoints = slices.Delete(d.endpoints, i, i+1)
	}
}

// serveSingle serves the one client of Options.Single.
func (d *Daemon) serveSingle(m *machine) {
	stopped := make(chan struct{})
	var l net.Listener
	if d.o.Conn == nil {
		l = d.o.Inherited.NBD[0]
		d.mu.Lock()
		d.endpoints = []Endpoint{{URI: endpointURI(l.Addr()), AttachHint: attachHint(l.Addr(), &d.o.Config.Disks[0], &d.o.Config.TLS)}}
		d.mu.Unlock()
	}
	d.push("client", func(ctx context.Context) error {
		if l != nil {
			_ = l.Close() // it may be closed already, after the first client
		}
		err := m.server.Shutdown(ctx)
		if err == nil {
			<-stopped
		}
		return err
	})
	go func() {
		defer close(stopped)
		defer close(d.clientGone)
		nc := d.o.Conn
		if nc == nil {
			var err error
			if nc, err = l.Accept(); err != nil {
				d.log.Debug("no client came", "error", err)
				return
			}
			_ = l.Close() // no other client is waited for
		}
		if err := m.server.ServeConn(nc); err != nil {
			d.failed <- err
		}
	}()
}

func listen(ctx context.Context, a config.Address) (net.Listener, error) {
	switch a.Network {
	case "unix":
		s, err := unixSocket(a)
		if err != nil {
			return nil, err
		}
		l, err := s.Listen(ctx)
		if err != nil {
			return nil, err
		}
		return l, nil
	case "vsock":
		return listenVsock(a.Target)
	}
	l, err := listenTCP(a.Target, func(network, address string) (net.Listener, error) {
		return new(net.ListenConfig).Listen(ctx, network, address)
	})
	if err != nil {
		return nil, plain(err)
	}
	return l, nil
}

// listenTCP listens on HOST:PORT. Where there is no IPv6, "all addresses of the machine"
// and localhost mean those of IPv4. localhost also means IPv4's where no name can be looked
// up, as in the sandbox.
func listenTCP(target string, listen func(network, address string) (net.Listener, error)) (net.Listener, error) {
	l, err := listen("tcp", target)
	if err == nil {
		return l, nil
	}
	host, port, splitErr := net.SplitHostPort(target)
	noIPv6 := errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EPROTONOSUPPORT)
	_, noNames := errors.AsType[*net.DNSError](err)
	if splitErr != nil || !noIPv6 && !noNames || (host != "" && host != "::" && host != "localhost") {
		return nil, err
	}
	v4 := map[string]string{"localhost": "127.0.0.1"}[host]
	if l, v4err := listen("tcp4", net.JoinHostPort(v4, port)); v4err == nil {
		return l, nil
	}
	return nil, err
}

// unixSocket resolves the owner of an address to numbers.
func unixSocket(a config.Address) (admin.UnixSocket, error) {
	s := admin.UnixSocket{Path: a.Target, Perm: a.Mode, UID: -1, GID: -1}
	name, group, _ := strings.Cut(a.Owner, ":")
	var err error
	if name != "" {
		s.UID, err = numberOf("user", name, func() (string, error) {
			u, err := user.Lookup(name)
			if err != nil {
				return "", err
			}
			return u.Uid, nil
		})
	}
	if err == nil && group != "" {
		s.GID, err = numberOf("group", group, func() (string, error) {
			g, err := user.LookupGroup(group)
			if err != nil {
				return "", err
			}
			return g.Gid, nil
		})
	}
	return s, err
}

// reshape gives existing sockets their owners and permissions. undo, which is to be called
// even if reshape fails, gives them back what they had.
func reshape(sockets []admin.UnixSocket) (undo func() error, err error) {
	var had []admin.UnixSocket
	undo = func() error {
		var errs []error
		for _, u := range had {
			errs = append(errs, u.Shape())
		}
		return errors.Join(errs...)
	}
	for _, u := range sockets {
		was, err := admin.Current(u.Path)
		if err == nil {
			had = append(had, was)
			err = u.Shape()
		}
		if err != nil {
			return undo, fmt.Errorf("socket %s: %w", u.Path, err)
		}
	}
	return undo, nil
}

// owners caches the numbers that numberOf has found, by kind and name.
var owners sync.Map

// numberOf returns the number of a user or a group, which is given as a number or as a name
// to look up. In the sandbox nothing can be looked up, so numbers found earlier are used.
func numberOf(kind, name string, lookUp func() (string, error)) (int, error) {
	if n, err := strconv.Atoi(name); err == nil {
		return n, nil
	}
	key := kind + " " + name
	id, err := lookUp()
	switch {
	case err == nil:
	case sandbox.Entered():
		if n, ok := owners.Load(key); ok {
			return n.(int), nil
		}
		return -1, fmt.Errorf("owner %q: cannot be looked up in the sandbox: want its number, or restart", name)
	default:
		return -1, fmt.Errorf("owner %q: no such %s", name, kind)
	}
	n, err := strconv.Atoi(id)
	if err != nil {
		return -1, err
	}
	owners.Store(key, n)
	return n, nil
}

// A vsockListener is a vsock.Listener that gives access to its descriptor.
type vsockListener struct {
	*vsock.Listener
	f *os.File // a duplicate
}

// Close implements net.Listener.
func (l *vsockListener) Close() error { return errors.Join(l.Listener.Close(), l.f.Close()) }

// SyscallConn implements syscall.Conn.
func (l *vsockListener) SyscallConn() (syscall.RawConn, error) { return l.f.SyscallConn() }

func newVsockListener(f *os.File) (net.Listener, error) {
	l, err := vsock.FileListener(f)
	if err != nil {
		_ = f.Close() // it was only to be listened on
		return nil, err
	}
	return &vsockListener{Listener: l, f: f}, nil
}

func listenVsock(target string) (net.Listener, error) {
	cid, port, err := config.ParseVsock(target)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: this kernel has no vsock", err)
	}
	f := os.NewFile(uintptr(fd), "vsock://"+target)
	err = unix.Bind(fd, &unix.SockaddrVM{CID: cid, Port: port})
	if err == nil {
		err = unix.Listen(fd, unix.SOMAXCONN)
	}
	if err != nil {
		_ = f.Close() // nothing was ever accepted
		return nil, plain(&net.OpError{Op: "listen", Net: "vsock", Addr: &vsock.Addr{ContextID: cid, Port: port}, Err: err})
	}
	return newVsockListener(f)
}

// listenerOf makes a listener of a listening socket, which it takes over.
func listenerOf(f *os.File) (net.Listener, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	var domain, listening int
	var callErr error
	err = raw.Control(func(fd uintptr) {
		if domain, callErr = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN); callErr == nil {
			listening, callErr = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
		}
	})
	if err = errors.Join(err, callErr); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if listening == 0 {
		return nil, errors.Join(errors.New("nobody called listen on it"), f.Close())
	}
	if domain == unix.AF_VSOCK {
		return newVsockListener(f)
	}
	l, err := net.FileListener(f)
	_ = f.Close() // the listener has a duplicate
	if err != nil {
		return nil, plain(err)
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false) // the path belongs to whoever opened it
	}
	return l, nil
}

// plain strips what package net wraps around a system call's error, and says what to do
// about the usual ones.
func plain(err error) error {
	var at net.Addr
	if oe, ok := errors.AsType[*net.OpError](err); ok {
		err, at = oe.Err, oe.Addr
	}
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%w: stop the program that serves it or choose another address", err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("%w: want an address of this machine", err)
	case errors.Is(err, syscall.EACCES) && isPrivileged(at):
		return fmt.Errorf("%w: ports below 1024 need root", err)
	}
	return err
}

// isPrivileged reports whether only root may listen at an address, as long as nobody has
// changed that.
//
// Source: ip(7), ip_unprivileged_port_start; LAST_RESERVED_PORT of the kernel's vsock.
func isPrivileged(a net.Addr) bool {
	const unprivileged = 1024
	switch a := a.(type) {
	case *net.TCPAddr:
		return 0 < a.Port && a.Port < unprivileged
	case *vsock.Addr:
		return a.Port < unprivileged
	}
	return false
}

// firstInheritedFD is the first descriptor of socket activation.
// Source: sd_listen_fds(3), SD_LISTEN_FDS_START.
const firstInheritedFD = 3

// maxInherited bounds LISTEN_FDS.
const maxInherited = 1024

// Sockets are listening sockets that a service manager has opened.
type Sockets struct {
	NBD []net.Listener
	// Admin and HTTP are nil unless descriptors are named "admin" and "http".
	Admin, HTTP net.Listener
}

// All returns all of them.
func (s *Sockets) All() []net.Listener {
	all := append([]net.Listener{}, s.NBD...)
	for _, l := range []net.Listener{s.Admin, s.HTTP} {
		if l != nil {
			all = append(all, l)
		}
	}
	return all
}

// close closes them all.
func (s *Sockets) close() {
	for _, l := range s.All() {
		_ = l.Close() // nothing has been accepted
	}
}

// Inherited takes over the listening sockets that a service manager passes to
// this process, and unsets the variables that say so. There are none if the
// variables are absent or meant for another process. A descriptor that is named
// "admin" or "http" is for that; all others are for NBD.
//
// Source: sd_listen_fds(3).
func Inherited() (Sockets, error) {
	pid, fds, names := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS"), os.Getenv("LISTEN_FDNAMES")
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		if err := os.Unsetenv(name); err != nil {
			return Sockets{}, err
		}
	}
	if fds == "" || pid != strconv.Itoa(os.Getpid()) {
		return Sockets{}, nil
	}
	n, err := strconv.Atoi(fds)
	if err != nil || n < 0 || n > maxInherited {
		return Sockets{}, fmt.Errorf("LISTEN_FDS=%q: want 0 to %d", fds, maxInherited)
	}
	name := make([]string, n)
	if names != "" {
		if name = strings.Split(names, ":"); len(name) != n {
			return Sockets{}, fmt.Errorf("LISTEN_FDNAMES=%q has %d names: want LISTEN_FDS=%s", names, len(name), fds)
		}
	}
	var out Sockets
	for i := range n {
		fd := firstInheritedFD + i
		syscall.CloseOnExec(fd)
		l, err := listenerOf(os.NewFile(uintptr(fd), "inherited socket "+strconv.Itoa(fd)))
		if err != nil {
			out.close()
			return Sockets{}, fmt.Errorf("LISTEN_FDS=%s: descriptor %d: %w: want listening TCP, unix or vsock sockets", fds, fd, err)
		}
		if _, isUnix := l.(*net.UnixListener); name[i] == purposeAdmin && !isUnix {
			_ = l.Close() // nothing has been accepted
			out.close()
			return Sockets{}, fmt.Errorf("LISTEN_FDNAMES=%q: descriptor %d, %q, is on %s: control is on a unix socket only", names, fd, purposeAdmin, endpointURI(l.Addr()))
		}
		one := map[string]*net.Listener{purposeAdmin: &out.Admin, purposeHTTP: &out.HTTP}[name[i]]
		switch {
		case one == nil:
			out.NBD = append(out.NBD, l)
		case *one == nil:
			*one = l
		default:
			_ = l.Close() // nothing has been accepted
			out.close()
			return Sockets{}, fmt.Errorf("LISTEN_FDNAMES=%q: two sockets are called %q: want one", names, name[i])
		}
	}
	return out, nil
}

func endpointURI(a net.Addr) string {
	if v, ok := a.(*vsock.Addr); ok {
		cid := strconv.FormatUint(uint64(v.ContextID), 10)
		if v.ContextID == config.VsockAny {
			cid = "any"
		}
		return fmt.Sprintf("vsock://%s:%d", cid, v.Port)
	}
	return a.Network() + "://" + a.String()
}

// attachHint returns a command line that attaches a disk or, for vsock, which the kernel
// does not support, one that copies it. Where TLS is required, the client's files are
// expected in its working directory.
//
// Source: nbd-client(8) 3.24.
func attachHint(a net.Addr, d *config.Disk, t *config.TLS) string {
	words, secure := []string{"sudo modprobe nbd; sudo nbd-client"}, t.Mode == config.TLSRequired || d.TLSOnly || len(d.Allow) > 0
	if v, ok := a.(*vsock.Addr); ok {
		cid := v.ContextID
		if cid == config.VsockAny {
			cid = config.VsockHost // as seen by a guest
		}
		scheme := "nbd"
		if secure {
			scheme = "nbds"
		}
		return fmt.Sprintf("nbdcopy %s copy.img", shellQuote(fmt.Sprintf(scheme+"+vsock://%d:%d/%s", cid, v.Port, url.PathEscape(d.Name))))
	}
	tcp, isTCP := a.(*net.TCPAddr)
	if !isTCP {
		words = append(words, "-unix", shellQuote(a.String()))
	}
	words = append(words, "-N", shellQuote(d.Name))
	if d.BlockSize > config.BlockBytes512 {
		words = append(words, "-b", strconv.FormatInt(int64(d.BlockSize), 10))
	}
	if secure {
		words = append(words, "-enable-tls")
		if t.VerifyPeer {
			words = append(words, "-certfile client-cert.pem -keyfile client-key.pem")
		}
	}
	if isTCP {
		host := tcp.IP.String()
		if tcp.IP == nil || tcp.IP.IsUnspecified() {
			host = "127.0.0.1"
		}
		words = append(words, host, strconv.Itoa(tcp.Port))
	}
	return strings.Join(append(words, "/dev/nbd0"), " ")
}

// shellQuote quotes s as one word of a POSIX shell.
func shellQuote(s string) string {
	const plainBytes = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:@%+=,"
	if s != "" && strings.Trim(s, plainBytes) == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
