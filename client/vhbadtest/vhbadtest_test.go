package vhbadtest_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/client/vhbadtest"
	"github.com/vhbad/vhbad/hba/fault"
)

func TestMain(m *testing.M) { os.Exit(withProgram(m)) }

// withProgram runs the tests with the program that this tree makes.
func withProgram(m *testing.M) int {
	dir, err := os.MkdirTemp("", "vhbadtest-")
	if err != nil {
		panic(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	path := filepath.Join(dir, "vhbad")
	if out, err := exec.Command("go", "build", "-o", path, "github.com/vhbad/vhbad/cmd/vhbad").CombinedOutput(); err != nil {
		panic(fmt.Sprintf("go build: %v\n%s", err, out))
	}
	if err := os.Setenv(vhbadtest.Variable, path); err != nil {
		panic(err)
	}
	return m.Run()
}

func block(b byte) []byte { return bytes.Repeat([]byte{b}, 512) }

func write(t *testing.T, c *vhbadtest.Conn, b byte, off int64) {
	t.Helper()
	if n, err := c.WriteAt(block(b), off); n != 512 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
}

// TestStart: what a test does with a disk.
func TestStart(t *testing.T) {
	t.Parallel()
	trace := filepath.Join(t.TempDir(), "a,b.trace")
	d := vhbadtest.Start(t,
		vhbadtest.Disk{SizeBytes: 1 << 20, Cache: vhbadtest.Writeback, CacheEviction: "none", Trace: trace},
		vhbadtest.Disk{Name: "my log", SizeBytes: 1 << 20, BlockBytes: 4096},
		vhbadtest.Disk{Name: "file", File: filepath.Join(t.TempDir(), "i.img"), SizeBytes: 1 << 20},
	)
	c := d.Dial()
	if c.Size() != 1<<20 {
		t.Errorf("%d bytes", c.Size())
	}
	write(t, c, 1, 0)
	if err := c.Sync(); err != nil {
		t.Fatal(err)
	}
	write(t, c, 2, 0)
	write(t, c, 3, 512)
	if p := d.Power(); p.PendingWrites != 2 {
		t.Errorf("%d writes are pending, want 2", p.PendingWrites)
	}
	d.Mark("before the cut")
	r := d.CutPower(client.PowerCutOptions{Policy: "none", Seed: new(uint64(7)), DropConnections: true})
	if r.Seed != 7 || r.Sectors.Lost != 2 || r.Class != "legal" {
		t.Errorf("report %+v", r)
	}
	if _, err := c.ReadAt(make([]byte, 512), 0); err == nil {
		t.Error("the connection has survived")
	}
	if image := d.Image(); !bytes.Equal(image[:1024], append(block(1), block(0)...)) {
		t.Errorf("the disk begins with %v …, %v …", image[0], image[512])
	}
	cut := d.WaitEvent(client.EventPowerCut, client.Event{})
	if on := d.WaitEvent(client.EventPowerOn, cut); on.Disk != "disk0" || on.Seq <= cut.Seq {
		t.Errorf("event %+v", on)
	}
	if events := d.Events(client.EventMark, client.EventPowerCut); len(events) != 2 || events[0].Fields["text"] != "before the cut" {
		t.Errorf("events %+v", events)
	}
	if info, err := os.Stat(trace); err != nil || info.Size() == 0 {
		t.Errorf("the trace: %v, %v", info, err)
	}

	other := d.Disk("my log")
	if !strings.Contains(other.URI(), "/my%20log?socket=") {
		t.Errorf("URI %s", other.URI())
	}
	d.Fault(client.FaultRule{Name: "bad", Disk: "my log", Match: fault.Match{Op: []string{"read"}}, Action: fault.Action{Kind: "errno", Errno: "ENOSPC"}, Budget: 1})
	if _, err := other.Dial().ReadAt(make([]byte, 4096), 0); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("read: %v, want ENOSPC", err)
	}
	if n := d.RemoveFault("bad"); n != 1 {
		t.Errorf("the rule fired %d times, want once", n)
	}
	d.Fault(client.FaultRule{Name: "held", Disk: "file", Match: fault.Match{Op: []string{"write"}}, Action: fault.Action{Kind: "gate"}})
	done := make(chan error, 1)
	f := d.Disk("file").Dial()
	go func() {
		_, err := f.WriteAt(block(9), 512)
		done <- err
	}()
	first := d.WaitEvent(client.EventFault, cut)
	if held := d.WaitEvent(client.EventFault, first); held.Fields["rule"] != "held" {
		t.Errorf("event %+v", held)
	}
	for d.ReleaseFault("held") == 0 {
		runtime.Gosched() // it is told of a moment before it is held
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if image := d.Disk("file").Image(); !bytes.Equal(image[512:1024], block(9)) {
		t.Error("the file does not have what was written")
	}
	run := exec.Command(os.Getenv(vhbadtest.Variable), "power", "status", "disk0")
	run.Env = d.Environ()
	if out, err := run.CombinedOutput(); err != nil || !strings.Contains(string(out), "power on") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestConn: a disk for a program, from several goroutines.
func TestConn(t *testing.T) {
	t.Parallel()
	c := vhbadtest.Start(t, vhbadtest.Disk{SizeBytes: 80 << 20}).Dial()
	long := bytes.Repeat([]byte{5}, 70<<20) // several commands
	if n, err := c.WriteAt(long, 1000); n != len(long) || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	got := make([]byte, len(long))
	if n, err := c.ReadAt(got, 1000); n != len(got) || err != nil || !bytes.Equal(got, long) {
		t.Fatalf("%d, %v, the same: %v", n, err, bytes.Equal(got, long))
	}
	if n, err := c.ReadAt(make([]byte, 1024), 80<<20-512); n != 512 || !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %d, %v", n, err)
	}
	if _, err := c.ReadAt(make([]byte, 1), -1); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("before the beginning: %v", err)
	}
	if _, err := c.WriteAt(make([]byte, 1024), 80<<20-512); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("beyond the end: %v", err)
	}
	var group sync.WaitGroup
	for i := range byte(4) {
		group.Go(func() {
			for range 20 {
				p := make([]byte, 512)
				_, err := c.WriteAt(block(i), int64(i)*512)
				if err == nil {
					_, err = c.ReadAt(p, int64(i)*512)
				}
				if err != nil || !bytes.Equal(p, block(i)) {
					t.Errorf("%d: %v", i, err)
				}
			}
		})
	}
	group.Wait()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := c.Sync(); err == nil {
		t.Error("a connection that is closed makes durable")
	}
}

// A double is a test that is looked at.
type double struct {
	testing.TB
	failed   bool
	said     strings.Builder
	cleanups []func()
}

func (d *double) Helper()          {}
func (d *double) Failed() bool     { return d.failed }
func (d *double) Cleanup(f func()) { d.cleanups = append(d.cleanups, f) }

func (d *double) Logf(format string, args ...any) { fmt.Fprintf(&d.said, format+"\n", args...) }

func (d *double) Errorf(format string, args ...any) {
	d.failed = true
	d.Logf(format, args...)
}

func (d *double) Fatalf(format string, args ...any) {
	d.Errorf(format, args...)
	runtime.Goexit()
}

func (d *double) Fatal(args ...any) { d.Fatalf("%s", fmt.Sprint(args...)) }

// doubled runs a test, and its cleanups.
func doubled(t *testing.T, test func(t testing.TB)) *double {
	d := &double{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		test(d)
	}()
	<-done
	for i := range d.cleanups {
		d.cleanups[len(d.cleanups)-1-i]()
	}
	return d
}

// TestStart_Refused: a daemon that does not start says why, in the test's words.
func TestStart_Refused(t *testing.T) {
	t.Parallel()
	d := doubled(t, func(t testing.TB) { vhbadtest.Start(t, vhbadtest.Disk{SizeBytes: 1000}) })
	if said := d.said.String(); !d.failed || !strings.Contains(said, "has ended before it served") || !strings.Contains(said, "the next smaller is 512") {
		t.Errorf("failed %v:\n%s", d.failed, said)
	}
	d = doubled(t, func(t testing.TB) { vhbadtest.StartWith(t, vhbadtest.Options{Flags: []string{"--colour"}}) })
	if said := d.said.String(); !strings.Contains(said, "--colour") {
		t.Errorf("%s", said)
	}
}

// TestStop: the log of the daemon comes with a test that has failed, and with no other.
func TestStop(t *testing.T) {
	t.Parallel()
	for _, fails := range []bool{true, false} {
		d := doubled(t, func(t testing.TB) {
			vhbadtest.Start(t)
			if fails {
				t.Errorf("it fails")
			}
		})
		if said := d.said.String(); strings.Contains(said, "vhbad said") != fails || d.failed != fails {
			t.Errorf("the test fails: %v; it says\n%s", fails, said)
		}
	}
}

// TestWaitEvent_None: an event that does not come is no reason to wait for ever; the
// test is told which, and has the daemon's log.
func TestWaitEvent_None(t *testing.T) {
	t.Parallel()
	d := doubled(t, func(t testing.TB) {
		d := vhbadtest.Start(t)
		d.SetWait(time.Millisecond)
		d.WaitEvent(client.EventPowerCut, client.Event{Seq: 1})
		t.Errorf("it has come")
	})
	said := d.said.String()
	if want := "there has been no event power.cut after number 1 for 1ms"; !d.failed || !strings.Contains(said, want) {
		t.Errorf("%s\nwant %q", said, want)
	}
	if strings.Contains(said, "it has come") || !strings.Contains(said, "vhbad said") {
		t.Errorf("%s", said)
	}
}

// TestStart_NoProgram: a user who has no vhbad is told how to get it.
func TestStart_NoProgram(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	for value, want := range map[string]string{"": "go install github.com/vhbad/vhbad/cmd/vhbad@latest", "/nowhere/vhbad": "$VHBAD: "} {
		t.Setenv(vhbadtest.Variable, value)
		d := doubled(t, func(t testing.TB) { vhbadtest.Start(t) })
		if said := d.said.String(); !d.failed || !strings.Contains(said, want) {
			t.Errorf("$VHBAD %q: %s", value, said)
		}
	}
}
