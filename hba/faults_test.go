package hba_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vhbad/vhbad/hba"
	"github.com/vhbad/vhbad/hba/fault"
	"github.com/vhbad/vhbad/hba/hbatest"
	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/internal/pci"
	"github.com/vhbad/vhbad/internal/scsi"
)

var disk1 = hbatest.Address{Lun: 2} // Lun 1 is slow

// A faultyWorld is a world with a second disk, which no rule of these tests is
// about, and a clock that stands still.
type faultyWorld struct {
	*world
	clock   *hbatest.Clock
	other   *media.Memory
	cuts    chan hba.PowerCut // that were asked for
	powered chan struct{}     // a receive lets a power cut end
}

func newFaultyWorld(t testing.TB, c hba.Config) *faultyWorld {
	t.Helper()
	f := &faultyWorld{clock: &hbatest.Clock{}, cuts: make(chan hba.PowerCut, 8), powered: make(chan struct{}, 8)}
	c.Clock = f.clock
	c.OnPowerCut = func(cut hba.PowerCut) {
		f.cuts <- cut
		<-f.powered
	}
	f.world = newWorld(t, c, hbatest.Config{})
	var err error
	if f.other, err = media.NewMemory(media.MemoryConfig{SizeBytes: diskBytes}); err != nil {
		t.Fatal(err)
	}
	f.attach(t, disk1, f.other)
	return f
}

// set puts rules into force on disk "d", which is disk0.
func (f *faultyWorld) set(t testing.TB, rules ...fault.Rule) *fault.Set {
	t.Helper()
	for i := range rules {
		if rules[i].Name == "" {
			rules[i].Name = string(rules[i].Action.Kind)
		}
		rules[i].Disk = "d"
		if k := rules[i].Action.Kind; slices.ContainsFunc(fault.Kinds(), func(d fault.KindDoc) bool { return d.Kind == k && d.Hostile }) {
			rules[i].Hostile = true
		}
	}
	s, err := fault.NewSet(fault.Config{
		Rules: rules, Hostile: true, Now: f.clock.Now(), Old: f.dev.Faults(),
		Units: []fault.Unit{
			{Disk: "d", BlockBytes: blockBytes, Blocks: diskBytes / blockBytes, PowerSwitch: true},
			{Disk: "other", Lun: 2, BlockBytes: blockBytes, Blocks: diskBytes / blockBytes},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	f.dev.SetFaults(s)
	return s
}

// submit rings for commands without waiting for completions.
func (f *faultyWorld) submit(t testing.TB, commands ...hba.Command) {
	t.Helper()
	q := f.driver.Queues[0]
	if n := q.Submit(commands...); n != len(commands) {
		t.Fatalf("room for %d of %d commands", n, len(commands))
	}
	q.Ring(runner)
}

// wantNothing checks that no completion is there.
func (f *faultyWorld) wantNothing(t testing.TB) {
	t.Helper()
	var out [1]hba.Completion
	if n := f.driver.Queues[0].Consume(out[:]); n != 0 {
		t.Fatalf("a completion of tag %d with code %d, want none", out[0].Tag, out[0].Code)
	}
}

// unmapApart has disk0 release blocks 0 and 2 by one UNMAP.
func (f *faultyWorld) unmapApart(t *testing.T) {
	t.Helper()
	if c := f.do(t, f.unmapOfTwo(t, 0))[0]; c.Code != hba.CodeExecuted || c.ScsiStatus != 0 {
		t.Errorf("unmap: %+v", c)
	}
}

// unmapOfTwo is an UNMAP of blocks 0 and 2 of disk0, whose list is cut in two at a byte
// other than 0.
func (f *faultyWorld) unmapOfTwo(t *testing.T, cut int) hba.Command {
	t.Helper()
	list := f.driver.MappedBuffer(t, scsi.UnmapHeaderBytes+2*scsi.UnmapDescriptorBytes, dma.Read)
	scsi.PutUnmapHeader(list.Bytes, 2)
	scsi.PutUnmapDescriptor(list.Bytes[scsi.UnmapHeaderBytes:], 0, 1)
	scsi.PutUnmapDescriptor(list.Bytes[scsi.UnmapHeaderBytes+scsi.UnmapDescriptorBytes:], 2, 1)
	unmap := disk0.Write(1, 0, 1, list)
	scsi.PutUnmap(&unmap.CDB, false, uint16(len(list.Bytes)))
	unmap.CDBBytes = 10
	if cut != 0 {
		unmap.SegmentCount = 2
		unmap.Segments[0], unmap.Segments[1] = list.Segment(0, cut), list.Segment(cut, len(list.Bytes)-cut)
	}
	return unmap
}

// Wherever a list of ranges or a block is cut in two, rules see all of it, and so does the
// medium that is told of what was lost.
func TestFaults_CutParameters(t *testing.T) {
	w := newFaultyWorld(t, hba.Config{QueuePairs: 1})
	m := &toldMedium{Memory: w.memory}
	if err := w.dev.RemoveUnit(context.Background(), 0, 0); err != nil {
		t.Fatal(err)
	}
	w.attach(t, disk0, m)
	at := fault.Match{Op: fault.Ops{"trim"}, LBA: new(uint64(2)), Blocks: 1}
	for _, cut := range []int{0, 1, scsi.UnmapHeaderBytes, 20, 24, 39} {
		w.set(t, fault.Rule{Match: at, Action: fault.Action{Kind: fault.KindBusy}})
		if c := w.do(t, w.unmapOfTwo(t, cut))[0]; scsi.Status(c.ScsiStatus) != scsi.StatusBusy {
			t.Errorf("cut at %d, an UNMAP of blocks 0 and 2 ends with %v where a rule is about block 2", cut, scsi.Status(c.ScsiStatus))
		}
		w.set(t, fault.Rule{Match: fault.Match{Op: fault.Ops{"trim"}}, Action: fault.Action{Kind: fault.KindLostWrite}})
		m.lost = nil
		wantCode(t, w.do(t, w.unmapOfTwo(t, cut))[0], 1, hba.CodeExecuted)
		if want := []int64{0, blockBytes, 0, 2 * blockBytes, blockBytes, 0}; !slices.Equal(m.lost, want) {
			t.Errorf("cut at %d, the medium was told of %v, want %v", cut, m.lost, want)
		}
	}
	// A pattern whose first segment alone is zeros is not: nothing is known of its blocks.
	w.set(t, fault.Rule{Match: fault.Match{Op: fault.Ops{"zero"}}, Action: fault.Action{Kind: fault.KindLostWrite}})
	b := w.driver.MappedBuffer(t, blockBytes, dma.Read)
	for _, last := range []byte{0, 1} {
		b.Bytes[blockBytes-1] = last
		same := disk0.Write(1, 0, 1, b)
		scsi.PutWriteSame16(&same.CDB, 8, 4, false, false, false)
		same.SegmentCount, same.Segments[0], same.Segments[1] = 2, b.Segment(0, 100), b.Segment(100, blockBytes-100)
		m.lost = nil
		wantCode(t, w.do(t, same)[0], 1, hba.CodeExecuted)
		if told := m.lost != nil; told != (last == 0) {
			t.Errorf("the medium was told of %v by a pattern that ends with %d", m.lost, last)
		}
	}
	w.wantIdle(t)
}

// awaitHeld waits until so many commands are held.
func (f *faultyWorld) awaitHeld(n int) {
	for f.dev.Stats().HeldByFaults != n {
		runtime.Gosched()
	}
}

// wantOthers checks that the other disk works, and has only what was written to
// it.
func (f *faultyWorld) wantOthers(t testing.TB) {
	t.Helper()
	in := f.driver.MappedBuffer(t, 8*blockBytes, dma.Write)
	wantCode(t, f.do(t, disk1.Read(99, 0, 8, in))[0], 99, hba.CodeExecuted)
	if !bytes.Equal(in.Bytes, make([]byte, len(in.Bytes))) {
		t.Error("the other disk has been written")
	}
	if e, err := f.other.ExtentAt(0); err != nil || e.Data || e.LengthBytes != diskBytes {
		t.Errorf("the other disk is %+v, %v: want one hole", e, err)
	}
}

func TestFaults_Status(t *testing.T) {
	w := newFaultyWorld(t, hba.Config{QueuePairs: 1})
	in := w.driver.MappedBuffer(t, 8*blockBytes, dma.Write)
	out := w.driver.MappedBuffer(t, 8*blockBytes, dma.Read)
	lba := uint64(104)
	toEnd := disk0.Flush(1) // a PRE-FETCH of 0 blocks, which are all up to the end
	scsi.PutPreFetch16(&toEnd.CDB, 100, 0, false)
	for _, tt := range []struct {
		name    string
		action  fault.Action
		match   fault.Match
		command hba.Command
		code    hba.CompletionCode
		status  scsi.Status
		sense   scsi.Sense
	}{
		{"status", fault.Action{Kind: fault.KindStatus, Status: "reservation-conflict"}, fault.Match{}, disk0.Read(1, 0, 8, in), hba.CodeExecuted, scsi.StatusReservationConflict, scsi.Sense{}},
		{"sense", fault.Action{Kind: fault.KindStatus, Sense: &fault.Sense{Key: "aborted-command", ASC: 0x47, ASCQ: 3, LBA: true}}, fault.Match{}, disk0.Read(1, 8, 8, in), hba.CodeExecuted, scsi.StatusCheckCondition, scsi.Sense{Key: scsi.KeyAbortedCommand, Additional: 0x4703, Information: 8, InformationValid: true}},
		{"EIO", fault.Action{Kind: fault.KindErrno, Errno: "EIO"}, fault.Match{}, disk0.Write(1, 0, 8, out), hba.CodeExecuted, scsi.StatusCheckCondition, scsi.Sense{Key: scsi.KeyHardwareError, Additional: scsi.InternalTargetFailure}},
		{"ESHUTDOWN", fault.Action{Kind: fault.KindErrno, Errno: "ESHUTDOWN"}, fault.Match{}, disk0.Flush(1), hba.CodeNoDevice, scsi.StatusGood, scsi.Sense{}},
		{"medium error", fault.Action{Kind: fault.KindMediumError}, fault.Match{LBA: &lba, Blocks: 1}, disk0.Read(1, 100, 8, in), hba.CodeExecuted, scsi.StatusCheckCondition, scsi.Sense{Key: scsi.KeyMediumError, Additional: scsi.UnrecoveredReadError, Information: 104, InformationValid: true}},
		{"medium error of what is fetched", fault.Action{Kind: fault.KindMediumError}, fault.Match{Op: fault.Ops{"cache"}, LBA: &lba, Blocks: 1}, toEnd, hba.CodeExecuted, scsi.StatusCheckCondition, scsi.Sense{Key: scsi.KeyMediumError, Additional: scsi.UnrecoveredReadError, Information: 104, InformationValid: true}},
		{"busy", fault.Action{Kind: fault.KindBusy}, fault.Match{}, disk0.Read(1, 0, 8, in), hba.CodeExecuted, scsi.StatusBusy, scsi.Sense{}},
		{"task set full", fault.Action{Kind: fault.KindTaskSetFull}, fault.Match{}, disk0.Read(1, 0, 8, in), hba.CodeExecuted, scsi.StatusTaskSetFull, scsi.Sense{}},
		{"not ready", fault.Action{Kind: fault.KindNotReady}, fault.Match{}, disk0.TestUnitReady(1), hba.CodeExecuted, scsi.StatusCheckCondition, scsi.Sense{Key: scsi.KeyNotReady, Additional: scsi.BecomingReady}},
		{"unit attention", fault.Action{Kind: fault.KindUnitAttention}, fault.Match{}, disk0.Read(1, 0, 8, in), hba.CodeExecuted, scsi.StatusCheckCondition, scsi.Sense{Key: scsi.KeyUnitAttention, Additional: scsi.PowerOnResetOccurred}},
		{"write protect", fault.Action{Kind: fault.KindWriteProtect}, fault.Match{}, disk0.Write(1, 0, 8, out), hba.CodeExecuted, scsi.StatusCheckCondition, scsi.Sense{Key: scsi.KeyDataProtect, Additional: scsi.WriteProtected}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := w.set(t, fault.Rule{Name: "r", Match: tt.match, Action: tt.action})
			c := w.do(t, tt.command)[0]
			wantCode(t, c, 1, tt.code)
			if c.Flags != hba.CompletionInjected {
				t.Errorf("flags %#x: the driver is not told that the outcome is made up", c.Flags)
			}
			sense, _ := scsi.ParseSense(c.Sense[:c.SenseBytes])
			if scsi.Status(c.ScsiStatus) != tt.status || sense != tt.sense {
				t.Errorf("%v with %+v, want %v with %+v", scsi.Status(c.ScsiStatus), sense, tt.status, tt.sense)
			}
			if got := s.Fault("r").Stats(); got.Fired != 1 || got.Held != 0 {
				t.Errorf("stats %+v, want one firing", got)
			}
			w.wantOthers(t)
		})
	}
	w.set(t)
	c := w.do(t, disk0.Read(1, 0, 8, in))
	if wantCode(t, c[0], 1, hba.CodeExecuted); c[0].ScsiStatus != 0 {
		t.Errorf("without rules: %v", scsi.Status(c[0].ScsiStatus))
	}
	if e, err := w.memory.ExtentAt(0); err != nil || e.Data {
		t.Error("a write that was refused has been done")
	}
	w.wantIdle(t)
}

// CONDITION MET and RECOVERED ERROR say that a command is done: it is, and if it has
// failed it says that. What does not do it says the same.
func TestFaults_StatusOfDone(t *testing.T) {
	met := fault.Action{Kind: fault.KindStatus, Status: "condition-met"}
	recovered := &fault.Sense{Key: "recovered-error", ASC: 0x17, LBA: true}
	lost := fault.Rule{Name: "lost", Hostile: true, Action: fault.Action{Kind: fault.KindLostWrite}}
	busy := fault.Rule{Name: "busy", Action: fault.Action{Kind: fault.KindBusy}}
	rule := func(a fault.Action) fault.Rule { return fault.Rule{Name: "r", Action: a} }
	const full = 8 * blockBytes
	for _, tt := range []struct {
		name   string
		rules  []fault.Rule
		lba    uint64
		status scsi.Status
		key    scsi.SenseKey
		flags  uint8
		bytes  uint32
		done   bool
	}{
		{"condition met", []fault.Rule{rule(met)}, 8, scsi.StatusConditionMet, 0, hba.CompletionInjected, full, true},
		{"recovered", []fault.Rule{rule(fault.Action{Kind: fault.KindStatus, Sense: recovered})}, 8, scsi.StatusCheckCondition, scsi.KeyRecoveredError, hba.CompletionInjected, full, true},
		{"not ready", []fault.Rule{rule(fault.Action{Kind: fault.KindNotReady, Sense: recovered})}, 8, scsi.StatusCheckCondition, scsi.KeyRecoveredError, hba.CompletionInjected, full, true},
		{"unit attention", []fault.Rule{rule(fault.Action{Kind: fault.KindUnitAttention, Sense: recovered})}, 8, scsi.StatusCheckCondition, scsi.KeyRecoveredError, hba.CompletionInjected, full, true},
		{"then busy", []fault.Rule{rule(met), busy}, 8, scsi.StatusConditionMet, 0, hba.CompletionInjected, full, true},
		{"busy", []fault.Rule{busy, rule(met)}, 8, scsi.StatusBusy, 0, hba.CompletionInjected, 0, false},
		{"then lost", []fault.Rule{rule(met), lost}, 8, scsi.StatusConditionMet, 0, hba.CompletionInjected, full, false},
		{"lost", []fault.Rule{lost, rule(met)}, 8, scsi.StatusConditionMet, 0, hba.CompletionInjected, full, false},
		{"out of range", []fault.Rule{rule(met)}, 1 << 40, scsi.StatusCheckCondition, scsi.KeyIllegalRequest, 0, 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newFaultyWorld(t, hba.Config{QueuePairs: 1})
			out := w.driver.MappedBuffer(t, full, dma.Read)
			out.Bytes[0] = 1
			w.set(t, tt.rules...)
			c := w.do(t, disk0.Write(1, tt.lba, 8, out))[0]
			wantCode(t, c, 1, hba.CodeExecuted)
			sense, _ := scsi.ParseSense(c.Sense[:c.SenseBytes])
			if scsi.Status(c.ScsiStatus) != tt.status || sense.Key != tt.key || c.Flags != tt.flags || c.DataBytes != tt.bytes {
				t.Errorf("%v with %+v, flags %#x, %d bytes; want %v with %v, flags %#x, %d bytes",
					scsi.Status(c.ScsiStatus), sense, c.Flags, c.DataBytes, tt.status, tt.key, tt.flags, tt.bytes)
			}
			if e, err := w.memory.ExtentAt(8 * blockBytes); err != nil || e.Data != tt.done {
				t.Errorf("done is %t, %v; want %t", e.Data, err, tt.done)
			}
			w.wantOthers(t)
			w.wantIdle(t)
		})
	}
}

// CONDITION MET, with which a PRE-FETCH ends, says that it is done as GOOD does of others.
func TestFaults_StatusOfFetched(t *testing.T) {
	w := newFaultyWorld(t, hba.Config{QueuePairs: 1})
	fetch := disk0.Flush(1)
	scsi.PutPreFetch16(&fetch.CDB, 0, 8, false)
	if c := w.do(t, fetch)[0]; scsi.Status(c.ScsiStatus) != scsi.StatusConditionMet || c.Flags != 0 {
		t.Fatalf("%+v, want CONDITION MET", c)
	}
	for _, tt := range []struct {
		action fault.Action
		status scsi.Status
	}{
		{fault.Action{Kind: fault.KindStatus, Sense: &fault.Sense{Key: "recovered-error", ASC: 0x17}}, scsi.StatusCheckCondition},
		{fault.Action{Kind: fault.KindStatus, Status: "condition-met"}, scsi.StatusConditionMet},
	} {
		w.set(t, fault.Rule{Action: tt.action})
		if c := w.do(t, fetch)[0]; scsi.Status(c.ScsiStatus) != tt.status || c.Flags != hba.CompletionInjected {
			t.Errorf("%v, flags %#x: want %v, and the driver told that it is made up", scsi.Status(c.ScsiStatus), c.Flags, tt.status)
		}
	}
	w.wantIdle(t)
}

// A command whose reply is to break off is done, and says so, whatever else it meets;
// those behind it say nothing of the kind.
func TestFaults_CutReply(t *testing.T) {
	w := newFaultyWorld(t, hba.Config{QueuePairs: 1})
	in := w.driver.MappedBuffer(t, blockBytes, dma.Write)
	after := func(n fault.Size) fault.Action { return fault.Action{Kind: fault.KindCutReply, After: &n} }
	for _, tt := range []struct {
		name  string
		rules []fault.Rule
		flags uint8
		bytes uint32
	}{
		{"default", []fault.Rule{{Action: fault.Action{Kind: fault.KindCutReply}}}, hba.CompletionCutReply, hba.HalfReply},
		{"at once", []fault.Rule{{Action: after(0)}}, hba.CompletionCutReply, 0},
		{"twice", []fault.Rule{{Action: after(20)}, {Name: "second", Action: after(10)}}, hba.CompletionCutReply, 20},
		{"with an error", []fault.Rule{{Action: fault.Action{Kind: fault.KindErrno, Errno: "EIO"}}, {Action: after(20)}}, hba.CompletionCutReply | hba.CompletionInjected, 20},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w.set(t, tt.rules...)
			c := w.do(t, disk0.Read(1, 0, 1, in))[0]
			wantCode(t, c, 1, hba.CodeExecuted)
			if failed := c.ScsiStatus != 0; c.Flags != tt.flags || c.ReplyBytes != tt.bytes || failed != (tt.flags&hba.CompletionInjected != 0) {
				t.Errorf("%+v, want flags %#x and %d bytes of the reply", c, tt.flags, tt.bytes)
			}
			w.set(t)
			for range 16 { // once around the ring
				if c := w.do(t, disk0.Read(2, 0, 1, in))[0]; c.Flags != 0 {
					t.Fatalf("flags %#x without a rule", c.Flags)
				}
			}
			w.wantOthers(t)
		})
	}
	w.wantIdle(t)
}

// A command whose reply is to carry another cookie is done, and says so.
func TestFaults_BadCookie(t *testing.T) {
	w := newFaultyWorld(t, hba.Config{QueuePairs: 1})
	w.set(t, fault.Rule{Match: fault.Match{Op: fault.Ops{"write"}}, Action: fault.Action{Kind: fault.KindBadCookie}})
	out := w.driver.MappedBuffer(t, blockBytes, dma.Read)
	for i, want := range []uint8{hba.CompletionBadCookie, 0} {
		cmd := []hba.Command{disk0.Write(1, 0, 1, out), disk0.TestUnitReady(2)}[i]
		if c := w.do(t, cmd)[0]; c.Tag != cmd.Tag || c.Code != hba.CodeExecuted || c.ScsiStatus != 0 || c.Flags != want {
			t.Errorf("%+v, want flags %#x", c, want)
		}
	}
	w.wantOthers(t)
	w.wantIdle(t)
}

// Clients that come wait as the rules of their disk say, and those of others do not.
// No command is about a handshake.
func TestFaults_Handshake(t *testing.T) {
	w := newFaultyWorld(t, hba.Config{QueuePairs: 1})
	// waits is how long a client does.
	waits := func(lun uint8) time.Duration {
		begin, end := w.clock.Now(), time.Duration(-1)
		if w.dev.Handshake(0, lun, func() { end = w.clock.Now() }) == nil {
			return 0
		}
		for range 120 {
			w.clock.Advance(time.Second)
		}
		return end - begin
	}
	if got := waits(disk0.Lun); got != 0 {
		t.Errorf("without rules a client waits %v", got)
	}
	s := w.set(t,
		fault.Rule{Match: fault.Match{Every: 2}, Action: fault.Action{Kind: fault.KindSlowHandshake, For: fault.Duration(time.Second)}},
		fault.Rule{Name: "more", Budget: 1, Action: fault.Action{Kind: fault.KindSlowHandshake, For: fault.Duration(time.Minute)}},
		fault.Rule{Match: fault.Match{Op: fault.Ops{"any"}}, Action: fault.Action{Kind: fault.KindErrno, Errno: "EIO"}},
	)
	for i, want := range []time.Duration{time.Minute, time.Second, 0, time.Second} {
		if got := waits(disk0.Lun); got != want {
			t.Errorf("client %d waits %v, want %v", i, got, want)
		}
		if got := waits(disk1.Lun); got != 0 {
			t.Errorf("client %d of another disk waits %v", i, got)
		}
	}
	pending := w.clock.Pending()
	if stop := w.dev.Handshake(0, disk0.Lun, func() { t.Error("a client has waited that does not any more") }); stop != nil {
		t.Error("the fifth client waits")
	}
	stop := w.dev.Handshake(0, disk0.Lun, func() { t.Error("a client has waited that does not any more") })
	if stop == nil || w.clock.Pending() != pending+1 || !stop() || w.clock.Pending() != pending {
		t.Error("the sixth client does not wait, or its wait does not end when it goes")
	}
	if got := s.Fault("errno").Stats().Matched; got != 0 {
		t.Errorf("%d handshakes were taken for commands", got)
	}
	w.wantIdle(t)
}

func TestFaults_Latency(t *testing.T) {
	w := newFaultyWorld(t, hba.Config{QueuePairs: 1, Workers: 1})
	in := w.driver.MappedBuffer(t, blockBytes, dma.Write)
	for _, at := range []fault.Place{fault.PlaceBefore, fault.PlaceAfter} {
		w.set(t, fault.Rule{Action: fault.Action{Kind: fault.KindLatency, At: at, Latency: &fault.Latency{Mean: fault.Duration(5 * time.Millisecond)}}})
		w.submit(t, disk0.Read(1, 0, 1, in), disk0.Read(2, 0, 1, in))
		w.awaitHeld(2)
		w.wantOthers(t)
		w.clock.Advance(5*time.Millisecond - 1)
		w.wantNothing(t)
		w.clock.Advance(1)
		for i, c := range w.reap(w.driver.Queues[0], 2) {
			wantCode(t, c, uint32(i+1), hba.CodeExecuted)
		}
		w.wantIdle(t)
	}
}

// However many commands are held, others find a worker, on the same disk too.
func TestFaults_HeldOccupyNoWorker(t *testing.T) {
	w := newFaultyWorld(t, hba.Config{QueuePairs: 1, Workers: 1, RingEntries: 256})
	in := w.driver.MappedBuffer(t, blockBytes, dma.Write)
	out := w.driver.MappedBuffer(t, blockBytes, dma.Read)
	s := w.set(t, fault.Rule{Match: fault.Match{Op: fault.Ops{"write", "flush"}}, Action: fault.Action{Kind: fault.KindHang}})
	var commands []hba.Command
	for i := range uint32(100) {
		commands = append(commands, disk0.Write(1000+i, uint64(i), 1, out), disk0.Flush(2000+i))
	}
	w.submit(t, commands...)
	w.awaitHeld(200)
	wantCode(t, w.do(t, disk0.Read(1, 0, 1, in))[0], 1, hba.CodeExecuted)
	w.attachSlow(t, slow, hbatest.MediaConfig{})
	wantCode(t, w.do(t, slow.Read(2, 0, 1, in))[0], 2, hba.CodeExecuted)
	w.wantOthers(t)
	if got := s.Fault("hang").Stats().Held; got != 200 {
		t.Errorf("the rule holds %d commands, want 200", got)
	}
	if n := w.dev.ReleaseHeld(s.Fault("hang"), 3); n != 3 {
		t.Errorf("released %d, want 3", n)
	}
	first := w.reap(w.driver.Queues[0], 3)
	slices.SortFunc(first, func(a, b hba.Completion) int { return int(a.Tag) - int(b.Tag) })
	for i, tag := range []uint32{1000, 1001, 2000} {
		wantCode(t, first[i], tag, hba.CodeExecuted)
	}
	if n := w.dev.ReleaseHeld(s.Fault("hang"), 0); n != 197 {
		t.Errorf("released %d, want 197", n)
	}
	w.reap(w.driver.Queues[0], 197)
	w.wantIdle(t)
}

// What ends a command that is held.
func TestFaults_HeldEnd(t *testing.T) {
	hang := fault.Rule{Name: "hold", Action: fault.Action{Kind: fault.KindHang}}
	after := fault.Rule{Name: "hold", Action: fault.Action{Kind: fault.KindGate, At: fault.PlaceAfter}}
	lost := fault.Rule{Name: "hold", Action: fault.Action{Kind: fault.KindLostCompletion}}
	long := fault.Rule{Name: "hold", Action: fault.Action{Kind: fault.KindLatency, Latency: &fault.Latency{Mean: fault.Duration(time.Hour)}}}
	for name, rule := range map[string]fault.Rule{"hang": hang, "gate": after, "lost": lost, "latency": long} {
		for end, tt := range map[string]struct {
			do       func(t *testing.T, w *faultyWorld)
			code     hba.CompletionCode
			then     func(t *testing.T, c []hba.Completion)
			answers  int
			unlocked bool // the command may go on, and is executed if it was not
		}{
			"abort":        {do: func(t *testing.T, w *faultyWorld) { w.submit(t, disk0.Abort(2, 1)) }, code: hba.CodeAborted, answers: 2},
			"lun reset":    {do: func(t *testing.T, w *faultyWorld) { w.submit(t, disk0.Reset(2, false)) }, code: hba.CodeAborted, answers: 2},
			"target reset": {do: func(t *testing.T, w *faultyWorld) { w.submit(t, disk0.Reset(2, true)) }, code: hba.CodeAborted, answers: 2},
			"removal": {do: func(t *testing.T, w *faultyWorld) {
				if err := w.dev.RemoveUnit(context.Background(), 0, 0); err != nil {
					t.Error(err)
				}
			}, code: hba.CodeNoDevice, answers: 1},
			"rule gone": {do: func(t *testing.T, w *faultyWorld) { w.set(t) }, code: hba.CodeExecuted, answers: 1, unlocked: true},
			"reset of the device": {do: func(t *testing.T, w *faultyWorld) {
				if err := w.driver.Restart(); err != nil {
					t.Error(err)
				}
			}},
			"close": {do: func(_ *testing.T, w *faultyWorld) { w.dev.Close() }},
		} {
			t.Run(name+", "+end, func(t *testing.T) {
				w := newFaultyWorld(t, hba.Config{QueuePairs: 1, Workers: 1})
				out := w.driver.MappedBuffer(t, blockBytes, dma.Read)
				out.Bytes[0] = 1
				s := w.set(t, rule)
				w.submit(t, disk0.Write(1, 0, 1, out))
				w.awaitHeld(1)
				w.wantNothing(t)
				tt.do(t, w)
				if tt.answers > 0 {
					c := w.reap(w.driver.Queues[0], tt.answers)
					wantCode(t, c[0], 1, tt.code)
					if tt.answers > 1 {
						wantCode(t, c[1], 2, hba.CodeExecuted)
					}
				}
				var b [1]byte
				if _, err := w.memory.ReadAt(b[:], 0); err != nil {
					t.Error(err)
				}
				executed := name == "gate" || name == "lost" || tt.unlocked
				if (b[0] == 1) != executed {
					t.Errorf("the write has been done: %v, want %v", b[0] == 1, executed)
				}
				if got := s.Fault("hold").Stats().Held; got != 0 {
					t.Errorf("the rule holds %d commands still", got)
				}
				w.wantIdle(t)
				w.clock.Advance(2 * time.Hour) // nothing comes after the end
				if end != "close" {
					w.wantNothing(t)
				}
			})
		}
	}
}

// A command that one rule holds, or has lost, and that has met others too, stays so while
// those go.
func TestFaults_HeldByOneOfSome(t *testing.T) {
	ms := fault.Duration(time.Millisecond)
	other := fault.Rule{Name: "other", Action: fault.Action{Kind: fault.KindLatency, Latency: &fault.Latency{Mean: ms}}}
	for name, rule := range map[string]fault.Rule{
		"hang":      {Name: "hold", Action: fault.Action{Kind: fault.KindHang}},
		"gate":      {Name: "hold", Action: fault.Action{Kind: fault.KindGate, At: fault.PlaceAfter}},
		"lost":      {Name: "hold", Action: fault.Action{Kind: fault.KindLostCompletion}},
		"mistagged": {Name: "hold", Action: fault.Action{Kind: fault.KindMistagged}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newFaultyWorld(t, hba.Config{QueuePairs: 1, RingEntries: 256})
			in := w.driver.MappedBuffer(t, blockBytes, dma.Write)
			s := w.set(t, rule, other)
			w.submit(t, disk0.Read(1, 0, 1, in))
			w.awaitHeld(1)
			w.clock.Advance(time.Millisecond)
			for s.Fault("hold").Stats().Held != 1 {
				runtime.Gosched()
			}
			if name == "mistagged" {
				w.reap(w.driver.Queues[0], 1)
			}
			w.set(t, rule)
			if got := w.dev.Stats().HeldByFaults; got != 1 {
				t.Errorf("%d commands are held, want 1: the rule that holds it has not gone", got)
			}
			w.wantNothing(t)
			w.set(t)
			wantCode(t, w.reap(w.driver.Queues[0], 1)[0], 1, hba.CodeExecuted)
			w.wantIdle(t)
		})
	}
}

// A command that goes on from one rule only to be held by another has been released.
func TestFaults_ReleasedToAnother(t *testing.T) {
	w := newFaultyWorld(t, hba.Config{QueuePairs: 1})
	in := w.driver.MappedBuffer(t, blockBytes, dma.Write)
	s := w.set(t,
		fault.Rule{Name: "gate", Action: fault.Action{Kind: fault.KindGate, At: fault.PlaceAfter}},
		fault.Rule{Name: "lost", Action: fault.Action{Kind: fault.KindLostCompletion}},
	)
	w.submit(t, disk0.Read(1, 0, 1, in), disk0.Read(2, 1, 1, in))
	w.awaitHeld(2)
	for _, count := range []int{1, 0} {
		if n := w.dev.ReleaseHeld(s.Fault("gate"), count); n != 1 {
			t.Errorf("the gate has released %d, want 1", n)
		}
	}
	if gate, lost := s.Fault("gate").Stats().Held, s.Fault("lost").Stats().Held; gate != 0 || lost != 2 {
		t.Errorf("the gate holds %d, %d are lost, want 0 and 2", gate, lost)
	}
	w.set(t)
	w.reap(w.driver.Queues[0], 2)
	w.wantIdle(t)
}

func TestFaults_HangEndsByItself(t *testing.T) {
	w := newFaultyWorld(t, hba.Config{QueuePairs: 1})
	in := w.driver.MappedBuffer(t, blockBytes, dma.Write)
	w.set(t, fault.Rule{Action: fault.Action{Kind: fault.KindHang, For: fault.Duration(time.Second)}})
	w.submit(t, disk0.Read(1, 0, 1, in))
	w.awaitHeld(1)
	w.clock.Advance(time.Second - 1)
	w.wantNothing(t)
	w.clock.Advance(1)
	wantCode(t, w.reap(w.driver.Queues[0], 1)[0], 1, hba.CodeExecuted)
	w.wantIdle(t)
}

func TestFaults_Reorder(t *testing.T) {
	const n = 32
	w := newFaultyWorld(t, hba.Config{QueuePairs: 1})
	in := w.driver.MappedBuffer(t, blockBytes, dma.Write)
	w.set(t, fault.Rule{Action: fault.Action{Kind: fault.KindReorder, For: fault.Duration(time.Second)}})
	var commands []hba.Command
	for i := range uint32(n) {
		commands = append(commands, disk0.Read(i, 0, 1, in))
	}
	w.submit(t, commands...)
	w.awaitHeld(n)
	w.clock.Advance(time.Second)
	var tags []uint32
	for _, c := range w.reap(w.driver.Queues[0], n) {
		tags = append(tags, c.Tag)
	}
	if slices.IsSorted(tags) {
		t.Error("all completions came in the order of their commands")
	}
	slices.Sort(tags)
	for i, tag := range tags {
		if tag != uint32(i) {
			t.Fatalf("tags %v, want each once", tags)
		}
	}
	w.wantIdle(t)
}

func TestFaults_ResetsFail(t *testing.T) {
	for _, silent := range []bool{false, true} {
		t.Run(fmt.Sprintf("silent=%v", silent), func(t *testing.T) {
			w := newFaultyWorld(t, hba.Config{QueuePairs: 1})
			in := w.driver.MappedBuffer(t, blockBytes, dma.Write)
			w.set(t,
				fault.Rule{Action: fault.Action{Kind: fault.KindHang}},
				fault.Rule{Match: fault.Match{Op: fault.Ops{"abort", "reset-lun", "reset-bus"}}, Budget: 3, Action: fault.Action{Kind: fault.KindResetFails, Silent: silent}},
			)
			q := w.driver.Queues[0]
			w.submit(t, disk0.Read(1, 0, 1, in))
			w.awaitHeld(1)
			for tag, c := range []hba.Command{disk0.Abort(2, 1), disk0.Reset(3, false)} {
				w.submit(t, c)
				if silent {
					w.awaitHeld(2 + tag)
					w.wantNothing(t)
				} else {
					wantCode(t, w.reap(q, 1)[0], c.Tag, hba.CodeControlFailed)
				}
			}
			if !silent {
				w.wantNothing(t) // the command that hangs still does
			}
			w.driver.Write(hba.RegControl, hba.ControlReset)
			if w.driver.Read(hba.RegControl)&hba.ControlReset == 0 {
				t.Error("a reset of the device that fails reads as done")
			}
			if got := w.dev.Stats().Resets; got != 1 { // that which the driver began with
				t.Errorf("%d resets, want 1", got)
			}
			// A target reset works, and ends them all, silent resets included.
			w.submit(t, disk0.Reset(4, true))
			n := 2
			if silent {
				n = 4
			}
			c := w.reap(q, n)
			for _, c := range c[:n-1] {
				wantCode(t, c, c.Tag, hba.CodeAborted)
			}
			wantCode(t, c[n-1], 4, hba.CodeExecuted)
			w.driver.Write(hba.RegControl, hba.ControlReset) // the budget is used up
			w.driver.WaitReset()
			if got := w.dev.Stats().Resets; got != 2 {
				t.Errorf("%d resets, want 2", got)
			}
		})
	}
}

func TestFaults_StuckResetEndsWithItsRule(t *testing.T) {
	w := newFaultyWorld(t, hba.Config{QueuePairs: 1})
	w.set(t, fault.Rule{Action: fault.Action{Kind: fault.KindResetFails}})
	w.driver.Write(hba.RegControl, hba.ControlReset)
	w.driver.Write(hba.RegControl, hba.ControlReset)
	if w.driver.Read(hba.RegControl)&hba.ControlReset == 0 {
		t.Error("the reset reads as done")
	}
	w.set(t)
	if err := w.driver.Restart(); err != nil {
		t.Error(err)
	}
}

func TestFaults_BrokenCompletions(t *testing.T) {
	w := newFaultyWorld(t, hba.Config{QueuePairs: 1})
	in := w.driver.MappedBuffer(t, blockBytes, dma.Write)
	q := w.driver.Queues[0]
	t.Run("duplicate", func(t *testing.T) {
		w.set(t, fault.Rule{Budget: 1, Action: fault.Action{Kind: fault.KindDuplicate}})
		w.submit(t, disk0.Read(1, 0, 1, in))
		for _, c := range w.reap(q, 2) {
			wantCode(t, c, 1, hba.CodeExecuted)
		}
		w.wantIdle(t)
	})
	t.Run("mistagged", func(t *testing.T) {
		s := w.set(t, fault.Rule{Budget: 1, Action: fault.Action{Kind: fault.KindMistagged}})
		w.submit(t, disk0.Read(1, 0, 1, in))
		if c := w.reap(q, 1)[0]; c.Tag == 1 || c.Code != hba.CodeExecuted {
			t.Errorf("completion of tag %d with code %d, want another tag", c.Tag, c.Code)
		}
		if s.Fault("mistagged").Stats().Held != 1 {
			t.Error("the command has been answered")
		}
		c := w.do(t, disk0.Reset(2, false), disk0.TestUnitReady(3))
		wantCode(t, c[0], 1, hba.CodeAborted)
		wantCode(t, c[1], 2, hba.CodeExecuted)
		if len(c) == 2 {
			w.reap(q, 1)
		}
		w.wantIdle(t)
	})
	t.Run("late", func(t *testing.T) {
		w.set(t, fault.Rule{Budget: 1, Action: fault.Action{Kind: fault.KindLateCompletion, For: fault.Duration(time.Second)}})
		w.submit(t, disk0.Read(1, 0, 1, in))
		w.awaitHeld(1)
		c := w.do(t, disk0.Reset(2, false), disk0.TestUnitReady(3))
		wantCode(t, c[0], 1, hba.CodeAborted)
		w.reap(q, 1)
		w.clock.Advance(time.Second)
		wantCode(t, w.reap(q, 1)[0], 1, hba.CodeExecuted)
		w.wantIdle(t)
	})
	t.Run("interrupt", func(t *testing.T) {
		w := newFaultyWorld(t, hba.Config{QueuePairs: 1})
		var interrupts atomic.Int64
		raised := func(_ pci.Runner, m pci.Message) {
			if m == 0 { // not the event message
				interrupts.Add(1)
			}
		}
		if err := w.dev.ConnectInterrupt(pci.MessageSignaled, raised, newRunner); err != nil {
			t.Fatal(err)
		}
		w.set(t, fault.Rule{Budget: 1, Action: fault.Action{Kind: fault.KindLostInterrupt}})
		in := w.driver.MappedBuffer(t, blockBytes, dma.Write)
		wantCode(t, w.do(t, disk0.Read(1, 0, 1, in))[0], 1, hba.CodeExecuted)
		w.wantIdle(t)
		w.dev.DisconnectInterrupt()
		if got := interrupts.Load(); got != 0 {
			t.Errorf("%d interrupts for a completion that was to have none", got)
		}
	})
	t.Run("DMA", func(t *testing.T) {
		w.set(t, fault.Rule{Budget: 2, Action: fault.Action{Kind: fault.KindDMAAfterReset}})
		if _, err := w.memory.WriteAt([]byte{0x55}, 0); err != nil {
			t.Fatal(err)
		}
		for _, unmap := range []bool{false, true} {
			b := w.driver.MappedBuffer(t, blockBytes, dma.Write)
			w.submit(t, disk0.Read(1, 0, 1, b))
			w.awaitHeld(1)
			w.submit(t, disk0.Reset(2, false))
			wantCode(t, w.reap(q, 2)[0], 1, hba.CodeAborted)
			if unmap {
				b.Unmap()
			}
			faults := w.iommu.Faults()
			w.clock.Advance(time.Second)
			if got := w.iommu.Faults() - faults; (got != 0) != unmap || (b.Bytes[0] == 0x55) == unmap {
				t.Errorf("memory unmapped: %v. %d DMA faults, and its first byte is %#x", unmap, got, b.Bytes[0])
			}
		}
		wantCode(t, w.do(t, disk0.TestUnitReady(3))[0], 3, hba.CodeExecuted) // the unit attention
		w.wantIdle(t)
	})
	w.wantOthers(t)
}

// The device writes what was read once more when the command has been answered: into
// memory that is still mapped; where it is not, the IOMMU counts a fault, and no
// command ends with one.
func TestFaults_DMAAfterCompletion(t *testing.T) {
	w := newFaultyWorld(t, hba.Config{QueuePairs: 1})
	if _, err := w.memory.WriteAt([]byte{0x55}, 0); err != nil {
		t.Fatal(err)
	}
	s := w.set(t, fault.Rule{Action: fault.Action{Kind: fault.KindDMAAfterCompletion, For: fault.Duration(time.Second)}})
	for i, unmap := range []bool{false, true} {
		b := w.driver.MappedBuffer(t, blockBytes, dma.Write)
		c := w.do(t, disk0.Read(1, 0, 1, b))[0]
		if wantCode(t, c, 1, hba.CodeExecuted); c.ScsiStatus != 0 || b.Bytes[0] != 0x55 {
			t.Errorf("%+v, with %#x: want a read like any other", c, b.Bytes[0])
		}
		clear(b.Bytes)
		if unmap {
			b.Unmap()
		}
		faults := w.iommu.Faults()
		w.clock.Advance(time.Second - 1)
		if b.Bytes[0] != 0 || w.iommu.Faults() != faults {
			t.Error("the data came before their time")
		}
		w.clock.Advance(1)
		if got := w.iommu.Faults() - faults; (got != 0) != unmap || (b.Bytes[0] == 0x55) == unmap {
			t.Errorf("memory unmapped: %v. %d DMA faults, and its first byte is %#x", unmap, got, b.Bytes[0])
		}
		w.wantNothing(t)
		if n := w.dev.Stats().Queues[0].DMAFaults; n != 0 {
			t.Errorf("%d commands have ended with a DMA fault", n)
		}
		if got := s.Faults()[0].Stats().Fired; got != uint64(i+1) {
			t.Errorf("fired %d times after %d reads", got, i+1)
		}
	}
	// What is not told by then is told to nobody.
	b := w.driver.MappedBuffer(t, blockBytes, dma.Write)
	w.do(t, disk0.Read(1, 0, 1, b))
	w.dev.Close()
	faults := w.iommu.Faults()
	b.Unmap()
	w.clock.Advance(time.Hour)
	if got := w.iommu.Faults() - faults; got != 0 {
		t.Errorf("%d DMA faults of a device that is closed", got)
	}
}

// Memory that the device writes to when its command is over is used by others meanwhile, who
// do not wait for that. It is the fault, and none that the race detector finds.
func TestFaults_DMAAfterCompletionMeetsOthers(t *testing.T) {
	w := newFaultyWorld(t, hba.Config{QueuePairs: 1})
	if _, err := w.memory.WriteAt([]byte{0x55}, 0); err != nil {
		t.Fatal(err)
	}
	w.set(t, fault.Rule{Action: fault.Action{Kind: fault.KindDMAAfterCompletion, For: fault.Duration(time.Second)}})
	b := w.driver.MappedBuffer(t, blockBytes, dma.Write)
	wantCode(t, w.do(t, disk0.Read(1, 0, 1, b))[0], 1, hba.CodeExecuted)
	clear(b.Bytes)
	var late sync.WaitGroup
	late.Go(func() { w.clock.Advance(time.Second) })
	b.Bytes[1] = 1
	late.Wait()
	if b.Bytes[0] != 0x55 {
		t.Errorf("the first byte is %#x: the data did not come", b.Bytes[0])
	}
}

// Memory that the driver unmaps while the medium takes its time to read for a late
// transfer is somebody else's by the time of the data.
func TestFaults_DMAAfterCompletionOfSlowMedium(t *testing.T) {
	w := newFaultyWorld(t, hba.Config{QueuePairs: 1})
	const blocks = 260 // more than is read at once
	data := make([]byte, blocks*blockBytes)
	for i := range data {
		data[i] = byte(i ^ i>>8 ^ i>>16)
	}
	if _, err := w.memory.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
	m := w.attachSlow(t, slow, hbatest.MediaConfig{})
	s, err := fault.NewSet(fault.Config{
		Rules: []fault.Rule{{Name: "late", Disk: "s", Hostile: true, Action: fault.Action{
			Kind: fault.KindDMAAfterCompletion, For: fault.Duration(time.Second),
		}}},
		Hostile: true,
		Units:   []fault.Unit{{Disk: "s", Lun: slow.Lun, BlockBytes: blockBytes, Blocks: diskBytes / blockBytes}},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.dev.SetFaults(s)
	b := w.driver.MappedBuffer(t, len(data), dma.Write)
	wantCode(t, w.do(t, slow.Read(1, 0, blocks, b))[0], 1, hba.CodeExecuted)
	clear(b.Bytes)
	w.clock.Advance(time.Second)
	if !bytes.Equal(b.Bytes, data) {
		t.Error("the data did not come once more")
	}

	wantCode(t, w.do(t, slow.Read(1, 0, blocks, b))[0], 1, hba.CodeExecuted)
	m.Hold()
	over := make(chan struct{})
	go func() {
		w.clock.Advance(time.Second)
		close(over)
	}()
	m.WaitHeld(1)
	b.Unmap()
	clear(b.Bytes)
	faults := w.iommu.Faults()
	m.Release()
	<-over
	if got := w.iommu.Faults() - faults; got != 1 || !bytes.Equal(b.Bytes, make([]byte, len(data))) {
		t.Errorf("%d DMA faults, want 1, and none of the data in memory that is not the device's any more", got)
	}
	w.wantIdle(t)
}

// A late transfer brings what the READ brought, and no more where the buffers are longer.
func TestFaults_DMAAfterCompletionOfLongBuffer(t *testing.T) {
	w := newFaultyWorld(t, hba.Config{QueuePairs: 1})
	if _, err := w.memory.WriteAt(bytes.Repeat([]byte{0x55}, 4*blockBytes), 0); err != nil {
		t.Fatal(err)
	}
	w.set(t, fault.Rule{Action: fault.Action{Kind: fault.KindDMAAfterCompletion, For: fault.Duration(time.Second)}})
	b := w.driver.MappedBuffer(t, 4*blockBytes, dma.Write)
	c := disk0.Read(1, 0, 2, b)
	c.SegmentCount, c.Segments[0], c.Segments[1] = 2, b.Segment(0, blockBytes), b.Segment(blockBytes, 3*blockBytes)
	wantCode(t, w.do(t, c)[0], 1, hba.CodeExecuted)
	clear(b.Bytes)
	w.clock.Advance(time.Second)
	if got := bytes.Count(b.Bytes, []byte{0x55}); got != 2*blockBytes {
		t.Errorf("a READ of %d bytes brought %d bytes late", 2*blockBytes, got)
	}
	w.wantIdle(t)
}

// What a READ has not brought does not come once more.
func TestFaults_DMAAfterCompletionBringsWhatWasRead(t *testing.T) {
	recovered := &fault.Sense{Key: "recovered-error", ASC: 0x17}
	for name, tt := range map[string]struct {
		other fault.Action
		want  int // blocks
	}{
		"failed":    {fault.Action{Kind: fault.KindErrno, Errno: "EIO"}, 0},
		"busy":      {fault.Action{Kind: fault.KindBusy}, 0},
		"short":     {fault.Action{Kind: fault.KindShortTransfer, Keep: 2 * blockBytes}, 2},
		"recovered": {fault.Action{Kind: fault.KindStatus, Sense: recovered}, 4},
	} {
		t.Run(name, func(t *testing.T) {
			w := newFaultyWorld(t, hba.Config{QueuePairs: 1})
			if _, err := w.memory.WriteAt(bytes.Repeat([]byte{0x55}, 4*blockBytes), 0); err != nil {
				t.Fatal(err)
			}
			w.set(t, fault.Rule{Name: "late", Action: fault.Action{Kind: fault.KindDMAAfterCompletion, For: fault.Duration(time.Second)}},
				fault.Rule{Name: "other", Action: tt.other})
			b := w.driver.MappedBuffer(t, 4*blockBytes, dma.Write)
			wantCode(t, w.do(t, disk0.Read(1, 0, 4, b))[0], 1, hba.CodeExecuted)
			clear(b.Bytes)
			if tt.want == 0 {
				b.Unmap() // to look there would be a fault
			}
			w.clock.Advance(time.Second)
			if got := w.iommu.Faults(); got != 0 {
				t.Errorf("%d DMA faults", got)
			}
			if got := bytes.Count(b.Bytes, []byte{0x55}); got != tt.want*blockBytes {
				t.Errorf("%d bytes came late, want the %d that were read", got, tt.want*blockBytes)
			}
			w.wantIdle(t)
		})
	}
}

// Memory that the driver unmaps while a late transfer copies into it is somebody else's from
// then on.
func TestFaults_DMAAfterCompletionMeetsUnmap(t *testing.T) {
	w := newFaultyWorld(t, hba.Config{QueuePairs: 1})
	const blocks = 128 // what is copied at once
	if _, err := w.memory.WriteAt(bytes.Repeat([]byte{0x55}, blocks*blockBytes), 0); err != nil {
		t.Fatal(err)
	}
	w.set(t, fault.Rule{Action: fault.Action{Kind: fault.KindDMAAfterCompletion, For: fault.Duration(time.Second)}})
	others := bytes.Repeat([]byte{0xee}, blocks*blockBytes)
	for range 100 {
		b := w.driver.MappedBuffer(t, blocks*blockBytes, dma.Write)
		wantCode(t, w.do(t, disk0.Read(1, 0, blocks, b))[0], 1, hba.CodeExecuted)
		clear(b.Bytes)
		over := make(chan struct{})
		go func() {
			w.clock.Advance(time.Second)
			close(over)
		}()
		for b.Bytes[0] == 0 {
			runtime.Gosched()
		}
		b.Unmap()
		copy(b.Bytes, others)
		<-over
		if i := bytes.IndexByte(b.Bytes, 0x55); i >= 0 {
			t.Fatalf("the byte at %d has come when the memory was no longer the device's", i)
		}
	}
	w.wantIdle(t)
}

// The device remembers no more late transfers than its ring has entries, and none after
// a reset or the end of their rule. Those for which there was room come.
func TestFaults_DMAAfterCompletionIsBounded(t *testing.T) {
	const entries = 64
	long := fault.Duration(time.Hour)
	for name, tt := range map[string]struct {
		end  func(t *testing.T, w *faultyWorld)
		want bool // the data come
	}{
		"time":  {end: func(*testing.T, *faultyWorld) {}, want: true},
		"rule":  {end: func(t *testing.T, w *faultyWorld) { w.set(t) }},
		"close": {end: func(_ *testing.T, w *faultyWorld) { w.dev.Close() }},
		"reset": {end: func(t *testing.T, w *faultyWorld) {
			if err := w.driver.Restart(); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newFaultyWorld(t, hba.Config{QueuePairs: 1, RingEntries: entries})
			if _, err := w.memory.WriteAt([]byte{0x55}, 0); err != nil {
				t.Fatal(err)
			}
			s := w.set(t, fault.Rule{Action: fault.Action{Kind: fault.KindDMAAfterCompletion, For: long}})
			b := w.driver.MappedBuffer(t, blockBytes, dma.Write)
			for i := range 3 * entries {
				wantCode(t, w.do(t, disk0.Read(1, 0, 1, b))[0], 1, hba.CodeExecuted)
				if got, want := w.clock.Pending(), min(i+1, entries); got != want {
					t.Fatalf("%d transfers are to come after %d reads, want %d", got, i+1, want)
				}
			}
			if got := s.Faults()[0].Stats().LeftOut; got != 2*entries {
				t.Errorf("%d transfers were left out, want %d", got, 2*entries)
			}
			clear(b.Bytes)
			tt.end(t, w)
			if got := w.clock.Pending(); (got != 0) != tt.want {
				t.Errorf("%d transfers are to come, want some: %v", got, tt.want)
			}
			w.clock.Advance(time.Hour)
			if got := b.Bytes[0] == 0x55; got != tt.want {
				t.Errorf("the data came: %v", got)
			}
			if !tt.want {
				return
			}
			// There is room again.
			wantCode(t, w.do(t, disk0.Read(1, 0, 1, b))[0], 1, hba.CodeExecuted)
			if w.clock.Pending() != 1 {
				t.Error("no transfer is to come")
			}
		})
	}
}

// Completions that answer no command come as far as the ring has room for them. Those
// that do not are counted, by rule: no more and no less.
func TestFaults_LeftOut(t *testing.T) {
	const entries, commands = 64, 40
	for kind, end := range map[fault.Kind]func(t *testing.T, w *faultyWorld){
		fault.KindDuplicate: func(*testing.T, *faultyWorld) {},
		fault.KindMistagged: func(t *testing.T, w *faultyWorld) {
			w.awaitHeld(commands)
			w.set(t) // and their own tags are answered
		},
		fault.KindLateCompletion: func(t *testing.T, w *faultyWorld) {
			w.submit(t, disk0.Reset(1000, false))
			w.clock.Advance(time.Second)
		},
	} {
		t.Run(string(kind), func(t *testing.T) {
			w := newFaultyWorld(t, hba.Config{QueuePairs: 1, RingEntries: entries})
			in := w.driver.MappedBuffer(t, blockBytes, dma.Write)
			var tally fault.Tally
			s := w.set(t, fault.Rule{Action: fault.Action{Kind: kind}})
			for i := range uint32(commands) {
				w.submit(t, disk0.Read(i, 0, 1, in))
			}
			want := commands
			if end(t, w); kind == fault.KindLateCompletion {
				want++ // the reset
			}
			w.reap(w.driver.Queues[0], want)
			for w.dev.Stats().Queues[0].InFlight != 0 {
				runtime.Gosched()
			}
			surplus := 0
			for out := make([]hba.Completion, 1); w.driver.Queues[0].Consume(out) != 0; {
				surplus++
			}
			got := s.Faults()[0].Stats()
			if got.LeftOut == 0 || got.LeftOut != uint64(commands-surplus) {
				t.Errorf("%d completions left out, with %d that came for %d commands", got.LeftOut, surplus, commands)
			}
			injected := tally.Injections(func() *fault.Set { return s })
			if i := slices.IndexFunc(injected, func(n fault.Injection) bool { return n.Disk == "d" }); injected[i].LeftOut != got.LeftOut {
				t.Errorf("counted as %+v, want %d left out", injected[i], got.LeftOut)
			}
		})
	}
}

// A ring that appears full is not looked at: what is in it stays there, whosever it
// is, and what has been taken goes on. When its time is over, or its rule has gone,
// all of it is executed, in order. Other queue pairs see nothing, and a reset of the
// device makes a new ring.
func TestFaults_RingFull(t *testing.T) {
	long := fault.Duration(time.Second)
	rule := fault.Rule{Budget: 1, Match: fault.Match{Op: fault.Ops{"flush"}}, Action: fault.Action{Kind: fault.KindRingFull, For: long}}
	for name, tt := range map[string]struct {
		end  func(t *testing.T, w *faultyWorld)
		gone bool // the commands are dropped
	}{
		"time": {end: func(t *testing.T, w *faultyWorld) {
			w.clock.Advance(time.Second - 1)
			w.wantNothing(t)
			w.clock.Advance(1)
		}},
		"rule gone":       {end: func(t *testing.T, w *faultyWorld) { w.set(t) }},
		"another rule":    {end: func(t *testing.T, w *faultyWorld) { w.set(t, fault.Rule{Action: fault.Action{Kind: fault.KindFlip}}) }},
		"rules unchanged": {end: func(t *testing.T, w *faultyWorld) { w.set(t, rule); w.wantNothing(t); w.clock.Advance(time.Second) }},
		"reset of the device": {gone: true, end: func(t *testing.T, w *faultyWorld) {
			if err := w.driver.Restart(); err != nil {
				t.Fatal(err)
			}
			w.clock.Advance(time.Second)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newFaultyWorld(t, hba.Config{QueuePairs: 2, RingEntries: 64})
			in := w.driver.MappedBuffer(t, 64*blockBytes, dma.Write)
			s := w.set(t, rule)
			q := w.driver.Queues[0]
			wantCode(t, w.do(t, disk0.Flush(1))[0], 1, hba.CodeExecuted)
			var commands []hba.Command
			for i := range uint32(62) {
				commands = append(commands, disk0.Read(100+i, uint64(i), 1, in))
			}
			w.submit(t, append(commands, disk1.Read(200, 0, 1, in), disk0.Flush(201))...)
			if n := q.Submit(disk0.Flush(999)); n != 0 {
				t.Fatal("the ring takes one more than it has entries")
			}
			w.wantNothing(t)
			if got := w.dev.Stats().Queues[0]; got.Submitted != 64 || got.InFlight != 0 {
				t.Errorf("%d commands in the ring and %d fetched, want all 64 in the ring", got.Submitted, got.InFlight)
			}
			other := w.driver.Queues[1]
			other.Submit(disk0.Read(1, 0, 1, in))
			other.Ring(runner)
			wantCode(t, w.reap(other, 1)[0], 1, hba.CodeExecuted)
			tt.end(t, w)
			q = w.driver.Queues[0]
			if !tt.gone {
				for i, c := range w.reap(q, 64) {
					want := []uint32{200, 201}[max(0, i-62)]
					if i < 62 {
						want = commands[i].Tag
					}
					if name == "another rule" { // a worker runs what it is about
						want = c.Tag
					}
					wantCode(t, c, want, hba.CodeExecuted)
				}
			}
			w.do(t, disk0.Flush(2), disk0.Flush(3))
			if got := s.Fault("ring-full").Stats().Fired; got != 1 {
				t.Errorf("the rule has fired %d times, want its budget of 1", got)
			}
			w.clock.Advance(time.Hour)
			w.wantNothing(t)
			w.wantIdle(t)
		})
	}
}

// A command that meets the rule while the ring is not looked at makes it longer, and
// never shorter; a batch that has been fetched is one such case.
func TestFaults_RingFull_Longer(t *testing.T) {
	w := newFaultyWorld(t, hba.Config{QueuePairs: 1})
	in := w.driver.MappedBuffer(t, blockBytes, dma.Write)
	w.set(t,
		fault.Rule{Name: "short", Budget: 1, Match: fault.Match{Op: fault.Ops{"read"}}, Action: fault.Action{Kind: fault.KindRingFull, For: fault.Duration(time.Second)}},
		fault.Rule{Name: "long", Budget: 1, Match: fault.Match{Op: fault.Ops{"flush"}}, Action: fault.Action{Kind: fault.KindRingFull, For: fault.Duration(3 * time.Second)}},
		fault.Rule{Name: "least", Budget: 1, Match: fault.Match{Op: fault.Ops{"write"}}, Action: fault.Action{Kind: fault.KindRingFull, For: fault.Duration(time.Millisecond)}},
	)
	out := w.driver.MappedBuffer(t, blockBytes, dma.Read)
	w.submit(t, disk0.Read(1, 0, 1, in), disk0.Flush(2), disk0.Write(3, 0, 1, out))
	w.reap(w.driver.Queues[0], 3)
	w.submit(t, disk0.Read(4, 0, 1, in))
	for _, after := range []time.Duration{time.Second, 2*time.Second - 1} {
		w.clock.Advance(after)
		w.wantNothing(t)
	}
	w.clock.Advance(1)
	wantCode(t, w.reap(w.driver.Queues[0], 1)[0], 4, hba.CodeExecuted)
	w.wantIdle(t)
}

// Of two rules that fill a ring the end of one is not that of the other.
func TestFaults_RingFull_OneGoes(t *testing.T) {
	const short, long = time.Second, 3 * time.Second
	rules := map[string]fault.Rule{
		"short": {Name: "short", Match: fault.Match{Op: fault.Ops{"read"}}, Action: fault.Action{Kind: fault.KindRingFull, For: fault.Duration(short)}},
		"long":  {Name: "long", Match: fault.Match{Op: fault.Ops{"flush"}}, Action: fault.Action{Kind: fault.KindRingFull, For: fault.Duration(long)}},
	}
	for stays, until := range map[string]time.Duration{"short": short, "long": long} {
		for _, shortFirst := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s stays, short first %t", stays, shortFirst), func(t *testing.T) {
				w := newFaultyWorld(t, hba.Config{QueuePairs: 1})
				in := w.driver.MappedBuffer(t, blockBytes, dma.Write)
				w.set(t, rules["short"], rules["long"])
				commands := []hba.Command{disk0.Read(1, 0, 1, in), disk0.Flush(2)}
				if !shortFirst {
					slices.Reverse(commands)
				}
				w.submit(t, commands...)
				w.reap(w.driver.Queues[0], 2)
				w.submit(t, disk0.TestUnitReady(3))
				w.set(t, rules[stays])
				for range 100 { // the event goroutine would run the queue
					runtime.Gosched()
				}
				w.clock.Advance(until - 1)
				w.wantNothing(t)
				w.clock.Advance(1)
				wantCode(t, w.reap(w.driver.Queues[0], 1)[0], 3, hba.CodeExecuted)
				w.wantIdle(t)
			})
		}
	}
}

// A ring with little room gets no surplus completions, rather than too many.
func TestFaults_SurplusNeedsRoom(t *testing.T) {
	w := newFaultyWorld(t, hba.Config{QueuePairs: 1, RingEntries: 64})
	in := w.driver.MappedBuffer(t, blockBytes, dma.Write)
	w.set(t, fault.Rule{Action: fault.Action{Kind: fault.KindDuplicate}})
	q := w.driver.Queues[0]
	var commands []hba.Command
	for i := range uint32(64) {
		commands = append(commands, disk0.Read(i, 0, 1, in))
	}
	seen := map[uint32]int{}
	out := make([]hba.Completion, 1000)
	for range 50 {
		for sent, got := 0, 0; sent < len(commands) || got < len(commands); {
			sent += q.Submit(commands[sent:]...)
			q.Ring(runner)
			n := q.Consume(out)
			for _, c := range out[:n] {
				if seen[c.Tag]++; seen[c.Tag] == 1 {
					got++
				}
			}
			if n > 0 {
				q.Ack(runner)
			}
			runtime.Gosched()
		}
		// Duplicates may follow.
		clear(seen)
	}
	w.set(t)
	for w.dev.Stats().Queues[0].InFlight != 0 {
		runtime.Gosched()
	}
	for q.Consume(out) > 0 {
		q.Ack(runner)
	}
	w.wantIdle(t)
	w.wantStatus(t, hba.StatusReady)
}

func TestFaults_Data(t *testing.T) {
	w := newFaultyWorld(t, hba.Config{QueuePairs: 1})
	in := w.driver.MappedBuffer(t, 8*blockBytes, dma.Write)
	out := w.driver.MappedBuffer(t, 8*blockBytes, dma.Read)
	lba := uint64(0)
	at := fault.Match{LBA: &lba, Blocks: 8}
	// write and read go through the device, raw looks at the medium.
	write := func(t *testing.T, b byte) hba.Completion {
		for i := range out.Bytes {
			out.Bytes[i] = b
		}
		return w.do(t, disk0.Write(1, 0, 8, out))[0]
	}
	read := func(t *testing.T) []byte {
		clear(in.Bytes)
		wantCode(t, w.do(t, disk0.Read(2, 0, 8, in))[0], 2, hba.CodeExecuted)
		return bytes.Clone(in.Bytes)
	}
	raw := func(t *testing.T) []byte {
		b := make([]byte, 8*blockBytes)
		if _, err := w.memory.ReadAt(b, 0); err != nil {
			t.Fatal(err)
		}
		return b
	}
	full := func(b byte) []byte { return bytes.Repeat([]byte{b}, 8*blockBytes) }
	reset := func(t *testing.T) {
		w.set(t)
		write(t, 1)
	}
	wantGood := func(t *testing.T, c hba.Completion) {
		t.Helper()
		if wantCode(t, c, 1, hba.CodeExecuted); c.ScsiStatus != 0 || c.DataBytes != 8*blockBytes {
			t.Errorf("%+v, want a write that claims to be done", c)
		}
	}
	t.Run("flip", func(t *testing.T) {
		reset(t)
		w.set(t, fault.Rule{Action: fault.Action{Kind: fault.KindFlip}})
		if got := read(t); bytes.Equal(got, full(1)) || !bytes.Equal(raw(t), full(1)) {
			t.Error("what was read is right, or the medium is wrong")
		}
	})
	t.Run("rot", func(t *testing.T) {
		reset(t)
		w.set(t, fault.Rule{Match: at, Action: fault.Action{Kind: fault.KindRot}})
		a, b := read(t), read(t)
		if bytes.Equal(a, full(1)) || !bytes.Equal(a, b) {
			t.Error("the rot is not there, or not the same")
		}
		write(t, 2)
		if !bytes.Equal(read(t), full(2)) {
			t.Error("the rot outlives a write")
		}
	})
	t.Run("stale", func(t *testing.T) {
		reset(t)
		w.set(t, fault.Rule{Match: at, Action: fault.Action{Kind: fault.KindStaleRead}})
		wantGood(t, write(t, 2))
		if got := read(t); !bytes.Equal(got, full(1)) || !bytes.Equal(raw(t), full(2)) {
			t.Errorf("reads %#x, want what was before the write, 1, and 2 on the medium", got[0])
		}
	})
	t.Run("stale, by two rules", func(t *testing.T) {
		reset(t)
		head, tail := fault.Match{LBA: new(uint64(0)), Blocks: 4}, fault.Match{LBA: new(uint64(4)), Blocks: 4}
		w.set(t, fault.Rule{Name: "a", Match: head, Action: fault.Action{Kind: fault.KindStaleRead}},
			fault.Rule{Name: "b", Match: tail, Action: fault.Action{Kind: fault.KindStaleRead}})
		wantGood(t, write(t, 2))
		if got := read(t); !bytes.Equal(got, full(1)) {
			t.Errorf("reads %#x and %#x, want what was before the write in both ranges", got[0], got[7*blockBytes])
		}
	})
	t.Run("stale, as what was written last is", func(t *testing.T) {
		reset(t)
		w.set(t, fault.Rule{Match: at, Action: fault.Action{Kind: fault.KindStaleRead}})
		wantGood(t, write(t, 2))
		if c := w.do(t, disk0.Write(1, 0, 8, w.driver.MappedBuffer(t, blockBytes, dma.Read)))[0]; c.Code != hba.CodeExecuted || c.ScsiStatus == 0 {
			t.Errorf("%+v, want a write of too few bytes to fail", c)
		}
		if got := read(t); !bytes.Equal(got, full(1)) {
			t.Errorf("reads %#x after a write that failed, want 1 still", got[0])
		}
		w.unmapApart(t)
		got := read(t)
		for lba, want := range []byte{2, 1, 2, 1, 1, 1, 1, 1} {
			if b := got[lba*blockBytes]; b != want {
				t.Errorf("block %d reads %#x, want %#x", lba, b, want)
			}
		}
	})
	t.Run("bad until written", func(t *testing.T) {
		reset(t)
		w.set(t, fault.Rule{Name: "bad", Match: at, Action: fault.Action{Kind: fault.KindMediumError}},
			fault.Rule{Name: "gone", Match: fault.Match{Op: fault.Ops{"write"}}, Budget: 1, Action: fault.Action{Kind: fault.KindHang}})
		isBad := func(lba uint64) bool {
			return w.do(t, disk0.Read(2, lba, 1, w.driver.MappedBuffer(t, blockBytes, dma.Write)))[0].ScsiStatus != 0
		}
		w.submit(t, disk0.Write(1, 0, 8, out))
		w.awaitHeld(1)
		w.submit(t, disk0.Abort(3, 1))
		w.reap(w.driver.Queues[0], 2)
		if !isBad(0) {
			t.Error("a write that was aborted before it was executed has repaired a block")
		}
		w.unmapApart(t)
		for lba, bad := range []bool{false, true, false, true} {
			if got := isBad(uint64(lba)); got != bad {
				t.Errorf("block %d is bad: %t, want %t", lba, got, bad)
			}
		}
		wantGood(t, write(t, 2))
		if isBad(7) {
			t.Error("a write has repaired nothing")
		}
	})
	t.Run("lost write", func(t *testing.T) {
		reset(t)
		w.set(t, fault.Rule{Action: fault.Action{Kind: fault.KindLostWrite}})
		wantGood(t, write(t, 2))
		if !bytes.Equal(raw(t), full(1)) {
			t.Error("the write has been done")
		}
	})
	t.Run("misdirected", func(t *testing.T) {
		reset(t)
		w.set(t, fault.Rule{Action: fault.Action{Kind: fault.KindMisdirected, ShiftBlocks: 4}})
		wantGood(t, write(t, 2))
		if want := append(full(1)[:4*blockBytes], full(2)[:4*blockBytes]...); !bytes.Equal(raw(t), want) {
			t.Error("the write is not 4 blocks further on")
		}
	})
	t.Run("misdirected, to where rules keep something", func(t *testing.T) {
		reset(t)
		here, there := fault.Match{LBA: new(uint64(0)), Blocks: 1}, fault.Match{LBA: new(uint64(4)), Blocks: 1}
		w.set(t, fault.Rule{Name: "bad-here", Match: here, Action: fault.Action{Kind: fault.KindMediumError}},
			fault.Rule{Name: "bad-there", Match: there, Action: fault.Action{Kind: fault.KindMediumError}},
			fault.Rule{Name: "stale-here", Match: here, Action: fault.Action{Kind: fault.KindStaleRead}},
			fault.Rule{Name: "stale-there", Match: there, Action: fault.Action{Kind: fault.KindStaleRead}},
			fault.Rule{Name: "astray", Budget: 1, Action: fault.Action{Kind: fault.KindMisdirected, ShiftBlocks: 4}})
		astray := disk0.Write(1, 0, 1, out)
		for i := range out.Bytes {
			out.Bytes[i] = 2
		}
		astray.DataBytes, astray.Segments[0].Bytes = blockBytes, blockBytes
		w.do(t, astray)
		readOne := func(lba uint64) (hba.Completion, byte) {
			b := w.driver.MappedBuffer(t, blockBytes, dma.Write)
			return w.do(t, disk0.Read(2, lba, 1, b))[0], b.Bytes[0]
		}
		if c, b := readOne(4); c.ScsiStatus != 0 || b != 1 {
			t.Errorf("the block that was written: %v, reads %#x; want that it is good, and 1, what it held before", scsi.Status(c.ScsiStatus), b)
		}
		if c, _ := readOne(0); c.ScsiStatus == 0 {
			t.Error("the block that was to be written is good")
		}
		wantGood(t, write(t, 3))
		if c, b := readOne(0); c.ScsiStatus != 0 || b != 1 {
			t.Errorf("the block that was to be written: %v, reads %#x; want 1, which it held before it was written", scsi.Status(c.ScsiStatus), b)
		}
		if b := raw(t); b[0] != 3 || b[4*blockBytes] != 3 {
			t.Errorf("the medium holds %#x and %#x", b[0], b[4*blockBytes])
		}
	})
	t.Run("short", func(t *testing.T) {
		reset(t)
		w.set(t, fault.Rule{Action: fault.Action{Kind: fault.KindShortTransfer, Keep: 2 * blockBytes}})
		if c := write(t, 2); c.ScsiStatus != 0 || c.DataBytes != 2*blockBytes || c.Flags != hba.CompletionInjected {
			t.Errorf("%+v, want 2 blocks, and the driver told that this is made up", c)
		}
		if want := append(full(2)[:2*blockBytes], full(1)[2*blockBytes:]...); !bytes.Equal(raw(t), want) {
			t.Error("2 blocks claim to be written, and others are")
		}
		if got := read(t); !bytes.Equal(got[:2*blockBytes], full(2)[:2*blockBytes]) || !bytes.Equal(got[2*blockBytes:], full(0)[2*blockBytes:]) {
			t.Error("other than 2 blocks have been read")
		}
	})
	t.Run("short, to nothing", func(t *testing.T) {
		reset(t)
		w.set(t, fault.Rule{Action: fault.Action{Kind: fault.KindShortTransfer, Keep: 1}})
		for name, put := range map[string]func(cdb *[scsi.CDBMaxBytes]byte, write bool) int{
			"6": func(cdb *[scsi.CDBMaxBytes]byte, write bool) int {
				if write {
					return scsi.PutWrite6(cdb, 0, 8)
				}
				return scsi.PutRead6(cdb, 0, 8)
			},
			"10": func(cdb *[scsi.CDBMaxBytes]byte, write bool) int {
				if write {
					return scsi.PutWrite10(cdb, 0, 8, false, false)
				}
				return scsi.PutRead10(cdb, 0, 8, false, false)
			},
		} {
			clear(in.Bytes)
			copy(out.Bytes, full(2))
			for _, c := range []hba.Command{disk0.Write(1, 0, 8, out), disk0.Read(1, 0, 8, in)} {
				c.CDBBytes = uint8(put(&c.CDB, c.Flags&hba.CommandDataOut != 0))
				if got := w.do(t, c)[0]; got.Code != hba.CodeExecuted || got.ScsiStatus != 0 || got.DataBytes != 0 || got.Flags != hba.CompletionInjected {
					t.Errorf("a CDB of %s bytes: %+v, want GOOD without data, and the driver told", name, got)
				}
			}
			if !bytes.Equal(raw(t), full(1)) || !bytes.Equal(in.Bytes, full(0)) {
				t.Errorf("a CDB of %s bytes has moved data", name)
			}
		}
		c := disk0.Read(1, 0, 8, in)
		c.CDBBytes = uint8(scsi.PutRead6(&c.CDB, 0, 8) - 1)
		if got := w.do(t, c)[0]; got.Code == hba.CodeExecuted && got.ScsiStatus == 0 {
			t.Errorf("a READ(6) with 5 bytes of CDB: %+v, want it refused", got)
		}
	})
	w.wantOthers(t)
	w.wantIdle(t)
}

// A slowTrimmer is reached by workers only, and can release blocks.
type slowTrimmer struct {
	*hbatest.Media
	memory *media.Memory
}

func (m *slowTrimmer) Discard(off, n int64) error { return m.memory.Discard(off, n) }

// Rules that keep something for each block see what is executed while they are in force,
// also if it came before: what a rule holds, and what waits for a worker.
func TestFaults_RulesComeBeforeExecution(t *testing.T) {
	bad := fault.Rule{Name: "bad", Match: fault.Match{LBA: new(uint64(0)), Blocks: 8}, Action: fault.Action{Kind: fault.KindMediumError}}
	stale := fault.Rule{Name: "stale", Match: bad.Match, Action: fault.Action{Kind: fault.KindStaleRead}}
	gate := fault.Rule{Name: "gate", Match: fault.Match{Op: fault.Ops{"write", "trim"}}, Budget: 1, Action: fault.Action{Kind: fault.KindGate}}
	for name, held := range map[string]bool{"held": true, "in line": false} {
		for _, op := range []string{"write", "trim"} {
			t.Run(name+", "+op, func(t *testing.T) {
				w := newFaultyWorld(t, hba.Config{QueuePairs: 1, Workers: 1})
				if err := w.dev.RemoveUnit(context.Background(), 0, 0); err != nil {
					t.Fatal(err)
				}
				m := &slowTrimmer{hbatest.NewMedia(w.memory, hbatest.MediaConfig{}), w.memory}
				w.attach(t, disk0, m)
				t.Cleanup(m.Release)
				if _, err := w.memory.WriteAt(bytes.Repeat([]byte{1}, 8*blockBytes), 0); err != nil {
					t.Fatal(err)
				}
				out := w.driver.MappedBuffer(t, blockBytes, dma.Read)
				out.Bytes[0] = 2
				c := disk0.Write(1, 0, 1, out)
				if op == "trim" {
					c = w.unmapOfTwo(t, 0)
				}
				if held {
					s := w.set(t, gate)
					w.submit(t, c)
					w.awaitHeld(1)
					w.set(t, gate, bad, stale)
					w.dev.ReleaseHeld(s.Fault("gate"), 0)
					w.reap(w.driver.Queues[0], 1)
				} else {
					m.Hold()
					w.submit(t, disk0.Write(9, 16, 1, out), c)
					m.WaitHeld(1)
					w.set(t, bad, stale)
					m.Release()
					w.reap(w.driver.Queues[0], 2)
				}
				in := w.driver.MappedBuffer(t, blockBytes, dma.Write)
				if c := w.do(t, disk0.Read(2, 0, 1, in))[0]; c.ScsiStatus != 0 || in.Bytes[0] != 1 {
					t.Errorf("%v, reads %#x; want a good block, and what it held before, 1", scsi.Status(c.ScsiStatus), in.Bytes[0])
				}
				if c := w.do(t, disk0.Read(2, 1, 1, in))[0]; c.ScsiStatus == 0 {
					t.Error("the next block is good, which nobody has written")
				}
				w.wantIdle(t)
			})
		}
	}
}

// A flushCounter counts what reaches the medium.
type flushCounter struct {
	*media.Memory
	flushes atomic.Int64
}

func (f *flushCounter) NeverBlocks() bool { return false }

func (f *flushCounter) Flush() error {
	f.flushes.Add(1)
	return f.Memory.Flush()
}

func TestFaults_Lies(t *testing.T) {
	w := newFaultyWorld(t, hba.Config{QueuePairs: 1})
	m := &flushCounter{Memory: w.memory}
	if err := w.dev.RemoveUnit(context.Background(), 0, 0); err != nil {
		t.Fatal(err)
	}
	w.attach(t, disk0, m)
	out := w.driver.MappedBuffer(t, blockBytes, dma.Read)
	fua := disk0.Write(1, 0, 1, out)
	scsi.PutWrite16(&fua.CDB, 0, 1, true, false)
	for _, tt := range []struct {
		kind    fault.Kind
		command hba.Command
	}{
		{fault.KindIgnoreFUA, fua},
		{fault.KindLieAboutFlush, disk0.Flush(1)},
	} {
		for _, lies := range []bool{false, true} {
			w.set(t)
			if lies {
				w.set(t, fault.Rule{Action: fault.Action{Kind: tt.kind}})
			}
			before := m.flushes.Load()
			c := w.do(t, tt.command)[0]
			if wantCode(t, c, 1, hba.CodeExecuted); c.ScsiStatus != 0 {
				t.Errorf("%s: %v", tt.kind, scsi.Status(c.ScsiStatus))
			}
			if flushed := m.flushes.Load() != before; flushed == lies {
				t.Errorf("%s in force: %v. The medium was flushed: %v", tt.kind, lies, flushed)
			}
		}
	}
	w.wantIdle(t)
}

// A disk that is pulled out is gone from its target, and the driver told; what a rule
// held of it ends. Plugged in again, by time or because the rule has gone, it is there
// as a new one would be, with its rules. One that is removed meanwhile does not come back.
func TestFaults_Unplug(t *testing.T) {
	w := newFaultyWorld(t, hba.Config{QueuePairs: 1})
	in := w.driver.MappedBuffer(t, blockBytes, dma.Write)
	changes := func() uint64 { return w.dev.BAR(hba.BAR).Read64(nil, hba.RegUnitsChanged) }
	read := func() hba.Completion { return w.do(t, disk0.Read(1, 0, 1, in))[0] }
	sense := func(c hba.Completion) scsi.Sense {
		s, _ := scsi.ParseSense(c.Sense[:c.SenseBytes])
		return s
	}
	gone := func() {
		t.Helper()
		for range 3 {
			if got := sense(read()); got.Additional != scsi.LogicalUnitNotSupported {
				t.Errorf("a command for a disk that is unplugged: %+v, want no such unit", got)
			}
		}
		// Not even one that a rule would hold.
		w.submit(t, disk0.Flush(3))
		if got := sense(w.reap(w.driver.Queues[0], 1)[0]); got.Additional != scsi.LogicalUnitNotSupported {
			t.Errorf("a flush for a disk that is unplugged: %+v, want no such unit", got)
		}
		w.wantOthers(t)
	}
	back := func(changed uint64) {
		t.Helper()
		for changes() != changed {
			runtime.Gosched()
		}
		if got := sense(read()); got.Key != scsi.KeyUnitAttention || got.Additional != scsi.PowerOnOccurred {
			t.Errorf("the first command that finds it back: %+v, want a unit attention", got)
		}
		if c := read(); c.ScsiStatus != 0 || c.Code != hba.CodeExecuted {
			t.Errorf("the second: %+v", c)
		}
	}
	at := changes()
	s := w.set(t,
		fault.Rule{Match: fault.Match{Op: fault.Ops{"flush"}}, Action: fault.Action{Kind: fault.KindHang}},
		fault.Rule{Match: fault.Match{Op: fault.Ops{"read"}}, Action: fault.Action{Kind: fault.KindUnplug, For: fault.Duration(time.Second)}},
	)
	w.submit(t, disk0.Flush(2))
	w.awaitHeld(1)
	w.submit(t, disk0.Read(1, 0, 1, in))
	for _, c := range w.reap(w.driver.Queues[0], 2) {
		wantCode(t, c, c.Tag, hba.CodeNoDevice)
	}
	gone()
	if got := changes(); got != at+1 {
		t.Errorf("the driver is told of %d changes, want one", got-at)
	}
	for w.dev.Undos() != 1 { // its second begins when it has been pulled out
		runtime.Gosched()
	}
	w.clock.Advance(time.Second)
	back(at + 2)
	if got := s.Fault("unplug").Stats(); got.Fired != 1 {
		t.Errorf("it was unplugged %d times, want once", got.Fired)
	}
	// Without a time it is gone until the rule is.
	w.set(t, fault.Rule{Name: "again", Action: fault.Action{Kind: fault.KindUnplug}})
	wantCode(t, read(), 1, hba.CodeNoDevice)
	gone()
	w.clock.Advance(time.Hour)
	gone()
	w.set(t)
	back(at + 4)
	w.set(t, fault.Rule{Name: "last", Action: fault.Action{Kind: fault.KindUnplug}})
	wantCode(t, read(), 1, hba.CodeNoDevice)
	if u, err := newUnit(w.memory); err != nil {
		t.Fatal(err)
	} else if err := w.dev.AddUnit(disk0.Target, disk0.Lun, u); !errors.Is(err, hba.ErrUnitExists) {
		t.Errorf("another unit at the address of one that is unplugged: %v, want ErrUnitExists", err)
	}
	if err := w.dev.RemoveUnit(t.Context(), disk0.Target, disk0.Lun); err != nil {
		t.Errorf("removal of a unit that is unplugged: %v", err)
	}
	w.set(t)
	gone()
	if err := w.dev.RemoveUnit(t.Context(), disk0.Target, disk0.Lun); !errors.Is(err, hba.ErrNoUnit) {
		t.Errorf("removal once more: %v, want ErrNoUnit", err)
	}
	w.wantIdle(t)
}

// What was to end the absence of a disk that has been removed does not end that of
// another, which has its address and is unplugged by another rule.
func TestFaults_UnplugOfAnother(t *testing.T) {
	w := newFaultyWorld(t, hba.Config{QueuePairs: 1})
	b := w.driver.MappedBuffer(t, blockBytes, dma.Read|dma.Write)
	absent := func(when string) {
		t.Helper()
		if w.dev.UnitAt(disk0.Target, disk0.Lun) != nil {
			t.Errorf("%s the disk is there", when)
		}
	}
	rules := []fault.Rule{
		{Name: "old", Match: fault.Match{Op: fault.Ops{"read"}}, Action: fault.Action{Kind: fault.KindUnplug, For: fault.Duration(time.Second)}},
		{Name: "new", Match: fault.Match{Op: fault.Ops{"write"}}, Action: fault.Action{Kind: fault.KindUnplug}},
	}
	w.set(t, rules...)
	begun := func(undos int) {
		t.Helper()
		for w.dev.Undos() != undos { // who unplugs it answers before
			runtime.Gosched()
		}
	}
	wantCode(t, w.do(t, disk0.Read(1, 0, 1, b))[0], 1, hba.CodeNoDevice)
	begun(1)
	absent("unplugged,")
	if err := w.dev.RemoveUnit(t.Context(), disk0.Target, disk0.Lun); err != nil {
		t.Fatal(err)
	}
	w.attach(t, disk0, w.memory)
	w.set(t, rules...) // which go on
	wantCode(t, w.do(t, disk0.Write(1, 0, 1, b))[0], 1, hba.CodeNoDevice)
	begun(2)
	w.clock.Advance(time.Second)
	absent("when the old one's time is over,")
	w.set(t)
	if w.dev.UnitAt(disk0.Target, disk0.Lun) == nil {
		t.Error("the disk is not there when no rule is")
	}
	w.wantIdle(t)
}

// Rules are about the units that are there. One that has been removed meets none that
// come afterwards, nor does the next one at its address meet those meant for it; one that
// is unplugged does.
func TestFaults_UnitsComeAndGo(t *testing.T) {
	w := newFaultyWorld(t, hba.Config{QueuePairs: 1})
	in := w.driver.MappedBuffer(t, blockBytes, dma.Write)
	away := fault.Rule{Name: "away", Match: fault.Match{Op: fault.Ops{"read"}}, Action: fault.Action{Kind: fault.KindUnplug}}
	marked := fault.Rule{Name: "marked", Match: fault.Match{Op: fault.Ops{"mark"}, AtMark: "now"}, Action: fault.Action{Kind: fault.KindDisconnect}, Budget: 9}
	read := func() hba.Completion { return w.do(t, disk0.Read(1, 0, 1, in))[0] }
	fires := func(when string, want uint64) {
		t.Helper()
		w.dev.Mark("now")
		if got := w.dev.Faults().Fault("marked").Stats().Fired; got != want {
			t.Errorf("%s: a rule has fired %d times, want %d", when, got, want)
		}
	}
	w.set(t, away)
	wantCode(t, read(), 1, hba.CodeNoDevice)
	w.set(t, away, marked)
	fires("it is unplugged", 1)
	w.set(t, marked)
	fires("it is back", 2)
	if err := w.dev.RemoveUnit(t.Context(), disk0.Target, disk0.Lun); err != nil {
		t.Fatal(err)
	}
	fires("it has been removed", 2)
	w.set(t, marked, fault.Rule{Match: fault.Match{Op: fault.Ops{"read"}}, Action: fault.Action{Kind: fault.KindErrno, Errno: "EPERM"}})
	fires("it has been removed, and there are other rules", 2)
	w.attach(t, disk0, w.memory)
	read() // POWER ON OCCURRED
	if c := read(); c.Code != hba.CodeExecuted || c.ScsiStatus != 0 {
		t.Errorf("the next unit meets a rule that came before it: %+v", c)
	}
	fires("the next unit has come", 2)
	w.set(t, marked)
	fires("there are rules for the next unit", 3)
	w.wantIdle(t)
}

func TestFaults_Capacity(t *testing.T) {
	w := newFaultyWorld(t, hba.Config{QueuePairs: 1})
	in := w.driver.MappedBuffer(t, blockBytes, dma.Write)
	if _, err := w.memory.WriteAt([]byte{7}, diskBytes-blockBytes); err != nil {
		t.Fatal(err)
	}
	last := disk0.Read(1, diskBytes/blockBytes-1, 1, in)
	sense := func(c hba.Completion) scsi.Additional {
		s, _ := scsi.ParseSense(c.Sense[:c.SenseBytes])
		return s.Additional
	}
	w.set(t, fault.Rule{Action: fault.Action{Kind: fault.KindCapacity, Size: 1 << 20, For: fault.Duration(time.Second)}})
	if got := sense(w.do(t, last)[0]); got != scsi.CapacityDataHasChanged {
		t.Errorf("the first command gets %v, want CAPACITY DATA HAS CHANGED", got)
	}
	if got := sense(w.do(t, last)[0]); got != scsi.LBAOutOfRange {
		t.Errorf("beyond the new end: %v", got)
	}
	w.clock.Advance(time.Second)
	if got := sense(w.do(t, last)[0]); got != scsi.CapacityDataHasChanged {
		t.Errorf("when the size is back: %v, want CAPACITY DATA HAS CHANGED", got)
	}
	if c := w.do(t, last)[0]; c.ScsiStatus != 0 || in.Bytes[0] != 7 {
		t.Errorf("%+v reads %d: what was behind the end is lost", c, in.Bytes[0])
	}
	w.wantIdle(t)
}

// A hugeMedium is memory that claims to have more blocks than 32 bits can count.
type hugeMedium struct{ *media.Memory }

func (hugeMedium) Size() int64 { return 3 << 40 }

// Sense data that a rule makes up are in the format that the unit uses, and says in D_SENSE
// that it uses, also once another rule has made it so small that it uses the other one.
func TestFaults_SenseIsInTheFormatOfTheUnit(t *testing.T) {
	const descriptor, fixed = 0x72, 0x70
	w := newFaultyWorld(t, hba.Config{QueuePairs: 1})
	if err := w.dev.RemoveUnit(t.Context(), 0, 0); err != nil {
		t.Fatal(err)
	}
	w.attach(t, disk0, hugeMedium{w.memory})
	s, err := fault.NewSet(fault.Config{
		Rules: []fault.Rule{{Name: "bad", Match: fault.Match{Op: fault.Ops{"read"}}, Action: fault.Action{Kind: fault.KindErrno, Errno: "EIO"}}},
		Units: []fault.Unit{{Disk: "d", BlockBytes: blockBytes, Blocks: 3 << 40 / blockBytes}},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.dev.SetFaults(s)
	for _, small := range []bool{false, true, false} {
		want, limit := uint8(descriptor), int64(0)
		if small {
			want, limit = fixed, diskBytes
		}
		u := w.dev.UnitAt(0, 0)
		u.Limit(limit)
		w.do(t, disk0.Flush(9)) // gets the unit attention, if there is one
		made := w.do(t, disk0.Read(1, 0, 1, w.driver.MappedBuffer(t, blockBytes, dma.Write)))[0]
		own := w.do(t, disk0.Write(2, 1<<50, 1, w.driver.MappedBuffer(t, blockBytes, dma.Read)))[0]
		u.PowerOff()
		lost := w.do(t, disk0.Read(3, 0, 1, w.driver.MappedBuffer(t, blockBytes, dma.Write)))[0]
		u.PowerOn()
		w.do(t, disk0.Flush(9))
		for name, c := range map[string]hba.Completion{"a rule": made, "the unit": own, "a rule without power": lost} {
			if c.SenseBytes == 0 || c.Sense[0] != want {
				t.Errorf("small %t: sense data of %s begin with %#x, want %#x", small, name, c.Sense[0], want)
			}
		}
	}
	w.wantIdle(t)
}

// The end of one rule about the capacity is not that of another: the latest that has not
// ended says how much there is.
func TestFaults_CapacityOfSome(t *testing.T) {
	const short, long = 1 << 20, 2 << 20
	rules := []fault.Rule{
		{Name: "short", Match: fault.Match{Op: fault.Ops{"write"}}, Action: fault.Action{Kind: fault.KindCapacity, Size: short, For: fault.Duration(time.Second)}},
		{Name: "long", Match: fault.Match{Op: fault.Ops{"read"}}, Action: fault.Action{Kind: fault.KindCapacity, Size: long}},
	}
	for _, tt := range []struct {
		name  string
		write bool // first
		both  uint64
	}{
		{"the short one first", true, long},
		{"the short one last", false, short},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newFaultyWorld(t, hba.Config{QueuePairs: 1})
			b := w.driver.MappedBuffer(t, blockBytes, dma.Read|dma.Write)
			unit := w.dev.UnitAt(disk0.Target, disk0.Lun)
			want := func(when string, bytes uint64) {
				t.Helper()
				if got := unit.Blocks() * blockBytes; got != bytes {
					t.Errorf("%s the unit has %d bytes, want %d", when, got, bytes)
				}
			}
			w.set(t, rules...)
			first, second := disk0.Read(1, 0, 1, b), disk0.Write(2, 0, 1, b)
			if tt.write {
				first, second = second, first
			}
			for _, c := range []hba.Command{first, second} {
				w.do(t, c)
			}
			want("with both", tt.both)
			w.clock.Advance(time.Second)
			want("when the short one is over", long)
			w.set(t)
			want("without rules", diskBytes)
			w.wantIdle(t)
		})
	}
}

// Whatever many rules do to a unit because of one command or mark is done, and the command
// goes on.
func TestFaults_ManyTriggers(t *testing.T) {
	disconnected := make(chan struct{}, 8)
	w := newFaultyWorld(t, hba.Config{QueuePairs: 1, OnDisconnect: func(uint8, uint8) { disconnected <- struct{}{} }})
	b := w.driver.MappedBuffer(t, blockBytes, dma.Write)
	const size = 1 << 20
	for name, set := range map[string]struct {
		ops fault.Ops
		off func()
	}{
		"command": {fault.Ops{"read"}, func() { w.submit(t, disk0.Read(1, 0, 1, b)) }},
		"mark":    {fault.Ops{"mark"}, func() { w.dev.Mark("m") }},
	} {
		t.Run(name, func(t *testing.T) {
			m := fault.Match{Op: set.ops}
			if name == "mark" {
				m.AtMark = "m"
			}
			after := fault.Action{Kind: fault.KindDisconnect, At: fault.PlaceAfter}
			s := w.set(t,
				fault.Rule{Name: "one", Match: m, Action: after},
				fault.Rule{Name: "two", Match: m, Action: after},
				fault.Rule{Name: "three", Match: m, Action: after},
				fault.Rule{Name: "smaller", Match: m, Action: fault.Action{Kind: fault.KindCapacity, Size: size}})
			set.off()
			unit := w.dev.UnitAt(disk0.Target, disk0.Lun)
			for deadline := time.Now().Add(time.Minute); unit.Blocks() != size/blockBytes; runtime.Gosched() {
				if time.Now().After(deadline) {
					t.Fatalf("the disk has %d bytes, and %d are held", unit.Blocks()*blockBytes, w.dev.Stats().HeldByFaults)
				}
			}
			if name == "command" {
				wantCode(t, w.reap(w.driver.Queues[0], 1)[0], 1, hba.CodeExecuted)
			}
			for range 3 {
				<-disconnected
			}
			for _, f := range s.Faults() {
				if got := f.Stats().Fired; got != 1 {
					t.Errorf("rule %s has fired %d times", f.Rule().Name, got)
				}
			}
			w.set(t)
			w.wantIdle(t)
		})
	}
}

func TestFaults_PowerCut(t *testing.T) {
	how := &fault.PowerCut{Policy: "subset", Seed: 7}
	w := newFaultyWorld(t, hba.Config{QueuePairs: 1})
	out := w.driver.MappedBuffer(t, blockBytes, dma.Read)
	for _, at := range []fault.Place{fault.PlaceBefore, fault.PlaceAfter} {
		w.set(t, fault.Rule{Name: string("cut-" + at), Match: fault.Match{Op: fault.Ops{"flush"}, Every: 3}, Action: fault.Action{Kind: fault.KindPowerCut, At: at, Power: how}})
		w.do(t, disk0.Write(1, 0, 1, out), disk0.Flush(2), disk0.Flush(3))
		w.submit(t, disk0.Flush(4))
		cut := <-w.cuts
		if cut.How != how || cut.Lun != 0 || cut.Fault.Rule().Action.At != at {
			t.Errorf("asked for %+v", cut)
		}
		w.wantNothing(t) // it is held until power has been cut
		w.powered <- struct{}{}
		wantCode(t, w.reap(w.driver.Queues[0], 1)[0], 4, hba.CodeExecuted)
	}
	t.Run("time", func(t *testing.T) {
		w.set(t, fault.Rule{Name: "timed", Budget: 2, Match: fault.Match{Op: fault.Ops{"time"}, Start: fault.Duration(time.Minute), For: fault.Duration(time.Second), Period: fault.Duration(time.Hour)}, Action: fault.Action{Kind: fault.KindPowerCut}})
		w.clock.Advance(time.Minute - 1)
		if len(w.cuts) != 0 {
			t.Error("power is cut too early")
		}
		for _, after := range []time.Duration{1, time.Hour} {
			w.clock.Advance(after)
			<-w.cuts
			w.powered <- struct{}{}
		}
	})
	t.Run("mark", func(t *testing.T) {
		w.set(t, fault.Rule{Name: "marked", Match: fault.Match{Op: fault.Ops{"mark"}, AtMark: "checkpoint"}, Action: fault.Action{Kind: fault.KindPowerCut}})
		if n := w.dev.Mark("other"); n != 0 {
			t.Errorf("another mark concerns %d rules", n)
		}
		if n := w.dev.Mark("checkpoint"); n != 1 {
			t.Errorf("the mark concerns %d rules, want 1", n)
		}
		<-w.cuts
		w.powered <- struct{}{}
	})
	w.wantOthers(t)
	w.wantIdle(t)
}

// replug removes the unit at disk0, which waits for its commands, and adds another,
// with the same rules.
func (f *faultyWorld) replug(ctx context.Context) error {
	if err := f.dev.RemoveUnit(ctx, disk0.Target, disk0.Lun); err != nil {
		return err
	}
	u, err := newUnit(f.memory)
	if err != nil {
		return err
	}
	err = f.dev.AddUnit(disk0.Target, disk0.Lun, u)
	f.dev.SetFaults(f.dev.Faults())
	return err
}

// Under rules that come and go, removals, resets and releases, each command is
// answered once, and nothing is left.
func TestFaults_Storm(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	const queues, rounds = 2, 300
	w := newFaultyWorld(t, hba.Config{QueuePairs: queues, Workers: 3, RingEntries: 128})
	ms := func(n int) fault.Duration { return fault.Duration(time.Duration(n) * time.Millisecond) }
	p := 0.2
	rules := []fault.Rule{
		{Name: "latency", Match: fault.Match{Probability: &p}, Action: fault.Action{Kind: fault.KindLatency, Latency: &fault.Latency{Distribution: fault.LogNormal, Median: ms(1), Sigma: 2, Max: ms(50)}}},
		{Name: "hang", Match: fault.Match{Every: 17}, Action: fault.Action{Kind: fault.KindHang}},
		{Name: "gate", Match: fault.Match{Every: 19}, Action: fault.Action{Kind: fault.KindGate, At: fault.PlaceAfter}},
		{Name: "lost", Match: fault.Match{Every: 23}, Action: fault.Action{Kind: fault.KindLostCompletion}},
		{Name: "busy", Match: fault.Match{Every: 7}, Action: fault.Action{Kind: fault.KindBusy}},
		{Name: "reorder", Match: fault.Match{Probability: &p}, Action: fault.Action{Kind: fault.KindReorder, For: ms(20)}},
		{Name: "full", Match: fault.Match{Every: 29}, Action: fault.Action{Kind: fault.KindRingFull, For: ms(3)}},
		{Name: "again", Match: fault.Match{Every: 5}, Action: fault.Action{Kind: fault.KindDMAAfterCompletion, For: ms(2)}},
		{Name: "reset", Match: fault.Match{Every: 3}, Action: fault.Action{Kind: fault.KindResetFails, Silent: true}},
	}
	w.set(t, rules...)
	stop := make(chan struct{})
	var chaos sync.WaitGroup
	chaos.Go(func() {
		r := rand.New(rand.NewPCG(seed, 99))
		for {
			select {
			case <-stop:
				return
			default:
			}
			w.clock.Advance(time.Duration(r.IntN(5)) * time.Millisecond)
			switch r.IntN(20) {
			case 0:
				some := slices.Clone(rules)
				r.Shuffle(len(some), func(i, j int) { some[i], some[j] = some[j], some[i] })
				w.set(t, some[:r.IntN(len(some))]...)
			case 1:
				if fs := w.dev.Faults().Faults(); len(fs) > 0 {
					w.dev.ReleaseHeld(fs[r.IntN(len(fs))], r.IntN(3))
				}
			case 2:
				if err := w.replug(t.Context()); err != nil {
					t.Errorf("seed %d: %v", seed, err)
				}
			}
			runtime.Gosched()
		}
	})
	var drivers sync.WaitGroup
	for i := range queues {
		// Each command has its own block, of memory and of the disk.
		var in, out []*hbatest.Buffer
		var free []int
		for place := range 128 {
			in = append(in, w.driver.MappedBuffer(t, blockBytes, dma.Write))
			out = append(out, w.driver.MappedBuffer(t, blockBytes, dma.Read))
			free = append(free, place)
		}
		drivers.Go(func() {
			q := w.driver.Queues[i]
			r := rand.New(rand.NewPCG(seed, uint64(i)))
			tag, open := uint32(0), map[uint32]int{}
			done := make([]hba.Completion, 64)
			consume := func() {
				n := q.Consume(done)
				for _, c := range done[:n] {
					place, ok := open[c.Tag]
					if !ok {
						t.Errorf("seed %d, queue %d: tag %d answered and not asked, or twice", seed, i, c.Tag)
					}
					free = append(free, place)
					delete(open, c.Tag)
				}
				if n > 0 {
					q.Ack(runner)
				} else {
					runtime.Gosched()
				}
			}
			for range rounds {
				for range 1 + r.IntN(16) {
					if len(free) == 0 {
						break
					}
					tag++
					place := free[len(free)-1]
					lba := uint64(128*i + place)
					var c hba.Command
					switch r.IntN(12) {
					case 0:
						c = disk0.Reset(tag, r.IntN(2) == 0)
					case 1:
						c = disk0.Abort(tag, tag-uint32(r.IntN(20)))
					case 2:
						c = disk0.Flush(tag)
					case 3, 4, 5:
						c = disk0.Write(tag, lba, 1, out[place])
					default:
						c = disk0.Read(tag, lba, 1, in[place])
					}
					if q.Submit(c) == 1 {
						open[tag] = place
						free = free[:len(free)-1]
					}
				}
				q.Ring(runner)
				consume()
				for len(open) > 80 {
					consume()
					if r.IntN(50) == 0 && len(free) > 0 {
						tag++
						if q.Submit(disk0.Reset(tag, true)) == 1 {
							open[tag] = free[len(free)-1]
							free = free[:len(free)-1]
							q.Ring(runner)
						}
					}
				}
			}
			for len(open) > 0 {
				w.set(t)
				consume()
			}
		})
	}
	drivers.Wait()
	close(stop)
	chaos.Wait()
	w.set(t)
	w.wantIdle(t)
	w.wantOthers(t)
	w.wantStatus(t, hba.StatusReady)
}
