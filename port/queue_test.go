package port

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vhbad/vhbad/internal/scsi"
)

// tags lists SRBs by tag.
func tags(srbs []*SRB) []uint32 {
	var out []uint32
	for _, s := range srbs {
		out = append(out, s.Tag)
	}
	return out
}

func (b *bench) wantStarted(want ...*SRB) {
	b.t.Helper()
	got := b.d.take()
	if !slices.Equal(tags(got), tags(want)) {
		b.t.Fatalf("started tags %v, want %v", tags(got), tags(want))
	}
}

func (b *bench) srbs(n int, done *finished) []*SRB {
	var out []*SRB
	for range n {
		out = append(out, b.srb(done))
	}
	return out
}

// What the unit said of the SRB's last life is no answer to this one.
func TestSubmit_ForgetsSense(t *testing.T) {
	d := &driver{model: FullDuplex}
	b := newBench(t, d, AdapterOptions{})
	fails := func(p *Processor, s *SRB) bool {
		s.Status, s.ScsiStatus, s.SenseBytes = StatusError|StatusAutosenseValid, scsi.StatusCheckCondition, 18
		b.a.Complete(p, s)
		return true
	}
	s := b.srb(&finished{})
	submit := func() { b.lu.Submit(b.p, []*SRB{s}) }
	for name, next := range map[string]func(){
		"good": func() {
			d.startIo = func(p *Processor, s *SRB) bool { d.complete(p, s); return true }
			submit()
		},
		"refused": func() {
			s.DataTransferBytes = 512 // without a direction
			submit()
			s.DataTransferBytes = 0
		},
	} {
		d.startIo = fails
		submit()
		if s.SenseBytes != 18 {
			t.Fatalf("%s: %d bytes of sense data, want those of the miniport", name, s.SenseBytes)
		}
		if next(); s.SenseBytes != 0 {
			t.Errorf("%s: %d bytes of sense data are left", name, s.SenseBytes)
		}
	}
	b.wantNoViolations()
}

// Depth bounds what is outstanding; completions let the next in, in order.
func TestQueue_Depth(t *testing.T) {
	b := newBench(t, &driver{model: FullDuplex}, AdapterOptions{})
	if !b.a.SetDeviceQueueDepth(b.p, 0, 0, 0, 2) || b.a.SetDeviceQueueDepth(b.p, 0, 0, 0, 65) || b.a.SetDeviceQueueDepth(b.p, 0, 0, 0, 0) {
		t.Error("SetDeviceQueueDepth: want 2 taken, 65 and 0 refused")
	}
	s := b.srbs(4, &finished{})
	b.lu.Submit(b.p, s)
	b.wantStarted(s[0], s[1])
	b.d.complete(b.p, s[1])
	b.wantStarted(s[2])
	b.d.complete(b.p, s[0])
	b.wantStarted(s[3])
	b.d.complete(b.p, s[2])
	b.d.complete(b.p, s[3])
	if st := b.lu.Stats(); st.Outstanding != 0 || st.Waiting != 0 || st.Completed != 4 {
		t.Errorf("stats %+v", st)
	}
	b.wantNoViolations()
}

// MaxNumberOfIO bounds the adapter across its units, and no unit is forgotten.
func TestQueue_AdapterLimit(t *testing.T) {
	d := &driver{model: FullDuplex, features: func(c *Config) {
		c.MaxNumberOfIO, c.MaxIOsPerLun, c.InitialLunQueueDepth = 3, 3, 3
	}}
	b := newBench(t, d, AdapterOptions{})
	other := b.a.unitAt(0, 0, 1)
	done := &finished{}
	first, second := b.srbs(3, done), b.srbs(2, done)
	b.lu.Submit(b.p, first)
	other.Submit(b.p, second)
	b.wantStarted(first...)
	b.d.complete(b.p, first[0])
	b.wantStarted(second[0])
	b.d.complete(b.p, first[1])
	b.wantStarted(second[1])
	for _, s := range []*SRB{first[2], second[0], second[1]} {
		b.d.complete(b.p, s)
	}
	if n := b.a.outstanding.Load(); n != 0 {
		t.Errorf("%d charged at the end", n)
	}
}

// Ordered SRBs wait for all before them and hold all behind them; head-of-queue
// SRBs go first, the last one foremost; untagged ones run alone.
func TestQueue_Actions(t *testing.T) {
	b := newBench(t, &driver{model: FullDuplex}, AdapterOptions{})
	s := b.srbs(6, &finished{})
	s[1].QueueAction = OrderedTag
	b.lu.Submit(b.p, s[:4])
	b.wantStarted(s[0])
	s[4].QueueAction, s[5].QueueAction = HeadOfQueueTag, HeadOfQueueTag
	b.lu.Submit(b.p, s[4:5])
	b.wantStarted(s[4]) // before everything queued
	b.d.complete(b.p, s[0])
	b.wantStarted() // the ordered one waits for the head-of-queue one
	b.d.complete(b.p, s[4])
	b.wantStarted(s[1])
	b.lu.Submit(b.p, s[5:])
	b.wantStarted()
	b.d.complete(b.p, s[1])
	b.wantStarted(s[5]) // simple ones wait for it
	b.d.complete(b.p, s[5])
	b.wantStarted(s[2], s[3])
	b.d.complete(b.p, s[2])
	b.d.complete(b.p, s[3])

	s[0].Flags &^= FlagQueueActionEnable
	b.lu.Submit(b.p, []*SRB{s[2], s[0], s[3]})
	b.wantStarted(s[2])
	b.d.complete(b.p, s[2])
	b.wantStarted(s[0])
	b.d.complete(b.p, s[0])
	b.wantStarted(s[3])
	b.d.complete(b.p, s[3])
}

// A head-of-queue SRB goes ahead of those that wait also if it comes with others, of which
// some start at once.
func TestQueue_HeadInBatch(t *testing.T) {
	for name, hold := range map[string]func(second *SRB){
		"behind an ordered one":   func(second *SRB) { second.QueueAction = OrderedTag },
		"behind an untagged one":  func(second *SRB) { second.Flags &^= FlagQueueActionEnable },
		"behind one with a reset": func(second *SRB) { second.Function = FunctionResetLogicalUnit },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, &driver{model: FullDuplex}, AdapterOptions{})
			s := b.srbs(4, &finished{})
			hold(s[1])
			s[2].QueueAction = OrderedTag
			s[3].QueueAction = HeadOfQueueTag
			b.lu.Submit(b.p, s)
			held := b.d.take()
			if !slices.Contains(held, s[3]) {
				t.Errorf("started tags %v, want the head of queue, %d, among them", tags(held), s[3].Tag)
			}
			for range s { // whose completion starts others
				for _, x := range held {
					b.d.complete(b.p, x)
				}
				held = b.d.take()
			}
			b.wantNoViolations()
		})
	}
}

// BUSY with QUEUE FULL waits for a quarter of what is outstanding, and comes
// back through BuildIo at the front of the queue.
func TestQueue_QueueFull(t *testing.T) {
	d := &driver{model: FullDuplex}
	built := map[uint32]int{}
	d.buildIo = func(_ *Processor, s *SRB) bool { built[s.Tag]++; return true }
	b := newBench(t, d, AdapterOptions{})
	s := b.srbs(9, &finished{})
	b.lu.Submit(b.p, s[:8])
	b.wantStarted(s[:8]...)
	d.startIo = func(p *Processor, srb *SRB) bool {
		srb.Status, srb.ScsiStatus = StatusBusy, scsi.StatusTaskSetFull
		d.a.Complete(p, srb)
		return true
	}
	b.lu.Submit(b.p, s[8:])
	d.startIo = nil
	b.d.complete(b.p, s[0])
	b.wantStarted()
	b.d.complete(b.p, s[1])
	b.wantStarted(s[8])
	if built[s[8].Tag] != 2 {
		t.Errorf("BuildIo ran %d times, want 2", built[s[8].Tag])
	}
	for _, x := range s[2:] {
		b.d.complete(b.p, x)
	}
	b.wantNoViolations()
}

// Any other BUSY waits for BusyPauseTime, and after BusyRetryCount the owner sees it.
func TestQueue_BusyRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &driver{model: FullDuplex}
		tries := 0
		var times []time.Duration
		begin := time.Now()
		d.startIo = func(p *Processor, srb *SRB) bool {
			tries++
			times = append(times, time.Since(begin))
			srb.Status, srb.ScsiStatus = StatusBusy, scsi.StatusBusy
			d.a.Complete(p, srb)
			return true
		}
		b := newBench(t, d, AdapterOptions{BusyRetryCount: 3, BusyPauseTime: time.Second})
		done := &finished{}
		s := b.srb(done)
		b.lu.Submit(b.p, []*SRB{s})
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if tries != 4 || !slices.Equal(times, []time.Duration{0, time.Second, 2 * time.Second, 3 * time.Second}) {
			t.Errorf("%d tries at %v, want 4, a second apart", tries, times)
		}
		if l := done.list(); len(l) != 1 || l[0].Status.Code() != StatusBusy {
			t.Errorf("completions %v, want one BUSY", l)
		}
		b.a.FreeSRB(s)
	})
}

// Between BuildIo and StartIo the unit may close; the SRB is parked as built,
// and StartIo follows without another BuildIo.
func TestQueue_ParksBuilt(t *testing.T) {
	d := &driver{model: FullDuplex}
	built := 0
	d.buildIo = func(p *Processor, _ *SRB) bool {
		if built++; built == 1 {
			d.a.PauseDevice(p, 0, 0, 0, 60)
		}
		return true
	}
	b := newBench(t, d, AdapterOptions{})
	s := b.srbs(3, &finished{})
	b.lu.Submit(b.p, s)
	b.wantStarted()
	if st := b.lu.Stats(); st.Parked != 3 || st.Waiting != 3 || st.Outstanding != 0 {
		t.Errorf("stats %+v, want 3 parked and waiting", st)
	}
	b.a.ResumeDevice(b.p, 0, 0, 0)
	b.wantStarted(s...)
	if built != 3 {
		t.Errorf("BuildIo ran %d times, want 3", built)
	}
	for _, x := range s {
		b.d.complete(b.p, x)
	}
	b.wantNoViolations()
}

// Pauses end by time or by Resume; a second one replaces the first.
func TestQueue_PauseAndBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &driver{model: FullDuplex}, AdapterOptions{})
		s := b.srbs(4, &finished{})
		b.a.Pause(b.p, 10)
		b.a.Pause(b.p, 60)
		b.lu.Submit(b.p, s[:1])
		time.Sleep(30 * time.Second)
		synctest.Wait()
		b.wantStarted()
		time.Sleep(31 * time.Second)
		synctest.Wait()
		b.wantStarted(s[0])

		b.a.Busy(b.p, 100) // more than outstanding: all of them
		b.lu.Submit(b.p, s[1:2])
		b.wantStarted()
		b.d.complete(b.p, s[0])
		b.wantStarted(s[1])
		b.d.complete(b.p, s[1])
		b.a.Busy(b.p, 1) // nothing outstanding: ready at once
		b.lu.Submit(b.p, s[2:3])
		b.wantStarted(s[2])

		b.a.DeviceBusy(b.p, 0, 0, 0, 1)
		b.lu.Submit(b.p, s[3:])
		b.wantStarted()
		b.a.DeviceReady(b.p, 0, 0, 0)
		b.wantStarted(s[3])
		b.d.complete(b.p, s[2])
		b.d.complete(b.p, s[3])
	})
}

// A unit that was called busy while the last of its SRBs was on its way, and is parked now,
// has no completion to wait for.
func TestQueue_BusyCountsNoParked(t *testing.T) {
	d := &driver{model: FullDuplex}
	b := newBench(t, d, AdapterOptions{})
	s := b.srb(&finished{})
	d.onceBuilt(s, func() { b.a.DeviceBusy(b.p, 0, 0, 0, 1) })
	b.lu.Submit(b.p, []*SRB{s})
	b.wantStarted(s)
	if st := b.lu.Stats(); st.Parked != 1 {
		t.Errorf("stats %+v, want it parked once", st)
	}
	b.d.complete(b.p, s)
	b.wantNoViolations()
}

// SRBs that the port completes by itself were not outstanding, and do not count towards
// those that the miniport waits for.
func TestQueue_BusyCountsOutstanding(t *testing.T) {
	for name, busy := range map[string]func(b *bench){
		"unit":    func(b *bench) { b.a.DeviceBusy(b.p, 0, 0, 0, 1) },
		"adapter": func(b *bench) { b.a.Busy(b.p, 1) },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, &driver{model: FullDuplex}, AdapterOptions{})
			s := b.srbs(3, &finished{})
			b.lu.Submit(b.p, s[:1])
			b.wantStarted(s[0])
			busy(b)
			s[2].Function = FunctionReleaseQueue
			b.lu.Submit(b.p, s[1:])
			b.wantStarted()
			b.d.complete(b.p, s[0])
			b.wantStarted(s[1])
			b.d.complete(b.p, s[1])
			b.wantNoViolations()
		})
	}
}

// An SRB that the port itself refuses after it was started never was the miniport's, and
// does not count either.
func TestQueue_BusyCountsNoRefused(t *testing.T) {
	for name, busy := range map[string]func(b *bench){
		"unit":    func(b *bench) { b.a.DeviceBusy(b.p, 0, 0, 0, 1) },
		"adapter": func(b *bench) { b.a.Busy(b.p, 1) },
	} {
		t.Run(name, func(t *testing.T) {
			d := &driver{model: FullDuplex}
			b := newBench(t, d, AdapterOptions{})
			s := b.srbs(3, &finished{})
			b.lu.Submit(b.p, s[:1])
			b.wantStarted(s[0])
			d.buildIo = func(*Processor, *SRB) bool { busy(b); return true }
			s[2].DataTransferBytes = 512 // and no buffer
			b.lu.Submit(b.p, s[1:])
			d.buildIo = nil
			if s[2].Status != StatusInvalidRequest {
				t.Errorf("%s, want INVALID_REQUEST", s[2])
			}
			b.wantStarted()
			b.d.complete(b.p, s[0])
			b.wantStarted(s[1])
			b.d.complete(b.p, s[1])
			b.wantNoViolations()
		})
	}
}

// The wait after QUEUE FULL is for SRBs that are outstanding then: those that completed
// before it do not count, though the port learns of both together.
func TestQueue_QueueFullCountsLater(t *testing.T) {
	b := newBench(t, &driver{model: FullDuplex}, AdapterOptions{})
	s := b.srbs(8, &finished{})
	b.lu.Submit(b.p, s)
	b.wantStarted(s...)
	old := b.p.raise(Dispatch)
	b.d.complete(b.p, s[0])
	s[1].Status, s[1].ScsiStatus = StatusError, scsi.StatusTaskSetFull
	b.a.Complete(b.p, s[1])
	b.p.lower(old)
	b.wantStarted()
	b.d.complete(b.p, s[2])
	b.wantStarted(s[1])
	for _, x := range append(s[3:], s[1]) {
		b.d.complete(b.p, x)
	}
	b.wantNoViolations()
}

// SRBs that a busy adapter turns away do not count towards those that it waits for, nor
// does it wait for ever if there are no others.
func TestBusy_TurnedAway(t *testing.T) {
	for _, outstanding := range []int{0, 2} {
		t.Run(fmt.Sprintf("%d outstanding", outstanding), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &driver{model: FullDuplex}
				b := newBench(t, d, AdapterOptions{})
				s := b.srbs(4, &finished{})
				b.lu.Submit(b.p, s[:outstanding])
				held := d.take()
				refused := s[2]
				d.startIo = func(p *Processor, srb *SRB) bool {
					d.startIo = nil
					b.a.Busy(p, 1)
					srb.Status = StatusBusy
					b.a.Complete(p, srb)
					return false
				}
				b.lu.Submit(b.p, []*SRB{refused})
				other := b.a.unitAt(0, 0, 1)
				other.Submit(b.p, s[3:])
				if outstanding > 0 {
					b.wantStarted()
					d.complete(b.p, held[0])
				}
				b.wantStarted(s[3])
				d.complete(b.p, s[3])
				for _, srb := range held[min(1, outstanding):] {
					d.complete(b.p, srb)
				}
				time.Sleep(b.a.options.BusyPauseTime)
				synctest.Wait()
				b.wantStarted(refused)
				d.complete(b.p, refused)
				for _, srb := range s {
					b.a.FreeSRB(srb)
				}
				b.wantNoViolations()
			})
		})
	}
}

// SRBs that pass a closed gate and wait for the depth, or for others, are started in their
// order, whether the gate closed before or after they came.
func TestQueue_BypassOrder(t *testing.T) {
	const bypass = FlagBypassFrozenQueue | FlagBypassLockedQueue
	closers := map[string]func(b *bench, last *SRB){
		"frozen": func(b *bench, last *SRB) {
			last.Status = StatusError
			b.a.Complete(b.p, last)
		},
		"locked": func(b *bench, last *SRB) {
			lock := b.srb(&finished{})
			lock.Function = FunctionLockQueue
			b.lu.Submit(b.p, []*SRB{lock})
			b.d.complete(b.p, last)
		},
	}
	for name, closeGate := range closers {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, &driver{model: FullDuplex}, AdapterOptions{})
			b.a.SetDeviceQueueDepth(b.p, 0, 0, 0, 1)
			s := b.srbs(6, &finished{})
			s[0].Flags &^= FlagNoQueueFreeze
			for _, x := range s[2:] {
				x.Flags |= bypass
			}
			b.lu.Submit(b.p, s[:3]) // one that does not bypass among those that wait
			b.wantStarted(s[0])
			closeGate(b, s[0])
			b.wantStarted(s[2])
			s[3].QueueAction = OrderedTag
			b.a.SetDeviceQueueDepth(b.p, 0, 0, 0, 2)
			b.lu.Submit(b.p, s[3:4])
			b.lu.Submit(b.p, s[4:5])
			b.lu.Submit(b.p, s[5:6])
			b.wantStarted() // behind the ordered one
			b.d.complete(b.p, s[2])
			b.wantStarted(s[3])
			b.a.SetDeviceQueueDepth(b.p, 0, 0, 0, 1)
			b.d.complete(b.p, s[3])
			b.wantStarted(s[4])
			b.d.complete(b.p, s[4])
			b.wantStarted(s[5])
			b.d.complete(b.p, s[5])
			b.wantStarted()
			open := b.srb(&finished{})
			open.Function = map[string]Function{"frozen": FunctionReleaseQueue, "locked": FunctionUnlockQueue}[name]
			b.lu.Submit(b.p, []*SRB{open})
			b.wantStarted(s[1])
			b.d.complete(b.p, s[1])
			b.wantNoViolations()
		})
	}
}

// A failure freezes the queue unless told not to; RELEASE_QUEUE thaws it,
// FLUSH_QUEUE empties it.
func TestQueue_Freeze(t *testing.T) {
	b := newBench(t, &driver{model: FullDuplex}, AdapterOptions{})
	done := &finished{}
	s := b.srbs(4, done)
	s[0].Flags &^= FlagNoQueueFreeze
	b.lu.Submit(b.p, s[:1])
	b.wantStarted(s[0])
	s[0].Status = StatusError
	b.a.Complete(b.p, s[0])
	if s[0].Status&StatusQueueFrozen == 0 {
		t.Error("the failed SRB does not say QUEUE_FROZEN")
	}
	b.lu.Submit(b.p, s[1:2])
	b.wantStarted()
	s[2].Flags |= FlagBypassFrozenQueue
	b.lu.Submit(b.p, s[2:3])
	b.wantStarted(s[2]) // past the one that waits
	release := b.srb(done)
	release.Function = FunctionReleaseQueue
	b.lu.Submit(b.p, []*SRB{release})
	b.wantStarted(s[1])
	b.d.complete(b.p, s[1])
	b.d.complete(b.p, s[2])

	lock := b.srb(done)
	lock.Function = FunctionLockQueue
	b.lu.Submit(b.p, []*SRB{lock})
	b.lu.Submit(b.p, s[3:])
	b.wantStarted()
	s[2].Flags = s[2].Flags&^FlagBypassFrozenQueue | FlagBypassLockedQueue
	b.lu.Submit(b.p, s[2:3])
	b.wantStarted(s[2])
	b.d.complete(b.p, s[2])
	flush := b.srb(done)
	flush.Function = FunctionFlushQueue
	b.lu.Submit(b.p, []*SRB{flush})
	if s[3].Status != StatusRequestFlushed {
		t.Errorf("queued SRB has %s, want REQUEST_FLUSHED", s[3].Status)
	}
	lock.Function = FunctionUnlockQueue
	b.lu.Submit(b.p, []*SRB{lock})
	b.lu.Submit(b.p, s[3:])
	b.wantStarted(s[3])
	b.d.complete(b.p, s[3])
}

// The unit's timer starts the reset road, which goes from unit to target to
// bus until one works; only the miniport hands SRBs back.
func TestReset_Escalates(t *testing.T) {
	for level := range ResetLevels {
		t.Run(level.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &driver{model: FullDuplex, channels: 2}
				var mu sync.Mutex // guards stuck and seen
				var stuck []*SRB
				var seen []string
				giveBack := func(p *Processor) {
					mu.Lock()
					back := stuck
					stuck = nil
					mu.Unlock()
					for _, s := range back {
						s.Status = StatusBusReset
						d.a.Complete(p, s)
					}
				}
				steps := func() []string {
					mu.Lock()
					defer mu.Unlock()
					return slices.Clone(seen)
				}
				step := func(p *Processor, l ResetLevel) bool {
					mu.Lock()
					seen = append(seen, l.String())
					mu.Unlock()
					if l == level {
						giveBack(p)
					}
					return l == level
				}
				d.startIo = func(p *Processor, s *SRB) bool {
					l, reset := ResetUnit, true
					switch s.Function {
					case FunctionResetLogicalUnit:
					case FunctionResetDevice:
						l = ResetTarget
					default:
						reset = false
					}
					switch {
					case !reset:
						mu.Lock()
						stuck = append(stuck, s)
						mu.Unlock()
						return true
					case step(p, l):
						s.Status = StatusSuccess
					default:
						s.Status = StatusError
					}
					d.a.Complete(p, s)
					return true
				}
				d.resetBus = func(p *Processor, _ uint8) bool {
					if !p.holds(&d.a.startIoLock) || !p.holds(&d.a.channelLocks[0]) || !p.holds(&d.a.channelLocks[1]) {
						t.Error("ResetBus without the StartIo lock and every channel")
					}
					return step(p, ResetBus)
				}
				b := newBench(t, d, AdapterOptions{DefaultTimeoutSecs: 5})
				done := &finished{}
				s := b.srbs(2, done)
				b.lu.Submit(b.p, s)
				time.Sleep(4 * time.Second)
				synctest.Wait()
				if got := steps(); len(got) != 0 {
					t.Fatalf("resets %v before the timeout", got)
				}
				time.Sleep(2 * time.Second)
				synctest.Wait()
				if got, want := steps(), []string{"unit", "target", "bus"}[:level+1]; !slices.Equal(got, want) {
					t.Errorf("resets %v, want %v", got, want)
				}
				if l := done.list(); len(l) != 2 || l[0].Status.Code() != StatusBusReset {
					t.Errorf("%d completions, want both with BUS_RESET", len(l))
				}
				b.lu.Submit(b.p, s[:1])
				mu.Lock()
				if len(stuck) != 1 {
					t.Error("the unit takes no SRBs after the reset")
				}
				mu.Unlock()
				giveBack(b.p)
				b.wantNoViolations()
			})
		})
	}
}

// A reset or an abort does not wait for what it is to end: neither depth, nor
// an untagged SRB, nor a closed gate holds it back.
func TestQueue_TaskManagementPasses(t *testing.T) {
	d := &driver{model: FullDuplex, features: func(c *Config) { c.Features = FeatureAbortCommand }}
	b := newBench(t, d, AdapterOptions{})
	s := b.srbs(3, &finished{})
	s[0].Flags &^= FlagQueueActionEnable // alone on its unit
	b.lu.Submit(b.p, s[:2])
	b.wantStarted(s[0])
	b.a.PauseDevice(b.p, 0, 0, 0, 60)
	s[2].Function, s[2].VictimSRB = FunctionAbortCommand, s[0]
	b.lu.Submit(b.p, s[2:])
	b.wantStarted(s[2])
	b.d.complete(b.p, s[0])
	b.d.complete(b.p, s[2])
	s[2].Function, s[2].VictimSRB = FunctionResetLogicalUnit, nil
	b.lu.Submit(b.p, s[2:])
	b.wantStarted(s[2])
	b.d.complete(b.p, s[2])
	b.a.ResumeDevice(b.p, 0, 0, 0)
	b.wantStarted(s[1])
	b.d.complete(b.p, s[1])
	b.wantNoViolations()
}

// A reset or an abort that came while the adapter was stopped goes down at the restart,
// past all that waits: for a gate, for the unit's depth or for the adapter's limit.
func TestQueue_TaskManagementAfterRestart(t *testing.T) {
	for name, tt := range map[string]struct {
		before func(b *bench) // while it is stopped
		after  func(b *bench) // so that the rest may go
	}{
		"paused": {
			before: func(b *bench) { b.a.PauseDevice(b.p, 0, 0, 0, 60) },
			after:  func(b *bench) { b.a.ResumeDevice(b.p, 0, 0, 0) },
		},
		"depth": {
			before: func(b *bench) { b.a.SetDeviceQueueDepth(b.p, 0, 0, 0, 1) },
			after:  func(b *bench) { b.a.SetDeviceQueueDepth(b.p, 0, 0, 0, 2) },
		},
		"limit": {
			before: func(b *bench) { b.a.outstanding.Store(int64(b.a.config.MaxNumberOfIO)) },
			after:  func(b *bench) { b.a.unreserve(b.p, b.a.config.MaxNumberOfIO) },
		},
	} {
		for _, f := range []Function{FunctionAbortCommand, FunctionResetLogicalUnit, FunctionResetDevice} {
			t.Run(name+" "+f.String(), func(t *testing.T) {
				d := &driver{model: FullDuplex, features: func(c *Config) { c.Features = FeatureAbortCommand }}
				b := newBench(t, d, AdapterOptions{})
				if err := b.a.Stop(b.p); err != nil {
					t.Fatal(err)
				}
				s := b.srbs(4, &finished{})
				for i := range 2 {
					s[2+i].Function, s[2+i].QueueAction = f, SimpleTag
				}
				b.lu.Submit(b.p, s)
				b.wantStarted()
				tt.before(b)
				if err := b.a.Restart(b.p); err != nil {
					t.Fatal(err)
				}
				tasks := s[2:]
				b.wantStarted(tasks...)
				for _, x := range tasks {
					b.d.complete(b.p, x)
				}
				tt.after(b)
				b.wantStarted(s[:2]...)
				for _, x := range s[:2] {
					b.d.complete(b.p, x)
				}
				if n := b.a.outstanding.Load(); n != 0 {
					t.Errorf("%d charged at the end", n)
				}
				b.wantNoViolations()
			})
		}
	}
}

// There is no reset above that of the bus.
func TestReset_NoSuchLevel(t *testing.T) {
	b := newBench(t, &driver{model: FullDuplex}, AdapterOptions{})
	if err := b.a.ResetNow(b.p, b.lu, ResetLevels); err == nil {
		t.Error("ResetNow: no error")
	}
	b.wantNoViolations()
}

// A unit that no reset brought back fails what comes, and works again when the
// miniport has given back what it held.
func TestReset_GivenUpComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &driver{model: FullDuplex}
		var mu sync.Mutex
		var stuck *SRB
		d.startIo = func(p *Processor, s *SRB) bool {
			switch s.Function {
			case FunctionResetLogicalUnit, FunctionResetDevice:
				s.Status = StatusError
				d.a.Complete(p, s)
			default:
				mu.Lock()
				stuck = s
				mu.Unlock()
			}
			return true
		}
		b := newBench(t, d, AdapterOptions{DefaultTimeoutSecs: 5})
		done := &finished{}
		s := b.srbs(2, done)
		b.lu.Submit(b.p, s[:1])
		time.Sleep(6 * time.Second)
		synctest.Wait()
		b.lu.Submit(b.p, s[1:])
		if l := done.list(); len(l) != 1 || l[0].Status.Code() != StatusNoDevice {
			t.Fatalf("%d completions, want the second SRB's with NO_DEVICE", len(l))
		}
		mu.Lock()
		b.d.complete(b.p, stuck)
		stuck = nil
		mu.Unlock()
		b.lu.Submit(b.p, s[1:])
		mu.Lock()
		defer mu.Unlock()
		if stuck != s[1] {
			t.Fatal("the unit takes no SRBs after everything came back")
		}
		b.d.complete(b.p, stuck)
	})
}

// A reset that fails does not bring back another unit that was given up.
func TestReset_FailureLeavesGivenUp(t *testing.T) {
	d := &driver{model: FullDuplex}
	b := newBench(t, d, AdapterOptions{})
	other := b.a.unitAt(0, 0, 1)
	b.a.publish(other, nil)
	other.mu.Lock()
	other.closeGateLocked(gateGivenUp)
	other.mu.Unlock()
	if err := b.a.ResetNow(b.p, b.lu, ResetBus); err == nil { // the driver has no ResetBus
		t.Fatal("the bus reset succeeded")
	}
	if other.gate.Load()&gateGivenUp == 0 {
		t.Error("a failed reset opened a unit that was given up")
	}
	d.resetBus = func(*Processor, uint8) bool { return true }
	if err := b.a.ResetNow(b.p, b.lu, ResetBus); err != nil {
		t.Fatal(err)
	}
	if other.gate.Load()&gateGivenUp != 0 {
		t.Error("a reset that worked left a unit given up")
	}
}

// A bus whose reset has failed is reset again soon and then less and less often, but at
// least once in the time that a request or a reset may take, however many resets failed,
// until one succeeds.
func TestReset_FailedBusResetIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var resets atomic.Int32
		var works atomic.Bool
		d := &driver{model: FullDuplex}
		d.resetBus = func(*Processor, uint8) bool { resets.Add(1); return works.Load() }
		b := newBench(t, d, AdapterOptions{DefaultTimeoutSecs: 5})
		wantMore := func(seconds int, want int32) {
			t.Helper()
			before := resets.Load()
			time.Sleep(time.Duration(seconds) * time.Second)
			synctest.Wait()
			if got := resets.Load() - before; got != want {
				t.Errorf("%d bus resets in %d s, want %d", got, seconds, want)
			}
		}
		fail := func() {
			t.Helper()
			if err := b.a.ResetNow(b.p, b.lu, ResetBus); err == nil {
				t.Fatal("the bus reset succeeded")
			}
		}
		for range 2 {
			fail()
			wantMore(0, 0)
			fail()
			wantMore(1, 1)
			fail()
			wantMore(1, 0)
			wantMore(1, 1)
			wantMore(4, 1)
			wantMore(4, 0)
			wantMore(1, 1)
			wantMore(50, 10)
			works.Store(true)
			if err := b.a.ResetNow(b.p, b.lu, ResetBus); err != nil {
				t.Fatal(err)
			}
			wantMore(50, 0)
			works.Store(false)
		}
	})
}

// Only the bus whose reset failed is reset again, even if it has no units; not while the
// adapter is stopped, but afterwards.
func TestReset_FailedBusResetIsTriedAgainAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var broken atomic.Bool
		broken.Store(true)
		var resets [2]atomic.Int32
		d := &driver{model: FullDuplex}
		d.features = func(c *Config) { c.NumberOfBuses = len(resets) }
		d.resetBus = func(_ *Processor, path uint8) bool {
			resets[path].Add(1)
			return path == 0 || !broken.Load()
		}
		b := newBench(t, d, AdapterOptions{DefaultTimeoutSecs: 5}) // with a unit on bus 0
		want := func(when string, first, second int32) {
			t.Helper()
			synctest.Wait()
			if f, s := resets[0].Swap(0), resets[1].Swap(0); f != first || s != second {
				t.Errorf("%s: %d and %d bus resets, want %d and %d", when, f, s, first, second)
			}
		}
		b.a.HardwareReset(b.p)
		want("hardware reset", 1, 1)
		time.Sleep(3500 * time.Millisecond)
		want("one and three seconds later", 0, 2)
		if err := b.a.Stop(b.p); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Second)
		want("stopped", 0, 0)
		if err := b.a.Restart(b.p); err != nil {
			t.Fatal(err)
		}
		time.Sleep(6 * time.Second)
		want("started again", 0, 1)
		broken.Store(false)
		time.Sleep(20 * time.Second)
		want("it works", 0, 1)
		b.wantNoViolations()
	})
}

// A completion re-arms the unit's one timer: it expires only if the unit stops
// completing.
func TestTimeout_RearmedByCompletions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &driver{model: FullDuplex}
		b := newBench(t, d, AdapterOptions{DefaultTimeoutSecs: 5})
		s := b.srbs(10, &finished{})
		b.lu.Submit(b.p, s)
		b.d.take()
		for _, x := range s[1:] {
			time.Sleep(3 * time.Second)
			synctest.Wait()
			b.d.complete(b.p, x)
		}
		if n := b.a.timeouts.Load(); n != 0 {
			t.Errorf("%d timeouts while the unit made progress", n)
		}
		b.d.complete(b.p, s[0])
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := b.a.timeouts.Load(); n != 0 {
			t.Errorf("%d timeouts with nothing outstanding", n)
		}
	})
}

// endStuck completes what the driver holds, resets among it, and frees the SRBs of a test in
// a bubble.
func (b *bench) endStuck(srbs ...*SRB) {
	b.t.Helper()
	for _, x := range b.d.take() {
		b.d.complete(b.p, x)
	}
	synctest.Wait()
	for _, s := range srbs {
		b.a.FreeSRB(s)
	}
	b.wantNoViolations()
}

// An SRB that the port completes by itself is no sign of life from the unit.
func TestTimeout_NotRearmedByPort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &driver{model: FullDuplex}, AdapterOptions{DefaultTimeoutSecs: 5})
		stuck, s := b.srb(&finished{}), b.srb(&finished{})
		b.lu.Submit(b.p, []*SRB{stuck})
		for _, f := range []Function{FunctionLockQueue, FunctionUnlockQueue, FunctionReleaseQueue} {
			time.Sleep(2 * time.Second)
			s.Function = f
			b.lu.Submit(b.p, []*SRB{s})
		}
		synctest.Wait()
		if n := b.a.timeouts.Load(); n != 1 {
			t.Errorf("%d timeouts of a unit with a stuck request, want 1", n)
		}
		b.endStuck(stuck, s)
	})
}

// Nor is one that the port refuses on its way to the miniport. Such an SRB does not
// change the time that others have, either.
func TestTimeout_NotRearmedByRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &driver{model: FullDuplex}, AdapterOptions{DefaultTimeoutSecs: 5})
		stuck, s := b.srb(&finished{}), b.srb(&finished{})
		s.Flags |= FlagDataIn
		s.TimeoutSecs = 1
		refused := func(batch ...*SRB) {
			t.Helper()
			s.DataTransferBytes = 512 // without a buffer
			b.lu.Submit(b.p, batch)
			if s.Status != StatusInvalidRequest {
				t.Errorf("%s, want %s", s, StatusInvalidRequest)
			}
		}
		wantTimeouts := func(after time.Duration, want uint64) {
			t.Helper()
			time.Sleep(after)
			synctest.Wait()
			if n := b.a.timeouts.Load(); n != want {
				t.Errorf("%d timeouts, want %d", n, want)
			}
		}
		refused(s)
		wantTimeouts(2*time.Second, 0) // nothing is outstanding
		refused(s, stuck)
		for range 2 {
			wantTimeouts(2*time.Second, 0)
			refused(s)
		}
		wantTimeouts(2*time.Second, 1)
		b.endStuck(stuck, s)
	})
}

// Nor is one of a unit that is gone: whoever waits for its outstanding SRBs is told in
// time, whatever else is still submitted to it.
func TestTimeout_NotRearmedByNoDevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &driver{model: FullDuplex}, AdapterOptions{DefaultTimeoutSecs: 5})
		stuck, late := b.srb(&finished{}), b.srb(&finished{})
		w := &patient{}
		stuck.Completer = w
		b.lu.Submit(b.p, []*SRB{stuck})
		b.a.MarkDeviceFailed(b.p, 0, 0, 0, "smoke")
		for range 4 {
			time.Sleep(2 * time.Second)
			b.lu.Submit(b.p, []*SRB{late})
		}
		synctest.Wait()
		w.want(t, "after its time", "abandon")
		if late.Status != StatusNoDevice {
			t.Errorf("%s, want %s", late, StatusNoDevice)
		}
		b.d.complete(b.p, b.d.take()[0])
		b.a.FreeSRB(stuck)
		b.a.FreeSRB(late)
		b.wantNoViolations()
	})
}

// A completion restarts the timer of a unit with more outstanding, and does not stop it:
// an SRB that never completes is found one timeout after the last that did.
func TestTimeout_StuckBesideCompleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &driver{model: FullDuplex}, AdapterOptions{DefaultTimeoutSecs: 5})
		s := b.srbs(2, &finished{})
		b.lu.Submit(b.p, s)
		b.d.take()
		time.Sleep(3 * time.Second)
		synctest.Wait()
		b.d.complete(b.p, s[0])
		time.Sleep(4 * time.Second)
		synctest.Wait()
		if n := b.a.timeouts.Load(); n != 0 {
			t.Errorf("%d timeouts before the timeout of what is left", n)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if n := b.a.timeouts.Load(); n != 1 {
			t.Errorf("%d timeouts of a unit with a stuck request, want 1", n)
		}
		b.d.complete(b.p, s[1])
		for _, reset := range b.d.take() {
			b.d.complete(b.p, reset)
		}
		synctest.Wait()
	})
}

// What the verifier sees of completions.
func TestVerifier_Completions(t *testing.T) {
	b := newBench(t, &driver{model: FullDuplex}, AdapterOptions{})
	s := b.srbs(2, &finished{})
	b.lu.Submit(b.p, s[:1])
	b.d.take()
	b.d.complete(b.p, s[0])
	b.a.Complete(b.p, s[0])
	if b.sys.Verifier().Count(CheckDoubleCompletion) != 1 {
		t.Error("a double completion was not reported")
	}
	b.lu.Submit(b.p, s[1:])
	b.d.take()
	s[1].Status = StatusPending
	b.a.Complete(b.p, s[1])
	if b.sys.Verifier().Count(CheckStatus) != 1 {
		t.Error("completion as PENDING was not reported")
	}
	h := b.a.AcquireSpinLock(b.p, InterruptLock, nil)
	if again := b.a.AcquireSpinLock(b.p, InterruptLock, nil); again != (LockHandle{}) {
		t.Error("the interrupt lock was taken twice")
	}
	wrong := b.a.AcquireSpinLock(b.p, StartIoLock, nil)
	b.a.ReleaseSpinLock(b.p, wrong)
	b.a.ReleaseSpinLock(b.p, h)
	if n := b.sys.Verifier().Count(CheckLockRules); n != 2 {
		t.Errorf("%d lock violations, want 2: re-acquired, wrong order", n)
	}
}

// Submitting to and completing on memory media allocates nothing.
func TestSubmit_NoAllocs(t *testing.T) {
	d := &driver{model: FullDuplex}
	d.startIo = func(p *Processor, s *SRB) bool { d.complete(p, s); return true }
	b := newBench(t, d, AdapterOptions{})
	b.p.verify = false
	done := nothing{}
	batch := b.srbs(8, nil)
	for _, s := range batch {
		s.Completer = done
	}
	if n := testing.AllocsPerRun(100, func() { b.lu.Submit(b.p, batch) }); n != 0 {
		t.Errorf("%v allocations for a batch, want 0", n)
	}
}

type nothing struct{}

func (nothing) CompleteSRB(*Processor, *SRB) {}
