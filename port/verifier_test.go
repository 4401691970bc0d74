package port

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/internal/pci"
	"github.com/vhbad/vhbad/internal/scsi"
)

// testClock is a clock that only a test moves.
type testClock struct{ ns atomic.Int64 }

func (c *testClock) now() time.Time          { return time.Unix(0, c.ns.Load()) }
func (c *testClock) advance(d time.Duration) { c.ns.Add(int64(d)) }

// provocations are the breaches that the verifier must see, one check each. A
// scenario gets a driver that lets SRBs pass, and a bench that run finishes by
// calling start.
var provocations = []struct {
	name  string
	check Check
	// in says what the record names besides the check.
	in string
	// prepare sets the driver up; run breaks the rule. Either may be nil.
	prepare func(d *driver, clock *testClock)
	run     func(b *bench, clock *testClock)
}{
	{name: "V1 completed twice", check: CheckDoubleCompletion, in: "not the miniport's", run: func(b *bench, _ *testClock) {
		b.d.startIo = func(p *Processor, s *SRB) bool { b.d.complete(p, s); b.d.complete(p, s); return true }
		b.submitOne()
	}},
	{name: "V1 completed after BuildIo returned false and after completion", check: CheckDoubleCompletion, run: func(b *bench, _ *testClock) {
		b.d.buildIo = func(p *Processor, s *SRB) bool { b.d.complete(p, s); return false }
		s := b.submitOne()
		b.d.complete(b.p, s)
	}},
	{name: "V1 completed without having been submitted", check: CheckDoubleCompletion, run: func(b *bench, _ *testClock) {
		b.d.complete(b.p, b.srb(&finished{}))
	}},
	{name: "V2 PENDING", check: CheckStatus, in: "PENDING", run: completeWith(StatusPending)},
	{name: "V2 QUEUE_FROZEN", check: CheckStatus, in: "QUEUE_FROZEN", run: completeWith(StatusError | StatusQueueFrozen)},
	{name: "V2 unknown", check: CheckStatus, in: "unknown", run: completeWith(0x3f)},
	{name: "V2 sense data announced but absent", check: CheckStatus, in: "AUTOSENSE_VALID", run: completeWith(StatusError | StatusAutosenseValid)},
	{name: "V3 SRB written after completion", check: CheckUseAfterComplete, in: "SRB was written", run: func(b *bench, _ *testClock) {
		b.d.startIo = func(p *Processor, s *SRB) bool { b.d.complete(p, s); s.Status = StatusError; return true }
		b.submitOne()
	}},
	{name: "V3 sense data written after completion", check: CheckUseAfterComplete, in: "SRB was written", run: func(b *bench, _ *testClock) {
		b.d.startIo = func(p *Processor, s *SRB) bool {
			s.Status, s.ScsiStatus, s.SenseBytes = StatusError|StatusAutosenseValid, scsi.StatusCheckCondition, 18
			b.a.Complete(p, s)
			s.Sense[17] ^= 1
			return true
		}
		b.submitOne()
	}},
	{name: "V3 service time written after completion", check: CheckUseAfterComplete, in: "SRB was written", run: func(b *bench, _ *testClock) {
		b.d.startIo = func(p *Processor, s *SRB) bool {
			b.d.complete(p, s)
			b.a.IoTargetRequestServiceTime(p, s, 1)
			return true
		}
		b.submitOne()
	}},
	{name: "V3 extension written after completion", check: CheckUseAfterComplete, in: "extension", run: func(b *bench, _ *testClock) {
		b.d.startIo = func(p *Processor, s *SRB) bool { b.d.complete(p, s); s.Extension[17] = 1; return true }
		b.submitOne()
	}},
	{name: "V3 extension written before the next attempt", check: CheckUseAfterComplete, in: "BuildIo", run: func(b *bench, _ *testClock) {
		b.d.startIo = func(p *Processor, s *SRB) bool { b.d.complete(p, s); return true }
		s := b.submitOne()
		s.Extension[0] = 0
		b.lu.Submit(b.p, []*SRB{s})
	}},
	{name: "V3 extension written after the last completion", check: CheckUseAfterComplete, in: "FreeSRB", run: func(b *bench, _ *testClock) {
		b.d.startIo = func(p *Processor, s *SRB) bool { b.d.complete(p, s); return true }
		s := b.submitOne()
		s.Extension[0] = 0
		b.a.FreeSRB(s)
	}},
	{name: "V3 scatter/gather list written after completion", check: CheckUseAfterComplete, in: "scatter/gather", run: func(b *bench, _ *testClock) {
		b.d.startIo = func(p *Processor, s *SRB) bool { b.d.complete(p, s); s.SGL[0].Bytes = 1; return true }
		b.submitData()
	}},
	{name: "V4 port starts what BuildIo kept", check: CheckBuildIoFalse, in: "did not pass on", run: func(b *bench, _ *testClock) {
		b.d.startIo = func(p *Processor, s *SRB) bool { b.d.complete(p, s); return true }
		b.d.buildIo = func(*Processor, *SRB) bool { return false }
		s := b.submitOne()
		var run srbQueue
		run.push(s)
		b.p.raise(Dispatch)
		b.a.start(b.p, &run) // what a broken port would do
		b.p.lower(Passive)
	}},
	{name: "V4 StartIo keeps what it refuses", check: CheckBuildIoFalse, in: "StartIo returned false", run: func(b *bench, _ *testClock) {
		b.d.startIo = func(p *Processor, s *SRB) bool { b.d.complete(p, s); return false }
		b.submitOne() // as it should be
		b.d.startIo = func(*Processor, *SRB) bool { return false }
		b.d.complete(b.p, b.submitOne())
	}},
	{name: "V5 BuildIo true after completion", check: CheckBuildIoCompleted, run: func(b *bench, _ *testClock) {
		b.d.buildIo = func(p *Processor, s *SRB) bool { b.d.complete(p, s); return true }
		b.submitOne()
	}},
	{name: "V6 order", check: CheckLockRules, in: "StartIo lock taken while holding interrupt lock", run: func(b *bench, _ *testClock) {
		h := b.a.AcquireSpinLock(b.p, InterruptLock, nil)
		b.a.ReleaseSpinLock(b.p, b.a.AcquireSpinLock(b.p, StartIoLock, nil))
		b.a.ReleaseSpinLock(b.p, h)
	}},
	{name: "V6 taken twice", check: CheckLockRules, in: "twice", run: func(b *bench, _ *testClock) {
		b.d.startIo = func(p *Processor, s *SRB) bool {
			b.a.ReleaseSpinLock(p, b.a.AcquireSpinLock(p, StartIoLock, nil)) // the port holds it already
			b.d.complete(p, s)
			return true
		}
		b.submitOne()
	}},
	{name: "V6 released without having been taken", check: CheckLockRules, in: "not held", run: func(b *bench, _ *testClock) {
		h := b.a.AcquireSpinLock(b.p, StartIoLock, nil)
		b.a.ReleaseSpinLock(b.p, h)
		b.a.ReleaseSpinLock(b.p, h)
	}},
	{name: "V6 lock leaked", check: CheckLockRules, in: "BuildIo returned at Dispatch with 1 locks", run: func(b *bench, _ *testClock) {
		b.d.buildIo = func(p *Processor, s *SRB) bool {
			b.a.AcquireSpinLock(p, StartIoLock, nil)
			b.d.complete(p, s)
			return false
		}
		b.submitOne()
		b.a.ReleaseSpinLock(b.p, b.a.AcquireSpinLock(b.p, StartIoLock, nil)) // it is free again
	}},
	{name: "V6 level leaked", check: CheckLockRules, in: "returned at Device", run: func(b *bench, _ *testClock) {
		b.d.buildIo = func(p *Processor, s *SRB) bool { p.raise(Device); b.d.complete(p, s); return false }
		b.submitOne()
	}},
	{name: "V6 two DPC locks", check: CheckLockRules, in: "second DPC lock", run: func(b *bench, _ *testClock) {
		h := b.a.AcquireSpinLock(b.p, DpcLock, b.dpc(0))
		b.a.ReleaseSpinLock(b.p, b.a.AcquireSpinLock(b.p, DpcLock, b.dpc(1)))
		b.a.ReleaseSpinLock(b.p, h)
	}},
	{name: "V6 released too early", check: CheckLockRules, in: "StartIo lock released, to go on at Dispatch while holding interrupt lock 0", run: func(b *bench, _ *testClock) {
		b.d.buildIo = func(p *Processor, s *SRB) bool {
			startIo := b.a.AcquireSpinLock(p, StartIoLock, nil)
			interrupt := b.a.AcquireSpinLock(p, InterruptLock, nil)
			b.a.ReleaseSpinLock(p, startIo)
			b.a.ReleaseSpinLock(p, interrupt)
			b.d.complete(p, s)
			return false
		}
		b.submitOne()
	}},
	{name: "V6 token kept", check: CheckLockRules, in: "SyncToken", run: func(b *bench, _ *testClock) {
		var g Guarded[int]
		g.Bind(b.a, AllMessages)
		var kept SyncToken
		SynchronizeAccess(b.a, b.p, func(t SyncToken, _ int) bool { kept = t; return true }, 0)
		g.Open(kept)
	}},
	{
		name: "V7 lock in FindAdapter", check: CheckCallingPlace, in: "AcquireSpinLock called from FindAdapter",
		prepare: func(d *driver, _ *testClock) {
			d.findAdapter = func(p *Processor, _ *Config) { d.a.ReleaseSpinLock(p, d.a.AcquireSpinLock(p, InterruptLock, nil)) }
		},
	},
	{name: "V7 Submit from a handler", check: CheckCallingPlace, in: "Submit called from Interrupt", run: func(b *bench, _ *testClock) {
		b.d.startIo = func(p *Processor, s *SRB) bool { b.d.complete(p, s); return true }
		s := b.srb(&finished{})
		b.d.handler = func(p *Processor, _ SyncToken, _ uint16) bool {
			if p.level == Device {
				b.d.buildIo = func(p *Processor, s *SRB) bool { b.d.complete(p, s); return false }
				b.lu.Submit(p, []*SRB{s})
			}
			return true
		}
		b.w.raise(b.p, 0)
	}},
	{name: "V8 nested", check: CheckSynchronizeAccess, run: func(b *bench, _ *testClock) {
		SynchronizeAccess(b.a, b.p, func(t SyncToken, _ int) bool {
			return SynchronizeAccess(b.a, t.p, func(SyncToken, int) bool { return true }, 0)
		}, 0)
	}},
	{name: "V8 from the handler", check: CheckSynchronizeAccess, in: "from Interrupt", run: func(b *bench, _ *testClock) {
		b.d.handler = func(p *Processor, _ SyncToken, _ uint16) bool {
			return SynchronizeAccess(b.a, p, func(SyncToken, int) bool { return true }, 0)
		}
		b.w.raise(b.p, 0)
	}},
	{
		name: "V8 from Initialize", check: CheckSynchronizeAccess, in: "from Initialize",
		prepare: func(d *driver, _ *testClock) {
			d.initialize = func(p *Processor, _ SyncToken) bool {
				SynchronizeAccess(d.a, p, func(SyncToken, int) bool { return true }, 0)
				return true
			}
		},
	},
	{name: "V9 handler", check: CheckHoldTime, in: "Interrupt took 500ms", run: func(b *bench, clock *testClock) {
		took := DefaultHoldLimit - 1
		b.d.handler = func(*Processor, SyncToken, uint16) bool { clock.advance(took); return true }
		b.w.raise(b.p, 0) // as long as it may
		took++
		b.w.raise(b.p, 0)
	}},
	{
		name: "V9 Initialize", check: CheckHoldTime, in: "Initialize took 5s",
		prepare: func(d *driver, clock *testClock) {
			d.initialize = func(*Processor, SyncToken) bool { clock.advance(longHoldFactor * DefaultHoldLimit); return true }
		},
	},
	{name: "V9 lock", check: CheckHoldTime, in: "StartIo lock held for 500ms", run: func(b *bench, clock *testClock) {
		h := b.a.AcquireSpinLock(b.p, StartIoLock, nil)
		clock.advance(DefaultHoldLimit)
		b.a.ReleaseSpinLock(b.p, h)
	}},
	{name: "V9 stall in StartIo", check: CheckHoldTime, in: "StallExecution", run: func(b *bench, _ *testClock) {
		b.d.startIo = func(p *Processor, s *SRB) bool { b.a.StallExecution(p, 0); b.d.complete(p, s); return true }
		b.submitOne()
	}},
	{name: "V10 message lock of an adapter with one lock", check: CheckMSILock, run: func(b *bench, _ *testClock) {
		b.a.ReleaseMSISpinLock(b.p, b.a.AcquireMSISpinLock(b.p, 0))
	}},
	{name: "V10 lock of no message", check: CheckMSILock, in: "AcquireMSISpinLock of message 4: want 0 to 3", run: func(b *bench, _ *testClock) {
		d := &driver{model: FullDuplex, mode: InterruptSynchronizePerMessage, messages: 4}
		a, err := b.sys.AddAdapter(b.p, &wire{messages: 4}, d, AdapterOptions{})
		if err != nil {
			b.t.Fatal(err)
		}
		a.ReleaseMSISpinLock(b.p, a.AcquireMSISpinLock(b.p, 4))
		if level := b.p.Level(); level != Passive {
			b.t.Errorf("at %s afterwards, want Passive", level)
		}
		a.Remove(b.p)
	}},
	{name: "V11 BUSY after StartIo", check: CheckBusyAfterDevice, in: "after StartIo", run: func(b *bench, _ *testClock) {
		s := b.submitOne()
		b.d.take()
		s.Status, s.ScsiStatus = StatusBusy, scsi.StatusTaskSetFull
		b.a.Complete(b.p, s)
	}},
	{name: "V11 BUSY after the doorbell, in StartIo", check: CheckBusyAfterDevice, in: "register write", run: func(b *bench, _ *testClock) {
		first := true
		b.d.startIo = func(p *Processor, s *SRB) bool {
			if !first {
				b.d.complete(p, s)
				return true
			}
			first = false
			b.a.WriteRegisterUlong(p, &RegisterRange{noRegisters{}, 64}, 0, 1)
			s.Status, s.ScsiStatus = StatusBusy, scsi.StatusTaskSetFull
			b.a.Complete(p, s)
			return false
		}
		b.submitOne()
	}},
	{name: "V12 DMA after completion", check: CheckDMA, in: "no live mapping", run: func(b *bench, _ *testClock) {
		var late Segment
		b.d.startIo = func(p *Processor, s *SRB) bool { late = s.SGL[0]; b.d.complete(p, s); return true }
		b.submitData()
		b.sys.iommu.Translate(late.Addr, 1, dma.Write)
	}},
	{name: "V13 reset with SRBs outstanding", check: CheckResetOutstanding, in: "1 SRBs still at the miniport", run: func(b *bench, _ *testClock) {
		b.submitOne()
		b.d.startIo = func(p *Processor, s *SRB) bool { b.d.complete(p, s); return true }
		if err := b.a.ResetNow(b.p, b.lu, ResetUnit); err != nil {
			b.t.Error(err)
		}
	}},
	{name: "V15 more than the depth", check: CheckPortLimits, in: "queue depth of 1", run: func(b *bench, _ *testClock) {
		b.a.SetDeviceQueueDepth(b.p, 0, 0, 0, 1)
		b.submitOne()
		s := b.srb(&finished{})
		b.lu.mu.Lock()
		b.lu.linkLocked(b.p, s) // what a broken port would do
		b.lu.unlinkLocked(s)
		b.lu.mu.Unlock()
	}},
	{name: "V15 one channel twice", check: CheckPortLimits, in: "2 calls of StartIo at once on channel 0", run: func(b *bench, _ *testClock) {
		b.a.starting[0].Add(1) // somebody is in StartIo, in spite of the lock
		b.submitOne()
	}},
	{name: "V16 register out of range", check: CheckRegisterRange, in: "at 0x40", run: func(b *bench, _ *testClock) {
		b.a.WriteRegisterUlong(b.p, &RegisterRange{noRegisters{}, 64}, 64, 1)
	}},
	{name: "V16 register misaligned", check: CheckRegisterRange, in: "at 0x4", run: func(b *bench, _ *testClock) {
		b.a.ReadRegisterUlong64(b.p, &RegisterRange{noRegisters{}, 64}, 4)
	}},
	{name: "V17 second untagged SRB", check: CheckUntagged, run: func(b *bench, _ *testClock) {
		first, second := b.srb(&finished{}), b.srb(&finished{})
		first.Flags &^= FlagQueueActionEnable
		second.Flags &^= FlagQueueActionEnable
		b.lu.Submit(b.p, []*SRB{first})
		b.lu.mu.Lock()
		b.lu.linkLocked(b.p, second) // what a broken port would do
		b.lu.unlinkLocked(second)
		b.lu.exclusive = true // first's
		b.lu.mu.Unlock()
	}},
	{name: "V18 DPC beside itself", check: CheckDpcOverlap, run: func(b *bench, _ *testClock) {
		other := b.processor("other")
		d, runs := b.dpc(0), 0
		d.routine = func(*Processor, *Dpc) {
			if runs++; runs == 1 {
				d.state.Store(dpcIdle) // a state machine that forgets that it runs
				b.a.IssueDpc(other, d)
				d.state.Store(dpcRunning)
			}
		}
		b.a.IssueDpc(b.p, d)
		other.Close()
	}},
	{name: "V19 unknown", check: CheckNotification, in: "200", run: func(b *bench, _ *testClock) {
		b.a.Notification(b.p, 200, nil)
	}},
	{name: "V19 timer without a routine", check: CheckNotification, run: func(b *bench, _ *testClock) {
		b.a.RequestTimerCall(b.p, nil, time.Second)
	}},
}

// Each check sees what it is for, and nothing else does.
func TestVerifier_Checks(t *testing.T) {
	for _, c := range provocations {
		t.Run(c.name, func(t *testing.T) {
			clock, d := &testClock{}, driverWithDpcs()
			if c.prepare != nil {
				c.prepare(d, clock)
			}
			var mu sync.Mutex
			told := make(map[Check]int)
			b := newBenchIn(t, d, AdapterOptions{}, SystemConfig{Clock: clock.now, HoldLimit: DefaultHoldLimit, OnViolation: func(v Violation) {
				mu.Lock()
				defer mu.Unlock()
				told[v.Check]++
			}})
			if c.run != nil {
				c.run(b, clock)
			}
			b.wantOnly(c.check, c.in)
			mu.Lock()
			defer mu.Unlock()
			if len(told) != 1 || told[c.check] == 0 {
				t.Errorf("OnViolation was told of %v, want %s only", told, c.check)
			}
		})
	}
}

// driverWithDpcs is a driver with both its DPCs ready.
func driverWithDpcs() *driver {
	d := &driver{model: FullDuplex}
	d.passiveInit = func(p *Processor) bool {
		for i := range d.dpcs {
			d.a.InitializeDpc(p, &d.dpcs[i], func(*Processor, *Dpc) {})
		}
		return true
	}
	return d
}

// A5, without a verifier: each breach that it would report has an outcome that is the
// same each time, and never hangs. Most return, as the routines say; those that would
// corrupt memory or deadlock sooner or later panic.
func TestA5_WithoutVerifier(t *testing.T) {
	panics := map[string]string{
		"V1 completed twice": "not the miniport's",
		"V1 completed after BuildIo returned false and after completion": "not the miniport's",
		"V1 completed without having been submitted":                     "not the miniport's",
		"V6 order":                              "StartIo lock taken while holding interrupt lock 0",
		"V6 released without having been taken": "release of StartIo lock, which is not held",
		"V10 lock of no message":                "AcquireMSISpinLock of message 4: want 0 to 3",
	}
	for _, c := range provocations {
		t.Run(c.name, func(t *testing.T) {
			clock, d := &testClock{}, driverWithDpcs()
			if c.prepare != nil {
				c.prepare(d, clock)
			}
			b := newUncheckedBench(t, d, AdapterOptions{}, SystemConfig{Clock: clock.now})
			if b.sys.Verifier() != nil {
				t.Fatal("the verifier is on")
			}
			var panicked any
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				defer func() { panicked = recover() }()
				if c.run != nil {
					c.run(b, clock)
				}
			}()
			if !await(t, ended, "the end of the misuse") {
				t.FailNow()
			}
			if want := panics[c.name]; want != "" {
				if text := fmt.Sprint(panicked); panicked == nil || !strings.Contains(text, want) {
					t.Errorf("panic %q, want %q in it", text, want)
				}
				return // with locks held and SRBs out: a process does not live on
			}
			if panicked != nil {
				t.Fatalf("panic: %v", panicked)
			}
			if b.p.level != Passive || b.p.nheld != 0 {
				t.Errorf("after it at %s with %d locks held", b.p.level, b.p.nheld)
			}
			removed := make(chan struct{})
			go func() {
				defer close(removed)
				b.remove()
			}()
			await(t, removed, "the adapter's removal")
		})
	}
}

// A5: routines that wait return ErrWrongPlace where waiting is not allowed, and SRBs
// submitted there complete; with a verifier, which reports it, and without.
func TestA5_Misplaced(t *testing.T) {
	waits := map[string]func(b *bench, p *Processor) error{
		"Stop":           func(b *bench, p *Processor) error { return b.a.Stop(p) },
		"Restart":        func(b *bench, p *Processor) error { return b.a.Restart(p) },
		"Enumerate":      func(b *bench, p *Processor) error { return b.a.Enumerate(p) },
		"ResetNow":       func(b *bench, p *Processor) error { return b.a.ResetNow(p, b.lu, ResetUnit) },
		"RemoveContext":  func(b *bench, p *Processor) error { return b.a.RemoveContext(b.t.Context(), p) },
		"SurpriseRemove": func(b *bench, p *Processor) error { return b.a.SurpriseRemove(p) },
		"Submit": func(b *bench, p *Processor) error {
			s := b.srb(nil)
			s.Completer = nothing{}
			if b.lu.Submit(p, []*SRB{s}); s.Status != StatusInvalidRequest {
				return fmt.Errorf("status %s, want INVALID_REQUEST", s.Status)
			}
			return ErrWrongPlace
		},
	}
	for name, call := range waits {
		for _, verify := range []bool{true, false} {
			for _, where := range []string{"handler", "routine", "StartIo"} {
				t.Run(fmt.Sprintf("%s from %s verify=%t", name, where, verify), func(t *testing.T) {
					d := driverWithDpcs()
					b := newUncheckedBench(t, d, AdapterOptions{}, SystemConfig{Verify: verify, HoldLimit: time.Hour})
					var got error
					d.startIo = func(p *Processor, s *SRB) bool {
						if where == "StartIo" {
							got = call(b, p)
						}
						d.complete(p, s)
						return true
					}
					d.handler = func(p *Processor, _ SyncToken, _ uint16) bool { got = call(b, p); return true }
					switch where {
					case "handler":
						b.w.raise(b.p, 0)
					case "routine":
						SynchronizeAccess(b.a, b.p, func(tok SyncToken, _ int) bool { got = call(b, tok.p); return true }, 0)
					default:
						b.submitOne()
					}
					if !errors.Is(got, ErrWrongPlace) {
						t.Errorf("%v, want ErrWrongPlace", got)
					}
					if verify {
						b.wantOnly(CheckCallingPlace, " called from ")
					}
					b.remove()
				})
			}
		}
	}
}

// Every check has a provocation, in TestVerifier_Checks or in a test of its own.
func TestVerifier_AllChecksProvoked(t *testing.T) {
	elsewhere := []Check{CheckStopOutstanding, CheckFindAdapter}
	for c := Check(1); c < checkEnd; c++ {
		provoked := slices.Contains(elsewhere, c)
		for _, x := range provocations {
			provoked = provoked || x.check == c
		}
		if !provoked {
			t.Errorf("nothing provokes V%d %s", c, c)
		}
	}
}

// V11, the other side: BUSY is for StartIo to say, in a routine under
// SynchronizeAccess as well, and for BuildIo.
func TestVerifier_BusyInTime(t *testing.T) {
	for _, where := range []string{"BuildIo", "StartIo", "routine"} {
		t.Run(where, func(t *testing.T) {
			d := &driver{model: FullDuplex}
			busy := true
			refuse := func(p *Processor, s *SRB, here string) bool {
				if !busy || here != where {
					return true
				}
				busy = false
				s.Status, s.ScsiStatus = StatusBusy, scsi.StatusTaskSetFull
				d.a.Complete(p, s)
				return false
			}
			d.buildIo = func(p *Processor, s *SRB) bool { return refuse(p, s, "BuildIo") }
			d.startIo = func(p *Processor, s *SRB) bool {
				started := SynchronizeAccess(d.a, p, func(tok SyncToken, s *SRB) bool { return refuse(tok.p, s, "routine") }, s)
				if started && refuse(p, s, "StartIo") {
					d.complete(p, s)
				}
				return true
			}
			b := newBench(t, d, AdapterOptions{BusyPauseTime: time.Nanosecond})
			done := make(chan struct{})
			s := b.srb(&finished{each: func(*Processor, *SRB) { close(done) }})
			b.lu.Submit(b.p, []*SRB{s})
			await(t, done, "the second attempt")
			if busy || s.Status != StatusSuccess {
				t.Errorf("turned away %v, at the end %s", !busy, s.Status)
			}
			b.wantNoViolations()
		})
	}
}

// V4: what BuildIo keeps must be completed within its TimeOutValue, even if
// steady traffic keeps the unit's own timer from running out.
func TestVerifier_BuildIoFalseOverdue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &driver{model: FullDuplex}
		var kept *SRB
		d.buildIo = func(_ *Processor, s *SRB) bool {
			if kept == nil {
				kept = s
			}
			return kept != s
		}
		d.startIo = func(p *Processor, s *SRB) bool { d.complete(p, s); return true }
		b := newBench(t, d, AdapterOptions{DefaultTimeoutSecs: 5})
		b.submitOne()
		for range 4 {
			time.Sleep(time.Second)
			b.submitOne()
		}
		synctest.Wait()
		b.wantNoViolations()
		for range 6 {
			time.Sleep(time.Second)
			b.submitOne()
		}
		synctest.Wait()
		b.wantOnly(CheckBuildIoFalse, "TimeOutValue")
		if n := b.a.timeouts.Load(); n != 0 {
			t.Errorf("%d timeouts of the unit, which made progress", n)
		}
		d.complete(b.p, kept)
	})
}

// V14: an adapter ends although its miniport still has an SRB, which ResetBus did not
// bring back either: here a reset's, which MaxNumberOfIO does not count.
func TestVerifier_StopOutstanding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &driver{model: FullDuplex}, AdapterOptions{})
		if err := b.a.ResetNow(b.p, b.lu, ResetUnit); err == nil {
			t.Error("a reset that nobody answered succeeded")
		}
		if err := b.a.Stop(b.p); !errors.Is(err, ErrOutstanding) {
			t.Errorf("Stop: %v, want ErrOutstanding", err)
		}
		b.wantOnly(CheckStopOutstanding, "still holds SRBs: "+FunctionResetLogicalUnit.String())
		b.d.complete(b.p, b.d.take()[0])
		b.a.release()
	})
}

// V20: FindAdapter must set the transfer limits.
func TestVerifier_FindAdapter(t *testing.T) {
	for name, forget := range map[string]func(*Config){
		"MaximumTransferLength":  func(c *Config) { c.MaximumTransferLength = Uninitialized },
		"NumberOfPhysicalBreaks": func(c *Config) { c.NumberOfPhysicalBreaks = Uninitialized },
	} {
		t.Run(name, func(t *testing.T) {
			arena, err := dma.NewArena(1 << 20)
			if err != nil {
				t.Fatal(err)
			}
			b := &bench{t: t, sys: newSystem(t, SystemConfig{IOMMU: dma.NewIOMMU(arena), Verify: true})}
			b.p = b.processor("test")
			if _, err := b.sys.AddAdapter(b.p, &wire{messages: 1}, &driver{features: forget}, AdapterOptions{}); err == nil {
				t.Error("the adapter came up")
			}
			b.wantOnly(CheckFindAdapter, name)
		})
	}
}

// In strict mode the first violation is a panic that describes it.
func TestVerifier_Strict(t *testing.T) {
	b := newBenchIn(t, &driver{model: FullDuplex}, AdapterOptions{}, SystemConfig{Strict: true})
	s := b.submitOne()
	story := func() (text string) {
		defer func() { text, _ = recover().(string) }()
		s.Status = StatusPending
		b.a.Complete(b.p, s)
		return ""
	}()
	for _, want := range []string{"V2 status", "PENDING", "SRB tag", "trail:", "StartIo", "on test"} {
		if !strings.Contains(story, want) {
			t.Errorf("the story %q does not mention %q", story, want)
		}
	}
	b.d.take()
	s.owner.Store(ownerMiniport) // the panic came before the port took it
	b.d.complete(b.p, s)
}

// A violation says where the processor was: callback, level and locks.
func TestVerifier_Record(t *testing.T) {
	b := newBench(t, &driver{model: FullDuplex, mode: InterruptSynchronizePerMessage, messages: 2}, AdapterOptions{})
	b.d.handler = func(p *Processor, _ SyncToken, _ uint16) bool {
		return SynchronizeAccess(b.a, p, func(SyncToken, int) bool { return true }, 0)
	}
	b.w.raise(b.p, 1)
	list := b.sys.Verifier().Violations()
	if len(list) != 1 {
		t.Fatalf("violations %v, want one", list)
	}
	v := list[0]
	if v.Callback != inInterrupt || v.Level != Device || !slices.Equal(v.Held, []string{"interrupt lock 1"}) || v.Processor != "test" {
		t.Errorf("record %+v, want Interrupt at Device on test with interrupt lock 1", v)
	}
}

// The records are bounded; the counters go on.
func TestVerifier_BoundedRecords(t *testing.T) {
	b := newBench(t, &driver{model: FullDuplex}, AdapterOptions{})
	s := b.srb(&finished{})
	const n = maxViolations + 10
	for range n {
		b.d.complete(b.p, s)
	}
	v := b.sys.Verifier()
	if len(v.Violations()) != maxViolations || v.Count(CheckDoubleCompletion) != n {
		t.Errorf("%d records and a count of %d, want %d and %d", len(v.Violations()), v.Count(CheckDoubleCompletion), maxViolations, n)
	}
}

// V7: a routine called outside its place is reported and refused; inside it is
// not.
func TestVerifier_Places(t *testing.T) {
	for r := range routineCount {
		pl := places[r]
		b := newBench(t, &driver{model: FullDuplex}, AdapterOptions{})
		inside, outside := 0, 0
		for c := range callbackCount {
			for level := Passive; level <= Device; level++ {
				b.p.callback, b.p.level = c, level
				want := pl.callbacks&(1<<c) != 0 && level <= pl.maxLevel
				if got := b.p.check(r); got != want {
					t.Errorf("%s from %s at %s: %v, want %v", pl.name, c, level, got, want)
				}
				if want {
					inside++
				} else {
					outside++
				}
			}
		}
		b.p.callback, b.p.level = inNone, Passive
		if n := b.sys.Verifier().Count(CheckCallingPlace); n != uint64(outside) {
			t.Errorf("%s: %d violations, want %d", pl.name, n, outside)
		}
		if inside == 0 || pl.name == "" {
			t.Errorf("routine %d %q may be called from nowhere", r, pl.name)
		}
	}
}

// Hold times: device time is not the driver's, and quantiles are what they say.
func TestVerifier_HoldTimes(t *testing.T) {
	clock := &testClock{}
	d := &driver{model: FullDuplex}
	b := newBenchIn(t, d, AdapterOptions{}, SystemConfig{Clock: clock.now})
	d.startIo = func(p *Processor, s *SRB) bool {
		clock.advance(30 * time.Microsecond)
		b.a.WriteRegisterUlong(p, &RegisterRange{noRegisters{func() { clock.advance(time.Hour) }}, 64}, 0, 1)
		clock.advance(30 * time.Microsecond)
		d.complete(p, s)
		return true
	}
	b.submitOne()
	var got, lock HoldStats
	for _, h := range b.sys.Verifier().HoldTimes() {
		switch h.What {
		case "StartIo":
			got = h.HoldStats
		case "StartIo lock":
			lock = h.HoldStats
		}
	}
	if lock.Count == 0 || lock.Max < 60*time.Microsecond {
		t.Errorf("hold time of the StartIo lock %+v, want at least 60 µs once", lock)
	}
	want := HoldStats{Count: 1, P50: 60 * time.Microsecond, P99: 60 * time.Microsecond, Max: 60 * time.Microsecond, Over: [3]uint64{1, 1, 0}}
	if got != want {
		t.Errorf("StartIo's hold time %+v, want %+v", got, want)
	}
	b.wantNoViolations()
}

// noRegisters is a memory range that only takes time.
type noRegisters struct{ write func() }

func (noRegisters) SizeBytes() uint32                  { return 64 }
func (noRegisters) Read32(pci.Runner, uint32) uint32   { return 0 }
func (noRegisters) Read64(pci.Runner, uint32) uint64   { return 0 }
func (noRegisters) Write64(pci.Runner, uint32, uint64) {}
func (r noRegisters) Write32(pci.Runner, uint32, uint32) {
	if r.write != nil {
		r.write()
	}
}

// completeWith lets StartIo complete an SRB with a status that it may not have.
func completeWith(status Status) func(b *bench, _ *testClock) {
	return func(b *bench, _ *testClock) {
		b.d.startIo = func(p *Processor, s *SRB) bool {
			s.Status = status
			b.a.Complete(p, s)
			return true
		}
		b.submitOne()
	}
}

// submitOne submits one SRB without data and returns it.
func (b *bench) submitOne() *SRB {
	s := b.srb(&finished{})
	b.lu.Submit(b.p, []*SRB{s})
	return s
}

// submitData submits one SRB that reads 512 bytes.
func (b *bench) submitData() {
	s := b.srb(&finished{})
	s.Flags |= FlagDataIn
	s.DataBuffer, s.DataTransferBytes = b.arena.Alloc(512), 512
	b.lu.Submit(b.p, []*SRB{s})
}

// dpc is one of the driver's DPCs.
func (b *bench) dpc(i int) *Dpc { return &b.d.dpcs[i] }

// wantOnly fails the test unless the verifier saw a breach of check, with in in
// its record, and of no other.
func (b *bench) wantOnly(check Check, in string) {
	b.t.Helper()
	v := b.sys.Verifier()
	if v.Count(check) == 0 {
		b.t.Errorf("V%d %s was not seen", check, check)
	}
	found := false
	for _, x := range v.Violations() {
		found = found || x.Check == check && strings.Contains(x.String(), in)
		if x.Check != check {
			b.t.Errorf("unexpected: %s", x)
		}
	}
	if !found {
		b.t.Error(errors.Join(errors.New("no record mentions "+in), errors.New(recordText(v))))
	}
}

func recordText(v *Verifier) string {
	var lines []string
	for _, x := range v.Violations() {
		lines = append(lines, x.String())
	}
	return strings.Join(lines, "\n")
}
