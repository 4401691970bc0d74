package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/hba/fault"
	"github.com/vhbad/vhbad/hba/hbatest"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// A faulty is a daemon whose rules go by a clock that stands still, and a client of
// its API.
type faulty struct {
	*settings
	d     *Daemon
	api   *client.Client
	clock *hbatest.Clock
	log   *lines
	stop  func()
}

// startFaulty starts one with these disks; change may be nil.
func startFaulty(t *testing.T, change func(s *settings), specs ...string) *faulty {
	t.Helper()
	f := &faulty{settings: newSettings(t, specs...), clock: &hbatest.Clock{}, log: &lines{}}
	if change != nil {
		change(f.settings)
	}
	o := f.options(t)
	o.Clock, o.Log = f.clock, slog.New(f.log)
	var err error
	if f.d, err = Start(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	f.stop = stopper(t, f.d)
	t.Cleanup(f.stop)
	f.api = client.New(f.Admin)
	t.Cleanup(f.api.Close)
	return f
}

// put puts a rule into force by the API.
func (f *faulty) put(t *testing.T, r client.FaultRule) *client.Fault {
	t.Helper()
	got, err := f.api.PutFault(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// dial connects a client with simple replies.
func (f *faulty) dial(t *testing.T, export string) *nbdtest.Client {
	t.Helper()
	nc, err := net.Dial("unix", f.socket())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	c, err := nbdtest.NewClient(nc, export)
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.SetReadDeadline(time.Now().Add(2 * patience)); err != nil {
		t.Fatal(err)
	}
	return c
}

// readCmd and writeCmd are commands about 512-byte blocks.
func readCmd(block, blocks int) nbdtest.Command {
	return nbdtest.Command{Type: nbdtest.CmdRead, Offset: uint64(block) * 512, Length: uint32(blocks) * 512}
}

func writeCmd(block, blocks int, fill byte) nbdtest.Command {
	return nbdtest.Command{
		Type: nbdtest.CmdWrite, Offset: uint64(block) * 512, Length: uint32(blocks) * 512,
		Payload: slices.Repeat([]byte{fill}, blocks*512),
	}
}

var flushCmd = nbdtest.Command{Type: nbdtest.CmdFlush}

// wantErrno sends a command and wants it to end so.
func wantErrno(t *testing.T, c *nbdtest.Client, cmd nbdtest.Command, want nbd.Errno) {
	t.Helper()
	if r, err := c.Do(cmd); err != nil || r.Errno != want {
		t.Fatalf("%s: %v, %v, want %v", cmd, r.Errno, err, want)
	}
}

// lines keeps what is logged: a line is a message and its attributes, without time
// and level. Any goroutine may log.
type lines struct {
	mu sync.Mutex
	// +checklocks:mu
	text []string
	// +checklocks:mu
	levels []slog.Level
}

// Enabled implements slog.Handler.
func (*lines) Enabled(context.Context, slog.Level) bool { return true }

// WithAttrs implements slog.Handler.
func (l *lines) WithAttrs([]slog.Attr) slog.Handler { return l }

// WithGroup implements slog.Handler.
func (l *lines) WithGroup(string) slog.Handler { return l }

// Handle implements slog.Handler.
func (l *lines) Handle(_ context.Context, r slog.Record) error {
	line := r.Message
	r.Attrs(func(a slog.Attr) bool {
		line += " " + a.String()
		return true
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text, l.levels = append(l.text, line), append(l.levels, r.Level)
	return nil
}

// with are the lines that begin so and have this word.
func (l *lines) with(prefix, word string) (out []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, line := range l.text {
		if strings.HasPrefix(line, prefix) && slices.Contains(strings.Fields(line), word) {
			out = append(out, fmt.Sprint(l.levels[i], " ", line))
		}
	}
	return out
}

// await waits for a line that begins so and has this word.
func (l *lines) await(t *testing.T, prefix, word string) {
	t.Helper()
	for t.Context().Err() == nil && len(l.with(prefix, word)) == 0 {
		runtime.Gosched()
	}
}

// wantFields checks the fields of an event. A nil stands for any number.
func wantFields(t *testing.T, e client.Event, want map[string]any) {
	t.Helper()
	got := maps.Clone(e.Fields)
	for name, v := range want {
		if n, ok := got[name].(float64); v == nil && ok && n >= 0 {
			got[name] = nil
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s of disk %q: fields, -want +got:\n%s", e.Type, e.Disk, diff)
	}
}

// TestFaults_Events: all that a rule does arrives on the stream, with the fields that
// the reference has. Of injections one comes each TellEvery, which says for how many it
// stands, and one line is in the log.
func TestFaults_Events(t *testing.T) {
	f := startFaulty(t, nil, "other=memory:1MiB", "db=memory:1MiB")
	events := f.follow(t, client.EventFaultSet, client.EventFault, client.EventFaultReleased, client.EventFaultRemoved, client.EventMark, client.EventReset)
	c := f.dial(t, "db")

	f.put(t, client.FaultRule{
		Name: "bad", Disk: "db", Seed: 42, Match: fault.Match{Op: fault.Ops{"read"}, LBA: new(uint64(8)), Blocks: 8},
		Action: fault.Action{Kind: fault.KindErrno, Errno: "EIO"},
	})
	wantFields(t, events.want(client.EventFaultSet, "db"), map[string]any{"rule": "bad", "kind": "errno", "hostile": false, "seed": 42.0})
	injected := map[string]any{
		"rule": "bad", "kind": "errno", "class": "legal", "op": "read", "lba": 10.0, "blocks": 4.0, "tag": nil, "seed": 42.0, "times": 1.0,
	}
	wantErrno(t, c, readCmd(10, 4), nbd.EIO)
	wantFields(t, events.want(client.EventFault, "db"), injected)
	for range 9 { // at the same time
		wantErrno(t, c, readCmd(10, 4), nbd.EIO)
	}
	f.clock.Advance(fault.TellEvery)
	wantErrno(t, c, readCmd(15, 1), nbd.EIO)
	injected["times"], injected["lba"], injected["blocks"] = 10.0, 15.0, 1.0
	wantFields(t, events.want(client.EventFault, "db"), injected)

	f.put(t, client.FaultRule{Name: "held", Disk: "db", Match: fault.Match{Op: fault.Ops{"flush"}}, Action: fault.Action{Kind: fault.KindHang}})
	events.want(client.EventFaultSet, "db")
	if err := c.Send(flushCmd); err != nil {
		t.Fatal(err)
	}
	// A flush is about no range.
	wantFields(t, events.want(client.EventFault, "db"), map[string]any{
		"rule": "held", "kind": "hang", "class": "legal", "op": "flush", "tag": nil, "seed": 0.0, "times": 1.0,
	})
	f.awaitHeld(t, 1)
	if n, err := f.api.ReleaseFault(t.Context(), "held", 0); n != 1 || err != nil {
		t.Errorf("%d released, %v, want 1", n, err)
	}
	wantFields(t, events.want(client.EventFaultReleased, "db"), map[string]any{"rule": "held", "released": 1.0})
	if r, err := c.Receive(); err != nil || r.Errno != nbd.OK {
		t.Errorf("the flush that was released: %v, %v", r.Errno, err)
	}
	if err := f.api.RemoveFault(t.Context(), "bad"); err != nil {
		t.Fatal(err)
	}
	wantFields(t, events.want(client.EventFaultRemoved, "db"), map[string]any{"rule": "bad", "fired": 11.0})
	if _, err := f.api.SetMark(t.Context(), "here"); err != nil {
		t.Fatal(err)
	}
	wantFields(t, events.want(client.EventMark, ""), map[string]any{"text": "here"})

	// An event of the adapter belongs to no disk, and to no client's command.
	f.put(t, client.FaultRule{Name: "bus", Match: fault.Match{Op: fault.Ops{"reset-bus"}}, Action: fault.Action{Kind: fault.KindResetFails}})
	events.want(client.EventFaultSet, "")
	if err := f.api.ResetDisk(t.Context(), "db", client.ResetBus); err == nil {
		t.Error("a reset that fails succeeds")
	}
	wantFields(t, events.want(client.EventFault, ""), map[string]any{
		"rule": "bus", "kind": "reset-fails", "class": "legal", "op": "reset-bus", "tag": nil, "seed": 0.0, "times": 1.0,
	})
	if err := f.api.RemoveFault(t.Context(), "bus"); err != nil {
		t.Fatal(err)
	}
	if err := f.api.ResetDisk(t.Context(), "db", client.ResetBus); err != nil {
		t.Error(err)
	}

	want := "WARN fault injected; more of this rule are events only disk=db rule=bad kind=errno class=legal op=read tag=%d seed=42 times=1 lba=10 blocks=4"
	f.log.await(t, "fault injected", "rule=bad")
	f.log.await(t, "fault injected", "rule=held")
	f.stop()
	got := f.log.with("fault injected", "rule=bad")
	var tag uint32
	if len(got) != 1 {
		t.Fatalf("%d lines in the log of 11 injections, want one: %q", len(got), got)
	}
	if _, err := fmt.Sscanf(got[0], want, &tag); err != nil || got[0] != fmt.Sprintf(want, tag) {
		t.Errorf("the log has %q, want %q", got[0], want)
	}
	for _, line := range []string{"fault in force", "fault removed"} {
		if got := f.log.with(line, "rule=bad"); len(got) != 1 {
			t.Errorf("%s: %d lines in the log, want one: %q", line, len(got), got)
		}
	}
}

// patience is how long a test waits for something that does not come, when it has failed
// anyway.
const patience = 30 * time.Second

// awaitHeld waits until rules hold so many commands.
func (f *faulty) awaitHeld(t *testing.T, n int) {
	t.Helper()
	device := machineOf(f.d).device
	tooLong := time.After(patience)
	for device.Stats().HeldByFaults != n {
		select {
		case <-tooLong:
			t.Fatalf("rules hold %d commands, want %d", device.Stats().HeldByFaults, n)
		default:
			runtime.Gosched()
		}
	}
}

// TestFaults_UnplugEvents: a disk that goes and comes back tells of it.
func TestFaults_UnplugEvents(t *testing.T) {
	f := startFaulty(t, nil, "other=memory:1MiB", "db=memory:1MiB")
	events := f.follow(t, client.EventDiskUnplugged, client.EventDiskPlugged)
	c := f.dial(t, "db")
	f.dial(t, "other")
	f.put(t, client.FaultRule{
		Name: "away", Disk: "db", Match: fault.Match{Op: fault.Ops{"read"}}, Action: fault.Action{Kind: fault.KindUnplug, For: fault.Duration(time.Minute)},
	})
	wantErrno(t, c, readCmd(0, 1), nbd.ESHUTDOWN)
	wantFields(t, events.want(client.EventDiskUnplugged, "db"), map[string]any{"connections_closed": 1.0, "connections_killed": 0.0})
	f.clock.Advance(time.Minute)
	wantFields(t, events.want(client.EventDiskPlugged, "db"), map[string]any{"address": "0:0:1"})
	c = f.dial(t, "db")
	wantErrno(t, c, readCmd(0, 1), nbd.OK)
}

// TestFaults_PutTwice: putting the same rule again changes nothing and is not reported. A
// different rule of that name starts afresh, in its place, and releases what the old one
// held.
func TestFaults_PutTwice(t *testing.T) {
	f := startFaulty(t, nil, "db=memory:1MiB")
	events := f.follow(t, client.EventFaultSet, client.EventFaultRemoved, client.EventFaultReleased)
	c := f.dial(t, "db")
	rule := client.FaultRule{
		Name: "r", Disk: "db", Match: fault.Match{Op: fault.Ops{"read"}, Skip: 1, Every: 2}, Budget: 3, Action: fault.Action{Kind: fault.KindHang},
	}
	last := client.FaultRule{Name: "last", Match: fault.Match{Op: fault.Ops{"flush"}}, Action: fault.Action{Kind: fault.KindBusy}}
	if got := f.put(t, rule); got.State != "armed" || got.Matched+got.Fired != 0 {
		t.Errorf("a new rule: %+v", got)
	}
	f.put(t, last)
	for _, name := range []string{"r", "last"} {
		if e := events.want(client.EventFaultSet, f.diskOfRule(name)); e.Fields["rule"] != name {
			t.Errorf("told of %v, want %s", e.Fields["rule"], name)
		}
	}
	for i := range 5 {
		cmd := readCmd(i, 1)
		cmd.Cookie = uint64(i)
		if err := c.Send(cmd); err != nil {
			t.Fatal(err)
		}
	}
	f.awaitHeld(t, 2) // the third and the fifth
	before := client.Fault{Rule: rule, State: "armed", Matched: 5, Fired: 2, Held: 2}
	for range 2 {
		if diff := cmp.Diff(&before, f.put(t, rule)); diff != "" {
			t.Errorf("the same again: -want +got\n%s", diff)
		}
	}
	changed := rule
	changed.Budget = 4
	if diff := cmp.Diff(&client.Fault{Rule: changed, State: "armed"}, f.put(t, changed)); diff != "" {
		t.Errorf("another body: -want +got\n%s", diff)
	}
	if e := events.want(client.EventFaultSet, "db"); e.Fields["rule"] != "r" {
		t.Errorf("after the first two the next is told of %v, want the one that has changed", e.Fields)
	}
	for range 5 {
		if r, err := c.Receive(); err != nil || r.Errno != nbd.OK {
			t.Errorf("what the old one held: %v, %v", r.Errno, err)
		}
	}
	all, err := f.api.Faults(t.Context())
	if err != nil || len(all.Faults) != 2 || all.Faults[0].Rule.Name != "r" || all.Faults[1].Rule.Name != "last" {
		t.Errorf("rules %+v, %v: want r and last, in this order", all, err)
	}
	// A body that is refused leaves the rule as it is.
	wrong := changed
	wrong.Action.Kind = "nap"
	if _, err := f.api.PutFault(t.Context(), wrong); err == nil {
		t.Error("a rule of no kind is taken")
	}
	wantErrno(t, c, readCmd(0, 1), nbd.OK)
	if got, err := f.api.Fault(t.Context(), "r"); err != nil || got.Matched != 1 || got.Rule.Budget != 4 {
		t.Errorf("after one that was refused: %+v, %v", got, err)
	}
}

func (*faulty) diskOfRule(name string) string {
	if name == "r" {
		return "db"
	}
	return ""
}

// TestFaults_ToldWhateverBringsThem: rules that come and go by the configuration, or
// with their disk, are told of as those of the API are; those that stay are not.
func TestFaults_ToldWhateverBringsThem(t *testing.T) {
	rule := func(name, disk, after string) fault.Rule {
		return fault.Rule{Name: name, Disk: disk, Match: fault.Match{Op: fault.Ops{"read"}, AfterRule: after}, Action: fault.Action{Kind: fault.KindBusy}}
	}
	s := newSettings(t, "db=memory:1MiB")
	s.Faults = []fault.Rule{rule("stays", "db", ""), rule("goes", "db", "")}
	d := s.startReloadable(t)
	events := s.follow(t, client.EventFaultSet, client.EventFaultRemoved)
	want := func(typ client.EventType, disk, name string) {
		t.Helper()
		if e := events.want(typ, disk); e.Fields["rule"] != name {
			t.Errorf("%s of rule %v, want %s", typ, e.Fields["rule"], name)
		}
	}
	want(client.EventFaultSet, "db", "stays")
	want(client.EventFaultSet, "db", "goes")
	s.Faults = []fault.Rule{rule("comes", "", ""), rule("stays", "db", "")}
	if _, err := d.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(client.EventFaultSet, "", "comes")
	want(client.EventFaultRemoved, "db", "goes")
	if _, err := d.AddDisk(t.Context(), "scratch", client.DiskSpec{MemoryBytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	for _, r := range []fault.Rule{rule("first", "scratch", ""), rule("second", "db", "first")} {
		if _, err := d.PutFault(r); err != nil {
			t.Fatal(err)
		}
		want(client.EventFaultSet, r.Disk, r.Name)
	}
	if _, err := d.RemoveDisk(t.Context(), "scratch", client.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	want(client.EventFaultRemoved, "scratch", "first")
	want(client.EventFaultRemoved, "db", "second")
	// A new disk that a rule for every disk has no place on ends no rule; one that it
	// cannot be kept for ends that rule alone.
	far := client.FaultRule{Name: "far", Match: fault.Match{LBA: new(uint64(2000))}, Action: fault.Action{Kind: fault.KindErrno, Errno: "EIO"}}
	all := client.FaultRule{Name: "all", Match: fault.Match{LBA: new(uint64(0))}, Action: fault.Action{Kind: fault.KindMediumError}}
	for _, r := range []fault.Rule{far, all} {
		if _, err := d.PutFault(r); err != nil {
			t.Fatal(err)
		}
		want(client.EventFaultSet, "", r.Name)
	}
	if _, err := d.AddDisk(t.Context(), "small", client.DiskSpec{MemoryBytes: 512}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.AddDisk(t.Context(), "large", client.DiskSpec{MemoryBytes: 1 << 38}); err != nil {
		t.Fatal(err)
	}
	want(client.EventFaultRemoved, "", "all")
	if err := d.RemoveFault("far"); err != nil {
		t.Error(err)
	}
	if all, err := d.Faults(); err != nil || len(all.Faults) != 2 {
		t.Errorf("rules %+v, %v: want comes and stays", all.Faults, err)
	}
}
