package daemon

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
	"github.com/vhbad/vhbad/hba/fault"
	"github.com/vhbad/vhbad/hba/media"
)

// startReloadable starts a daemon that reads s again when it is asked to.
func (s *settings) startReloadable(t *testing.T) *Daemon {
	t.Helper()
	o := s.options(t)
	o.LogLevel = &slog.LevelVar{}
	o.Reloaded = func(d *Daemon, _ error) {
		if d == nil || len(d.Endpoints()) == 0 {
			t.Errorf("told of a reload of %v", d)
		}
	}
	o.Reload = func() (*config.Config, error) { return s.Resolve(client.DefaultPath(), false) }
	d, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stopper(t, d))
	return d
}

// setDisks makes the configuration's disks those of the command line's form.
func (s *settings) setDisks(t *testing.T, specs ...string) {
	t.Helper()
	s.Disks = nil
	for _, spec := range specs {
		d, err := config.ParseDisk(strings.ReplaceAll(spec, "$DIR", s.dir))
		if err != nil {
			t.Fatal(err)
		}
		s.Disks = append(s.Disks, d)
	}
}

// served are the disks as the command line has them, with where they come from.
func served(d *Daemon) []string {
	var out []string
	for _, e := range machineOf(d).list() {
		out = append(out, string(e.origin())+" "+e.config().String())
	}
	return out
}

// TestReload: disks and addresses are added, changed and removed. Clients of those that
// stay notice nothing; clients of those that go are drained.
func TestReload(t *testing.T) {
	s := newSettings(t, "stays=memory:1MiB", "goes=file:$DIR/goes.img,size=1MiB", "grows=memory:1MiB")
	second := filepath.Join(s.dir, "second.sock")
	d := s.startReloadable(t)
	ctl, events := s.control(t), s.follow(t, client.EventReloaded, client.EventReloadFailed, client.EventDiskAdded, client.EventDiskRemoved, client.EventDiskGrown)
	if r, err := ctl.Reload(t.Context()); err != nil || cmp.Diff(&client.Reload{}, r) != "" {
		t.Errorf("reload of the same: %+v, %v", r, err)
	}
	events.want(client.EventReloaded, "")
	if _, err := ctl.AddDisk(t.Context(), "byhand", client.DiskSpec{MemoryBytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	events.want(client.EventDiskAdded, "byhand")
	if _, err := ctl.AddDisk(t.Context(), "adopted", client.DiskSpec{MemoryBytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	events.want(client.EventDiskAdded, "adopted")

	stays, goes := open(t, s.socket(), "stays"), open(t, s.socket(), "goes")
	data := bytes.Repeat([]byte("r"), 4096)
	if _, err := goes.do(cmdWrite, 0, len(data), data); err != nil {
		t.Error(err)
	}
	s.setDisks(t, "new=memory:1MiB", "grows=memory:2MiB", "stays=memory:1MiB,description=now with words,connections=2", "adopted=memory:1MiB")
	s.Listen = append(s.Listen, config.Address{Network: "unix", Target: second, Mode: 0o640})
	s.Log.Level = "debug"
	s.Faults = []fault.Rule{{Name: "rare", Disk: "new", Budget: 1, Action: fault.Action{Kind: fault.KindBusy}}}
	r, err := ctl.Reload(t.Context())
	want := &client.Reload{
		DisksAdded: []string{"new"}, DisksRemoved: []string{"goes"}, DisksChanged: []string{"adopted", "grows", "stays"},
		ListenersAdded: []string{"unix://" + second},
	}
	if diff := cmp.Diff(want, r); err != nil || diff != "" {
		t.Fatalf("%v, -want +got\n%s", err, diff)
	}
	events.want(client.EventDiskGrown, "grows")
	events.want(client.EventDiskAdded, "new")
	events.want(client.EventDiskRemoved, "goes")
	events.want(client.EventReloaded, "")
	if diff := cmp.Diff([]string{
		"configuration new=memory:1MiB,block-size=512", "configuration grows=memory:2MiB,block-size=512",
		"configuration stays=memory:1MiB,block-size=512,connections=2,description=now with words",
		"configuration adopted=memory:1MiB,block-size=512", "api byhand=memory:1MiB,block-size=512",
	}, served(d)); diff != "" {
		t.Errorf("served, -want +got\n%s", diff)
	}
	if d.o.LogLevel.Level() != slog.LevelDebug {
		t.Errorf("log level %s", d.o.LogLevel.Level())
	}
	if _, err := stays.do(cmdWrite, 0, len(data), data); err != nil {
		t.Errorf("a client of a disk that stays: %v", err)
	}
	if _, err := goes.tryRead(1); err == nil {
		t.Error("a client of a disk that is gone goes on")
	}
	if b, err := os.ReadFile(filepath.Join(s.dir, "goes.img")); err != nil || !bytes.Equal(b[:len(data)], data) {
		t.Errorf("the image of a disk that is gone: %v, or other data", err)
	}
	if c := open(t, second, ""); c.sizeBytes != 1<<20 {
		t.Errorf("the default export by the new address: %d bytes", c.sizeBytes)
	}
	if c := open(t, second, "grows"); c.sizeBytes != 2<<20 {
		t.Errorf("the disk that grows: %d bytes", c.sizeBytes)
	}
	open(t, second, "stays")
	if err := s.refused(t, "stays"); err == nil {
		t.Error("a third client of a disk for two")
	}

	if f, err := ctl.Faults(t.Context()); err != nil || len(f.Faults) != 1 {
		t.Errorf("faults %+v, %v", f, err)
	}

	// The new address is removed again; clients that came by it stay. The faults go.
	s.Faults = nil
	c := open(t, second, "new")
	s.Listen = s.Listen[:1]
	if r, err = ctl.Reload(t.Context()); err != nil || len(r.ListenersRemoved) != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := net.Dial("unix", second); err == nil {
		t.Error("an address that is gone answers")
	}
	if _, err := os.Stat(second); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket of an address that is gone: %v", err)
	}
	if _, err := c.do(cmdRead, 0, 512, nil); err != nil {
		t.Errorf("a client that came by an address that is gone: %v", err)
	}
	if f, err := ctl.Faults(t.Context()); err != nil || len(f.Faults) != 0 {
		t.Errorf("faults %+v, %v; want none", f, err)
	}
	if st := d.Status(); len(st.Listeners) != 1 || st.Configuration.ReloadError != "" {
		t.Errorf("status %+v", st)
	}
	noViolations(t, machineOf(d))
}

// TestReload_Refused: whatever is wrong, nothing changes, and everybody can see it.
func TestReload_Refused(t *testing.T) {
	const one = "one=memory:1MiB"
	taken := filepath.Join(t.TempDir(), "taken.sock")
	l, err := net.Listen("unix", taken)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	for name, tt := range map[string]struct {
		disks  []string
		change func(f *settings)
		kind   error
		want   []string
	}{
		"a file that is wrong": {
			[]string{one, one}, func(*settings) {}, client.ErrInvalid, []string{"two disks have this name"},
		},
		"what a disk cannot change": {
			[]string{"one=memory:1MiB,block-size=4096,read-only", "file=memory:1MiB"},
			func(*settings) {}, client.ErrConflict,
			[]string{`disk "one": block-size from 512 to 4KiB`, `disk "one": read-only from false to true`, `disk "file": file from`, "remove the disk and add it again"},
		},
		"a disk that shrinks": {
			[]string{"one=memory:512KiB", "file=file:$DIR/f.img"},
			func(*settings) {}, client.ErrConflict,
			[]string{`disk "one": size 512KiB: want at least the present one, 1MiB`},
		},
		"what the daemon cannot change": {
			[]string{one, "file=file:$DIR/f.img"},
			func(f *settings) {
				f.Limits.Requests, f.HBA.Workers, f.HTTP = 200, 3, "127.0.0.1:1"
			}, client.ErrConflict,
			[]string{"limits requests from 256 to 200", "hba workers from 16 to 3", "http from none to 127.0.0.1:1", "restart it"},
		},
		"an address that is taken": {
			[]string{one, "file=file:$DIR/f.img"}, func(f *settings) {
				f.Listen = append(f.Listen, config.Address{Network: "unix", Target: f.dir + "/x.sock"}, config.Address{Network: "unix", Target: taken})
			}, client.ErrInternal, []string{"taken.sock: already served"},
		},
		"the last disk is not there": {
			[]string{one, "file=file:$DIR/f.img", "x=memory:1MiB", "y=file:$DIR/y.img,size=1MiB", "none=file:$DIR/none.img"},
			func(*settings) {}, client.ErrInternal,
			[]string{"none.img: does not exist"},
		},
		"a file of a disk of the API": {
			[]string{one, "file=file:$DIR/f.img", "x=file:$DIR/api.img"},
			func(*settings) {}, client.ErrConflict,
			[]string{"with the disks that were added by the API", `belongs to disk`},
		},
		"a fault that does not fit its disk": {
			[]string{one, "file=file:$DIR/f.img,size=1MiB", "x=file:$DIR/x.img,size=1MiB"}, func(f *settings) {
				f.Faults = []fault.Rule{{Name: "cut", Disk: "one", Action: fault.Action{Kind: fault.KindPowerCut}}}
			}, client.ErrInvalid, []string{`fault "cut"`, "the disk has no write cache"},
		},
		"a disk that would go meanwhile": {
			[]string{"new=file:$DIR/f.img", one}, func(*settings) {}, client.ErrInternal, []string{"f.img", "in use"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSettings(t, one, "file=file:$DIR/f.img,size=1MiB")
			d := s.startReloadable(t)
			ctl, events := s.control(t), s.follow(t, client.EventReloadFailed)
			if _, err := ctl.AddDisk(t.Context(), "api", client.DiskSpec{File: filepath.Join(s.dir, "api.img"), SizeBytes: 1 << 20}); err != nil {
				t.Fatal(err)
			}
			c := open(t, s.socket(), "file")
			m := machineOf(d)
			eventually(t, func() string { // the client counts a moment after it is let in
				if len(holdings(t, m).Names) == 0 {
					return "the client does not count"
				}
				return ""
			})
			before, disks := holdings(t, m), served(d)
			s.setDisks(t, tt.disks...)
			tt.change(s)
			_, err := ctl.Reload(t.Context())
			if err == nil {
				t.Fatal("it has taken effect")
			}
			for _, want := range tt.want {
				wantError(t, err, tt.kind, want)
			}
			if e := events.want(client.EventReloadFailed, ""); e.Fields["error"] != err.Error() {
				t.Errorf("event %+v", e)
			}
			if diff := cmp.Diff(disks, served(d)); diff != "" {
				t.Errorf("the disks have changed\n%s", diff)
			}
			eventually(t, func() string { return more(before, holdings(t, m)) })
			if _, err := c.do(cmdWrite, 0, 512, make([]byte, 512)); err != nil {
				t.Errorf("a client: %v", err)
			}
			if st := d.Status(); len(st.Listeners) != 1 || st.Configuration.ReloadError != err.Error() {
				t.Errorf("status %+v", st.Configuration)
			}
			if snap, _ := d.Snapshot(); snap.Reloaded || snap.ReloadedAt.IsZero() {
				t.Error("metrics say that it went well")
			}
			if left, err := filepath.Glob(filepath.Join(s.dir, "[xy]*")); err != nil || len(left) != 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
			// The mistake is corrected, and all is well.
			s.setDisks(t, one, "file=file:$DIR/f.img,size=1MiB")
			s.Limits.Requests, s.HBA.Workers, s.HTTP, s.Listen, s.Faults = 0, 0, config.Off, s.Listen[:1], nil
			if r, err := ctl.Reload(t.Context()); err != nil || cmp.Diff(&client.Reload{}, r) != "" {
				t.Errorf("reload of the first: %+v, %v", r, err)
			}
			if snap, _ := d.Snapshot(); !snap.Reloaded {
				t.Error("metrics say that it went badly")
			}
		})
	}
}

// TestReload_Undone: a reload that fails when sockets are given their modes gives the
// first its own back, and has grown no disk.
func TestReload_Undone(t *testing.T) {
	s := newSettings(t, "one=memory:1MiB")
	second := filepath.Join(s.dir, "second.sock")
	s.Listen[0].Mode = 0o600
	s.Listen = append(s.Listen, config.Address{Network: "unix", Target: second, Mode: 0o600})
	o := s.options(t)
	o.Reload = func() (*config.Config, error) { return s.Resolve(client.DefaultPath(), false) }
	o.OpenMedium = func(c *config.Disk) (media.Media, error) {
		if c.Name == "two" { // by then all seemed well
			if err := os.Remove(second); err != nil {
				return nil, err
			}
		}
		return openMedium(c, nil)
	}
	d, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stopper(t, d))
	s.Listen[0].Mode = 0o666
	s.setDisks(t, "one=memory:2MiB", "two=memory:1MiB")
	_, err = s.control(t).Reload(t.Context())
	wantError(t, err, client.ErrInternal, "second.sock: no such file")
	if fi, err := os.Stat(s.socket()); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the first socket: %v, %v; want 0600", fi.Mode(), err)
	}
	if n := d.Disks()[0].SizeBytes; n != 1<<20 {
		t.Errorf("the disk has %d bytes", n)
	}
}

// TestReload_SocketRemoved: a socket that somebody has removed is reported, with what to do
// about it.
func TestReload_SocketRemoved(t *testing.T) {
	s := newSettings(t, "one=memory:1MiB")
	s.startReloadable(t)
	if err := os.Remove(s.socket()); err != nil {
		t.Fatal(err)
	}
	_, err := s.control(t).Reload(t.Context())
	wantError(t, err, client.ErrConflict, "listen on unix://"+s.socket()+": somebody has removed the socket")
}

// TestReload_SamePort: an address with the port of one that it is to replace cannot be opened
// beside that one, and the error says that it is the daemon itself that has it.
func TestReload_SamePort(t *testing.T) {
	s := newSettings(t, "one=memory:1MiB")
	s.Listen = append(s.Listen, config.Address{Network: "tcp", Target: "127.0.0.1:0"})
	d := s.startReloadable(t)
	had := d.Endpoints()[1].URI
	_, port, err := net.SplitHostPort(strings.TrimPrefix(had, "tcp://"))
	if err != nil {
		t.Fatal(err)
	}
	s.Listen[1].Target = "0.0.0.0:" + port
	_, err = s.control(t).Reload(t.Context())
	wantError(t, err, client.ErrInternal, "it is this daemon's "+had+", which the reload would close afterwards")
	if e := d.Endpoints(); len(e) != 2 || e[1].URI != had {
		t.Errorf("endpoints %v", e)
	}
}

// TestReload_OthersPort: an address that another program has is not said to be this daemon's,
// although the address that it is to replace has the same port.
func TestReload_OthersPort(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s := newSettings(t, "one=memory:1MiB")
	s.Listen = append(s.Listen, config.Address{Network: "tcp", Target: "127.0.0.1:" + port})
	s.startReloadable(t)
	s.Listen[1].Target = l.Addr().String()
	_, err = s.control(t).Reload(t.Context())
	wantError(t, err, client.ErrInternal, "address already in use")
	if strings.Contains(err.Error(), "this daemon's") {
		t.Errorf("%v; it is another program that has it", err)
	}
}

// TestReload_SocketForgets: a socket whose mode or owner is no longer in the file
// would silently keep it; that is refused.
func TestReload_SocketForgets(t *testing.T) {
	s := newSettings(t, "one=memory:1MiB")
	s.Listen[0].Mode, s.Listen[0].Owner = 0o600, strconv.Itoa(os.Getuid())
	s.startReloadable(t)
	ctl := s.control(t)
	for _, tt := range []struct {
		mode  fs.FileMode
		owner string
		ok    bool
	}{{0o600, "", false}, {0, "", false}, {0o660, s.Listen[0].Owner, true}, {0, s.Listen[0].Owner, true}} {
		s.Listen = []config.Address{{Network: "unix", Target: s.socket(), Mode: tt.mode, Owner: tt.owner}}
		_, err := ctl.Reload(t.Context())
		if tt.ok {
			if err != nil {
				t.Errorf("mode %o, owner %q: %v", tt.mode, tt.owner, err)
			}
			continue
		}
		wantError(t, err, client.ErrConflict, "says less of mode or owner than before")
	}
}

// TestReload_FaultMeanwhile: a rule that the API sets while a reload opens disks is
// in force afterwards.
func TestReload_FaultMeanwhile(t *testing.T) {
	s := newSettings(t, "one=memory:1MiB")
	o := s.options(t)
	o.Reload = func() (*config.Config, error) { return s.Resolve(client.DefaultPath(), false) }
	var d *Daemon
	rule := func(name string) fault.Rule {
		return fault.Rule{Name: name, Disk: "one", Budget: 1, Action: fault.Action{Kind: fault.KindBusy}}
	}
	o.OpenMedium = func(c *config.Disk) (media.Media, error) {
		if c.Name == "new" {
			if _, err := d.PutFault(rule("api")); err != nil {
				return nil, err
			}
		}
		return openMedium(c, nil)
	}
	d, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stopper(t, d))
	s.setDisks(t, "one=memory:1MiB", "new=memory:1MiB")
	s.Faults = []fault.Rule{rule("file")}
	if r, err := d.Reload(t.Context()); err != nil || len(r.Warnings) != 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	for _, name := range []string{"file", "api"} {
		if _, err := d.Fault(name); err != nil {
			t.Error(err)
		}
	}
}

// TestReload_Nothing: without a file there is nothing to reload.
func TestReload_Nothing(t *testing.T) {
	s := newSettings(t, "one=memory:1MiB")
	s.mustStart(t)
	_, err := s.control(t).Reload(t.Context())
	wantError(t, err, client.ErrConflict, "started without --config")
}

// TestReload_Hangs: a configuration that cannot be read, as on a file system whose server
// is gone, does not keep the daemon from stopping.
func TestReload_Hangs(t *testing.T) {
	s := newSettings(t, "one=memory:1MiB")
	o := s.options(t)
	reading, hang := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(hang) })
	o.Reload = func() (*config.Config, error) {
		close(reading)
		<-hang
		return nil, errors.New("it was read after all")
	}
	d, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	reloaded := make(chan error, 1)
	go func() {
		_, err := d.Reload(t.Context())
		reloaded <- err
	}()
	<-reading
	stopper(t, d)()
	wantError(t, <-reloaded, client.ErrUnavailable, "the daemon stops")
}

// TestReadAgain_Limit: after some time nobody waits any more for a configuration that cannot
// be read, and others may change what is served.
func TestReadAgain_Limit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		defer close(hang)
		begun := time.Now()
		_, err := readAgain(t.Context(), make(chan struct{}, 1), func() (*config.Config, error) {
			<-hang
			return nil, nil
		})
		wantError(t, err, client.ErrUnavailable, "could not be read within 10s")
		if took := time.Since(begun); took != readLimit {
			t.Errorf("took %s, want %s", took, readLimit)
		}
	})
}

// TestReadAgain_HangsAgain: as long as a reading that was given up goes on, others wait and are
// given up, too, and keep no thread of their own; then they read what is there.
func TestReadAgain_HangsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		var readings atomic.Int32
		reading := make(chan struct{}, 1)
		for range 3 {
			begun := time.Now()
			_, err := readAgain(t.Context(), reading, func() (*config.Config, error) {
				readings.Add(1)
				<-hang
				return nil, nil
			})
			wantError(t, err, client.ErrUnavailable, "could not be read within 10s")
			if took := time.Since(begun); took != readLimit {
				t.Errorf("took %s, want %s", took, readLimit)
			}
		}
		if n := readings.Load(); n != 1 {
			t.Errorf("%d read at once, want 1", n)
		}
		time.AfterFunc(readLimit/2, func() { close(hang) })
		want := &config.Config{}
		if got, err := readAgain(t.Context(), reading, func() (*config.Config, error) { return want, nil }); err != nil || got != want {
			t.Errorf("once the file can be read: %p, %v; want %p", got, err, want)
		}
	})
}

// TestReload_AfterGrow: a disk that has grown by the API keeps its size, whether the
// file knows of it or not.
func TestReload_AfterGrow(t *testing.T) {
	s := newSettings(t, "f=file:$DIR/f.img,size=1MiB")
	d := s.startReloadable(t)
	if _, err := d.GrowDisk(t.Context(), "f", 4<<20); err != nil {
		t.Fatal(err)
	}
	for _, spec := range []string{"f=file:$DIR/f.img,size=1MiB", "f=file:$DIR/f.img,size=4MiB", "f=file:$DIR/f.img"} {
		s.setDisks(t, spec)
		if _, err := d.Reload(t.Context()); err != nil {
			t.Errorf("%s: %v", spec, err)
		}
	}
	if got := d.Disks()[0].SizeBytes; got != 4<<20 {
		t.Errorf("%d bytes", got)
	}
}
