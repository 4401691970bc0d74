package daemon

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/metrics"
	"github.com/vhbad/vhbad/hba/cache"
	"github.com/vhbad/vhbad/hba/fault"
	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/hba/target"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
	"github.com/vhbad/vhbad/port"
)

func TestCutPower(t *testing.T) {
	s := newSettings(t, "db=file:$DIR/i.img,size=1MiB,cache=writeback", "plain=memory:1MiB")
	d, stop := s.mustStart(t)
	api := client.New(s.Admin)
	defer api.Close()
	c := open(t, s.socket(), "db")
	block := func(b byte) []byte { return bytes.Repeat([]byte{b}, 512) }
	write := func(c *nbdConn, off uint64, b byte) {
		t.Helper()
		if _, err := c.do(cmdWrite, off, 512, block(b)); err != nil {
			t.Fatal(err)
		}
	}
	write(c, 0, 1)
	if _, err := c.do(cmdFlush, 0, 0, nil); err != nil {
		t.Fatal(err)
	}
	write(c, 0, 2)
	write(c, 512, 3)
	p, err := api.Power(t.Context(), "db")
	if err != nil || !p.On || !p.WriteCache || p.PendingBytes != 1024 || p.PendingWrites != 2 || p.OldestPending == nil {
		t.Errorf("power: %+v, %v", p, err)
	}
	seed := uint64(5)
	r, err := api.CutPower(t.Context(), "db", client.PowerCutOptions{Policy: "none", Seed: &seed, DropConnections: true})
	if err != nil {
		t.Fatal(err)
	}
	if r.Number != 1 || r.Disk != "db" || r.Seed != 5 || r.Class != "legal" || r.DroppedConnections != 1 ||
		r.Sectors.Lost != 2 || len(r.Writes) != 2 || r.Writes[1].OffsetBytes != 512 || len(r.Flushes) != 1 {
		t.Errorf("report: %+v", r)
	}
	if err := c.tryWrite(0, block(7)); err == nil {
		t.Error("the connection is alive")
	}
	c = open(t, s.socket(), "db")
	if got, err := c.do(cmdRead, 0, 1024, nil); err != nil || !bytes.Equal(got, append(block(1), block(0)...)) {
		t.Errorf("after the cut: %v, %v …", err, got[:min(1, len(got))])
	}
	if _, err := c.do(cmdFlush, 0, 0, nil); err != nil {
		t.Errorf("flush of a new client: %v", err)
	}
	write(c, 0, 4)
	if _, err = api.CutPower(t.Context(), "db", client.PowerCutOptions{Policy: "none"}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.do(cmdFlush, 0, 0, nil); err == nil || err.Error() != "errno 5" {
		t.Errorf("first flush of a client that saw the cut: %v, want EIO", err)
	}
	if _, err := c.do(cmdFlush, 0, 0, nil); err != nil {
		t.Errorf("second flush: %v", err)
	}
	for name, want := range map[string]error{"plain": client.ErrConflict, "nobody": client.ErrNotFound} {
		if _, err := api.CutPower(t.Context(), name, client.PowerCutOptions{}); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	for _, o := range []client.PowerCutOptions{{Policy: "x"}, {Tear: "1"}, {Damage: "x"}, {OffForSeconds: -1}, {OffForSeconds: 1e9}} {
		if _, err := api.CutPower(t.Context(), "db", o); !errors.Is(err, client.ErrInvalid) {
			t.Errorf("%+v: %v, want ErrInvalid", o, err)
		}
	}
	snap, _ := d.Snapshot()
	if m := snap.Disks[0].Cache; m == nil || m.CutsByCommand != (metrics.PowerCuts{2}) ||
		m.CutsByRule != (metrics.PowerCuts{}) || m.CutSectors[cache.ClassLegal][cache.OutcomeLost] != 3 {
		t.Errorf("metrics: %+v", m)
	}
	if snap.Disks[1].Cache != nil {
		t.Error("a disk without a write cache has metrics of one")
	}
	// Data that is written but not flushed when the daemon stops is durable.
	write(c, 0, 9)
	stop()
	s.Disks[0].Cache = ""
	s.mustStart(t)
	if got, err := open(t, s.socket(), "db").do(cmdRead, 0, 512, nil); err != nil || !bytes.Equal(got, block(9)) {
		t.Errorf("after a restart: %v, %v …", err, got[:min(1, len(got))])
	}
}

// TestCutPower_DroppedWaits: commands of a dropped connection that wait in the port are not
// executed when the power is back; those of a connection that stays are.
func TestCutPower_DroppedWaits(t *testing.T) {
	for name, drop := range map[string]bool{"dropped": true, "stays": false} {
		t.Run(name, func(t *testing.T) {
			s := newSettings(t, "db=memory:1MiB,cache=writeback")
			d, _ := s.mustStart(t)
			m := machineOf(d)
			onPort := func(fn func(p *port.Processor) bool) {
				t.Helper()
				if err := m.onProcessor("test", func(p *port.Processor) error {
					if !fn(p) {
						return errors.New("no such unit")
					}
					return nil
				}); err != nil {
					t.Fatal(err)
				}
			}
			e := m.find("db")
			onPort(func(p *port.Processor) bool { return m.adapter.PauseDevice(p, 0, e.targetID, e.lun, 3600) })
			c := open(t, s.socket(), "db")
			payload := bytes.Repeat([]byte{7}, 512)
			done := make(chan error, 1)
			go func() { done <- c.tryWrite(0, payload) }()
			eventually(t, func() string {
				if n := e.LogicalUnit().Stats().Waiting; n != 1 {
					return fmt.Sprintf("%d commands wait, want 1", n)
				}
				return ""
			})
			if _, err := d.CutPower("db", client.PowerCutOptions{Policy: "none", DropConnections: drop}); err != nil {
				t.Fatal(err)
			}
			if n := e.LogicalUnit().Stats().Waiting; n != 1 {
				t.Errorf("%d commands wait when the power is back, want the one", n)
			}
			e.unit.Execute(&target.Task{CDBBytes: 6}, true) // TEST UNIT READY of who came first
			onPort(func(p *port.Processor) bool { return m.adapter.ResumeDevice(p, 0, e.targetID, e.lun) })
			want := payload
			if drop {
				want = make([]byte, 512)
			}
			if err := <-done; (err != nil) != drop {
				t.Errorf("the write: %v", err)
			}
			if got, err := open(t, s.socket(), "db").do(cmdRead, 0, 512, nil); err != nil || !bytes.Equal(got, want) {
				t.Errorf("on the medium: %v, %d …, want %d", err, got[0], want[0])
			}
		})
	}
}

// TestCutPower_Stragglers: before a nexus has a number again that a dropped connection's
// commands have, those have ended.
func TestCutPower_Stragglers(t *testing.T) {
	s := newSettings(t, "db=memory:1MiB,cache=writeback")
	d, _ := s.mustStart(t)
	m := machineOf(d)
	e := m.find("db")
	onPort := func(fn func(p *port.Processor)) {
		t.Helper()
		if err := m.onProcessor("test", func(p *port.Processor) error { fn(p); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	onPort(func(p *port.Processor) { m.adapter.PauseDevice(p, 0, e.targetID, e.lun, 3600) })
	c := s.speak(t, "db", formats[0])
	if err := c.Send(nbdtest.Command{Type: nbdtest.CmdWrite, Length: 512, Payload: bytes.Repeat([]byte{7}, 512)}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		if n := e.LogicalUnit().Stats().Waiting; n != 1 {
			return fmt.Sprintf("%d commands wait, want 1", n)
		}
		return ""
	})
	if _, err := d.CutPower("db", client.PowerCutOptions{DropConnections: true}); err != nil {
		t.Fatal(err)
	}
	numbers := map[uint32]int{1: 1}
	lose := func() {
		e.power.loseNexus(t.Context(), nbd.Dropped{})
		numbers[e.power.nexus.Load()]++
	}
	for range maxStraggle - 1 {
		lose()
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 255 {
			lose()
		}
	}()
	eventually(t, func() string {
		select {
		case <-done:
			t.Fatal("numbers are used again while a command of one is under way")
		default:
		}
		if !isIn("nbd.Dropped.Wait") {
			return "nobody waits for the command"
		}
		return ""
	})
	onPort(func(p *port.Processor) { m.adapter.ResumeDevice(p, 0, e.targetID, e.lun) })
	<-done
	if len(numbers) != 255 || numbers[0] != 0 {
		t.Errorf("%d numbers of nexuses, want 1 to 255", len(numbers))
	}
}

// TestCutPower_Off: a disk without power answers with errors, at once, and has
// power again when the daemon stops.
func TestCutPower_Off(t *testing.T) {
	s := newSettings(t, "db=memory:1MiB,cache=writeback")
	d, _ := s.mustStart(t)
	c := open(t, s.socket(), "db")
	off := s.follow(t, client.EventPowerCut)
	var group sync.WaitGroup
	group.Go(func() {
		if _, err := d.CutPower("db", client.PowerCutOptions{OffForSeconds: 3600}); err != nil {
			t.Error(err)
		}
	})
	off.want(client.EventPowerCut, "db")
	if _, err := c.do(cmdRead, 0, 512, nil); err == nil || err.Error() != "errno 5" {
		t.Errorf("read without power: %v, want EIO", err)
	}
	if p, err := d.Power("db"); err != nil || p.On {
		t.Errorf("power: %+v, %v", p, err)
	}
	if _, err := d.CutPower("db", client.PowerCutOptions{}); !errors.Is(err, client.ErrConflict) {
		t.Errorf("second cut: %v, want ErrConflict", err)
	}
	if err := d.Stop(context.Background()); err != nil {
		t.Errorf("stop: %v", err)
	}
	group.Wait()
	if _, err := d.CutPower("db", client.PowerCutOptions{}); !errors.Is(err, client.ErrUnavailable) {
		t.Errorf("cut after the stop: %v, want ErrUnavailable", err)
	}
}

// TestCutPower_ToldWhenItIsBack: a connection that stays gets one error for the next
// flush after the power is back, whatever it was told meanwhile: the reply to a write that
// was lost may have come after that. One that came when all others had been dropped
// gets none.
func TestCutPower_ToldWhenItIsBack(t *testing.T) {
	for name, drop := range map[string]bool{"stays": false, "came": true} {
		t.Run(name, func(t *testing.T) {
			s := newSettings(t, "db=memory:1MiB,cache=writeback")
			d, _ := s.mustStart(t)
			m := machineOf(d)
			c := open(t, s.socket(), "db")
			off := s.follow(t, client.EventPowerCut)
			var group sync.WaitGroup
			group.Go(func() {
				if _, err := d.CutPower("db", client.PowerCutOptions{OffForSeconds: 3600, DropConnections: drop}); err != nil {
					t.Error(err)
				}
			})
			off.want(client.EventPowerCut, "db")
			if drop {
				c = open(t, s.socket(), "db")
			}
			flush := func(when string, want bool) {
				t.Helper()
				if _, err := c.do(cmdFlush, 0, 0, nil); (err == nil) != want {
					t.Errorf("flush %s: %v", when, err)
				}
			}
			flush("without power", false)
			m.cuts.cancel() // it is over
			group.Wait()
			flush("with power", drop)
			flush("after that", true)
		})
	}
}

// unwritable is a medium that fails writes while it is told to.
type unwritable struct {
	media.Media
	fails atomic.Bool
}

func (u *unwritable) WriteAt(p []byte, off int64) (int, error) {
	if u.fails.Load() {
		return 0, &media.Error{Op: "write", OffsetBytes: off, LengthBytes: int64(len(p)), Kind: media.ErrMedium}
	}
	return u.Media.WriteAt(p, off)
}

// TestCutPower_Failed: a cut that the medium did not carry out is told as well, and
// the disk has power again.
func TestCutPower_Failed(t *testing.T) {
	s := newSettings(t, "db=memory:1MiB,cache=writeback")
	var md unwritable
	o := s.options(t)
	o.OpenMedium = func(c *config.Disk) (m media.Media, err error) {
		md.Media, err = openMedium(c, nil)
		return &md, err
	}
	d, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stopper(t, d))
	c := open(t, s.socket(), "db")
	if _, err := c.do(cmdWrite, 0, 512, make([]byte, 512)); err != nil {
		t.Fatal(err)
	}
	md.fails.Store(true)
	events := s.follow(t, client.EventPowerCut)
	if _, err := d.CutPower("db", client.PowerCutOptions{Policy: "all"}); !errors.Is(err, media.ErrMedium) {
		t.Errorf("cut: %v, want the medium's error", err)
	}
	md.fails.Store(false)
	events.want(client.EventPowerCut, "db")
	p, err := d.Power("db")
	if err != nil || !p.On || p.Cuts != 1 || len(p.Reports) != 1 || p.Reports[0].Error == "" || p.Reports[0].Class != "failed" || p.Reports[0].Sectors.Pending != 1 {
		t.Errorf("power: %+v, %v", p, err)
	}
}

// A sizeHeld medium holds the next call of Size, which a write makes on its way into the
// cache when it has passed the unit and holds no lock.
type sizeHeld struct {
	media.Media
	armed       atomic.Bool
	came, leave chan struct{}
}

func (h *sizeHeld) Size() int64 {
	if h.armed.Swap(false) {
		close(h.came)
		<-h.leave
	}
	return h.Media.Size()
}

// isIn reports whether a goroutine is in a function.
func isIn(function string) bool {
	stacks := make([]byte, 1<<22)
	return bytes.Contains(stacks[:runtime.Stack(stacks, true)], []byte(function))
}

// TestCutPower_OnItsWayToTheCache: a write that the unit has let pass, but that has not
// reached the cache when the power is cut, is done before it is decided what is lost, or
// never: it does not reach the medium afterwards, even with FUA.
func TestCutPower_OnItsWayToTheCache(t *testing.T) {
	s := newSettings(t, "db=memory:1MiB,cache=writeback")
	md := &sizeHeld{came: make(chan struct{}), leave: make(chan struct{})}
	o := s.options(t)
	o.OpenMedium = func(c *config.Disk) (m media.Media, err error) {
		md.Media, err = openMedium(c, nil)
		return md, err
	}
	d, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stopper(t, d))
	c := s.speak(t, "db", formats[0])
	md.armed.Store(true)
	if err := c.Send(nbdtest.Command{
		Type: nbdtest.CmdWrite, Flags: nbdtest.FlagFUA, Length: 512, Payload: bytes.Repeat([]byte{7}, 512),
	}); err != nil {
		t.Fatal(err)
	}
	<-md.came
	cut := make(chan error, 1)
	go func() {
		_, err := d.CutPower("db", client.PowerCutOptions{Policy: "none", DropConnections: true})
		cut <- err
	}()
	eventually(t, func() string {
		select {
		case err := <-cut:
			close(md.leave)
			t.Fatalf("the power is back while a write is on its way from before, %v", err)
		default:
		}
		if !isIn("hba.(*Device).Settle") {
			return "the cut does not wait for the write"
		}
		return ""
	})
	close(md.leave)
	if err := <-cut; err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 512)
	if _, err := md.ReadAt(got, 0); err != nil || got[0] != 0 {
		t.Errorf("on the medium: %d, %v", got[0], err)
	}
}

// A stuckWriter hangs in writes, too.
type stuckWriter struct{ *stuckMedium }

func (w stuckWriter) WriteAt(p []byte, off int64) (int, error) {
	w.entered <- struct{}{}
	<-w.release
	return w.Media.WriteAt(p, off)
}

// TestCutPower_MediumHangs: whoever asks for a cut that has to wait for a command in the
// medium is told so, and for which command; the disk stays off, and the cut is made once
// that command has ended. A daemon that is told to stop meanwhile stops.
func TestCutPower_MediumHangs(t *testing.T) {
	payload := bytes.Repeat([]byte{7}, 512)
	write := nbdtest.Command{Type: nbdtest.CmdWrite, Flags: nbdtest.FlagFUA, Offset: 512, Length: 512, Payload: payload}
	for _, tt := range []struct {
		hangs nbdtest.Command // the cut itself does, if it is none
		what  string          // if the engine is slow to say that it is idle, nothing is known of the cut itself
		ends  bool
	}{
		{flushCmd, "a flush, tag ", true},
		{flushCmd, "a flush, tag ", false},
		{write, "a write of 1 blocks at LBA 1, tag ", true},
		{write, "a write of 1 blocks at LBA 1, tag ", false},
		{nbdtest.Command{}, "", true},
		{nbdtest.Command{}, "", false},
	} {
		t.Run(fmt.Sprintf("%v ends=%v", tt.hangs.Type, tt.ends), func(t *testing.T) {
			s := newSettings(t, "db=memory:1MiB,cache=writeback")
			md := stuckWriter{&stuckMedium{entered: make(chan struct{}, 8), release: make(chan struct{})}}
			release := sync.OnceFunc(func() { close(md.release) })
			t.Cleanup(release)
			o := s.options(t)
			o.OpenMedium = func(c *config.Disk) (m media.Media, err error) {
				md.Media, err = openMedium(c, nil)
				return md, err
			}
			d, err := Start(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			stop := stopper(t, d)
			c := s.speak(t, "db", formats[0])
			wantErrno(t, c, nbdtest.Command{Type: nbdtest.CmdWrite, Length: 512, Payload: payload}, nbd.OK)
			if tt.hangs.Type != nbdtest.CmdRead {
				if err := c.Send(tt.hangs); err != nil {
					t.Fatal(err)
				}
				<-md.entered
			}
			seed := uint64(7)
			options := client.PowerCutOptions{Policy: "all", Seed: &seed}
			_, err = d.cutPowerWithin("db", options, time.Millisecond)
			wantError(t, err, client.ErrUnavailable, `disk "db": its power is off, and the cut waits for its medium: `+tt.what)
			wantError(t, err, client.ErrUnavailable, "not ended within 1ms; it is made, with seed 7,")
			if p, err := d.Power("db"); err != nil || p.On || p.Cuts != 0 {
				t.Errorf("while the cut waits: %+v, %v", p, err)
			}
			_, err = d.CutPower("db", options)
			wantError(t, err, client.ErrConflict, "has no power already")
			if !tt.ends {
				ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
				defer cancel()
				if err := d.Stop(ctx); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("Stop: %v", err)
				}
				release()
				return
			}
			release()
			eventually(t, func() string {
				if p, err := d.Power("db"); err != nil || !p.On || len(p.Reports) != 1 || p.Reports[0].Seed != 7 {
					return fmt.Sprintf("after that: %+v, %v", p, err)
				}
				return ""
			})
			stop()
		})
	}
}

// TestCutPower_FailsLate: if a cut fails after whoever asked for it has been told that it
// waits, the log says why.
func TestCutPower_FailsLate(t *testing.T) {
	s := newSettings(t, "db=memory:1MiB,cache=writeback")
	md := &sizeHeld{came: make(chan struct{}), leave: make(chan struct{})}
	log := &lines{}
	o := s.options(t)
	o.Log = slog.New(log)
	o.OpenMedium = func(c *config.Disk) (m media.Media, err error) {
		md.Media, err = openMedium(c, nil)
		return md, err
	}
	d, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Stop(context.Background()) }) // it finds the cache closed
	c := s.speak(t, "db", formats[0])
	md.armed.Store(true)
	write := writeCmd(0, 1, 7)
	write.Flags = nbdtest.FlagFUA
	if err := c.Send(write); err != nil {
		t.Fatal(err)
	}
	<-md.came
	_, err = d.cutPowerWithin("db", client.PowerCutOptions{}, time.Millisecond)
	wantError(t, err, client.ErrUnavailable, "the cut waits for its medium")
	if err := machineOf(d).find("db").power.cache.Close(); err != nil {
		t.Error(err)
	}
	close(md.leave)
	eventually(t, func() string {
		if got := log.with("power cut ", "disk=db"); len(got) != 1 || !strings.Contains(got[0], "error=") || !strings.Contains(got[0], "closed") {
			return fmt.Sprintf("logged %q, want why the cut has failed", got)
		}
		return ""
	})
}

// TestPowerOff_Counted: what fails for want of power counts as injected, and nothing else
// does: neither what is refused as beyond an end that a rule has made up.
func TestPowerOff_Counted(t *testing.T) {
	f := startFaulty(t, nil, "db=memory:1MiB,cache=writeback")
	m := machineOf(f.d)
	c, e := f.dial(t, "db"), m.find("db")
	want := func(what string, errors, injected uint64) {
		t.Helper()
		eventually(t, func() string { // they are counted once they are answered
			got := m.server.Snapshot().Exports[0].Ops[nbd.OpRead]
			if got.Errors != errors || got.Injected != injected {
				return fmt.Sprintf("%s: %d errors, %d of them injected, want %d and %d", what, got.Errors, got.Injected, errors, injected)
			}
			return ""
		})
	}
	wantErrno(t, c, readCmd(0, 1), nbd.OK)
	e.power.unit.PowerOff()
	wantErrno(t, c, readCmd(0, 1), nbd.EIO)
	want("without power", 1, 1)
	e.power.unit.PowerOn()
	wantErrno(t, c, readCmd(0, 1), nbd.OK)
	want("with power", 1, 1)
	e.power.unit.Limit(512)
	wantErrno(t, c, readCmd(1, 1), nbd.EINVAL)
	want("beyond the end", 2, 1)
}

// TestConfig_KnowsTheCache: whatever a configuration may say of a cache, the cache accepts.
func TestConfig_KnowsTheCache(t *testing.T) {
	for i, name := range config.CacheEvictions {
		if e, err := cache.ParseEviction(name); err != nil || int(e) != i {
			t.Errorf("eviction %s: %d, %v", name, e, err)
		}
	}
	if want := []string{string(cache.ActLyingFlush), string(cache.ActIgnoredFUA)}; !slices.Equal(config.HostileActs, want) {
		t.Errorf("hostile acts %v, the cache has %v", config.HostileActs, want)
	}
	if config.MinCacheSize != cache.MinSizeBytes || config.MaxCacheSize != cache.MaxSizeBytes {
		t.Errorf("sizes from %d to %d, the cache takes %d to %d", config.MinCacheSize, config.MaxCacheSize, cache.MinSizeBytes, int64(cache.MaxSizeBytes))
	}
}

// TestRules_KnowTheCache: what a rule may say of a power cut is what the switch
// takes, and all of it.
func TestRules_KnowTheCache(t *testing.T) {
	if want := cache.PolicyNames(); !slices.Equal(fault.PowerPolicies, want) {
		t.Errorf("policies %v, the cache has %v", fault.PowerPolicies, want)
	}
	for d, name := range fault.PowerDamages {
		if got := cache.Damage(d).String(); got != name {
			t.Errorf("damage %s, the cache has %s", name, got)
		}
	}
	if len(fault.PowerDamages) != int(cache.DamageUnreadable)+1 {
		t.Errorf("damages %v, the cache has %d", fault.PowerDamages, cache.DamageUnreadable+1)
	}
	for _, tear := range fault.PowerTears {
		if _, _, err := cutOptions(&client.PowerCutOptions{Tear: tear}); err != nil {
			t.Error(err)
		}
	}
	if _, _, err := cutOptions(&client.PowerCutOptions{OffForSeconds: fault.MaxPowerOff.Std().Seconds()}); err != nil {
		t.Error(err)
	}
}

// TestCutPower_ByRule has the power go between the arrival of the second flush and
// its reply. What the first covered is there; what the second was for need not be,
// and it is not answered.
func TestCutPower_ByRule(t *testing.T) {
	s := newSettings(t, "db=memory:1MiB,cache=writeback")
	d, _ := s.mustStart(t)
	_, err := d.PutFault(client.FaultRule{
		Name: "second", Disk: "db", Match: fault.Match{Op: fault.Ops{"flush"}, Skip: 1}, Budget: 1,
		Action: fault.Action{Kind: fault.KindPowerCut, Power: &fault.PowerCut{Policy: "none", Seed: 4}},
	})
	if err != nil {
		t.Fatal(err)
	}
	on := s.follow(t, client.EventPowerOn)
	c := open(t, s.socket(), "db")
	for _, x := range []byte{1, 2} {
		if err := c.tryWrite(uint64(x)*512, bytes.Repeat([]byte{x}, 512)); err != nil {
			t.Fatal(err)
		}
		if x == 1 {
			if _, err := c.do(cmdFlush, 0, 0, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := c.trySend(cmdFlush); err == nil {
		t.Error("the second flush was answered")
	}
	on.want(client.EventPowerOn, "db")
	p, err := d.Power("db")
	if err != nil || len(p.Reports) != 1 {
		t.Fatalf("power: %+v, %v", p, err)
	}
	if r := &p.Reports[0]; r.Trigger != "rule second" || r.Seed != 4 || r.Class != "legal" || r.Sectors.Lost != 1 || r.DroppedConnections != 1 {
		t.Errorf("report: %+v", r)
	}
	got, err := open(t, s.socket(), "db").do(cmdRead, 512, 1024, nil)
	if err != nil || got[0] != 1 || got[512] != 0 {
		t.Errorf("after the cut: %v, %d and %d, want 1 and 0", err, got[0], got[512])
	}
}

// TestCutPower_ByRuleWhileOff: a rule that is to cut the power of a disk that has none has
// nothing to do, which is no error.
func TestCutPower_ByRuleWhileOff(t *testing.T) {
	s := newSettings(t, "db=memory:1MiB,cache=writeback")
	o := s.options(t)
	lines := make(lineWriter, 16)
	o.Log = slog.New(slog.NewTextHandler(lines, nil))
	d, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	var cutting sync.WaitGroup
	t.Cleanup(cutting.Wait)  // the cut ends
	t.Cleanup(stopper(t, d)) // when the daemon stops
	putFaults(t, d, client.FaultRule{
		Name: "again", Disk: "db", Match: fault.Match{Op: fault.Ops{"mark"}, AtMark: "now"}, Action: fault.Action{Kind: fault.KindPowerCut},
	})
	cut := s.follow(t, client.EventPowerCut)
	cutting.Go(func() {
		if _, err := d.CutPower("db", client.PowerCutOptions{OffForSeconds: 3600}); err != nil {
			t.Error(err)
		}
	})
	cut.want(client.EventPowerCut, "db")
	if n, err := d.SetMark("now"); n != 1 || err != nil {
		t.Fatalf("%d rules wait for the mark, %v", n, err)
	}
	for late := time.After(10 * time.Second); ; {
		select {
		case line := <-lines:
			if !strings.Contains(line, "power cut by a rule") {
				continue
			}
			if strings.Contains(line, "level=ERROR") || !strings.Contains(line, "no power already") {
				t.Errorf("a rule finds the power off: %s", line)
			}
		case <-late:
			t.Error("the log says nothing of the rule")
		}
		return
	}
}

// A lineWriter is the file of a log whose lines are received; those beyond its capacity are
// lost.
type lineWriter chan string

func (w lineWriter) Write(b []byte) (int, error) {
	select {
	case w <- string(b):
	default:
	}
	return len(b), nil
}

// trySend sends a command without data and waits for its reply.
func (c *nbdConn) trySend(cmd uint16) error {
	be := binary.BigEndian
	msg := be.AppendUint32(nil, 0x25609513)
	msg = be.AppendUint16(msg, 0)
	msg = be.AppendUint16(msg, cmd)
	if _, err := c.Write(append(msg, make([]byte, 20)...)); err != nil {
		return err
	}
	_, err := c.tryRead(16)
	return err
}

// TestCutPower_OthersComeAndGo: a disk that is without power while another comes and
// goes stays what it is, with its connections, wherever on its target it is.
func TestCutPower_OthersComeAndGo(t *testing.T) {
	for _, disks := range [][]string{{"db"}, {"db", "other"}, {"other", "db"}} {
		t.Run(strings.Join(disks, " "), func(t *testing.T) {
			var specs []string
			for _, name := range disks {
				specs = append(specs, name+"=memory:1MiB,cache=writeback")
			}
			s := newSettings(t, specs...)
			d, _ := s.mustStart(t)
			c := open(t, s.socket(), "db")
			m := machineOf(d)
			e := m.find("db")
			e.power.unit.PowerOff()
			if _, err := d.AddDisk(t.Context(), "third", client.DiskSpec{MemoryBytes: 1 << 20}); err != nil {
				t.Fatal(err)
			}
			if _, err := d.RemoveDisk(t.Context(), "third", client.RemoveOptions{}); err != nil {
				t.Fatal(err)
			}
			m.powerOn(e)
			if err := c.tryWrite(0, make([]byte, 512)); err != nil {
				t.Errorf("the connection of before: %v", err)
			}
			for _, x := range d.Disks() {
				if x.State != client.DiskServing {
					t.Errorf("disk %s is %s", x.Name, x.State)
				}
			}
			noViolations(t, m)
		})
	}
}

// TestCutPower_LieByRule: a flush that a rule answered in the device's place is
// found out by the report.
func TestCutPower_LieByRule(t *testing.T) {
	s := newSettings(t, "db=memory:1MiB,cache=writeback")
	s.Hostile = true
	d, _ := s.mustStart(t)
	_, err := d.PutFault(client.FaultRule{
		Name: "lie", Disk: "db", Hostile: true, Match: fault.Match{Op: fault.Ops{"flush"}}, Action: fault.Action{Kind: fault.KindLieAboutFlush},
	})
	if err != nil {
		t.Fatal(err)
	}
	c := open(t, s.socket(), "db")
	if err := c.tryWrite(0, make([]byte, 512)); err != nil {
		t.Fatal(err)
	}
	if err := c.tryWrite(512, bytes.Repeat([]byte{1}, 512)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.do(cmdFlush, 0, 0, nil); err != nil {
		t.Fatal(err)
	}
	r, err := d.CutPower("db", client.PowerCutOptions{Policy: "none"})
	if err != nil {
		t.Fatal(err)
	}
	if snap, _ := d.Snapshot(); !snap.Disks[0].Cache.Hostile {
		t.Error("the metrics do not call the disk hostile")
	}
	// The first write changed nothing, so nothing of it is lost.
	if r.Class != "hostile" || r.ImageClass != "hostile" || r.Hostile["lying-flush"] != 1 || r.Acts["lying-flush"] != 1 || len(r.Findings) != 1 || r.Findings[0].OffsetBytes != 512 {
		t.Errorf("report: %+v", r)
	}
}
