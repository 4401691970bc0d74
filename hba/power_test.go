package hba_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/vhbad/vhbad/hba"
	"github.com/vhbad/vhbad/hba/cache"
	"github.com/vhbad/vhbad/hba/fault"
	"github.com/vhbad/vhbad/hba/hbatest"
	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/internal/scsi"
)

// wantNoPower checks that a command ended because its unit had lost its power.
func wantNoPower(t *testing.T, c hba.Completion, tag uint32) {
	t.Helper()
	wantCode(t, c, tag, hba.CodeExecuted)
	sense, _ := scsi.ParseSense(c.Sense[:c.SenseBytes])
	if scsi.Status(c.ScsiStatus) != scsi.StatusCheckCondition || sense.Key != scsi.KeyNotReady || sense.Additional != scsi.NotReadyCauseNotReportable {
		t.Errorf("status %#x, sense %+v, want that it has lost its power", c.ScsiStatus, sense)
	}
	if c.Flags&hba.CompletionInjected == 0 {
		t.Errorf("flags %#x do not say that somebody has asked for it", c.Flags)
	}
}

// powerCycle takes disk0's power away and gives it back, and takes the unit
// attention that says so.
func (w *world) powerCycle(t *testing.T) {
	t.Helper()
	u := w.dev.UnitAt(0, 0)
	u.PowerOff()
	u.PowerOn()
	if c := w.do(t, disk0.Flush(99))[0]; scsi.Status(c.ScsiStatus) != scsi.StatusCheckCondition {
		t.Errorf("status %#x, want a unit attention", c.ScsiStatus)
	}
}

// TestPower_HeldCommandsAreForgotten: a command that a rule held while the power
// was cut is not executed any more, nor answered as done if it had been: what it
// wrote may be gone, and who wrote there since must not be overwritten.
func TestPower_HeldCommandsAreForgotten(t *testing.T) {
	for name, tt := range map[string]struct {
		action   fault.Action
		executed bool // before the cut
		ends     bool // by itself
	}{
		"hang":    {action: fault.Action{Kind: fault.KindHang}},
		"gate":    {action: fault.Action{Kind: fault.KindGate, At: fault.PlaceAfter}, executed: true},
		"lost":    {action: fault.Action{Kind: fault.KindLostCompletion}, executed: true},
		"latency": {action: fault.Action{Kind: fault.KindLatency, Latency: &fault.Latency{Mean: fault.Duration(time.Hour)}}, ends: true},
		"late":    {action: fault.Action{Kind: fault.KindLatency, At: fault.PlaceAfter, Latency: &fault.Latency{Mean: fault.Duration(time.Hour)}}, executed: true, ends: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newFaultyWorld(t, hba.Config{QueuePairs: 1, Workers: 1})
			old, young := w.driver.MappedBuffer(t, blockBytes, dma.Read), w.driver.MappedBuffer(t, blockBytes, dma.Read)
			old.Bytes[0], young.Bytes[0] = 1, 2
			s := w.set(t, fault.Rule{Name: "hold", Budget: 1, Match: fault.Match{Op: fault.Ops{"write"}}, Action: tt.action})
			w.submit(t, disk0.Write(1, 0, 1, old))
			w.awaitHeld(1)
			w.powerCycle(t)
			wantCode(t, w.do(t, disk0.Write(2, 0, 1, young))[0], 2, hba.CodeExecuted)
			if tt.ends {
				w.clock.Advance(time.Hour)
			} else if n := w.dev.ReleaseHeld(s.Fault("hold"), 0); n != 1 {
				t.Errorf("released %d, want 1", n)
			}
			wantNoPower(t, w.reap(w.driver.Queues[0], 1)[0], 1)
			var b [1]byte
			if _, err := w.memory.ReadAt(b[:], 0); err != nil {
				t.Error(err)
			}
			if b[0] != 2 {
				t.Errorf("a write from before the power cut has overwritten one from after it: %d", b[0])
			}
			w.wantIdle(t)
		})
	}
}

// TestPower_WaitingCommandsAreForgotten: nor is one that waited for a worker.
func TestPower_WaitingCommandsAreForgotten(t *testing.T) {
	w := newWorld(t, hba.Config{QueuePairs: 1, Workers: 1}, hbatest.Config{})
	slow := hbatest.Address{Lun: 1}
	m := w.attachSlow(t, slow, hbatest.MediaConfig{})
	old := w.driver.MappedBuffer(t, blockBytes, dma.Read)
	old.Bytes[0] = 1
	q := w.driver.Queues[0]
	m.Hold()
	if n := q.Submit(slow.Write(1, 8, 1, old), slow.Write(2, 0, 1, old)); n != 2 {
		t.Fatalf("submitted %d, want 2", n)
	}
	q.Ring(runner)
	m.WaitHeld(1)
	u := w.dev.UnitAt(slow.Target, slow.Lun)
	u.PowerOff()
	u.PowerOn()
	m.Release()
	for i, c := range w.reap(q, 2) {
		wantNoPower(t, c, uint32(i+1))
	}
	var b [1]byte
	if _, err := w.memory.ReadAt(b[:], 0); err != nil {
		t.Error(err)
	}
	if b[0] != 0 {
		t.Error("a write from before the power cut was executed after it")
	}
}

// TestPower_RepliesAreSpoiledAllTheSame: what a rule does to the reply of a command it
// does also if the command fails in the end because the power went.
func TestPower_RepliesAreSpoiledAllTheSame(t *testing.T) {
	after := fault.Size(7)
	w := newFaultyWorld(t, hba.Config{QueuePairs: 1, Workers: 1})
	s := w.set(t,
		fault.Rule{Name: "hold", Budget: 1, Match: fault.Match{Op: fault.Ops{"write"}}, Action: fault.Action{Kind: fault.KindGate, At: fault.PlaceAfter}},
		fault.Rule{Name: "cut", Budget: 1, Match: fault.Match{Op: fault.Ops{"write"}}, Action: fault.Action{Kind: fault.KindCutReply, After: &after}},
		fault.Rule{Name: "cookie", Budget: 1, Match: fault.Match{Op: fault.Ops{"write"}}, Action: fault.Action{Kind: fault.KindBadCookie}},
	)
	w.submit(t, disk0.Write(1, 0, 1, w.driver.MappedBuffer(t, blockBytes, dma.Read)))
	w.awaitHeld(1)
	w.powerCycle(t)
	w.dev.ReleaseHeld(s.Fault("hold"), 0)
	c := w.reap(w.driver.Queues[0], 1)[0]
	wantNoPower(t, c, 1)
	if want := hba.CompletionInjected | hba.CompletionCutReply | hba.CompletionBadCookie; c.Flags != want || c.ReplyBytes != 7 {
		t.Errorf("flags %#x, reply of %d bytes, want %#x and 7", c.Flags, c.ReplyBytes, want)
	}
	w.wantIdle(t)
}

// TestPower_NothingIsDoneWithout: a unit without power does not say, either, that it has
// done what a rule would have it lose.
func TestPower_NothingIsDoneWithout(t *testing.T) {
	w := newFaultyWorld(t, hba.Config{QueuePairs: 1, Workers: 1})
	w.set(t, fault.Rule{Action: fault.Action{Kind: fault.KindLostWrite}}, fault.Rule{Action: fault.Action{Kind: fault.KindLieAboutFlush}})
	w.dev.UnitAt(0, 0).PowerOff()
	wantNoPower(t, w.do(t, disk0.Write(1, 0, 1, w.driver.MappedBuffer(t, blockBytes, dma.Read)))[0], 1)
	wantNoPower(t, w.do(t, disk0.Flush(2))[0], 2)
	w.dev.UnitAt(0, 0).PowerOn()
	w.wantIdle(t)
}

// TestSettle: what is being executed on a unit is waited for, by a worker or an engine;
// what waits for one, or is held by a rule, is not, nor what another unit does.
func TestSettle(t *testing.T) {
	for name, inline := range map[string]bool{"worker": false, "engine": true} {
		t.Run(name, func(t *testing.T) {
			w := newFaultyWorld(t, hba.Config{QueuePairs: 1, Workers: 1})
			slow := hbatest.Address{Lun: 1}
			m := w.attachSlow(t, slow, hbatest.MediaConfig{Inline: inline})
			s := w.set(t, fault.Rule{Name: "hold", Disk: "disk0", Action: fault.Action{Kind: fault.KindHang}})
			q := w.driver.Queues[0]
			w.submit(t, disk0.Write(1, 0, 1, w.driver.MappedBuffer(t, blockBytes, dma.Read)))
			w.awaitHeld(1)
			settled := func(a hbatest.Address) bool {
				t.Helper()
				over, cancel := context.WithCancel(t.Context())
				cancel()
				for range 32 { // both have come in the end: either may be found
					if err := w.dev.Settle(over, a.Target, a.Lun); err == nil {
						return true
					} else if !errors.Is(err, context.Canceled) {
						t.Error(err)
					}
				}
				return false
			}
			settles := func(a hbatest.Address) bool { // once the engine is through
				t.Helper()
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				return w.dev.Settle(ctx, a.Target, a.Lun) == nil
			}
			if !settles(disk0) || !settles(slow) {
				t.Error("what a rule holds is waited for")
			}
			m.Hold()
			if n := q.Submit(slow.Write(2, 8, 1, w.driver.MappedBuffer(t, blockBytes, dma.Read)), slow.Flush(3)); n != 2 {
				t.Fatalf("submitted %d, want 2", n)
			}
			go q.Ring(runner) // in which the engine may run
			m.WaitHeld(1)
			if settled(slow) {
				t.Error("a write that is being executed is not waited for")
			}
			if !inline && !settles(disk0) {
				t.Error("another unit's write is waited for")
			}
			m.ReleaseOne()
			m.WaitHeld(1)
			if settled(slow) {
				t.Error("a flush that is being executed is not waited for")
			}
			done := make(chan error)
			go func() { done <- w.dev.Settle(t.Context(), slow.Target, slow.Lun) }()
			m.Release()
			if err := <-done; err != nil {
				t.Error(err)
			}
			w.reap(q, 2)
			w.dev.ReleaseHeld(s.Fault("hold"), 0)
			w.reap(q, 1)
			w.wantIdle(t)
		})
	}
}

// TestPower_WhatComesWithoutIsForgotten: a command that comes while the power is off and
// that a rule holds until it is back is not executed then.
func TestPower_WhatComesWithoutIsForgotten(t *testing.T) {
	w := newFaultyWorld(t, hba.Config{QueuePairs: 1, Workers: 1})
	b := w.driver.MappedBuffer(t, blockBytes, dma.Read)
	b.Bytes[0] = 1
	s := w.set(t, fault.Rule{Name: "hold", Match: fault.Match{Op: fault.Ops{"write"}}, Action: fault.Action{Kind: fault.KindHang}})
	u := w.dev.UnitAt(0, 0)
	u.PowerOff()
	w.submit(t, disk0.Write(1, 0, 1, b))
	w.awaitHeld(1)
	u.PowerOn()
	w.dev.ReleaseHeld(s.Fault("hold"), 0)
	wantNoPower(t, w.reap(w.driver.Queues[0], 1)[0], 1)
	if _, err := w.memory.ReadAt(b.Bytes, 0); err != nil || b.Bytes[0] != 0 {
		t.Errorf("it has been executed: %d, %v", b.Bytes[0], err)
	}
	w.wantIdle(t)
}

// TestPower_LostNexus: a command of an I_T nexus that has been lost is not executed, takes
// no unit attention from those of the next one, and meets no rule.
func TestPower_LostNexus(t *testing.T) {
	w := newFaultyWorld(t, hba.Config{QueuePairs: 1, Workers: 1})
	b := w.driver.MappedBuffer(t, blockBytes, dma.Read)
	b.Bytes[0] = 1
	of := func(nexus uint8, c hba.Command) hba.Command {
		c.Nexus = nexus
		return c
	}
	u := w.dev.UnitAt(0, 0)
	wantCode(t, w.do(t, of(1, disk0.Write(1, 0, 1, b)))[0], 1, hba.CodeExecuted)
	u.PowerOff()
	u.LoseNexus(2)
	u.PowerOn()
	s := w.set(t, fault.Rule{Name: "lost", Match: fault.Match{Op: fault.Ops{"write"}}, Action: fault.Action{Kind: fault.KindLostWrite}})
	wantNoPower(t, w.do(t, of(1, disk0.Write(2, 1, 1, b)))[0], 2)
	if s.Fault("lost").Stats().Fired != 0 {
		t.Error("a rule has met a command of a nexus that is lost")
	}
	if c := w.do(t, of(2, disk0.Flush(3)))[0]; scsi.Status(c.ScsiStatus) != scsi.StatusCheckCondition {
		t.Errorf("status %#x, want the unit attention", c.ScsiStatus)
	}
	for tag, nexus := range []uint8{0, 2} {
		if c := w.do(t, of(nexus, disk0.Flush(uint32(tag))))[0]; c.ScsiStatus != 0 {
			t.Errorf("nexus %d: status %#x", nexus, c.ScsiStatus)
		}
	}
	if _, err := w.memory.ReadAt(b.Bytes, blockBytes); err != nil || b.Bytes[0] != 0 {
		t.Errorf("the write has been executed: %d, %v", b.Bytes[0], err)
	}
	w.wantIdle(t)
}

// toldMedium counts hostile deeds, and keeps what it is told of lost writes: where, how
// much and in how many pieces.
type toldMedium struct {
	*media.Memory
	media.Promiser
	broke  int
	acts   []string
	lost   []int64
	astray []int64
}

func (m *toldMedium) Broke(act string) {
	m.broke++
	m.acts = append(m.acts, act)
}

func (m *toldMedium) LostWrite(off, n int64, data [][]byte, _ bool) {
	m.lost = append(m.lost, off, n, int64(len(data)))
}

func (m *toldMedium) Misdirected(off, meant, n int64, _ bool) {
	m.astray = append(m.astray, off, meant, n)
}

// TestFaults_IgnoreFUAOfReadIsTold: the medium that keeps account of what was hostile is
// told of a READ with FUA that is executed as one without, under the name that it uses.
func TestFaults_IgnoreFUAOfReadIsTold(t *testing.T) {
	w := newFaultyWorld(t, hba.Config{QueuePairs: 1, Workers: 1})
	m := &toldMedium{Memory: w.memory}
	if err := w.dev.RemoveUnit(t.Context(), disk0.Target, disk0.Lun); err != nil {
		t.Fatal(err)
	}
	w.attach(t, disk0, m)
	w.set(t, fault.Rule{Match: fault.Match{Op: fault.Ops{"read"}}, Action: fault.Action{Kind: fault.KindIgnoreFUA}})
	b := w.driver.MappedBuffer(t, blockBytes, dma.Write)
	for _, tt := range []struct {
		lba  uint64
		fua  bool
		want []string
	}{
		{0, false, nil},
		{diskBytes, true, nil}, // fails
		{0, true, []string{string(cache.ActIgnoredFUA)}},
	} {
		c := disk0.Read(1, tt.lba, 1, b)
		scsi.PutRead16(&c.CDB, tt.lba, 1, tt.fua, false)
		w.do(t, c)
		if !slices.Equal(m.acts, tt.want) {
			t.Errorf("after a READ of block %d with FUA %t the medium was told of %q, want %q", tt.lba, tt.fua, m.acts, tt.want)
		}
	}
	w.wantIdle(t)
}

// TestFaults_MisdirectedIsTold: so it is of a WRITE that went elsewhere.
func TestFaults_MisdirectedIsTold(t *testing.T) {
	w := newFaultyWorld(t, hba.Config{QueuePairs: 1, Workers: 1})
	m := &toldMedium{Memory: w.memory}
	if err := w.dev.RemoveUnit(t.Context(), disk0.Target, disk0.Lun); err != nil {
		t.Fatal(err)
	}
	w.attach(t, disk0, m)
	w.set(t, fault.Rule{Action: fault.Action{Kind: fault.KindMisdirected, ShiftBlocks: 4}})
	w.do(t, disk0.Write(1, 1, 1, w.driver.MappedBuffer(t, blockBytes, dma.Read)))
	if want := []string{string(fault.KindMisdirected)}; !slices.Equal(m.acts, want) {
		t.Errorf("the medium was told of %q, want %q", m.acts, want)
	}
	if want := []int64{5 * blockBytes, blockBytes, blockBytes}; !slices.Equal(m.astray, want) {
		t.Errorf("the medium was told of %d, want what was written at %d", m.astray, want)
	}
	w.wantIdle(t)
}

// TestPower_LateTransfer: of a READ that came without power nothing is transferred when
// that is back, and it has met nothing hostile.
func TestPower_LateTransfer(t *testing.T) {
	for _, off := range []bool{false, true} {
		t.Run(fmt.Sprintf("off=%t", off), func(t *testing.T) {
			w := newFaultyWorld(t, hba.Config{QueuePairs: 1})
			m := &toldMedium{Memory: w.memory}
			if err := w.dev.RemoveUnit(t.Context(), disk0.Target, disk0.Lun); err != nil {
				t.Fatal(err)
			}
			w.attach(t, disk0, m)
			if _, err := w.memory.WriteAt([]byte{0x55}, 0); err != nil {
				t.Fatal(err)
			}
			w.do(t, disk0.Flush(9))
			w.set(t, fault.Rule{Budget: 1, Action: fault.Action{Kind: fault.KindDMAAfterReset}})
			b := w.driver.MappedBuffer(t, blockBytes, dma.Write)
			u := w.dev.UnitAt(0, 0)
			if off {
				u.PowerOff()
			}
			w.submit(t, disk0.Read(1, 0, 1, b))
			w.awaitHeld(1)
			if off {
				u.PowerOn()
			}
			w.submit(t, disk0.Reset(2, false))
			wantCode(t, w.reap(w.driver.Queues[0], 2)[0], 1, hba.CodeAborted)
			w.clock.Advance(time.Second)
			want, deeds := byte(0x55), 1
			if off {
				want, deeds = 0, 0
			}
			if b.Bytes[0] != want || m.broke != deeds {
				t.Errorf("memory of the aborted read %#x, %d hostile deeds; want %#x, %d", b.Bytes[0], m.broke, want, deeds)
			}
		})
	}
}
