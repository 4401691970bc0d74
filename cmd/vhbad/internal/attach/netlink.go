package attach

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"time"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// The kernel's generic netlink family.
// Source: linux/nbd-netlink.h.
const (
	familyName = "nbd"
	groupName  = "nbd_mc_group" // of NBD_CMD_LINK_DEAD

	cmdConnect     = 1
	cmdDisconnect  = 2
	cmdReconfigure = 3

	attrIndex          = 1
	attrSizeBytes      = 2
	attrBlockSizeBytes = 3
	attrTimeout        = 4 // seconds
	attrServerFlags    = 5
	attrSockets        = 7
	attrDeadConn       = 8 // seconds
	attrBackend        = 10

	sockItem = 1
	sockFD   = 1
)

// ErrNoModule means that the kernel has no nbd driver loaded.
var ErrNoModule = errors.New("the kernel's nbd driver is not loaded: run `modprobe nbd` as root (and note that containers see it only in the host's network namespace)")

// ErrNoPrivilege means that the caller lacks CAP_SYS_ADMIN.
var ErrNoPrivilege = errors.New("not permitted: attaching and detaching need CAP_SYS_ADMIN: run as root")

// ErrBusy means that a device is in use.
var ErrBusy = errors.New("busy")

// errDetached means that a device is no longer attached, or that somebody else has attached
// it.
var errDetached = errors.New("detached")

// connectRequest is what NBD_CMD_CONNECT carries.
type connectRequest struct {
	index                    int
	sizeBytes, blockBytes    uint64
	timeout, deadConnTimeout time.Duration
	serverFlags              uint16
	// backend is an identifier. Kernels since 5.14 show it in sysfs and refuse a
	// RECONFIGURE that names another; older ones ignore it.
	backend string
	fds     []int
}

// driver is the kernel's nbd driver, reached by generic netlink.
type driver struct {
	conn   *genetlink.Conn
	family genetlink.Family
}

// openDriver finds the family on conn, which it closes on failure.
//
// Errors: ErrNoModule.
func openDriver(conn *genetlink.Conn) (*driver, error) {
	family, err := conn.GetFamily(familyName)
	if err != nil {
		_ = conn.Close()
		if errors.Is(err, fs.ErrNotExist) {
			return nil, ErrNoModule
		}
		return nil, fmt.Errorf("ask the kernel for its nbd driver: %w", err)
	}
	return &driver{conn: conn, family: family}, nil
}

func (d *driver) close() error { return d.conn.Close() }

// connect makes device r.index out of the sockets. The kernel keeps its own
// references to them.
//
// Errors: ErrBusy, ErrNoPrivilege.
func (d *driver) connect(r connectRequest) error {
	e := netlink.NewAttributeEncoder()
	e.Uint32(attrIndex, uint32(r.index))
	e.Uint64(attrSizeBytes, r.sizeBytes)
	e.Uint64(attrBlockSizeBytes, r.blockBytes)
	encodeTimeouts(e, r.timeout, r.deadConnTimeout)
	e.Uint64(attrServerFlags, uint64(r.serverFlags))
	e.String(attrBackend, r.backend)
	encodeSockets(e, r.fds)
	// The kernel answers with the index; it sends no acknowledgement besides.
	return d.execute(cmdConnect, e, netlink.Request)
}

func encodeTimeouts(e *netlink.AttributeEncoder, timeout, deadConn time.Duration) {
	if timeout > 0 {
		e.Uint64(attrTimeout, wholeSeconds(timeout))
	}
	if deadConn > 0 {
		e.Uint64(attrDeadConn, wholeSeconds(deadConn))
	}
}

func encodeSockets(e *netlink.AttributeEncoder, fds []int) {
	e.Nested(attrSockets, func(list *netlink.AttributeEncoder) error {
		for _, fd := range fds {
			list.Nested(sockItem, func(item *netlink.AttributeEncoder) error {
				item.Uint32(sockFD, uint32(fd))
				return nil
			})
		}
		return nil
	})
}

// reconfigureRequest is what NBD_CMD_RECONFIGURE carries. Without sockets and size it
// changes nothing, but tells whether the device is still attached.
type reconfigureRequest struct {
	index   int
	backend string
	// sizeBytes is the new size, zero for no change. The kernel may freeze the device to
	// change it, and then waits for every request in flight, even one that has no
	// connection.
	sizeBytes uint64
	// timeout and deadConnTimeout replace the device's unless zero.
	timeout, deadConnTimeout time.Duration
	// fds take the place of sockets that the kernel has marked dead. Sockets for which
	// there is no dead one are dropped, and the kernel calls that success.
	fds []int
}

// reconfigure changes an attached device.
//
// Errors: errDetached, ErrNoPrivilege.
func (d *driver) reconfigure(r reconfigureRequest) error {
	e := netlink.NewAttributeEncoder()
	e.Uint32(attrIndex, uint32(r.index))
	e.String(attrBackend, r.backend)
	if r.sizeBytes > 0 {
		e.Uint64(attrSizeBytes, r.sizeBytes)
	}
	encodeTimeouts(e, r.timeout, r.deadConnTimeout)
	if len(r.fds) > 0 {
		encodeSockets(e, r.fds)
	}
	err := d.execute(cmdReconfigure, e, netlink.Request|netlink.Acknowledge)
	if len(r.fds) == 0 && r.sizeBytes == 0 && errors.Is(err, unix.EINVAL) {
		return errDetached
	}
	return err
}

// listenLinkDead calls died with the device of each NBD_CMD_LINK_DEAD until stop.
func listenLinkDead(died func(index int)) (stop func(), err error) {
	conn, err := genetlink.Dial(nil)
	if err != nil {
		return nil, err
	}
	family, err := conn.GetFamily(familyName)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	i := slices.IndexFunc(family.Groups, func(g genetlink.MulticastGroup) bool { return g.Name == groupName })
	if i < 0 {
		return nil, errors.Join(fmt.Errorf("no multicast group %s", groupName), conn.Close())
	}
	if err := conn.JoinGroup(family.Groups[i].ID); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			messages, _, err := conn.Receive()
			if errors.Is(err, unix.ENOBUFS) { // some were lost
				died(anyDevice)
				continue
			}
			if err != nil {
				return
			}
			for _, m := range messages {
				died(linkDeadIndex(m))
			}
		}
	}()
	return func() {
		_ = conn.Close()
		<-ended
	}, nil
}

// anyDevice stands for the device of a LINK_DEAD that does not name it.
const anyDevice = -1

// linkDeadIndex returns the device that a message of the multicast group is about.
func linkDeadIndex(m genetlink.Message) int {
	ad, err := netlink.NewAttributeDecoder(m.Data)
	if err != nil {
		return anyDevice
	}
	index := anyDevice
	for ad.Next() {
		if ad.Type() == attrIndex {
			index = int(ad.Uint32())
		}
	}
	if ad.Err() != nil {
		return anyDevice
	}
	return index
}

// disconnect tells the driver to let go of device index: it sends NBD_CMD_DISC
// and fails what is in flight.
//
// Errors: ErrNoPrivilege; fs.ErrNotExist without such a device.
func (d *driver) disconnect(index int) error {
	e := netlink.NewAttributeEncoder()
	e.Uint32(attrIndex, uint32(index))
	return d.execute(cmdDisconnect, e, netlink.Request|netlink.Acknowledge)
}

func (d *driver) execute(command uint8, e *netlink.AttributeEncoder, flags netlink.HeaderFlags) error {
	data, err := e.Encode()
	if err != nil {
		return err
	}
	_, err = d.conn.Execute(genetlink.Message{
		Header: genetlink.Header{Command: command, Version: d.family.Version},
		Data:   data,
	}, d.family.ID, flags)
	switch {
	case errors.Is(err, unix.EBUSY):
		return ErrBusy
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return ErrNoPrivilege
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%w: the kernel log says more", err)
	}
	return err
}

// wholeSeconds rounds up: a timeout below a second must not become "none".
func wholeSeconds(d time.Duration) uint64 {
	return uint64(math.Ceil(d.Seconds()))
}
