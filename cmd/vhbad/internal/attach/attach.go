package attach

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
	"unicode"

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

// freeTries bounds how many races Attach may lose before it gives up.
const freeTries = 64

// Options say what to attach and how.
type Options struct {
	Server Server
	// Connections is how many sockets the device uses, 1 to MaxConnections.
	// More than one needs a server that promises NBD_FLAG_CAN_MULTI_CONN.
	Connections int
	// Timeout is how long the kernel waits for an answer before it gives a connection up;
	// zero waits for ever.
	Timeout time.Duration
	// DeadConnTimeout is how long the kernel holds requests back when no connection is
	// left, waiting for a new one; zero fails them at once. The kernel counts both timeouts
	// in whole seconds; fractions are rounded up.
	DeadConnTimeout time.Duration
	// BlockBytes is the device's logical block, 512 to 4096; zero is the server's
	// smallest, at least 512.
	BlockBytes uint32
	// BackendID names what is behind the device, at most MaxBackendID printable
	// bytes: kernels since 5.14 show it as /sys/block/nbdN/backend. Empty means
	// Server.String.
	BackendID string
	// Device is "/dev/nbdN", or empty for any that is free.
	Device string
}

// MaxBackendID is the most bytes of a backend identifier. The kernel prints it into one
// page without checking its length.
const MaxBackendID = 255

// Check reports what is wrong with o, as far as that can be seen without asking the server
// or the kernel.
func (o *Options) Check() error { return o.check(&thisKernel().sysfs) }

func (o *Options) check(s *sysfs) error {
	if o.Connections < 1 || o.Connections > MaxConnections {
		return fmt.Errorf("%d connections: want 1 to %d", o.Connections, MaxConnections)
	}
	if b := o.BlockBytes; b != 0 && (b < minBlockBytes || b > maxBlockBytes || b&(b-1) != 0) {
		return fmt.Errorf("block size %d: want 512, 1024, 2048 or 4096", b)
	}
	if len(o.BackendID) > MaxBackendID || strings.ContainsFunc(o.BackendID, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return fmt.Errorf("backend identifier %.40q of %d bytes: want at most %d, all printable", o.BackendID, len(o.BackendID), MaxBackendID)
	}
	if o.Device != "" {
		return checkDevice(s, o.Device)
	}
	return nil
}

// backendID returns the identifier given to the kernel. It depends on nothing but the
// options, so attaching the same export again gives the same identifier.
func (o *Options) backendID() string {
	id := o.BackendID
	if id == "" {
		id = o.Server.String()
	}
	if len(id) > MaxBackendID {
		sum := sha256.Sum256([]byte(id))
		id = "nbd-sha256:" + hex.EncodeToString(sum[:])
	}
	return id
}

// CheckDevice returns an error unless device is the name of an nbd device.
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
	BackendID   string `json:"backend_id"`
}

// kernel is the machine that the package works on; tests substitute their own.
type kernel struct {
	dial func() (*genetlink.Conn, error)
	sysfs
	// openExclusive opens a device's file for exclusive use and closes it.
	openExclusive func(path string) error
	// listen is listenLinkDead.
	listen func(died func(index int)) (stop func(), err error)
	// runs reports whether a process is there.
	runs func(pid int) bool
}

func thisKernel() *kernel {
	return &kernel{
		dial:          func() (*genetlink.Conn, error) { return genetlink.Dial(nil) },
		sysfs:         sysfs{block: "/sys/block", dev: "/dev"},
		openExclusive: openExclusive,
		listen:        listenLinkDead,
		runs:          func(pid int) bool { return !errors.Is(unix.Kill(pid, 0), unix.ESRCH) },
	}
}

func openExclusive(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// Attach connects a device and waits until it is usable. ctx bounds the whole operation; if
// it ends too early, the device is disconnected again.
//
// Errors: ErrNoModule, ErrNoPrivilege, ErrBusy and whatever the server says.
func Attach(ctx context.Context, o Options) (Device, error) { return thisKernel().attach(ctx, o) }

// Hold attaches as Attach does, but for Attachment.Keep to look after the device. It needs
// both timeouts. If the device is attached already, with the same backend identifier, by a
// process that has ended, Hold takes over from that process.
func Hold(ctx context.Context, o Options) (*Attachment, error) { return thisKernel().hold(ctx, o) }

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
	a, err := k.connectAll(ctx, o)
	if err != nil {
		return Device{}, err
	}
	return a.Device, a.Close()
}

// connectAll negotiates, hands the sockets over and waits for the device.
func (k *kernel) connectAll(ctx context.Context, o Options) (*Attachment, error) {
	if err := o.check(&k.sysfs); err != nil {
		return nil, err
	}
	d, err := k.open()
	if err != nil {
		return nil, err
	}
	a := &Attachment{kernel: k, driver: d, options: o}
	if err := a.connect(ctx); err != nil {
		return nil, errors.Join(err, a.Close())
	}
	return a, nil
}

func (a *Attachment) connect(ctx context.Context) error {
	o, k := &a.options, a.kernel
	fds, info, err := dialAll(ctx, o.Server, o.Connections, func(info exportInfo) error {
		if o.Connections > 1 && info.flags&flagMultiConn == 0 {
			return fmt.Errorf("%d connections: the server does not promise that a flush on one covers the others (NBD_FLAG_CAN_MULTI_CONN): use one", o.Connections)
		}
		return nil
	})
	if err != nil {
		return err
	}
	a.sockets.fds, a.flags, a.exportBytes = fds, info.flags, info.sizeBytes
	block, err := blockBytes(o.BlockBytes, info)
	if err != nil {
		return err
	}
	req := connectRequest{
		sizeBytes: info.sizeBytes &^ (uint64(block) - 1), blockBytes: uint64(block),
		timeout: o.Timeout, deadConnTimeout: o.DeadConnTimeout, serverFlags: info.flags, backend: o.backendID(), fds: fds,
	}
	if req.sizeBytes == 0 {
		return fmt.Errorf("export %q of %d bytes has not one block of %d", o.Server.Export, info.sizeBytes, block)
	}
	if err := k.connect(a.driver, &req, o.Device); err != nil {
		return err
	}
	st, err := k.wait(ctx, req.index, (*deviceState).usable)
	if err != nil {
		return errors.Join(fmt.Errorf("%s was attached but did not become usable (%s): %w", k.path(req.index), &st, err),
			a.driver.disconnect(req.index))
	}
	a.index, a.pid = req.index, st.pid
	a.Device = Device{
		Path: k.path(req.index), Export: o.Server.Export, SizeBytes: req.sizeBytes, BlockBytes: block,
		ReadOnly: info.flags&flagReadOnly != 0, Connections: o.Connections, BackendID: req.backend,
	}
	return nil
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

// dialAll negotiates n connections to one export and returns their sockets,
// which are the caller's to close. fits, unless nil, says what is wrong with the export.
func dialAll(ctx context.Context, s Server, n int, fits func(exportInfo) error) (fds []int, first exportInfo, err error) {
	defer func() {
		if err != nil {
			leave(fds)
			fds = nil
		}
	}()
	for i := range n {
		fd, info, err := dial(ctx, s)
		if err != nil {
			return fds, info, err
		}
		fds = append(fds, fd)
		if i == 0 {
			first = info
		}
		switch {
		case info.flags&flagHasFlags == 0:
			return fds, info, fmt.Errorf("the server's transmission flags %#x lack NBD_FLAG_HAS_FLAGS", info.flags)
		case info != first:
			return fds, info, fmt.Errorf("connection %d was told %+v, the first %+v: did the export change meanwhile?", i, info, first)
		}
		if fits == nil {
			continue
		}
		if err := fits(info); err != nil {
			return fds, info, err
		}
	}
	return fds, first, nil
}

// connect hands the sockets over, to the named device or to a free one, whose number it
// stores in r.
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
		next = index + 1 // somebody else was faster
	}
}

// freeFrom finds the first free device whose number is least or above. If there is none it
// returns the number after the last, which the kernel then creates.
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
