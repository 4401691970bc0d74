package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/admin"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/metrics"
	"github.com/vhbad/vhbad/hba/fault"
	"github.com/vhbad/vhbad/hba/media"
)

// settings are a configuration in a folder of the test.
type settings struct {
	config.File
	dir string
}

func newSettings(t *testing.T, specs ...string) *settings {
	t.Helper()
	s := &settings{dir: t.TempDir()}
	s.HTTP = config.Off
	s.Admin = filepath.Join(s.dir, "a.sock")
	s.Listen = []config.Address{{Network: "unix", Target: s.socket()}}
	s.HBA.Verify = true
	s.Limits.Memory = config.MinMemory // under the race detector it is on the heap, and zeroed
	for _, spec := range specs {
		d, err := config.ParseDisk(strings.ReplaceAll(spec, "$DIR", s.dir))
		if err != nil {
			t.Fatal(err)
		}
		s.Disks = append(s.Disks, d)
	}
	return s
}

func (s *settings) socket() string { return filepath.Join(s.dir, "n.sock") }

func (s *settings) start(t *testing.T) (*Daemon, error) {
	t.Helper()
	return Start(t.Context(), s.options(t))
}

func (s *settings) options(t *testing.T) Options {
	t.Helper()
	c, err := s.Resolve(client.DefaultPath(), false)
	if err != nil {
		t.Fatal(err)
	}
	// On a loaded machine a callback may be off its thread for longer than it may
	// take: that is no violation that a test should count.
	return Options{Config: c, Version: "v1", Log: slog.New(slog.DiscardHandler), HoldLimit: time.Minute}
}

// mustStart starts a daemon that the test's end stops, unless the test does.
func (s *settings) mustStart(t *testing.T) (d *Daemon, stop func()) {
	t.Helper()
	d, err := s.start(t)
	if err != nil {
		t.Fatal(err)
	}
	stop = stopper(t, d)
	t.Cleanup(stop)
	return d, stop
}

func stopper(t *testing.T, d *Daemon) func() {
	t.Helper()
	return func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := d.Stop(ctx); err != nil {
			t.Errorf("Stop: %v", err)
		}
		// Stop again does nothing.
		if err := d.Stop(ctx); err != nil {
			t.Errorf("second Stop: %v", err)
		}
	}
}

// sockets lists the sockets and locks in the folder.
func (s *settings) sockets(t *testing.T) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(s.dir, "*.sock*"))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestDaemon_KeepsDataOverRestart(t *testing.T) {
	s := newSettings(t, "mem=memory:1MiB,description=a scratch disk", "img=file:$DIR/i.img,size=1MiB,block-size=4096")
	d, stop := s.mustStart(t)
	if !d.Ready() || len(d.Endpoints()) != 1 || d.Endpoints()[0].URI != "unix://"+s.socket() {
		t.Errorf("ready %v, endpoints %v", d.Ready(), d.Endpoints())
	}
	want := bytes.Repeat([]byte("vhbad"), 1000)
	c := open(t, s.socket(), "img")
	if c.sizeBytes != 1<<20 {
		t.Errorf("size %d, want %d", c.sizeBytes, 1<<20)
	}
	if _, err := c.do(cmdWrite, 10_000, len(want), want); err != nil {
		t.Errorf("write: %v", err)
	}
	def := open(t, s.socket(), "") // the first disk
	if got, err := def.do(cmdRead, 10_000, len(want), nil); err != nil || !bytes.Equal(got, make([]byte, len(want))) {
		t.Errorf("the other disk: %v, or not zeros", err)
	}
	stop() // with both clients still there
	if d.Ready() {
		t.Error("ready after Stop")
	}
	if left := s.sockets(t); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	b, err := os.ReadFile(filepath.Join(s.dir, "i.img"))
	if err != nil || !bytes.Equal(b[10_000:10_000+len(want)], want) {
		t.Errorf("the image does not have the data: %v", err)
	}

	s.Disks[1].Size = 0
	s.ReadOnly = true
	s.mustStart(t)
	c = open(t, s.socket(), "img")
	if got, err := c.do(cmdRead, 10_000, len(want), nil); err != nil || !bytes.Equal(got, want) {
		t.Errorf("after a restart: %v, or other data", err)
	}
	if c.flags&2 == 0 {
		t.Errorf("flags %#x lack READ_ONLY", c.flags)
	}
	if _, err := c.do(cmdWrite, 0, len(want), want); err == nil || err.Error() != "errno 1" {
		t.Errorf("write to a read-only disk: %v, want EPERM", err)
	}
	if _, err := c.do(cmdFlush, 0, 0, nil); err != nil {
		t.Errorf("flush of a read-only disk: %v", err)
	}
}

// get asks a daemon's HTTP server for a page.
func get(t *testing.T, d *Daemon, path string) (code int, body string) {
	t.Helper()
	res, err := http.Get("http://" + d.HTTPAddress() + path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

func TestDaemon_StatusAndMetrics(t *testing.T) {
	s := newSettings(t, "disk0=memory:1MiB", "two=memory:2MiB,block-size=4096,read-only")
	s.HTTP = "127.0.0.1:0"
	d, stop := s.mustStart(t)
	c := open(t, s.socket(), "disk0")
	data := make([]byte, 8192)
	for range 3 {
		if _, err := c.do(cmdWrite, 0, len(data), data); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.do(cmdRead, 1<<20-4096, 8192, nil); err == nil {
		t.Error("read beyond the end succeeded")
	}
	// A reply is counted just after it is sent, and before the next request of
	// the same connection is answered.
	if _, err := c.do(cmdFlush, 0, 0, nil); err != nil {
		t.Error(err)
	}
	cl := client.New(s.Admin)
	defer cl.Close()
	st, err := cl.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if st.State != "ready" || st.Version != "v1" || st.PID != os.Getpid() || len(st.Disks) != 2 || len(st.Connections) != 1 || st.HTTP == "" {
		t.Errorf("status %+v", st)
	}
	disk, w, r := st.Disks[0], st.Disks[0].Operations[1], st.Disks[0].Operations[0]
	if disk.Name != "disk0" || !disk.Default || disk.Connections != 1 || disk.SizeBytes != 1<<20 || disk.Address != "0:0:0" {
		t.Errorf("disk %+v", disk)
	}
	if w.Op != "write" || w.Requests != 3 || w.Bytes != 3*8192 || w.MeanSeconds <= 0 || r.Requests != 1 || r.Errors != 1 {
		t.Errorf("operations %+v", disk.Operations)
	}
	if two := st.Disks[1]; !two.ReadOnly || two.BlockBytes != 4096 || two.Default {
		t.Errorf("disk %+v", two)
	}
	if len(st.Adapter.Queues) != config.DefaultQueues || st.Adapter.Violations != 0 || !st.Adapter.Verify {
		t.Errorf("adapter %+v", st.Adapter)
	}
	if fi, err := os.Stat(s.Admin); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("admin socket: %v, %v; want mode 0600", fi.Mode(), err)
	}

	get := func(path string) (int, string) { return get(t, d, path) }
	if code, _ := get("/readyz"); code != http.StatusOK {
		t.Errorf("readyz: %d", code)
	}
	_, body := get("/metrics")
	for _, want := range []string{
		`vhbad_requests_total{export="disk0",op="write",result="ok"} 3`,
		`vhbad_requests_total{export="disk0",op="read",result="error"} 1`,
		`vhbad_request_bytes_total{export="disk0",op="write"} 24576`,
		`vhbad_request_duration_seconds_count{export="disk0",op="write"} 3`,
		`vhbad_connections{export="disk0"} 1`,
		`vhbad_requests_total{export="two",op="read",result="ok"} 0`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	problems, err := testutil.GatherAndLint(metrics.NewRegistry(d, "v1"))
	if err != nil || len(problems) != 0 {
		t.Errorf("lint of live metrics: %v, %v", problems, err)
	}
	stop()
	if _, ok := d.Snapshot(); ok {
		t.Error("a snapshot of a stopped daemon")
	}
	if st := d.Status(); st.State != "draining" || len(st.Disks) != 0 {
		t.Errorf("status of a stopped daemon: %+v", st)
	}
}

// Any name that is allowed works, also one that is no serial number.
func TestDaemon_Names(t *testing.T) {
	long := strings.Repeat("n", config.MaxNameBytes)
	names := []string{"with space", "größe", "a=b,c", long, long[:254]}
	s := newSettings(t)
	for _, name := range names {
		s.Disks = append(s.Disks, config.Disk{Name: name, Memory: config.MiB})
	}
	s.mustStart(t)
	for _, name := range names {
		if c := open(t, s.socket(), name); c.sizeBytes != 1<<20 {
			t.Errorf("export %.20q: size %d", name, c.sizeBytes)
		}
	}
}

// More disks than a target has units.
func TestDaemon_ManyDisks(t *testing.T) {
	s := newSettings(t)
	for i := range config.UnitsPerTarget + 2 {
		s.Disks = append(s.Disks, config.Disk{Name: fmt.Sprintf("d%d", i), Memory: config.Size(i+1) * config.MiB})
	}
	d, _ := s.mustStart(t)
	for i, disk := range d.Status().Disks {
		if want := uint64(i+1) << 20; disk.Name != s.Disks[i].Name || disk.SizeBytes != want {
			t.Errorf("disk %d: %s of %d bytes, want %s of %d", i, disk.Name, disk.SizeBytes, s.Disks[i].Name, want)
		}
	}
	last := d.Status().Disks[config.UnitsPerTarget+1]
	if last.Address != "0:1:1" {
		t.Errorf("last disk at %s, want 0:1:1", last.Address)
	}
}

func TestDaemon_EveryMode(t *testing.T) {
	statusOf := map[config.Interrupts]string{
		config.InterruptsPerMessage: "a lock per message", config.InterruptsAll: "one lock for all messages",
		config.InterruptsSingle: "one message for all queues", config.InterruptsLine: "line",
	}
	for _, half := range []bool{false, true} {
		for _, mode := range []config.Interrupts{config.InterruptsPerMessage, config.InterruptsAll, config.InterruptsSingle, config.InterruptsLine} {
			t.Run(fmt.Sprintf("half=%v/interrupts=%s", half, mode), func(t *testing.T) {
				s := newSettings(t, "d=memory:4MiB")
				s.HBA.HalfDuplex, s.HBA.Interrupts, s.HBA.StrictSegments, s.HBA.Queues = half, mode, true, 2
				d, _ := s.mustStart(t)
				c := open(t, s.socket(), "d")
				want := bytes.Repeat([]byte{1, 2, 3}, 1<<20/3)
				if _, err := c.do(cmdWrite, 512, len(want), want); err != nil {
					t.Error(err)
				}
				if got, err := c.do(cmdRead, 512, len(want), nil); err != nil || !bytes.Equal(got, want) {
					t.Errorf("read: %v, or other data", err)
				}
				st := d.Status()
				if st.Adapter.Violations != 0 {
					t.Errorf("%d violations", st.Adapter.Violations)
				}
				if got, want := st.Adapter.Interrupts, statusOf[mode]; got != want {
					t.Errorf("interrupts: %s, want %s", got, want)
				}
			})
		}
	}
}

// Whatever fails, nothing stays behind: the same settings, put right, start.
func TestStart_Unwinds(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	hold := func(t *testing.T, path string) {
		t.Helper()
		l, err := admin.ListenUnix(t.Context(), path, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
	}
	for _, tt := range []struct {
		name  string
		spoil func(t *testing.T, s *settings)
		want  []string
	}{
		{"admin in use", func(t *testing.T, s *settings) {
			t.Helper()
			s.Admin = filepath.Join(s.dir, "held.sock")
			hold(t, s.Admin)
		}, []string{"held.sock", "already served", "--admin"}},
		{"admin without folder", func(_ *testing.T, s *settings) { s.Admin = filepath.Join(s.dir, "none", "a.sock") }, []string{"no such file", "--admin"}},
		{"http in use", func(_ *testing.T, s *settings) { s.HTTP = taken.Addr().String() }, []string{taken.Addr().String(), "in use", "--http"}},
		{"tcp in use", func(_ *testing.T, s *settings) {
			s.Listen = append(s.Listen, config.Address{Network: "tcp", Target: taken.Addr().String()})
		}, []string{"tcp://" + taken.Addr().String(), "in use"}},
		{"tcp of another machine", func(_ *testing.T, s *settings) {
			s.Listen = append(s.Listen, config.Address{Network: "tcp", Target: "192.0.2.1:0"})
		}, []string{"192.0.2.1", "address of this machine"}},
		{"unix in use", func(t *testing.T, s *settings) {
			t.Helper()
			path := filepath.Join(s.dir, "held.sock")
			hold(t, path)
			s.Listen = append(s.Listen, config.Address{Network: "unix", Target: path})
		}, []string{"held.sock", "already served"}},
		{"image missing", func(_ *testing.T, s *settings) {
			s.Disks = append(s.Disks, config.Disk{Name: "x", File: filepath.Join(s.dir, "none.img")})
		}, []string{`disk "x"`, "none.img", "does not exist", "size="}},
		{"image a folder", func(_ *testing.T, s *settings) { s.Disks = append(s.Disks, config.Disk{Name: "x", File: s.dir}) }, []string{s0, "directory"}},
		{"image twice", func(_ *testing.T, s *settings) {
			s.Disks = append(s.Disks, config.Disk{Name: "x", File: filepath.Join(s.dir, ".", "i.img") + "/../i.img"},
				config.Disk{Name: "y", File: s.dir + "/./i.img"})
		}, []string{"i.img"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSettings(t, "d=memory:1MiB", "i=file:$DIR/i.img,size=1MiB")
			good := *s
			tt.spoil(t, s)
			_, err := s.start(t)
			if err == nil {
				t.Fatal("Start succeeded")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q lacks %q", err, want)
				}
			}
			good.mustStart(t)
		})
	}
}

// s0 is in every message about an image.
const s0 = `disk "x"`

// closing is a medium that calls a function before it is closed.
type closing struct {
	media.Media
	first func()
}

func (m *closing) Close() error {
	m.first()
	return m.Media.Close()
}

// A start that fails with its fault rules shows nobody disks that are being taken apart.
func TestStart_WrongFaults(t *testing.T) {
	s := newSettings(t, "d=memory:1MiB")
	s.Faults = []fault.Rule{{Name: "cut", Disk: "d", Action: fault.Action{Kind: fault.KindPowerCut}}}
	o, c := s.options(t), s.control(t)
	closed := false
	o.OpenMedium = func(d *config.Disk) (media.Media, error) {
		md, err := openMedium(d, nil)
		return &closing{md, func() {
			closed = true
			if disks, err := c.Disks(t.Context()); err != nil || len(disks) != 0 {
				t.Errorf("%d disks, %v; want none any more", len(disks), err)
			}
		}}, err
	}
	if _, err := Start(t.Context(), o); err == nil || !strings.Contains(err.Error(), "the disk has no write cache") {
		t.Errorf("error %v", err)
	}
	if !closed {
		t.Error("the medium is not closed")
	}
}

func TestStart_Cancelled(t *testing.T) {
	s := newSettings(t, "d=memory:1MiB")
	c, err := s.Resolve(client.DefaultPath(), false)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Start(ctx, Options{Config: c, Log: slog.New(slog.DiscardHandler)}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want context.Canceled", err)
	}
	if left := s.sockets(t); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// An inherited listener is served, and its path is not ours to remove.
func TestStart_InheritedListener(t *testing.T) {
	s := newSettings(t, "d=memory:1MiB")
	s.Listen = nil
	c, err := s.Resolve(client.DefaultPath(), true)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d, err := Start(t.Context(), Options{Config: c, Log: slog.New(slog.DiscardHandler), Inherited: Sockets{NBD: []net.Listener{l}}})
	if err != nil {
		t.Fatal(err)
	}
	if e := d.Endpoints(); len(e) != 1 || e[0].URI != "tcp://"+l.Addr().String() {
		t.Errorf("endpoints %v", e)
	}
	if err := d.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if err := l.Close(); err == nil {
		t.Error("the listener was still open after Stop")
	}
}

func TestAttachHint(t *testing.T) {
	tcp := func(ip string) net.Addr { return &net.TCPAddr{IP: net.ParseIP(ip), Port: 10809} }
	for _, tt := range []struct {
		addr net.Addr
		disk config.Disk
		tls  config.TLS
		want string
	}{
		{tcp("127.0.0.1"), config.Disk{Name: "disk0"}, config.TLS{}, "-N disk0 127.0.0.1 10809 /dev/nbd0"},
		{tcp("0.0.0.0"), config.Disk{Name: "d"}, config.TLS{}, "-N d 127.0.0.1 10809 /dev/nbd0"},
		{tcp("::"), config.Disk{Name: "d"}, config.TLS{}, "-N d 127.0.0.1 10809 /dev/nbd0"},
		{tcp("::1"), config.Disk{Name: "d", BlockSize: 4096}, config.TLS{}, "-N d -b 4096 ::1 10809 /dev/nbd0"},
		{&net.UnixAddr{Net: "unix", Name: "/run/x y.sock"}, config.Disk{Name: "it's", BlockSize: 512}, config.TLS{}, `-unix '/run/x y.sock' -N 'it'\''s' /dev/nbd0`},
		{tcp("127.0.0.1"), config.Disk{Name: "d"}, config.TLS{Mode: config.TLSOptional}, "-N d 127.0.0.1 10809 /dev/nbd0"},
		{tcp("127.0.0.1"), config.Disk{Name: "d"}, config.TLS{Mode: config.TLSRequired}, "-N d -enable-tls 127.0.0.1 10809 /dev/nbd0"},
		{
			tcp("127.0.0.1"),
			config.Disk{Name: "d", Allow: []string{"x"}},
			config.TLS{Mode: config.TLSOptional, VerifyPeer: true},
			"-N d -enable-tls -certfile client-cert.pem -keyfile client-key.pem 127.0.0.1 10809 /dev/nbd0",
		},
	} {
		if got, want := attachHint(tt.addr, &tt.disk, &tt.tls), "sudo modprobe nbd; sudo nbd-client "+tt.want; got != want {
			t.Errorf("%v: got %s, want %s", tt.addr, got, want)
		}
	}
}
