package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/vhbad/vhbad/cmd/vhbad/internal/admin"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
	"github.com/vhbad/vhbad/nbd"
)

// startListeners opens the addresses and serves them.
func (d *Daemon) startListeners(ctx context.Context, m *machine) error {
	listeners := d.o.Inherited
	// Whatever opens must be closed if a later one does not open; once served,
	// Shutdown does it.
	opened := []net.Listener{}
	closeOpened := func() {
		for _, l := range opened {
			_ = l.Close()
		}
	}
	for _, a := range d.o.Config.Listen {
		l, err := listen(ctx, a)
		if err != nil {
			closeOpened()
			return fmt.Errorf("listen on %s: %w", a, err)
		}
		opened = append(opened, l)
	}
	listeners = append(slices.Clip(listeners), opened...)
	stopped := make(chan struct{}, len(listeners))
	d.push("clients", func(ctx context.Context) error {
		err := m.server.Shutdown(ctx)
		for range listeners {
			<-stopped
		}
		return err
	})
	for _, l := range listeners {
		d.endpoints = append(d.endpoints, Endpoint{
			URI:        endpointURI(l.Addr()),
			AttachHint: attachHint(l.Addr(), &d.o.Config.Disks[0]),
		})
		go func() {
			err := m.server.Serve(l)
			if !errors.Is(err, nbd.ErrServerClosed) {
				select {
				case d.failed <- err:
				default: // one is enough to stop for
				}
			}
			stopped <- struct{}{}
		}()
	}
	return nil
}

func listen(ctx context.Context, a config.Address) (net.Listener, error) {
	if a.Network == "unix" {
		return admin.ListenUnix(ctx, a.Target, 0)
	}
	l, err := new(net.ListenConfig).Listen(ctx, a.Network, a.Target)
	if err != nil {
		return nil, plain(err)
	}
	return l, nil
}

// plain drops what package net wraps around a system call's error, and says what
// to do about the usual ones.
func plain(err error) error {
	if oe, ok := errors.AsType[*net.OpError](err); ok {
		err = oe.Err
	}
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%w: stop the program that serves it or choose another address", err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("%w: want an address of this machine", err)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("%w: ports below 1024 need root", err)
	}
	return err
}

// firstInheritedFD is the first descriptor of socket activation.
// Source: sd_listen_fds(3), SD_LISTEN_FDS_START.
const firstInheritedFD = 3

// maxInherited bounds LISTEN_FDS.
const maxInherited = 1024

// Inherited takes over the listening sockets that a service manager passes to
// this process, and unsets the variables that say so. There are none if the
// variables are absent or meant for another process.
//
// Source: sd_listen_fds(3).
func Inherited() ([]net.Listener, error) {
	pid, fds := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS")
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		if err := os.Unsetenv(name); err != nil {
			return nil, err
		}
	}
	if fds == "" || pid != strconv.Itoa(os.Getpid()) {
		return nil, nil
	}
	n, err := strconv.Atoi(fds)
	if err != nil || n < 0 || n > maxInherited {
		return nil, fmt.Errorf("LISTEN_FDS=%q: want 0 to %d", fds, maxInherited)
	}
	var out []net.Listener
	for fd := firstInheritedFD; fd < firstInheritedFD+n; fd++ {
		syscall.CloseOnExec(fd)
		f := os.NewFile(uintptr(fd), "inherited socket "+strconv.Itoa(fd))
		l, err := net.FileListener(f)
		_ = f.Close() // the listener has a duplicate
		if err != nil {
			for _, l := range out {
				_ = l.Close()
			}
			return nil, fmt.Errorf("LISTEN_FDS=%s: descriptor %d: %w: want listening TCP or unix sockets", fds, fd, plain(err))
		}
		if u, ok := l.(*net.UnixListener); ok {
			u.SetUnlinkOnClose(false) // the path is the service manager's
		}
		out = append(out, l)
	}
	return out, nil
}

func endpointURI(a net.Addr) string { return a.Network() + "://" + a.String() }

// attachHint is the nbd-client command line for a disk.
//
// Source: nbd-client(8) 3.24.
func attachHint(a net.Addr, d *config.Disk) string {
	words := []string{"sudo modprobe nbd; sudo nbd-client"}
	tcp, isTCP := a.(*net.TCPAddr)
	if !isTCP {
		words = append(words, "-unix", shellQuote(a.String()))
	}
	words = append(words, "-N", shellQuote(d.Name))
	if d.BlockSize > config.BlockBytes512 {
		words = append(words, "-b", strconv.FormatInt(int64(d.BlockSize), 10))
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

// shellQuote makes s one word of a POSIX shell.
func shellQuote(s string) string {
	const plainBytes = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:@%+=,"
	if s != "" && strings.Trim(s, plainBytes) == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
