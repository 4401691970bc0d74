package attach

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/mdlayher/genetlink"
	"golang.org/x/sys/unix"
)

// Bounds of what the kernel takes.
// Source: linux drivers/block/nbd.c, nbd_set_size (512 to PAGE_SIZE).
const (
	minBlockBytes = 512
	maxBlockBytes = 4096
)

// MaxConnections is the most connections that Attach makes.
const MaxConnections = 64

// freeTries bounds how many lost races Attach takes before it gives up.
const freeTries = 64

// Options say what to attach and how.
type Options struct {
	Server Server
	// Connections is how many sockets the device uses, 1 to MaxConnections.
	// More than one needs a server that promises NBD_FLAG_CAN_MULTI_CONN.
	Connections int
	// Timeout is after what time without an answer the kernel gives a connection
	// up; zero waits for ever.
	Timeout time.Duration
	// DeadConnTimeout is how long the kernel holds requests back, waiting for a
	// new connection, once none is left; zero fails them at once. The kernel
	// counts both in whole seconds; fractions are rounded up.
	DeadConnTimeout time.Duration
	// BlockBytes is the device's logical block, 512 to 4096; zero is the server's
	// smallest, at least 512.
	BlockBytes uint32
	// Device is "/dev/nbdN", or empty for any that is free.
	Device string
}

// Check reports what is wrong with o, as far as that can be seen without asking
// server or kernel.
func (o *Options) Check() error { return o.check(&thisKernel().sysfs) }

func (o *Options) check(s *sysfs) error {
	if o.Connections < 1 || o.Connections > MaxConnections {
		return fmt.Errorf("%d connections: want 1 to %d", o.Connections, MaxConnections)
	}
	if b := o.BlockBytes; b != 0 && (b < minBlockBytes || b > maxBlockBytes || b&(b-1) != 0) {
		return fmt.Errorf("block size %d: want 512, 1024, 2048 or 4096", b)
	}
	if o.Device != "" {
		return checkDevice(s, o.Device)
	}
	return nil
}

// CheckDevice reports whether device is not the name of an nbd device.
func CheckDevice(device string) error { return checkDevice(&thisKernel().sysfs, device) }

func checkDevice(s *sysfs, device string) error {
	_, err := s.index(device)
	return err
}

// A Device is an attached export.
type Device struct {
	Path        string `json:"device"`
	Export      string `json:"export"`
	SizeBytes   uint64 `json:"size_bytes"`
	BlockBytes  uint32 `json:"block_bytes"`
	ReadOnly    bool   `json:"read_only"`
	Connections int    `json:"connections"`
}

// kernel is the machine under the package; tests have their own.
type kernel struct {
	dial func() (*genetlink.Conn, error)
	sysfs
	// openExclusive opens a device's file for exclusive use and closes it.
	openExclusive func(path string) error
}

func thisKernel() *kernel {
	return &kernel{
		dial:          func() (*genetlink.Conn, error) { return genetlink.Dial(nil) },
		sysfs:         sysfs{block: "/sys/block", dev: "/dev"},
		openExclusive: openExclusive,
	}
}

func openExclusive(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// Attach connects a device and waits until it is usable. ctx bounds all of it;
// when it ends too early the device is let go again.
//
// Errors: ErrNoModule, ErrNoPrivilege, ErrBusy and whatever the server says.
func Attach(ctx context.Context, o Options) (Device, error) { return thisKernel().attach(ctx, o) }

// Detach disconnects a device and waits until nothing of it is left. Unless
// force is set it refuses a device that is mounted or otherwise claimed.
//
// Errors: ErrNoModule, ErrNoPrivilege, ErrBusy.
func Detach(ctx context.Context, device string, force bool) error {
	return thisKernel().detach(ctx, device, force)
}

func (k *kernel) open() (*driver, error) {
	conn, err := k.dial()
	if err != nil {
		return nil, fmt.Errorf("generic netlink: %w", err)
	}
	return openDriver(conn)
}

func (k *kernel) attach(ctx context.Context, o Options) (Device, error) {
	if err := o.check(&k.sysfs); err != nil {
		return Device{}, err
	}
	d, err := k.open()
	if err != nil {
		return Device{}, err
	}
	defer func() { _ = d.close() }()
	conns, info, err := dialAll(ctx, o.Server, o.Connections)
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	if err != nil {
		return Device{}, err
	}
	block, err := blockBytes(o.BlockBytes, info)
	if err != nil {
		return Device{}, err
	}
	req := connectRequest{
		sizeBytes: info.sizeBytes &^ (uint64(block) - 1), blockBytes: uint64(block),
		timeout: o.Timeout, deadConnTimeout: o.DeadConnTimeout, serverFlags: info.flags,
	}
	if req.sizeBytes == 0 {
		return Device{}, fmt.Errorf("export %q of %d bytes has not one block of %d", o.Server.Export, info.sizeBytes, block)
	}
	// withFDs keeps the sockets open and ours until the kernel has them.
	err = withFDs(conns, nil, func(fds []uintptr) error {
		req.fds = fds
		return k.connect(d, &req, o.Device)
	})
	if err != nil {
		return Device{}, err
	}
	if st, err := k.wait(ctx, req.index, (*deviceState).usable); err != nil {
		return Device{}, errors.Join(fmt.Errorf("%s was attached but did not become usable (%s): %w", k.path(req.index), &st, err),
			d.disconnect(req.index))
	}
	return Device{
		Path: k.path(req.index), Export: o.Server.Export, SizeBytes: req.sizeBytes, BlockBytes: block,
		ReadOnly: info.flags&flagReadOnly != 0, Connections: o.Connections,
	}, nil
}

// blockBytes chooses the device's block size.
func blockBytes(want uint32, info exportInfo) (uint32, error) {
	least := max(info.minBlockBytes, minBlockBytes)
	if least > maxBlockBytes || least&(least-1) != 0 {
		return 0, fmt.Errorf("the server's smallest block is %d bytes: the kernel takes powers of two up to %d", info.minBlockBytes, maxBlockBytes)
	}
	if want == 0 {
		return least, nil
	}
	if want < least {
		return 0, fmt.Errorf("block size %d: the server's smallest block is %d bytes", want, least)
	}
	return want, nil
}

// dialAll negotiates n connections to one export. On an error it returns those
// it has made.
func dialAll(ctx context.Context, s Server, n int) ([]net.Conn, exportInfo, error) {
	var conns []net.Conn
	var first exportInfo
	for i := range n {
		c, info, err := dial(ctx, s)
		if err != nil {
			return conns, info, err
		}
		conns = append(conns, c)
		if i == 0 {
			first = info
		}
		switch {
		case info.flags&flagHasFlags == 0:
			return conns, info, fmt.Errorf("the server's transmission flags %#x lack NBD_FLAG_HAS_FLAGS", info.flags)
		case n > 1 && info.flags&flagMultiConn == 0:
			return conns, info, fmt.Errorf("%d connections: the server does not promise that a flush on one covers the others (NBD_FLAG_CAN_MULTI_CONN): use one", n)
		case info != first:
			return conns, info, fmt.Errorf("connection %d was told %+v, the first %+v: did the export change meanwhile?", i, info, first)
		}
	}
	return conns, first, nil
}

// withFDs calls fn with the descriptors of conns. Each is held inside its
// RawConn's Control, so that none can be closed and reused meanwhile.
func withFDs(conns []net.Conn, fds []uintptr, fn func([]uintptr) error) error {
	if len(conns) == 0 {
		return fn(fds)
	}
	sc, ok := conns[0].(syscall.Conn)
	if !ok {
		return fmt.Errorf("a %T has no descriptor", conns[0])
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) { inner = withFDs(conns[1:], append(fds, fd), fn) })
	return errors.Join(err, inner)
}

// connect hands the sockets over, to the device named or to one that is free,
// whose number it leaves in r.
func (k *kernel) connect(d *driver, r *connectRequest, device string) error {
	if device != "" {
		var err error
		if r.index, err = k.index(device); err != nil {
			return err
		}
		st, err := k.state(r.index)
		if err != nil {
			return err
		}
		if !st.free() {
			return fmt.Errorf("%s is %w: %s: detach it first (`vhbad detach %s`) or take another", k.path(r.index), ErrBusy, &st, k.path(r.index))
		}
		if err := d.connect(*r); err != nil {
			return fmt.Errorf("%s: %w", k.path(r.index), err)
		}
		return nil
	}
	next, tries := 0, 0
	for {
		index, err := k.freeFrom(next)
		if err != nil {
			return err
		}
		r.index = index
		err = d.connect(*r)
		if err == nil {
			return nil
		}
		if tries++; !errors.Is(err, ErrBusy) || tries == freeTries {
			return fmt.Errorf("%s: %w", k.path(index), err)
		}
		next = index + 1 // somebody was faster
	}
}

// freeFrom finds the first free device of number least or above. If there is
// none it returns the number after the last, which the kernel then creates.
func (k *kernel) freeFrom(least int) (int, error) {
	all, err := k.indices()
	if err != nil {
		return 0, err
	}
	end := least
	for _, i := range all {
		if i < least {
			continue
		}
		st, err := k.state(i)
		if err != nil {
			return 0, err
		}
		if st.free() {
			return i, nil
		}
		end = i + 1
	}
	return end, nil
}

func (k *kernel) detach(ctx context.Context, device string, force bool) error {
	index, err := k.index(device)
	if err != nil {
		return err
	}
	path := k.path(index)
	d, err := k.open()
	if err != nil {
		return err
	}
	defer func() { _ = d.close() }()
	st, err := k.state(index)
	if err != nil {
		return err
	}
	switch {
	case !st.exists:
		return fmt.Errorf("%s: %w", path, os.ErrNotExist)
	case st.pid == 0:
		return fmt.Errorf("%s is not attached", path)
	case !force && len(st.holders) > 0:
		return fmt.Errorf("%s is %w: held by %v: stop that first, or use --force", path, ErrBusy, st.holders)
	}
	if !force {
		if err := k.openExclusive(path); errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("%s is %w: mounted, or claimed by another program: unmount it first, or use --force", path, ErrBusy)
		}
	}
	if err := d.disconnect(index); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if st, err = k.wait(ctx, index, (*deviceState).free); err != nil {
		return fmt.Errorf("%s was disconnected, but something still uses it (%s): %w", path, &st, err)
	}
	return nil
}
