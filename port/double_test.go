package port

import (
	"sync"
	"testing"
	"time"

	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/internal/lockorder"
	"github.com/vhbad/vhbad/internal/pci"
	"github.com/vhbad/vhbad/internal/scsi"
)

// wire is a device without a brain: it lets a test raise interrupts.
type wire struct {
	messages  int
	raise     pci.InterruptFunc
	newRunner func(string) pci.Runner

	mu       sync.Mutex
	asserted bool
}

func (w *wire) ReadConfig(int, []byte) int { return 0 }
func (w *wire) BAR(int) pci.Registers      { return nil }
func (w *wire) Messages() int              { return w.messages }
func (w *wire) ConnectInterrupt(_ pci.InterruptMode, raise pci.InterruptFunc, newRunner func(string) pci.Runner) error {
	w.raise, w.newRunner = raise, newRunner
	return nil
}
func (w *wire) DisconnectInterrupt()                  {}
func (w *wire) MaskMessage(pci.Message)               {}
func (w *wire) UnmaskMessage(pci.Runner, pci.Message) {}
func (w *wire) Asserted() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.asserted
}

func (w *wire) assert(up bool) {
	w.mu.Lock()
	w.asserted = up
	w.mu.Unlock()
}

// driver is a miniport whose callbacks a test sets. Unset ones do as little as possible:
// StartIo keeps the SRB in held, for the test to complete.
type driver struct {
	model    SynchronizationModel
	mode     InterruptSynchronizationMode
	messages int
	channels int
	features func(c *Config)

	a           *Adapter
	buildIo     func(p *Processor, srb *SRB) bool
	startIo     func(p *Processor, srb *SRB) bool
	commitIo    func(p *Processor, channel int)
	handler     func(p *Processor, t SyncToken, message uint16) bool
	resetBus    func(p *Processor, path uint8) bool
	initialize  func(p *Processor, t SyncToken) bool
	passiveInit func(p *Processor) bool
	findAdapter func(p *Processor, c *Config)
	control     func(p *Processor, c ControlType)
	unitControl func(p *Processor)

	dpcs [2]Dpc // for tests that initialize them

	mu   sync.Mutex
	held []*SRB
}

func (d *driver) FindAdapter(p *Processor, a *Adapter, c *Config) FindResult {
	d.a = a
	c.SynchronizationModel, c.InterruptSynchronizationMode = d.model, d.mode
	c.InterruptMessages = max(1, d.messages)
	c.MaximumTransferLength, c.NumberOfPhysicalBreaks = 1<<20, 256
	c.MaxNumberOfIO, c.MaxIOsPerLun, c.InitialLunQueueDepth = 64, 64, 32
	c.MaximumNumberOfLogicalUnits = 4
	c.SrbExtensionBytes = 128
	if d.features != nil {
		d.features(c)
	}
	if d.findAdapter != nil {
		d.findAdapter(p, c)
	}
	return Found
}

func (d *driver) Initialize(p *Processor, t SyncToken) bool {
	d.a.EnablePassiveInitialization(p)
	if d.channels > 0 {
		if err := d.a.InitializePerfOpts(p, false, &PerfConfigurationData{Flags: PerfConcurrentChannels, ConcurrentChannels: d.channels}); err != nil {
			return false
		}
	}
	return d.initialize == nil || d.initialize(p, t)
}

func (d *driver) PassiveInitialize(p *Processor) bool {
	return d.passiveInit == nil || d.passiveInit(p)
}

func (d *driver) BuildIo(p *Processor, srb *SRB) bool {
	return d.buildIo == nil || d.buildIo(p, srb)
}

func (d *driver) StartIo(p *Processor, srb *SRB) bool {
	if d.startIo != nil {
		return d.startIo(p, srb)
	}
	d.mu.Lock()
	d.held = append(d.held, srb)
	d.mu.Unlock()
	return true
}

func (d *driver) CommitIo(p *Processor, channel int) {
	if d.commitIo != nil {
		d.commitIo(p, channel)
	}
}

func (d *driver) Interrupt(p *Processor, t SyncToken) bool { return d.MessageInterrupt(p, t, 0) }

func (d *driver) MessageInterrupt(p *Processor, t SyncToken, message uint16) bool {
	return d.handler == nil || d.handler(p, t, message)
}

func (d *driver) ResetBus(p *Processor, path uint8) bool {
	return d.resetBus != nil && d.resetBus(p, path)
}

func (d *driver) AdapterControl(p *Processor, c ControlType) ControlResult {
	if d.control != nil {
		d.control(p, c)
	}
	return ControlSuccess
}

func (d *driver) UnitControl(p *Processor, _ UnitControlType, _ *LogicalUnit) ControlResult {
	if d.unitControl != nil {
		d.unitControl(p)
	}
	return ControlSuccess
}

// take returns the SRBs held and forgets them.
func (d *driver) take() []*SRB {
	d.mu.Lock()
	defer d.mu.Unlock()
	held := d.held
	d.held = nil
	return held
}

// complete completes srb with success.
func (d *driver) complete(p *Processor, srb *SRB) {
	srb.Status, srb.ScsiStatus = StatusSuccess, scsi.StatusGood
	d.a.Complete(p, srb)
}

// bench is an adapter with a driver, and one unit that was not enumerated.
type bench struct {
	t     *testing.T
	sys   *System
	arena *dma.Arena
	p     *Processor
	d     *driver
	w     *wire
	a     *Adapter
	lu    *LogicalUnit
}

func newBench(t *testing.T, d *driver, o AdapterOptions) *bench {
	t.Helper()
	return newBenchIn(t, d, o, SystemConfig{})
}

// newBenchIn is newBench in a system configured by c, except for memory and verifier.
// Without a limit in c, nothing counts as held too long, as on a loaded machine it may be.
func newBenchIn(t *testing.T, d *driver, o AdapterOptions, c SystemConfig) *bench {
	t.Helper()
	if c.HoldLimit == 0 {
		c.HoldLimit = time.Hour
	}
	c.Verify = true
	b := newUncheckedBench(t, d, o, c)
	t.Cleanup(func() {
		if !t.Failed() { // SRBs may be out, and Remove waits for them
			b.remove()
		}
	})
	return b
}

// newUncheckedBench is newBenchIn without a verifier, unless c has one, and
// without the removal at the end.
func newUncheckedBench(t *testing.T, d *driver, o AdapterOptions, c SystemConfig) *bench {
	t.Helper()
	arena, err := dma.NewArena(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, arena: arena, d: d, w: &wire{messages: max(1, d.messages)}}
	c.IOMMU = dma.NewIOMMU(arena)
	b.sys = newSystem(t, c)
	b.p = b.processor("test")
	b.a, err = b.sys.AddAdapter(b.p, b.w, d, o)
	if err != nil {
		t.Fatal(err)
	}
	b.lu = b.a.unitAt(0, 0, 0)
	return b
}

// remove completes what the driver holds and removes the adapter.
func (b *bench) remove() {
	for _, srb := range b.d.take() {
		b.d.complete(b.p, srb)
	}
	b.a.Remove(b.p)
}

// newSystem makes a system whose lock order joins that of all tests, unless the
// test breaks the lock rules, which it then does on purpose.
func newSystem(t testing.TB, c SystemConfig) *System {
	t.Helper()
	sys := NewSystem(c)
	t.Cleanup(func() {
		if sys.Verifier().Count(CheckLockRules) == 0 {
			lockorder.Record(t, sys.Verifier().LockOrder())
		}
	})
	return sys
}

func (b *bench) processor(name string) *Processor {
	p, err := b.sys.NewProcessor(name)
	if err != nil {
		b.t.Fatal(err)
	}
	return p
}

// srb makes a tagged SRB whose completion is noted in done.
func (b *bench) srb(done *finished) *SRB {
	s, err := b.a.NewSRB(nil)
	if err != nil {
		b.t.Fatal(err)
	}
	s.Flags = FlagQueueActionEnable | FlagNoQueueFreeze
	s.QueueAction = SimpleTag
	s.Completer = done
	return s
}

// wantNoViolations fails the test if the verifier saw anything.
func (b *bench) wantNoViolations() {
	b.t.Helper()
	for _, v := range b.sys.Verifier().Violations() {
		b.t.Errorf("violation: %s", v)
	}
}

// wantRemoved fails the test unless RemoveContext finds that all SRBs are back, and leaves
// no memory mapped.
func (b *bench) wantRemoved() {
	b.t.Helper()
	if err := b.a.RemoveContext(b.t.Context(), b.p); err != nil {
		b.t.Errorf("RemoveContext when all is back: %v", err)
	}
	if n := b.sys.iommu.WindowsInUse(); n != 0 {
		b.t.Errorf("%d IOMMU windows left", n)
	}
}

// finished collects completions.
type finished struct {
	mu   sync.Mutex
	srbs []*SRB
	each func(p *Processor, srb *SRB)
}

func (f *finished) CompleteSRB(p *Processor, srb *SRB) {
	f.mu.Lock()
	f.srbs = append(f.srbs, srb)
	each := f.each
	f.mu.Unlock()
	if each != nil {
		each(p, srb)
	}
}

func (f *finished) list() []*SRB {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]*SRB(nil), f.srbs...)
}

// signal signals completions.
type signal chan struct{}

func (c signal) CompleteSRB(*Processor, *SRB) { c <- struct{}{} }
