package daemon

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/admin"
)

// A hand-over is a talk between the running daemon, the predecessor, and one
// that is about to take its place, the successor, on a connection of the admin
// socket:
//
//	successor                     predecessor
//	POST /v1/handover      ->
//	                       <-     101, or 409 and why not
//	send                   ->
//	                       <-     socket, with descriptors, for each
//	                       <-     offer
//	(opens what else it needs, checks what it can)
//	go                     ->
//	                       <-     draining
//	                              (finishes, flushes, closes the images)
//	                       <-     done
//
// Until go the predecessor serves as ever, and goes on if the successor leaves.
// From draining on the sockets are the successor's; connects wait in their
// backlogs.

// What a message says.
const (
	saySend     = "send"
	saySocket   = "socket"
	sayOffer    = "offer"
	sayGo       = "go"
	sayDraining = "draining"
	sayDone     = "done"
)

// A handoverMessage is one message, as JSON behind its length in 4 bytes.
type handoverMessage struct {
	Say string `json:"say"`
	// For a socket: its descriptor is attached, and if Locked also that of its path's lock.
	Purpose string `json:"purpose,omitempty"`
	Origin  string `json:"origin,omitempty"`
	Locked  bool   `json:"locked,omitempty"`
	// For an offer: how long draining takes at most.
	DrainSeconds float64 `json:"drain_seconds,omitempty"`
	// For done: what went wrong. The end of the connection then says that everything is
	// closed.
	Error string `json:"error,omitempty"`
}

const (
	// maxHandoverBytes bounds a message.
	maxHandoverBytes = 64 << 10
	// maxHandoverFiles is how many descriptors a message has at most.
	maxHandoverFiles = 2
	// stepTimeout bounds the wait for a message that should come at once, successorTimeout
	// that for go.
	stepTimeout      = 30 * time.Second
	successorTimeout = 2 * time.Minute
)

// sendMessage sends m with descriptors.
func sendMessage(c *net.UnixConn, m handoverMessage, fds ...int) error {
	body, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := c.SetWriteDeadline(time.Now().Add(stepTimeout)); err != nil {
		return err
	}
	b := append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	n, _, err := c.WriteMsgUnix(b, oob, nil)
	if err == nil && n < len(b) {
		_, err = c.Write(b[n:])
	}
	return err
}

// receiveMessage waits for a message whose Say is one of want, and returns it with its
// descriptors.
func receiveMessage(c *net.UnixConn, timeout time.Duration, want ...string) (m handoverMessage, files []*os.File, err error) {
	defer func() {
		if err != nil {
			closeFiles(files)
			files = nil
		}
	}()
	if err := c.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return m, nil, err
	}
	var head [4]byte
	oob := make([]byte, unix.CmsgSpace(4*maxHandoverFiles))
	n, oobn, flags, _, err := c.ReadMsgUnix(head[:], oob)
	if err != nil {
		return m, nil, err
	}
	if files, err = filesOf(oob[:oobn]); err != nil {
		return m, files, err
	}
	if n == 0 {
		return m, files, io.ErrUnexpectedEOF
	}
	if flags&unix.MSG_CTRUNC != 0 {
		return m, files, errors.New("more descriptors than a message may have")
	}
	if _, err := io.ReadFull(c, head[n:]); err != nil {
		return m, files, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > maxHandoverBytes {
		return m, files, fmt.Errorf("message of %d bytes: want at most %d", size, maxHandoverBytes)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(c, body); err != nil {
		return m, files, err
	}
	if err := json.Unmarshal(body, &m); err != nil {
		return m, files, err
	}
	if slices.Contains(want, m.Say) {
		return m, files, nil
	}
	return m, files, fmt.Errorf("message %q: want one of %q", m.Say, want)
}

// filesOf takes the descriptors out of ancillary data.
func filesOf(oob []byte) ([]*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return files, err
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "handed over"))
		}
	}
	return files, nil
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // another process has its own copy
	}
}

// duplicate returns a duplicate of c's descriptor.
func duplicate(c interface {
	SyscallConn() (syscall.RawConn, error)
},
) (int, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	return duplicateRaw(raw)
}

func duplicateRaw(raw syscall.RawConn) (fd int, err error) {
	if controlErr := raw.Control(func(old uintptr) {
		fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0)
	}); controlErr != nil {
		return -1, controlErr
	}
	return fd, err
}

// send sends the socket to a successor.
func (s *socket) send(c *net.UnixConn) error {
	m := handoverMessage{Say: saySocket, Purpose: s.purpose, Origin: s.origin}
	conn, ok := s.Listener.(syscall.Conn)
	if !ok {
		return fmt.Errorf("listener %s has no descriptor", s.Addr())
	}
	fd, err := duplicate(conn)
	if err != nil {
		return err
	}
	fds := []int{fd}
	defer func() {
		for _, fd := range fds {
			_ = unix.Close(fd) // a duplicate
		}
	}()
	if l, ok := s.Listener.(*admin.Listener); ok {
		raw, err := l.LockConn()
		if err != nil {
			return err
		}
		if fd, err = duplicateRaw(raw); err != nil {
			return err
		}
		fds = append(fds, fd)
		m.Locked = true
	}
	return sendMessage(c, m, fds...)
}

// leave makes Close leave the socket's path alone.
func (s *socket) leave() {
	if l, ok := s.Listener.(*admin.Listener); ok {
		l.Leave()
	}
}

// HandOver implements admin.HandOver: it decides whether another daemon may take this one's
// place. The function that it returns talks with that daemon.
//
// Errors: the reason why not; that of ctx.
func (d *Daemon) HandOver(ctx context.Context, r client.HandOver) (func(c *net.UnixConn), error) {
	if !d.Ready() {
		return nil, fmt.Errorf("the daemon is %s: want one that is ready", state(d.state.Load()))
	}
	if d.o.Single {
		return nil, errors.New("the daemon serves a single client, and ends with it")
	}
	if !d.handingOver.CompareAndSwap(false, true) {
		return nil, errors.New("another daemon is taking over")
	}
	select {
	case d.changing <- struct{}{}: // disks and sockets must not change until talk has ended
	case <-d.life.Done():
		return nil, errors.New("the daemon stops")
	case <-ctx.Done(): // it has been told to end, say; another may ask
		d.handingOver.Store(false)
		return nil, ctx.Err()
	}
	if err := d.losesNothing(r); err != nil {
		<-d.changing
		d.handingOver.Store(false)
		return nil, err
	}
	return d.talk, nil
}

// losesNothing returns an error that names a disk whose content would be lost without
// leave, if there is one.
func (d *Daemon) losesNothing(r client.HandOver) error {
	d.mu.RLock()
	m := d.machine
	d.mu.RUnlock()
	if m == nil {
		return errors.New("the daemon stops")
	}
	for _, e := range m.list() {
		if e.config().File == "" && !r.DiscardMemory {
			return fmt.Errorf("disk %q is in memory and its content would be lost: --takeover-discard-memory lets it go", e.name())
		}
	}
	return nil
}

// talk is the predecessor's side of a hand-over. It gives back the right to change what is
// served, which HandOver has taken.
func (d *Daemon) talk(c *net.UnixConn) {
	log := d.log.With("successor", peerPID(c))
	stop := context.AfterFunc(d.life, func() { _ = c.Close() })
	err := d.offer(c)
	stop()
	<-d.changing
	if err != nil {
		_ = c.Close() // what matters is err
		d.handingOver.Store(false)
		log.Warn("hand-over given up by the other side: serving on", "error", err)
		return
	}
	log.Info("handing over")
	d.successor = c
	close(d.handedOver)
}

// offer carries out the hand-over up to draining.
func (d *Daemon) offer(c *net.UnixConn) error {
	if _, _, err := receiveMessage(c, stepTimeout, saySend); err != nil {
		return err
	}
	for _, s := range d.sockets {
		if err := s.send(c); err != nil {
			return err
		}
	}
	err := sendMessage(c, handoverMessage{Say: sayOffer, DrainSeconds: d.Config().Limits.DrainTimeout.Std().Seconds()})
	if err != nil {
		return err
	}
	if _, _, err := receiveMessage(c, successorTimeout, sayGo); err != nil {
		return err
	}
	if !d.state.CompareAndSwap(uint32(stateReady), uint32(stateDraining)) {
		return errors.New("stopped meanwhile")
	}
	for _, s := range d.sockets {
		s.leave()
		if s.purpose != purposeNBD { // the NBD server closes its own
			_ = s.Close() // the successor has it
		}
	}
	// The successor may be gone, but there is no way to tell: the sockets are left to it
	// all the same.
	if err := sendMessage(c, handoverMessage{Say: sayDraining}); err != nil {
		d.log.Error("the daemon that takes over is gone: draining all the same", "error", err)
	}
	return nil
}

// HandedOver is closed when another daemon has this one's sockets; Stop should be
// called then.
func (d *Daemon) HandedOver() <-chan struct{} { return d.handedOver }

// farewell tells the successor that everything is closed.
func (d *Daemon) farewell(err error) {
	select {
	case <-d.handedOver:
	default:
		return
	}
	if d.successor == nil {
		return
	}
	m := handoverMessage{Say: sayDone}
	if err != nil {
		m.Error = err.Error()
	}
	if err := sendMessage(d.successor, m); err != nil {
		d.log.Error("cannot tell the daemon that takes over that all is closed", "error", err)
	}
	if err == nil {
		_ = d.successor.Close() // the message is sent
		d.successor = nil
	}
	// Otherwise images may still be open: the end of the process closes them and the
	// connection.
}

// peerPID returns the process at the other end, 0 if unknown.
func peerPID(c *net.UnixConn) int32 {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0
	}
	var pid int32
	// Best effort: it is for the log.
	_ = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = cred.Pid
		}
	})
	return pid
}
