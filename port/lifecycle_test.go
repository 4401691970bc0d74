package port

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/internal/pci"
	"github.com/vhbad/vhbad/internal/scsi"
)

// A recorder is a driver that records which callbacks ran, and answers
// SCSI commands in StartIo: units says which units there are.
type recorder struct {
	driver
	surprise bool // takes ControlSurpriseRemoval
	caches   bool

	listMu sync.Mutex
	events []string
	units  []uint8
	keep   bool // keep what is not enumeration
	// deaf, if not nil, says which SRBs are not answered; the test keeps those.
	deaf func(srb *SRB) bool
}

func (r *recorder) note(what string) {
	r.listMu.Lock()
	defer r.listMu.Unlock()
	if len(r.events) == 0 || r.events[len(r.events)-1] != what {
		r.events = append(r.events, what)
	}
}

func (r *recorder) noted() []string {
	r.listMu.Lock()
	defer r.listMu.Unlock()
	return slices.Clone(r.events)
}

func (r *recorder) has(units ...uint8) {
	r.listMu.Lock()
	defer r.listMu.Unlock()
	r.units = units
}

func (r *recorder) FindAdapter(p *Processor, a *Adapter, c *Config) FindResult {
	r.note("FindAdapter")
	if r.surprise {
		if err := a.SetFeatureList(p, ControlSurpriseRemoval); err != nil {
			return FindError
		}
	}
	c.CachesData = r.caches
	r.features = func(c *Config) { c.CachesData = r.caches }
	return r.driver.FindAdapter(p, a, c)
}

func (r *recorder) Initialize(p *Processor, t SyncToken) bool {
	r.note("Initialize")
	return r.driver.Initialize(p, t)
}

func (r *recorder) PassiveInitialize(*Processor) bool {
	r.note("PassiveInitialize")
	return true
}

func (r *recorder) AdapterControl(p *Processor, t ControlType) ControlResult {
	switch t {
	case ControlQuerySupported:
		r.note("QuerySupported")
	case ControlStopAdapter:
		r.note("StopAdapter")
	case ControlRestartAdapter:
		r.note("RestartAdapter")
	case ControlSurpriseRemoval:
		r.note("SurpriseRemoval")
		for _, srb := range r.take() {
			srb.Status = StatusNoHBA
			r.a.Complete(p, srb)
		}
	default:
		r.note("unknown control")
	}
	return ControlSuccess
}

func (r *recorder) UnitControl(p *Processor, t UnitControlType, lu *LogicalUnit) ControlResult {
	r.note([...]string{"UnitStart ", "UnitRemove "}[t] + string('0'+rune(lu.Lun())))
	return r.driver.UnitControl(p, t, lu)
}

func (r *recorder) StartIo(p *Processor, srb *SRB) bool {
	if r.deaf != nil && r.deaf(srb) {
		return true
	}
	switch srb.Function {
	case FunctionFlush:
		r.note("FLUSH")
		r.complete(p, srb)
		return true
	case FunctionShutdown:
		r.note("SHUTDOWN")
		r.complete(p, srb)
		return true
	default:
	}
	r.listMu.Lock()
	units := r.units
	r.listMu.Unlock()
	switch scsi.Opcode(srb.CDB[0]) {
	case scsi.OpReportLUNs:
		r.note("REPORT LUNS")
		n := scsi.PutReportLUNsHeader(srb.DataBuffer, len(units))
		for _, lun := range units {
			n += scsi.PutLUN(srb.DataBuffer[n:], lun)
		}
		srb.DataTransferBytes = uint32(n)
	case scsi.OpInquiry:
		r.note("INQUIRY")
		srb.DataTransferBytes = uint32(scsi.PutInquiryData(srb.DataBuffer, &scsi.Inquiry{Peripheral: scsi.PeripheralDisk, CommandQueuing: true}))
	default:
		r.note("I/O")
		if r.keep {
			return r.driver.StartIo(p, srb)
		}
	}
	r.complete(p, srb)
	return true
}

// recorderWire notes when interrupts are connected.
type recorderWire struct {
	wire
	r *recorder
}

func (w *recorderWire) ConnectInterrupt(m pci.InterruptMode, raise pci.InterruptFunc, newRunner func(string) pci.Runner) error {
	w.r.note("interrupts connected")
	return w.wire.ConnectInterrupt(m, raise, newRunner)
}

func (w *recorderWire) DisconnectInterrupt() { w.r.note("interrupts disconnected") }

// stage brings a recorder up; the adapter is not removed by it.
func stage(t *testing.T, r *recorder) *bench {
	t.Helper()
	return stageMiniport(t, r, r)
}

// stageMiniport is stage for a miniport that has r within.
func stageMiniport(t *testing.T, r *recorder, mp Miniport) *bench {
	t.Helper()
	b := bareStage(t, r, mp)
	t.Cleanup(func() {
		if n := b.sys.iommu.WindowsInUse(); n != 0 && !t.Failed() {
			t.Errorf("%d IOMMU windows left", n)
		}
	})
	return b
}

// bareStage is stageMiniport without the check for leftovers at the end.
func bareStage(t *testing.T, r *recorder, mp Miniport) *bench {
	t.Helper()
	arena, err := dma.NewArena(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, arena: arena, d: &r.driver}
	b.sys = newSystem(t, SystemConfig{IOMMU: dma.NewIOMMU(arena), Verify: true, HoldLimit: time.Hour})
	b.p = b.processor("test")
	w := &recorderWire{wire: wire{messages: 1}, r: r}
	if b.a, err = b.sys.AddAdapter(b.p, w, mp, AdapterOptions{}); err != nil {
		t.Fatal(err)
	}
	return b
}

func wantEvents(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("callbacks:\n %s\nwant:\n %s", strings.Join(got, " > "), strings.Join(want, " > "))
	}
}

// An adapter comes up, works, is stopped, started again and removed, with the callbacks
// in the only legal order.
func TestLifeCycle_Order(t *testing.T) {
	r := &recorder{driver: driver{model: FullDuplex}, caches: true}
	r.has(0)
	b := stage(t, r)
	if err := b.a.Enumerate(b.p); err != nil {
		t.Fatal(err)
	}
	b.lu = b.a.LogicalUnits()[0]
	done := &finished{}
	s := b.srb(done)
	b.lu.Submit(b.p, []*SRB{s})
	if err := b.a.Stop(b.p); err != nil {
		t.Fatal(err)
	}
	b.lu.Submit(b.p, []*SRB{s}) // waits
	if err := b.a.Restart(b.p); err != nil {
		t.Fatal(err)
	}
	if n := len(done.list()); n != 2 {
		t.Errorf("%d completions, want 2: one before the stop, one after the restart", n)
	}
	b.a.FreeSRB(s)
	b.a.Remove(b.p)
	wantEvents(t, r.noted(),
		"FindAdapter", "interrupts connected", "Initialize", "PassiveInitialize", "QuerySupported",
		"REPORT LUNS", "INQUIRY", "UnitStart 0", "I/O",
		"FLUSH", "StopAdapter", "RestartAdapter", "I/O",
		"FLUSH", "SHUTDOWN", "StopAdapter", "interrupts disconnected")
	b.wantNoViolations()
}

// Units come and go with BusChangeDetected. SRBs in the queue of a unit that went, and
// later ones, complete with StatusNoDevice; the other units do not notice.
func TestLifeCycle_HotUnits(t *testing.T) {
	r := &recorder{driver: driver{model: FullDuplex}}
	r.has(0)
	b := stage(t, r)
	changes := make(chan [2][]*LogicalUnit, 1)
	b.a.OnUnitsChanged(func(added, removed []*LogicalUnit) { changes <- [2][]*LogicalUnit{added, removed} })
	b.a.BusChangeDetected(b.p)
	first := (<-changes)[0][0]
	r.has(0, 2)
	b.a.BusChangeDetected(b.p)
	c := <-changes
	if len(c[0]) != 1 || c[0][0].Lun() != 2 || len(c[1]) != 0 {
		t.Fatalf("added %v, removed %v, want unit 2 added", c[0], c[1])
	}
	second := c[0][0]
	if b.a.LogicalUnits()[0] != first {
		t.Error("a unit that stayed was replaced")
	}
	done := &finished{}
	s := []*SRB{b.srb(done), b.srb(done)}
	b.a.PauseDevice(b.p, 0, 0, 2, 600)
	second.Submit(b.p, s[:1])
	r.has(0)
	b.a.ResumeDevice(b.p, 0, 0, 2)
	b.a.PauseDevice(b.p, 0, 0, 2, 600)
	second.Submit(b.p, s[1:])
	b.a.BusChangeDetected(b.p)
	if c = <-changes; len(c[0]) != 0 || len(c[1]) != 1 || c[1][0] != second {
		t.Fatalf("added %v, removed %v, want unit 2 removed", c[0], c[1])
	}
	second.Submit(b.p, s[:1])
	if len(done.list()) != 3 || s[0].Status != StatusNoDevice || s[1].Status != StatusNoDevice {
		t.Errorf("%d completions, %s, %s; want StatusNoDevice", len(done.list()), s[0], s[1])
	}
	first.Submit(b.p, s[:1])
	if s[0].Status != StatusSuccess {
		t.Errorf("on the unit that stayed: %s", s[0])
	}
	for _, x := range s {
		b.a.FreeSRB(x)
	}
	b.a.Remove(b.p)
	b.wantNoViolations()
}

// When the hardware is gone, the miniport hands back what it holds, the port
// fails what waits, built or not, and SynchronizeAccess does nothing afterwards.
func TestLifeCycle_SurpriseRemoval(t *testing.T) {
	for _, model := range []SynchronizationModel{HalfDuplex, FullDuplex} {
		t.Run(model.String(), func(t *testing.T) {
			r := &recorder{driver: driver{model: model}, surprise: true, keep: true}
			r.has(0)
			b := stage(t, r)
			if err := b.a.Enumerate(b.p); err != nil {
				t.Fatal(err)
			}
			b.lu = b.a.LogicalUnits()[0]
			done := &finished{}
			held, parked, waiting := b.srb(done), b.srb(done), b.srb(done)
			b.lu.Submit(b.p, []*SRB{held})
			// BuildIo closes the gate behind itself, so that the SRB is parked, built.
			r.buildIo = func(p *Processor, _ *SRB) bool { return b.a.PauseDevice(p, 0, 0, 0, 600) }
			b.lu.Submit(b.p, []*SRB{parked, waiting})
			r.buildIo = nil
			if n := b.lu.Stats().Parked; n == 0 {
				t.Fatal("nothing was parked")
			}
			if err := b.a.SurpriseRemove(b.p); err != nil {
				t.Fatal(err)
			}
			if held.Status != StatusNoHBA || parked.Status != StatusNoDevice || waiting.Status != StatusNoDevice {
				t.Errorf("held: %s\nparked: %s\nwaiting: %s", held, parked, waiting)
			}
			if SynchronizeAccess(b.a, b.p, func(SyncToken, int) bool { return true }, 0) {
				t.Error("SynchronizeAccess ran its routine after the removal")
			}
			b.lu.Submit(b.p, []*SRB{held})
			if n := len(done.list()); n != 4 || held.Status != StatusNoDevice {
				t.Errorf("%d completions, want 4; submitted after the removal: %s", n, held)
			}
			if err := b.a.SurpriseRemove(b.p); !errors.Is(err, ErrAdapterStopped) {
				t.Errorf("second removal: %v", err)
			}
			b.a.Remove(b.p) // does nothing
			for _, x := range []*SRB{held, parked, waiting} {
				b.a.FreeSRB(x)
			}
			if events := r.noted(); slices.Contains(events, "StopAdapter") || !slices.Contains(events, "SurpriseRemoval") {
				t.Errorf("callbacks: %s", strings.Join(events, " > "))
			}
			b.wantNoViolations()
		})
	}
}

// A miniport that keeps SRBs keeps their memory too, and the caller is told.
func TestLifeCycle_SurpriseRemovalKeepsMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &driver{model: FullDuplex}
		d.resetBus = func(*Processor, uint8) bool { return false }
		b := newBench(t, d, AdapterOptions{ResetTimeout: 3 * time.Second})
		s := b.srb(&finished{})
		b.lu.Submit(b.p, []*SRB{s})
		start := time.Now()
		if err := b.a.SurpriseRemove(b.p); !errors.Is(err, ErrOutstanding) {
			t.Errorf("SurpriseRemove: %v, want ErrOutstanding", err)
		}
		if d := time.Since(start); d != 3*time.Second {
			t.Errorf("it took %s, want the ResetTimeout", d)
		}
		if n := b.sys.Verifier().Count(CheckStopOutstanding); n != 1 {
			t.Errorf("%d violations of V14, want 1", n)
		}
		b.d.complete(b.p, b.d.take()[0]) // better late than never
		b.a.release()
	})
}

// A unit marked failed fails what it has and is found anew by the next
// enumeration; a failed adapter fails everything.
func TestMarkDeviceFailed(t *testing.T) {
	r := &recorder{driver: driver{model: FullDuplex}}
	r.has(0, 1)
	b := stage(t, r)
	if err := b.a.Enumerate(b.p); err != nil {
		t.Fatal(err)
	}
	old := b.a.LogicalUnits()[1]
	done := make(signal, 2)
	s, err := b.a.NewSRB(nil)
	if err != nil {
		t.Fatal(err)
	}
	s.Flags, s.QueueAction, s.Completer = FlagQueueActionEnable|FlagNoQueueFreeze, SimpleTag, done
	b.a.PauseDevice(b.p, 0, 0, 1, 600)
	old.Submit(b.p, []*SRB{s})
	if !b.a.MarkDeviceFailed(b.p, 0, 0, 1, "smoke") || b.a.MarkDeviceFailed(b.p, 0, 0, 9, "no such unit") {
		t.Error("MarkDeviceFailed: want true for unit 1, false for unit 9")
	}
	<-done
	if s.Status != StatusNoDevice {
		t.Errorf("on the failed unit: %s", s)
	}
	if err := b.a.Enumerate(b.p); err != nil {
		t.Fatal(err)
	}
	if units := b.a.LogicalUnits(); len(units) != 2 || units[1] == old {
		t.Errorf("units after enumeration: %v, want a new unit 1", units)
	}
	lu := b.a.LogicalUnits()[0]
	b.a.Pause(b.p, 600)
	lu.Submit(b.p, []*SRB{s})
	b.a.MarkDeviceFailed(b.p, 0xFF, 0xFF, 0xFF, "fire")
	<-done
	if s.Status != StatusNoDevice {
		t.Errorf("on the failed adapter: %s", s)
	}
	if err := b.a.Enumerate(b.p); !errors.Is(err, ErrAdapterStopped) {
		t.Errorf("enumeration of a failed adapter: %v", err)
	}
	b.a.FreeSRB(s)
	b.a.Remove(b.p)
	if slices.Contains(r.noted(), "SurpriseRemoval") {
		t.Error("a failed adapter is not one whose hardware is gone")
	}
	b.wantNoViolations()
}

// Everybody who is told of units has heard that a unit marked failed is gone, before
// another comes at its address.
func TestMarkDeviceFailed_Told(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{driver: driver{model: FullDuplex}}
		b, lu := staged(t, r)
		here := b.a.LogicalUnits()
		b.a.OnUnitsChanged(func(added, removed []*LogicalUnit) {
			here = slices.DeleteFunc(here, func(lu *LogicalUnit) bool { return slices.Contains(removed, lu) })
			here = append(here, added...)
		})
		b.a.MarkDeviceFailed(b.p, 0, 0, 1, "smoke")
		synctest.Wait()
		if slices.Contains(here, lu) || !slices.Contains(r.noted(), "UnitRemove 1") {
			t.Errorf("told of %v, callbacks %v; want unit 1 removed", here, r.noted())
		}
		if err := b.a.Enumerate(b.p); err != nil {
			t.Fatal(err)
		}
		if want := b.a.LogicalUnits(); !slices.Equal(here, want) {
			t.Errorf("told of %v, want %v", here, want)
		}
		b.a.Remove(b.p)
		b.wantNoViolations()
	})
}

// SRBs that wait for a failed unit or adapter fail although an enumeration waits for the
// same queue to open.
func TestMarkDeviceFailed_BesideEnumeration(t *testing.T) {
	for name, at := range map[string][3]uint8{"unit": {0, 0, 1}, "adapter": {wildcard, wildcard, wildcard}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &recorder{driver: driver{model: FullDuplex}}
				b, lu := staged(t, r)
				done := &finished{}
				s := b.srb(done)
				b.a.PauseDevice(b.p, 0, 0, 1, 3600)
				lu.Submit(b.p, []*SRB{s})
				b.a.BusChangeDetected(b.p)
				synctest.Wait() // its INQUIRY waits behind s
				b.a.MarkDeviceFailed(b.p, at[0], at[1], at[2], "smoke")
				synctest.Wait()
				if got := done.list(); !slices.Equal(got, []*SRB{s}) || s.Status != StatusNoDevice {
					t.Fatalf("completed %v, want %s with StatusNoDevice", got, s)
				}
				b.a.FreeSRB(s)
				b.a.Remove(b.p)
				b.wantNoViolations()
			})
		})
	}
}

// An adapter that its miniport rejects leaves nothing behind, whatever the
// miniport asked for before.
func TestLifeCycle_Rejected(t *testing.T) {
	arena, err := dma.NewArena(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	sys := newSystem(t, SystemConfig{IOMMU: dma.NewIOMMU(arena), Verify: true})
	p, err := sys.NewProcessor("test")
	if err != nil {
		t.Fatal(err)
	}
	d := &driver{model: FullDuplex}
	d.findAdapter = func(p *Processor, c *Config) {
		var tm Timer
		d.a.InitializeTimer(p, &tm)
		if err := d.a.RequestTimer(p, &tm, func(*Processor, *Timer) { t.Error("the timer ran") }, time.Nanosecond); err != nil {
			t.Error(err)
		}
		d.a.QueueWorkItem(p, &WorkItem{Routine: func(*Processor) { t.Error("the work item ran") }})
		d.a.MarkDeviceFailed(p, wildcard, wildcard, wildcard, "dead on arrival")
		c.SrbExtensionBytes = 64
		if d.a.GetUncachedExtension(p, c, 4096) == nil {
			t.Error("no uncached extension")
		}
		if _, err := d.a.AllocateDmaMemory(p, 4096); err != nil {
			t.Error(err)
		}
	}
	rejected := func(why string) {
		t.Helper()
		if _, err := sys.AddAdapter(p, &wire{messages: 1}, d, AdapterOptions{}); err == nil {
			t.Errorf("AddAdapter: no error for %s", why)
		}
		if n, w, m := sys.ProcessorsInUse(), sys.iommu.WindowsInUse(), arena.Stats().InUseBytes; n != 1 || w != 0 || m != 0 {
			t.Errorf("%s: %d processors, %d windows, %d bytes left; want 1, 0, 0", why, n, w, m)
		}
	}
	d.features = func(c *Config) { c.MaxNumberOfIO = 0 }
	rejected("MaxNumberOfIO 0")
	d.features = nil
	d.findAdapter = func(p *Processor, _ *Config) {
		if _, err := d.a.AllocateDmaMemory(p, 4096); err != nil {
			t.Error(err)
		}
	}
	d.initialize = func(*Processor, SyncToken) bool { return false }
	rejected("an Initialize that fails")
}

// A refusingWire does not connect, and counts disconnects.
type refusingWire struct {
	wire
	disconnected int
}

var errRefused = errors.New("refused")

func (w *refusingWire) ConnectInterrupt(_ pci.InterruptMode, _ pci.InterruptFunc, newRunner func(string) pci.Runner) error {
	newRunner("first")
	return errRefused
}

func (w *refusingWire) DisconnectInterrupt() { w.disconnected++ }

// An adapter that could not connect its interrupts disconnects none: they may be those of
// another adapter of the same function.
func TestLifeCycle_NotConnected(t *testing.T) {
	b := newBench(t, &driver{model: FullDuplex}, AdapterOptions{})
	before := b.sys.ProcessorsInUse()
	w := &refusingWire{wire: wire{messages: 1}}
	if _, err := b.sys.AddAdapter(b.p, w, &driver{model: FullDuplex}, AdapterOptions{}); !errors.Is(err, errRefused) {
		t.Errorf("AddAdapter: %v, want what the function said", err)
	}
	if w.disconnected != 0 {
		t.Errorf("disconnected %d times", w.disconnected)
	}
	if n := b.sys.ProcessorsInUse(); n != before {
		t.Errorf("%d processors in use, before %d", n, before)
	}
}

// An enumeration that meets a stopped adapter waits for the restart: the units
// that it asks are served like any.
func TestLifeCycle_EnumerationAcrossStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{driver: driver{model: FullDuplex}}
		r.has(0, 1)
		b := stage(t, r)
		b.a.Pause(b.p, 600)
		b.a.BusChangeDetected(b.p)
		synctest.Wait() // the worker waits for REPORT LUNS
		if err := b.a.Stop(b.p); err != nil {
			t.Fatal(err)
		}
		b.a.Resume(b.p)
		synctest.Wait()
		if err := b.a.Restart(b.p); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if units := b.a.LogicalUnits(); len(units) != 2 {
			t.Errorf("%d units, want 2", len(units))
		}
		b.a.Remove(b.p)
		b.wantNoViolations()
	})
}

// A reset of a stopped adapter is refused: it would start what was stopped.
func TestLifeCycle_NoResetWhileStopped(t *testing.T) {
	d := &driver{model: FullDuplex}
	d.resetBus = func(*Processor, uint8) bool { t.Error("ResetBus of a stopped adapter"); return true }
	b := newBench(t, d, AdapterOptions{})
	if err := b.a.Stop(b.p); err != nil {
		t.Fatal(err)
	}
	if err := b.a.ResetNow(b.p, b.lu, ResetBus); err == nil {
		t.Error("ResetNow: no error")
	}
	if err := b.a.Restart(b.p); err != nil {
		t.Fatal(err)
	}
	d.resetBus = func(*Processor, uint8) bool { return true }
	if err := b.a.ResetNow(b.p, b.lu, ResetBus); err != nil {
		t.Errorf("after the restart: %v", err)
	}
	b.wantNoViolations()
}

// Any known unit that fails the commands of an enumeration stays, unless the answer is
// that it does not exist; and the others of its target come and go.
func TestLifeCycle_UnitFails(t *testing.T) {
	for _, tt := range []struct {
		status Status
		there  bool
	}{
		{StatusError, true},
		{StatusAborted, true},
		{StatusTimeout, true},
		{StatusNoDevice, false},
		{StatusInvalidLun, false},
		{StatusSelectionTimeout, false},
	} {
		for failing := range uint8(2) {
			if failing == 0 && !tt.there {
				continue // the same as no target
			}
			t.Run(fmt.Sprintf("%s %d", tt.status, failing), func(t *testing.T) {
				r := &recorder{driver: driver{model: FullDuplex}}
				r.has(0, 1, 2)
				b := stage(t, r)
				defer b.a.Remove(b.p)
				enumerate := func(units ...uint8) {
					t.Helper()
					r.has(units...)
					if err := b.a.Enumerate(b.p); err != nil {
						t.Fatal(err)
					}
				}
				want := func(want ...*LogicalUnit) {
					t.Helper()
					if got := b.a.LogicalUnits(); !slices.Equal(got, want) {
						t.Errorf("units %v, want %v", got, want)
					}
				}
				enumerate(0, 1, 2)
				before := b.a.LogicalUnits()
				kept := slices.Clone(before[:2])
				if !tt.there {
					kept = slices.Delete(kept, int(failing), int(failing)+1)
				}
				r.deaf = func(s *SRB) bool {
					if s.Lun == failing || s.Lun == 5 {
						s.Status = tt.status
						r.a.Complete(b.p, s)
						return true
					}
					return false
				}
				enumerate(0, 1, 5) // what has never said that it is one is none
				want(kept...)
				r.deaf = nil
				enumerate(0, 1)
				if now := b.a.LogicalUnits(); len(now) != 2 || tt.there && !slices.Equal(now, before[:2]) {
					t.Errorf("units %v, want two, those of %v that were kept", now, before)
				}
			})
		}
	}
}
