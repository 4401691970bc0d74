package daemon

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/admin"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
	"github.com/vhbad/vhbad/hba/fault"
	"github.com/vhbad/vhbad/hba/media"
)

// takeOver asks the daemon of s for its place.
func (s *settings) takeOver(t *testing.T, r client.HandOver) (*Predecessor, error) {
	t.Helper()
	return TakeOver(t.Context(), s.Admin, r, slog.New(slog.DiscardHandler))
}

// A dialler connects again and again. No connection may ever be refused, and writes that
// were answered must be permanent.
type dialler struct {
	network, address, export string

	written atomic.Uint64 // stamps answered
	rounds  atomic.Uint64 // connections that worked
}

func (d *dialler) run(t *testing.T, stop <-chan struct{}) {
	t.Helper()
	for {
		select {
		case <-stop:
			return
		default:
		}
		nc, err := net.Dial(d.network, d.address)
		if err != nil {
			t.Errorf("connect to %s: %v", d.address, err)
			return
		}
		c, err := tryNegotiate(t, nc, d.export)
		if err != nil {
			continue // the daemon that took it stopped
		}
		for range 4 {
			n := d.written.Load()
			if err := c.tryWrite(n*8, binary.BigEndian.AppendUint64(nil, n+1)); err != nil {
				break
			}
			d.written.Add(1)
		}
		_ = nc.Close()
		d.rounds.Add(1)
	}
}

func TestTakeOver(t *testing.T) {
	s := newSettings(t, "u=file:$DIR/u.img,size=8MiB", "t=file:$DIR/t.img,size=8MiB")
	s.Listen = append(s.Listen, config.Address{Network: "tcp", Target: "127.0.0.1:0"})
	s.HTTP = "127.0.0.1:0"
	old, _ := s.mustStart(t)
	clients := []*dialler{
		{network: "unix", address: s.socket(), export: "u"},
		{network: "tcp", address: strings.TrimPrefix(old.Endpoints()[1].URI, "tcp://"), export: "t"},
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for _, d := range clients {
		wg.Go(func() { d.run(t, stop) })
	}
	idle := open(t, s.socket(), "u") // it stays connected

	p, err := s.takeOver(t, client.HandOver{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.takeOver(t, client.HandOver{}); err == nil || !strings.Contains(err.Error(), "another daemon is taking over") {
		t.Errorf("a second one at the same time: %v", err)
	}
	var oldErr error
	wg.Go(func() {
		<-old.HandedOver()
		oldErr = old.Stop(context.Background())
	})
	o := s.options(t)
	o.Version, o.Predecessor = "v2", p
	d, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer stopper(t, d)()
	if got, want := d.Endpoints(), old.Endpoints(); len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("endpoints %v, want %v", got, want)
	}
	if d.HTTPAddress() != old.HTTPAddress() {
		t.Errorf("HTTP on %s, want %s", d.HTTPAddress(), old.HTTPAddress())
	}
	cl := client.New(s.Admin)
	defer cl.Close()
	if st, err := cl.Status(t.Context()); err != nil || st.Version != "v2" || st.State != "ready" {
		t.Errorf("status %+v, %v", st, err)
	}
	if _, err := idle.tryRead(1); err == nil {
		t.Error("the old daemon's client still has it")
	}
	// Each client gets through to the new daemon.
	for _, c := range clients {
		nc, err := net.Dial(c.network, c.address)
		if err != nil {
			t.Fatal(err)
		}
		negotiate(t, nc, c.export)
	}
	close(stop)
	wg.Wait()
	if oldErr != nil {
		t.Errorf("Stop of the old daemon: %v", oldErr)
	}
	for _, c := range clients {
		nc, err := net.Dial(c.network, c.address)
		if err != nil {
			t.Fatal(err)
		}
		n := c.written.Load()
		b, err := negotiate(t, nc, c.export).do(cmdRead, 0, int(n*8), nil)
		if err != nil {
			t.Error(err)
		}
		for i := range n {
			if got := binary.BigEndian.Uint64(b[i*8:]); got != i+1 {
				t.Errorf("export %s: stamp %d is %d, want %d", c.export, i, got, i+1)
				break
			}
		}
	}
	if held, err := filepath.Glob(filepath.Join(s.dir, "*.lock")); err != nil || len(held) != 2 {
		t.Errorf("locks %v, %v; want those of both sockets", held, err)
	}
}

// A daemon that cannot start leaves the old one as it is.
func TestTakeOver_GivenUp(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	for name, spoil := range map[string]func(f *settings){
		"address in use": func(f *settings) {
			f.Listen = append(f.Listen, config.Address{Network: "tcp", Target: taken.Addr().String()})
		},
		"image missing": func(f *settings) {
			f.Disks = []config.Disk{{Name: "x", File: filepath.Join(f.dir, "missing.img")}}
		},
		"image of another size": func(f *settings) { f.Disks = slices.Clone(f.Disks); f.Disks[0].Size = 512 << 10 },
		"folder of a new image missing": func(f *settings) {
			f.Disks = []config.Disk{{Name: "x", File: filepath.Join(f.dir, "missing", "x.img"), Size: 1 << 20}}
		},
		"http in use": func(f *settings) { f.HTTP = taken.Addr().String() },
		"a fault that does not fit its disk": func(f *settings) {
			f.Faults = []fault.Rule{{Name: "cut", Disk: "u", Action: fault.Action{Kind: fault.KindPowerCut}}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSettings(t, "u=file:$DIR/u.img,size=1MiB")
			d, _ := s.mustStart(t)
			c := open(t, s.socket(), "u")
			bad := *s
			spoil(&bad)
			for range 2 { // the first does not stand in the second's way
				p, err := s.takeOver(t, client.HandOver{})
				for err != nil && strings.Contains(err.Error(), "another daemon") {
					p, err = s.takeOver(t, client.HandOver{}) // until the old one has seen it
				}
				if err != nil {
					t.Fatal(err)
				}
				o := bad.options(t)
				o.Predecessor = p
				if _, err := Start(t.Context(), o); err == nil {
					t.Fatal("Start succeeded")
				}
				if !d.Ready() {
					t.Fatal("the old daemon drains")
				}
			}
			if _, err := c.do(cmdFlush, 0, 0, nil); err != nil || !d.Ready() {
				t.Errorf("the old daemon: %v, ready %v", err, d.Ready())
			}
			open(t, s.socket(), "u")
			if left := s.sockets(t); len(left) != 4 {
				t.Errorf("sockets and locks %v, want 4", left)
			}
		})
	}
}

// A successor that wants all addresses of a port where the running daemon has one is told so.
func TestTakeOver_SamePort(t *testing.T) {
	s := newSettings(t, "u=file:$DIR/u.img,size=1MiB")
	s.Listen = append(s.Listen, config.Address{Network: "tcp", Target: "127.0.0.1:0"})
	s.HTTP = "127.0.0.1:0"
	d, _ := s.mustStart(t)
	for _, tt := range []struct {
		uri  string
		want func(next *settings, port string)
	}{
		{d.Endpoints()[1].URI, func(next *settings, port string) {
			next.Listen = []config.Address{s.Listen[0], {Network: "tcp", Target: ":" + port}}
		}},
		{"tcp://" + d.HTTPAddress(), func(next *settings, port string) { next.HTTP = ":" + port }},
	} {
		next := *s
		tt.want(&next, tt.uri[strings.LastIndex(tt.uri, ":")+1:])
		p, err := s.takeOver(t, client.HandOver{})
		for err != nil && strings.Contains(err.Error(), "another daemon") {
			p, err = s.takeOver(t, client.HandOver{}) // until the old one has seen that the first has gone
		}
		if err != nil {
			t.Fatal(err)
		}
		o := next.options(t)
		o.Predecessor = p
		_, err = Start(t.Context(), o)
		if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), "the running daemon's "+tt.uri) || strings.Contains(err.Error(), "the program that serves it") {
			t.Errorf("%s: error %v, want one that says whose it is", tt.uri, err)
		}
	}
	if open(t, s.socket(), "u"); !d.Ready() {
		t.Error("the old daemon drains")
	}
}

func TestTakeOver_Memory(t *testing.T) {
	s := newSettings(t, "f=file:$DIR/u.img,size=1MiB", "scratch=memory:1MiB")
	s.mustStart(t)
	_, err := s.takeOver(t, client.HandOver{})
	if err == nil || !strings.Contains(err.Error(), `disk "scratch" is in memory`) || !strings.Contains(err.Error(), "--takeover-discard-memory") {
		t.Errorf("error %v, want one that names the disk", err)
	}
	p, err := s.takeOver(t, client.HandOver{DiscardMemory: true})
	if err != nil {
		t.Fatal(err)
	}
	p.Close()
}

// lookedAt is a context that does something when it is first asked for its error, which a
// daemon does last before it says go.
type lookedAt struct {
	context.Context
	once  sync.Once
	first func()
}

func (c *lookedAt) Err() error {
	c.once.Do(c.first)
	return c.Context.Err()
}

// A daemon that cannot give a socket its mode or owner leaves the old one as it is, and the
// other sockets.
func TestTakeOver_Shape(t *testing.T) {
	s := newSettings(t, "u=file:$DIR/u.img,size=1MiB")
	second := filepath.Join(s.dir, "second.sock")
	s.Listen[0].Mode = 0o600
	s.Listen = append(s.Listen, config.Address{Network: "unix", Target: second, Mode: 0o600})
	d, _ := s.mustStart(t)
	p, err := s.takeOver(t, client.HandOver{})
	if err != nil {
		t.Fatal(err)
	}
	next := *s
	next.Listen = []config.Address{{Network: "unix", Target: s.socket(), Mode: 0o666}, s.Listen[1]}
	o := next.options(t)
	o.Predecessor = p
	ctx := &lookedAt{Context: t.Context(), first: func() { // by then all seemed well
		if err := os.Remove(second); err != nil {
			t.Error(err)
		}
	}}
	if _, err := Start(ctx, o); err == nil || !strings.Contains(err.Error(), "second.sock: no such file") {
		t.Errorf("error %v, want that the second socket is not there", err)
	}
	if !d.Ready() {
		t.Error("the old daemon drains")
	}
	if fi, err := os.Stat(s.socket()); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the first socket: %v, %v; want 0600", fi, err)
	}
}

// A socket that somebody has removed is there again with the next daemon; if that cannot
// start, all is as before.
func TestTakeOver_SocketRemoved(t *testing.T) {
	s := newSettings(t, "u=file:$DIR/u.img,size=1MiB")
	s.Listen[0].Mode = 0o640
	old, _ := s.mustStart(t)
	if err := os.Remove(s.socket()); err != nil {
		t.Fatal(err)
	}
	for _, image := range []string{filepath.Join(s.dir, "missing.img"), s.Disks[0].File} {
		p, err := s.takeOver(t, client.HandOver{})
		for err != nil && strings.Contains(err.Error(), "another daemon") {
			p, err = s.takeOver(t, client.HandOver{}) // until the old one has seen that the first has gone
		}
		if err != nil {
			t.Fatal(err)
		}
		s.Disks = []config.Disk{{Name: "u", File: image}}
		o := s.options(t)
		o.Predecessor = p
		var wg sync.WaitGroup
		if image == filepath.Join(s.dir, "missing.img") {
			if _, err := Start(t.Context(), o); err == nil {
				t.Fatal("Start succeeded")
			}
			if left := s.sockets(t); len(left) != 3 || !old.Ready() {
				t.Errorf("sockets and locks %v, want 3; ready %v", left, old.Ready())
			}
			continue
		}
		wg.Go(func() {
			<-old.HandedOver()
			if err := old.Stop(context.Background()); err != nil {
				t.Errorf("Stop of the old daemon: %v", err)
			}
		})
		d, err := Start(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		open(t, s.socket(), "u")
		if fi, err := os.Stat(s.socket()); err != nil || fi.Mode().Perm() != 0o640 {
			t.Errorf("the socket: %v, %v; want 0640", fi, err)
		}
		// It is this daemon's as any other, and the next one's, whoever closes it.
		next, err := s.takeOver(t, client.HandOver{})
		if err != nil {
			t.Fatal(err)
		}
		next.Close()
		open(t, s.socket(), "u")
		stopper(t, d)()
	}
	if left := s.sockets(t); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// A daemon that is told to end before it has said go leaves the old one as it is.
func TestTakeOver_Cancelled(t *testing.T) {
	s := newSettings(t, "u=file:$DIR/u.img,size=1MiB")
	d, _ := s.mustStart(t)
	c := open(t, s.socket(), "u")
	p, err := s.takeOver(t, client.HandOver{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	o := s.options(t)
	o.Predecessor = p
	if _, err := Start(ctx, o); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want that of the context", err)
	}
	if _, err := c.do(cmdFlush, 0, 0, nil); err != nil || !d.Ready() {
		t.Errorf("the old daemon: %v, ready %v", err, d.Ready())
	}
}

// A disk in memory that is being added when another daemon asks for this one's place is
// not lost either.
func TestTakeOver_MemoryMeanwhile(t *testing.T) {
	s := newSettings(t, "f=file:$DIR/u.img,size=1MiB")
	d, _ := s.mustStart(t)
	ctx, m, end, err := d.beginChange(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan error)
	go func() {
		p, err := s.takeOver(t, client.HandOver{})
		p.Close()
		asked <- err
	}()
	eventually(t, func() string {
		if !d.handingOver.Load() {
			return "the other daemon has not asked"
		}
		return ""
	})
	if err := d.add(ctx, m, &config.Disk{Name: "scratch", Memory: config.MiB, BlockSize: 512}); err != nil {
		t.Error(err)
	}
	end()
	if err := <-asked; err == nil || !strings.Contains(err.Error(), `disk "scratch" is in memory`) {
		t.Errorf("error %v, want one that names the disk", err)
	}
}

// A daemon that is told to end while the old one changes what it serves, which may take
// long, does not keep others from asking.
func TestTakeOver_GoneMeanwhile(t *testing.T) {
	s := newSettings(t, "f=file:$DIR/u.img,size=1MiB")
	d, _ := s.mustStart(t)
	_, _, end, err := d.beginChange(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer end()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	asked := make(chan error)
	go func() {
		p, err := TakeOver(ctx, s.Admin, client.HandOver{}, slog.New(slog.DiscardHandler))
		p.Close()
		asked <- err
	}()
	for _, asks := range []bool{true, false} {
		eventually(t, func() string {
			if d.handingOver.Load() != asks {
				return "the other daemon has not asked, or is not forgotten"
			}
			return ""
		})
		cancel()
	}
	if err := <-asked; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want that of the context", err)
	}
}

func TestTakeOver_Nobody(t *testing.T) {
	s := newSettings(t)
	for _, spoil := range []func(){
		func() {},
		func() {
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.Admin, Net: "unix"})
			if err != nil {
				t.Fatal(err)
			}
			l.SetUnlinkOnClose(false) // as if killed
			_ = l.Close()
		},
	} {
		spoil()
		if p, err := s.takeOver(t, client.HandOver{}); p != nil || err != nil {
			t.Errorf("%v, %v; want neither", p, err)
		}
	}
	if err := os.Remove(s.Admin); err != nil {
		t.Error(err)
	}
	l, err := net.Listen("unix", s.Admin)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		if c, err := l.Accept(); err == nil {
			_, _ = c.Write([]byte("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"))
		}
	}()
	if _, err := s.takeOver(t, client.HandOver{}); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("a daemon that knows no hand-over: %v", err)
	}
}

// Sockets that the new daemon does not want are closed, and their paths removed; those that
// a service manager opened are kept.
func TestTakeOver_OtherAddresses(t *testing.T) {
	s := newSettings(t, "u=file:$DIR/u.img,size=1MiB")
	dropped := filepath.Join(s.dir, "dropped.sock")
	s.Listen = append(s.Listen, config.Address{Network: "unix", Target: dropped})
	managed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	web, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := s.options(t)
	o.Inherited = Sockets{NBD: []net.Listener{managed}, HTTP: web}
	old, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.takeOver(t, client.HandOver{})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		<-old.HandedOver()
		done <- old.Stop(context.Background())
	}()
	s.Listen = []config.Address{{Network: "unix", Target: s.socket(), Mode: 0o600}, {Network: "unix", Target: filepath.Join(s.dir, "new.sock")}}
	s.HTTP = "127.0.0.1:0"
	o = s.options(t)
	o.Predecessor = p
	d, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer stopper(t, d)()
	if err := <-done; err != nil {
		t.Errorf("the old daemon: %v", err)
	}
	if _, err := os.Lstat(dropped); err == nil {
		t.Errorf("%s is still there", dropped)
	}
	if fi, err := os.Stat(s.socket()); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v; want the new mode 0600", fi.Mode(), err)
	}
	if d.HTTPAddress() != web.Addr().String() {
		t.Errorf("HTTP on %s, want the service manager's %s", d.HTTPAddress(), web.Addr())
	}
	nc, err := net.Dial("tcp", managed.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	negotiate(t, nc, "u")
	open(t, filepath.Join(s.dir, "new.sock"), "u")
}

// fakePredecessor answers at the admin socket of s with what answer says.
func fakePredecessor(t *testing.T, s *settings, answer func(c *net.UnixConn) error) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.Admin, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	go func() {
		defer close(done)
		c, err := l.AcceptUnix()
		if err != nil {
			return
		}
		defer func() { _ = c.Close() }()
		if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
			t.Error(err)
		}
		if err := answer(c); err != nil {
			t.Error(err)
		}
	}()
}

const upgraded = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: vhbad-handover\r\n\r\n"

// drained plays a predecessor up to draining, with the descriptors of a socket at path and
// of its lock, if there are any.
func drained(c *net.UnixConn, path string, fds ...int) error {
	if _, err := c.Write([]byte(upgraded)); err != nil {
		return err
	}
	if _, _, err := receiveMessage(c, stepTimeout, saySend); err != nil {
		return err
	}
	if len(fds) > 0 {
		if err := sendMessage(c, handoverMessage{Say: saySocket, Purpose: purposeNBD, Origin: "unix://" + path, Locked: true}, fds...); err != nil {
			return err
		}
	}
	if err := sendMessage(c, handoverMessage{Say: sayOffer}); err != nil {
		return err
	}
	if _, _, err := receiveMessage(c, stepTimeout, sayGo); err != nil {
		return err
	}
	return sendMessage(c, handoverMessage{Say: sayDraining})
}

// A predecessor that dies while it drains, or cannot close everything, leaves
// its images free once it is gone: there is no reason not to start.
func TestTakeOver_PredecessorFails(t *testing.T) {
	for want, last := range map[string]func(s *settings, c *net.UnixConn) error{
		"died while it drained": func(*settings, *net.UnixConn) error { return nil },
		"disk broken": func(s *settings, c *net.UnixConn) error {
			image, err := media.OpenFile(media.FileConfig{Path: s.Disks[0].File, SizeBytes: int64(s.Disks[0].Size)})
			if err != nil {
				return err
			}
			return errors.Join(sendMessage(c, handoverMessage{Say: sayDone, Error: "flush: disk broken"}), image.Close())
		},
	} {
		t.Run(want, func(t *testing.T) {
			s := newSettings(t, "u=file:$DIR/u.img,size=1MiB")
			fakePredecessor(t, s, func(c *net.UnixConn) error { return errors.Join(drained(c, ""), last(s, c)) })
			log := s.startAfterFake(t)
			if !strings.Contains(log.String(), want) {
				t.Errorf("the log does not tell:\n%s", log)
			}
		})
	}
}

// startAfterFake starts a daemon in the place of a fake predecessor, which keeps the admin
// socket, until the end of the test. It serves disk u. The log is that of the take-over.
func (s *settings) startAfterFake(t *testing.T) *lockedBuffer {
	t.Helper()
	p, err := s.takeOver(t, client.HandOver{})
	if err != nil {
		t.Fatal(err)
	}
	log := &lockedBuffer{}
	p.log = slog.New(slog.NewTextHandler(log, nil))
	s.Admin = config.Off
	o := s.options(t)
	o.Predecessor = p
	d, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stopper(t, d))
	open(t, s.socket(), "u")
	return log
}

// A lock that cannot say whose it is, on a full file system for example, is no reason not
// to start any more, when the predecessor has gone.
func TestTakeOver_LockNotWritten(t *testing.T) {
	s := newSettings(t, "u=file:$DIR/u.img,size=1MiB")
	l, err := admin.ListenUnix(t.Context(), s.socket(), 0)
	if err != nil {
		t.Fatal(err)
	}
	l.Leave()
	defer func() { _ = l.Close() }()
	lock, err := os.Open(s.socket() + ".lock") // which cannot be written
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lock.Close() }()
	socket, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = socket.Close() }()
	fakePredecessor(t, s, func(c *net.UnixConn) error {
		return drained(c, s.socket(), int(socket.Fd()), int(lock.Fd()))
	})
	log := s.startAfterFake(t)
	if !strings.Contains(log.String(), "does not say whose it is") || !strings.Contains(log.String(), s.socket()) {
		t.Errorf("the log does not tell of the lock:\n%s", log)
	}
}

// Whatever is at the admin socket, the answer is an error and no descriptor is
// left open.
func TestTakeOver_Nonsense(t *testing.T) {
	for name, tt := range map[string]struct {
		say  string
		want string
	}{
		"nothing":     {"", "EOF"},
		"no HTTP":     {"hello\r\n\r\n", "malformed HTTP"},
		"end":         {upgraded, "EOF"},
		"too long":    {upgraded + "\xff\xff\xff\xff", "message of 4294967295 bytes"},
		"no JSON":     {upgraded + "\x00\x00\x00\x01x", "invalid character"},
		"wrong order": {upgraded + "\x00\x00\x00\x0e{\"say\":\"done\"}", `message "done"`},
		"no socket":   {upgraded + "\x00\x00\x00\x10{\"say\":\"socket\"}", "0 descriptors: want 1"},
		"cut":         {upgraded + "\x00\x00\x00\x10{", "EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSettings(t, "u=file:$DIR/u.img,size=1MiB")
			fakePredecessor(t, s, func(c *net.UnixConn) error {
				head, rest, _ := strings.Cut(tt.say, upgraded)
				if tt.say != head {
					head = upgraded
				}
				if _, err := c.Write([]byte(head)); err != nil || head != upgraded {
					return err // the successor may be gone already
				}
				if _, _, err := receiveMessage(c, stepTimeout, saySend); err != nil {
					return err
				}
				_, err := c.Write([]byte(rest))
				return err
			})
			if _, err := s.takeOver(t, client.HandOver{}); err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "take over from process") {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
}
