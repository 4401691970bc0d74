package attach

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/genetlink/genltest"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// fakeKernel is a kernel whose devices are a folder tree and whose netlink
// answers come from the test.
type fakeKernel struct {
	kernel
	t    *testing.T
	root string

	mu sync.Mutex
	// calls are what was asked over netlink, as text.
	// +checklocks:mu
	calls []string
	// refuse maps a command and index, "connect 0", to an errno.
	// +checklocks:mu
	refuse map[string]int
	// lazy leaves devices unusable after a connect.
	// +checklocks:mu
	lazy bool
	// held are the sockets that the driver has of all devices, as descriptors of
	// its own.
	// +checklocks:mu
	held []int
	// blind is how often the driver has yet to overlook that connections ended.
	// +checklocks:mu
	blind int
	// backend is the identifier given at connect.
	// +checklocks:mu
	backend string
}

func newFakeKernel(t *testing.T, devices ...int) *fakeKernel {
	t.Helper()
	k := &fakeKernel{t: t, root: t.TempDir(), refuse: map[string]int{}}
	t.Cleanup(func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		closeAll(k.held)
	})
	k.listen = func(func(int)) (func(), error) { return nil, errors.New("no multicast here") }
	k.sysfs = sysfs{block: filepath.Join(k.root, "sys"), dev: filepath.Join(k.root, "dev")}
	k.openExclusive = func(string) error { return nil }
	k.runs = func(int) bool { return true }
	for _, dir := range []string{k.block, k.dev} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, i := range devices {
		k.set(i, "size", "0\n")
		k.set(i, "inflight", "       0        0\n")
	}
	family := genetlink.Family{ID: 30, Version: 1, Name: familyName}
	k.dial = func() (*genetlink.Conn, error) {
		return genltest.Dial(genltest.ServeFamily(family, k.serve)), nil
	}
	return k
}

// set writes one file of a device; an empty value removes it.
func (k *fakeKernel) set(index int, file, value string) {
	k.t.Helper()
	path := filepath.Join(k.block, deviceName(index), file)
	if err := os.MkdirAll(filepath.Join(filepath.Dir(path), "holders"), 0o755); err != nil {
		k.t.Fatal(err)
	}
	if err := os.WriteFile(k.path(index), nil, 0o600); err != nil {
		k.t.Fatal(err)
	}
	if value == "" {
		if err := os.Remove(path); err != nil {
			k.t.Fatal(err)
		}
		return
	}
	if err := os.WriteFile(path, []byte(value), 0o600); err != nil {
		k.t.Fatal(err)
	}
}

// deviceRequest is a netlink request as the driver sees it.
type deviceRequest struct {
	index   int
	size    uint64
	timeout uint64
	backend string
	fds     []int
	rest    []string
}

func decodeRequest(data []byte) (deviceRequest, error) {
	r := deviceRequest{index: -1}
	ad, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		return r, err
	}
	for ad.Next() {
		switch ad.Type() {
		case attrIndex:
			r.index = int(ad.Uint32())
		case attrSizeBytes:
			r.size = ad.Uint64()
		case attrBackend:
			r.backend = ad.String()
		case attrSockets:
			ad.Nested(func(list *netlink.AttributeDecoder) error {
				for list.Next() {
					list.Nested(func(item *netlink.AttributeDecoder) error {
						for item.Next() {
							r.fds = append(r.fds, int(item.Uint32()))
						}
						return item.Err()
					})
				}
				return list.Err()
			})
		default:
			if ad.Type() == attrTimeout {
				r.timeout = ad.Uint64()
			}
			r.rest = append(r.rest, fmt.Sprintf("%d=%d", ad.Type(), ad.Uint64()))
		}
	}
	return r, ad.Err()
}

// serve plays the nbd driver.
func (k *fakeKernel) serve(req genetlink.Message, _ netlink.Message) ([]genetlink.Message, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	r, err := decodeRequest(req.Data)
	if err != nil {
		return nil, err
	}
	name := map[uint8]string{cmdConnect: "connect", cmdDisconnect: "disconnect", cmdReconfigure: "reconfigure"}[req.Header.Command]
	call := name + " " + strconv.Itoa(r.index)
	errno, refused := k.refuse[call]
	if r.size > 0 {
		call += fmt.Sprintf(" size=%d", r.size)
	}
	if len(r.fds) > 0 {
		call += fmt.Sprintf(" sockets=%d", len(r.fds))
	}
	k.calls = append(k.calls, strings.Join(append([]string{call}, r.rest...), " "))
	if refused {
		return nil, genltest.Error(errno)
	}
	switch name {
	case "connect":
		k.backend = r.backend
		for _, fd := range r.fds {
			if err := k.takeLocked(fd); err != nil {
				return nil, err
			}
		}
		if !k.lazy {
			k.set(r.index, "size", strconv.FormatUint(r.size/sectorBytes, 10)+"\n")
			k.set(r.index, "pid", strconv.Itoa(os.Getpid())+"\n")
			k.set(r.index, "backend", r.backend+"\n")
			k.set(r.index, "queue/logical_block_size", "512\n")
		}
	case "reconfigure":
		if len(k.held) == 0 || r.backend != k.backend {
			return nil, genltest.Error(int(unix.EINVAL))
		}
		if r.size > 0 {
			k.set(r.index, "size", strconv.FormatUint(r.size/sectorBytes, 10)+"\n")
		}
		if err := k.replaceLocked(r.fds); err != nil {
			return nil, err
		}
	case "disconnect":
		shutDown(k.held)
		closeAll(k.held)
		k.held = nil
		if !k.lazy {
			k.set(r.index, "size", "0\n")
			k.set(r.index, "pid", "")
		}
	}
	// Any message will do: the real driver's carries the index.
	return []genetlink.Message{{Header: req.Header}}, nil
}

// takeLocked has the driver keep a socket, with the send timeout that is its sign.
//
// +checklocks:k.mu
func (k *fakeKernel) takeLocked(fd int) error {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket %d: %w", fd, err)
	}
	k.held = append(k.held, own)
	return unix.SetsockoptTimeval(own, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: 2})
}

// replaceLocked puts sockets in the place of those whose connection has ended, as
// far as the driver has noticed, and drops the rest.
//
// +checklocks:k.mu
func (k *fakeKernel) replaceLocked(fds []int) error {
	if len(fds) == 0 {
		return nil
	}
	if k.blind > 0 {
		k.blind--
		return nil
	}
	ended, err := (&sockets{fds: k.held}).ended()
	if err != nil {
		return err
	}
	for i, fd := range fds {
		if i == len(ended) {
			break
		}
		k.held = slices.DeleteFunc(k.held, func(h int) bool { return h == ended[i] })
		closeAll(ended[i : i+1])
		if err := k.takeLocked(fd); err != nil {
			return err
		}
	}
	return nil
}

// alive is how many connections of the driver have not ended.
func (k *fakeKernel) alive() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	ended, err := (&sockets{fds: k.held}).ended()
	if err != nil {
		k.t.Error(err)
	}
	return len(k.held) - len(ended)
}

// asks returns what has been asked over netlink so far.
func (k *fakeKernel) asks() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.calls)
}

// beLazy leaves devices unusable after a connect.
func (k *fakeKernel) beLazy() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.lazy = true
}

// failWith has a command of a device fail.
func (k *fakeKernel) failWith(command string, errno unix.Errno) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.refuse[command] = int(errno)
}

// served describes the export of a fake server.
type served struct {
	name     string
	size     uint64
	flags    uint16
	minBlock uint32
	// raw, if set, is sent in place of a handshake.
	raw []byte
	// fail, if set, answers NBD_OPT_GO.
	fail uint32
	// hangUp ends each connection right after the handshake.
	hangUp bool
}

const goodFlags = flagHasFlags | flagMultiConn

// exportServer is a server whose export a test can change, and whose connections
// it can end.
type exportServer struct {
	Server

	mu sync.Mutex
	// +checklocks:mu
	export served
	// +checklocks:mu
	conns []net.Conn
	// accepted is how many connections there were in all.
	// +checklocks:mu
	accepted int
}

// serveExport answers handshakes on a unix socket with byte sequences of its own.
func serveExport(t *testing.T, s served) Server {
	t.Helper()
	return newExportServer(t, s).Server
}

func newExportServer(t *testing.T, s served) *exportServer {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	e := &exportServer{Server: Server{Network: "unix", Address: path, Export: s.name}, export: s}
	var wg sync.WaitGroup
	t.Cleanup(func() {
		_ = l.Close()
		e.drop(-1)
		wg.Wait()
	})
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			e.mu.Lock()
			e.accepted++
			e.conns = append(e.conns, c)
			export := e.export
			e.mu.Unlock()
			wg.Go(func() {
				defer func() { _ = c.Close() }()
				// A client that goes away in the middle is none of the server's business.
				if err := export.handshake(c); err != nil && !gone(err) {
					t.Error(err)
				}
				if !export.hangUp {
					_, _ = io.Copy(io.Discard, c)
				}
			})
		}
	})
	return e
}

// gone reports whether err says that the other side went away, or this one.
func gone(err error) bool {
	for _, e := range []error{io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, unix.EPIPE, unix.ECONNRESET} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// change changes the export for connections to come.
func (e *exportServer) change(to served) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.export = to
}

// drop closes the first n connections that are open, or with -1 all.
func (e *exportServer) drop(n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if n < 0 {
		n = len(e.conns)
	}
	for _, c := range e.conns[:n] {
		_ = c.Close()
	}
	e.conns = e.conns[n:]
}

// acceptedUntilNow is how many connections there were in all.
func (e *exportServer) acceptedUntilNow() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.accepted
}

func (s served) handshake(c net.Conn) error {
	if s.raw != nil {
		_, err := c.Write(s.raw)
		return err
	}
	be := binary.BigEndian
	if _, err := c.Write([]byte("NBDMAGICIHAVEOPT\x00\x03")); err != nil {
		return err
	}
	var head [20]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return err
	}
	want := "\x00\x00\x00\x03IHAVEOPT\x00\x00\x00\x07"
	if string(head[:16]) != want {
		return fmt.Errorf("client sent %q, want %q", head[:16], want)
	}
	body := make([]byte, be.Uint32(head[16:]))
	if _, err := io.ReadFull(c, body); err != nil {
		return err
	}
	wantBody := string(be.AppendUint32(nil, uint32(len(s.name)))) + s.name + "\x00\x01\x00\x03"
	if string(body) != wantBody {
		return fmt.Errorf("client asked %q, want %q", body, wantBody)
	}
	reply := func(b []byte, kind uint32, data []byte) []byte {
		b = append(b, "\x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x07"...)
		b = be.AppendUint32(b, kind)
		b = be.AppendUint32(b, uint32(len(data)))
		return append(b, data...)
	}
	if s.fail != 0 {
		_, err := c.Write(reply(nil, s.fail, []byte("because")))
		return err
	}
	out := reply(nil, 3, be.AppendUint16(be.AppendUint64([]byte{0, 0}, s.size), s.flags))
	if s.minBlock != 0 {
		b := be.AppendUint32([]byte{0, 3}, s.minBlock)
		out = reply(out, 3, be.AppendUint32(be.AppendUint32(b, 4096), 1<<25))
	}
	_, err := c.Write(reply(out, 1, nil))
	return err
}

func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestAttach(t *testing.T) {
	k := newFakeKernel(t, 0, 1, 2)
	srv := serveExport(t, served{name: "d", size: 1<<20 + 100, flags: goodFlags})
	got, err := k.attach(deadline(t), Options{
		Server: srv, Connections: 3, Timeout: 1500 * time.Millisecond, DeadConnTimeout: time.Minute,
		Device: k.path(1),
	})
	if err != nil {
		t.Fatal(err)
	}
	want := Device{Path: k.path(1), Export: "d", SizeBytes: 1 << 20, BlockBytes: 512, Connections: 3, BackendID: srv.String()}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	calls := []string{"connect 1 size=1048576 sockets=3 3=512 4=2 8=60 5=257"}
	if diff := cmp.Diff(calls, k.asks()); diff != "" {
		t.Errorf("netlink: -want +got\n%s", diff)
	}
}

func TestAttach_PicksFreeDevice(t *testing.T) {
	k := newFakeKernel(t, 0, 1, 2, 3, 4, 10)
	k.set(0, "pid", "77\n")
	k.set(1, "size", "8\n") // still going down
	k.set(2, "inflight", "0 1\n")
	if err := os.Mkdir(filepath.Join(k.block, "nbd3", "holders", "dm-0"), 0o755); err != nil {
		t.Fatal(err)
	}
	k.failWith("connect 4", unix.EBUSY) // somebody is faster
	srv := serveExport(t, served{name: "", size: 4096, flags: goodFlags | flagReadOnly, minBlock: 4096})
	got, err := k.attach(deadline(t), Options{Server: srv, Connections: 1})
	if err != nil {
		t.Fatal(err)
	}
	if got.Path != k.path(10) || got.BlockBytes != 4096 || !got.ReadOnly {
		t.Errorf("got %+v, want a read-only %s of 4096-byte blocks", got, k.path(10))
	}
	if len(k.asks()) != 2 {
		t.Errorf("netlink: %q, want one lost race and one success", k.asks())
	}
	// All taken: the kernel is asked for a new one.
	got, err = k.attach(deadline(t), Options{Server: srv, Connections: 1})
	if err != nil || got.Path != k.path(11) {
		t.Errorf("got %+v, %v; want %s", got, err, k.path(11))
	}
}

func TestAttach_Errors(t *testing.T) {
	good := served{name: "d", size: 1 << 20, flags: goodFlags}
	noMulti, oddBlock, bigBlock, empty, noFlags := good, good, good, good, good
	noMulti.flags = flagHasFlags
	oddBlock.minBlock = 1000
	bigBlock.minBlock = 65536
	empty.size = 511
	noFlags.flags = 0
	unknown, tls, policy, unsup, shutdown, other := good, good, good, good, good, good
	unknown.fail, tls.fail, policy.fail = errUnknown, errTLSRequired, errPolicy
	unsup.fail, shutdown.fail, other.fail = errUnsupported, errShutdown, replyErrorBit|9
	ssh, old, cut, huge := good, good, good, good
	ssh.raw = []byte("SSH-2.0-OpenSSH_9.2p1 Debian\r\n")
	old.raw = []byte("NBDMAGICIHAVEOPT\x00\x00")
	cut.raw = []byte("NBDM")
	huge.raw = []byte("NBDMAGICIHAVEOPT\x00\x03\x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x07\x00\x00\x00\x03\xff\xff\xff\xff")
	busy := newFakeKernel(t, 0)
	busy.set(0, "pid", "77\n")
	denied := newFakeKernel(t, 0)
	denied.failWith("connect 0", unix.EPERM)
	lost := newFakeKernel(t, 0)
	lost.failWith("connect 0", unix.EBUSY)
	invalid := newFakeKernel(t, 0)
	invalid.failWith("connect 0", unix.EINVAL)

	for _, tt := range []struct {
		name string
		k    *fakeKernel
		s    served
		o    Options
		want string
	}{
		{"no multi-conn", nil, noMulti, Options{Connections: 2}, "NBD_FLAG_CAN_MULTI_CONN"},
		{"odd block", nil, oddBlock, Options{Connections: 1}, "smallest block is 1000"},
		{"big block", nil, bigBlock, Options{Connections: 1}, "powers of two up to 4096"},
		{"empty", nil, empty, Options{Connections: 1}, "511 bytes has not one block"},
		{"no flags", nil, noFlags, Options{Connections: 1}, "NBD_FLAG_HAS_FLAGS"},
		{"unknown export", nil, unknown, Options{Connections: 1}, `no export "d" ("because"): list`},
		{"tls", nil, tls, Options{Connections: 1}, "wants TLS"},
		{"policy", nil, policy, Options{Connections: 1}, "does not let us use"},
		{"unsupported", nil, unsup, Options{Connections: 1}, "does not know NBD_OPT_GO"},
		{"shutdown", nil, shutdown, Options{Connections: 1}, "shutting down"},
		{"other refusal", nil, other, Options{Connections: 1}, "error 0x80000009"},
		{"not nbd", nil, ssh, Options{Connections: 1}, "no NBD server"},
		{"old", nil, old, Options{Connections: 1}, "fixed newstyle"},
		{"no connections", nil, good, Options{}, "0 connections: want 1 to 64"},
		{"many connections", nil, good, Options{Connections: 65}, "65 connections: want 1 to 64"},
		{"block size", nil, good, Options{Connections: 1, BlockBytes: 1000}, "want 512, 1024, 2048 or 4096"},
		{"backend", nil, good, Options{Connections: 1, BackendID: "a\nb"}, "all printable"},
		{"long backend", nil, good, Options{Connections: 1, BackendID: strings.Repeat("b", 256)}, "at most 255"},
		{"device", nil, good, Options{Connections: 1, Device: "/dev/sda"}, `device "/dev/sda": want /dev/nbd0`},
		{"busy", busy, good, Options{Connections: 1, Device: "nbd0"}, "attached by process 77"},
		{"lost race", lost, good, Options{Connections: 1, Device: "nbd0"}, "nbd0: busy"},
		{"denied", denied, good, Options{Connections: 1}, "run as root"},
		{"invalid", invalid, good, Options{Connections: 1}, "kernel log"},
		{"huge reply", nil, huge, Options{Connections: 1}, "makes no sense"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := tt.k
			if k == nil {
				k = newFakeKernel(t, 0)
			}
			o := tt.o
			o.Server = serveExport(t, tt.s)
			_, err := k.attach(deadline(t), o)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}

	t.Run("server hangs", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		k := newFakeKernel(t, 0)
		s := serveExport(t, cut)
		errs := make(chan error, 1)
		go func() {
			_, err := k.attach(ctx, Options{Server: s, Connections: 1})
			errs <- err
		}()
		cancel()
		if err := <-errs; !errors.Is(err, context.Canceled) {
			t.Errorf("error %v, want context.Canceled", err)
		}
	})

	t.Run("nobody there", func(t *testing.T) {
		k := newFakeKernel(t, 0)
		_, err := k.attach(deadline(t), Options{Server: Server{Network: "unix", Address: "/nonexistent/s"}, Connections: 1})
		if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "running") {
			t.Errorf("error %v, want one that asks for the server", err)
		}
	})
}

// A device that never becomes usable is let go again.
func TestAttach_NeverUsable(t *testing.T) {
	k := newFakeKernel(t, 0)
	k.beLazy()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := k.attach(ctx, Options{Server: serveExport(t, served{name: "d", size: 4096, flags: goodFlags}), Connections: 1})
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "not attached, 0 bytes") {
		t.Errorf("error %v, want a deadline that tells the state", err)
	}
	if !slices.Contains(k.asks(), "disconnect 0") {
		t.Errorf("netlink: %q, want a disconnect", k.asks())
	}
}

func TestNoModule(t *testing.T) {
	k := newFakeKernel(t)
	k.dial = func() (*genetlink.Conn, error) {
		return genltest.Dial(func(genetlink.Message, netlink.Message) ([]genetlink.Message, error) {
			return nil, genltest.Error(int(unix.ENOENT))
		}), nil
	}
	if _, err := k.attach(deadline(t), Options{Connections: 1}); !errors.Is(err, ErrNoModule) {
		t.Errorf("attach: %v, want ErrNoModule", err)
	}
	if err := k.detach(deadline(t), "nbd0", false); !errors.Is(err, ErrNoModule) {
		t.Errorf("detach: %v, want ErrNoModule", err)
	}
}

func TestDetach(t *testing.T) {
	k := newFakeKernel(t, 0)
	k.set(0, "pid", "77\n")
	k.set(0, "size", "8\n")
	if err := k.detach(deadline(t), k.path(0), false); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"disconnect 0"}, k.asks()); diff != "" {
		t.Errorf("netlink: -want +got\n%s", diff)
	}
	if err := k.detach(deadline(t), k.path(0), false); err == nil || !strings.Contains(err.Error(), "not attached") {
		t.Errorf("again: %v, want that it is not attached", err)
	}
}

func TestDetach_Busy(t *testing.T) {
	k := newFakeKernel(t, 0)
	k.set(0, "pid", "77\n")
	k.openExclusive = func(string) error { return unix.EBUSY }
	if err := k.detach(deadline(t), "nbd0", false); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "unmount it first") {
		t.Errorf("mounted: %v, want ErrBusy", err)
	}
	if err := os.Mkdir(filepath.Join(k.block, "nbd0", "holders", "dm-0"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := k.detach(deadline(t), "nbd0", false); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "dm-0") {
		t.Errorf("held: %v, want ErrBusy with the holder", err)
	}
	if len(k.asks()) != 0 {
		t.Errorf("netlink: %q, want nothing", k.asks())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := k.detach(ctx, "nbd0", true); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "still uses it") {
		t.Errorf("forced, with a holder that stays: %v, want a deadline", err)
	}
	if diff := cmp.Diff([]string{"disconnect 0"}, k.asks()); diff != "" {
		t.Errorf("netlink: -want +got\n%s", diff)
	}
}

func TestDetach_NoDevice(t *testing.T) {
	k := newFakeKernel(t)
	for device, want := range map[string]string{"nbd5": "does not exist", "sda": "want /dev/nbd0", "nbd05": "want /dev/nbd0", "nbd0p1": "want /dev/nbd0"} {
		if err := k.detach(deadline(t), device, false); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("detach %s: %v, want %q", device, err, want)
		}
	}
}

func TestParseURI(t *testing.T) {
	for _, tt := range []struct {
		uri, export string
		want        Server
		err         string
	}{
		{"nbd://h", "", Server{"tcp", "h:10809", ""}, ""},
		{"nbd://h:1/a/b%20c", "", Server{"tcp", "h:1", "a/b c"}, ""},
		{"nbd://[::1]/x", "x", Server{"tcp", "[::1]:10809", "x"}, ""},
		{"nbd:///x", "", Server{"tcp", "localhost:10809", "x"}, ""},
		{"nbd+unix:///d?socket=/run/s%20x", "", Server{"unix", "/run/s x", "d"}, ""},
		{"nbd+unix://?socket=/s", "e", Server{"unix", "/s", "e"}, ""},
		{"tcp://127.0.0.1:10809", "d", Server{"tcp", "127.0.0.1:10809", "d"}, ""},
		{"unix:///run/x%y.sock", "d", Server{"unix", "/run/x%y.sock", "d"}, ""},
		{"nbd://h/a", "b", Server{}, "want one of them"},
		{"tcp://h/a", "", Server{}, "use nbd://"},
		{"unix://run/x", "", Server{}, "not absolute"},
		{"nbd+unix:///d", "", Server{}, "socket=PATH"},
		{"nbds://h/a", "", Server{}, "nbd-client"},
		{"nbds+unix:///a?socket=/s", "", Server{}, "no TLS"},
		{"nbd+vsock://2:10809/a", "", Server{}, "TCP and unix sockets only"},
		{"vsock://2:10809", "", Server{}, "TCP and unix sockets only"},
		{"http://h/a", "", Server{}, "want nbd://"},
		{"", "", Server{}, "want nbd://"},
		{"%zz", "", Server{}, "want nbd://"},
		{"nbd://h/?x=y", "", Server{}, "query"},
		{"nbd://h", strings.Repeat("x", 4097), Server{}, "at most 4096"},
		{"nbd://h/%00", "", Server{}, "without NUL"},
	} {
		got, err := ParseURI(tt.uri, tt.export)
		if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
			t.Errorf("ParseURI(%q, %.10q): error %v, want %q", tt.uri, tt.export, err, tt.err)
		}
		if got != tt.want {
			t.Errorf("ParseURI(%q, %.10q) = %+v, want %+v", tt.uri, tt.export, got, tt.want)
		}
		if err != nil {
			continue
		}
		if again, err := ParseURI(got.String(), ""); err != nil || again != got {
			t.Errorf("%+v is %q, which is read as %+v, %v", got, got, again, err)
		}
	}
}

// Whatever a server sends causes no panic, and takes no more memory than the bound.
func FuzzNegotiate(f *testing.F) {
	f.Add([]byte("NBDMAGICIHAVEOPT\x00\x03\x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x07\x00\x00\x00\x01\x00\x00\x00\x00"))
	f.Add([]byte("NBDMAGICIHAVEOPT\x00\x03\x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x07\x00\x00\x00\x03\x00\x00\x00\x0c\x00\x00\x00\x00\x00\x00\x00\x10\x00\x00\x01\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		info, err := negotiate(struct {
			io.Reader
			io.Writer
		}{strings.NewReader(string(b)), io.Discard}, "d")
		if err == nil && info.minBlockBytes == 0 {
			if _, err := blockBytes(0, info); err != nil {
				t.Errorf("block size 0 refused: %v", err)
			}
		}
	})
}
