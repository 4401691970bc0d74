package hba

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vhbad/vhbad/hba/fault"
	"github.com/vhbad/vhbad/hba/target"
	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/internal/pci"
)

// Limits of a device.
const (
	MaxQueuePairs    = 63      // one cause bit each; the last is CauseEvent
	MaxRingEntries   = 1 << 15 // most entries of a ring that New accepts
	minRingEntries   = 2
	MaxWorkers       = 1024
	MaxTargets       = 16
	MaxLuns          = 255
	MaxTransferBytes = 32 << 20 // longest data phase of one command
)

// Defaults of Config.
const (
	DefaultQueuePairs  = 4
	DefaultRingEntries = 1024
	DefaultWorkers     = 16
)

var (
	// ErrClosed means that the device has been closed.
	ErrClosed = errors.New("hba: device is closed")
	// ErrBadAddress means that a target or unit number is out of range.
	ErrBadAddress = errors.New("hba: no such address")
	// ErrUnitExists means that the address is taken.
	ErrUnitExists = errors.New("hba: address is taken")
	// ErrNoUnit means that there is no unit at the address.
	ErrNoUnit = errors.New("hba: no unit at this address")
)

// Config says what device to build.
type Config struct {
	// QueuePairs is how many queue pairs the driver may create, 1 to
	// MaxQueuePairs. 0 means DefaultQueuePairs.
	QueuePairs int
	// RingEntries is the largest ring the driver may create, a power of two up
	// to MaxRingEntries. 0 means DefaultRingEntries.
	RingEntries int
	// Workers is the number of goroutines for commands that would block, 1 to
	// MaxWorkers. A flush or trim occupies one, so there should be more workers than
	// units that flush at once; three of eight are kept for reads, writes and GET LBA
	// STATUS. 0 means DefaultWorkers.
	Workers int
	// IOMMU is how the device reaches host memory. Mandatory.
	IOMMU *dma.IOMMU
	// Log receives fatal conditions and resets. Nil means slog.Default.
	Log *slog.Logger
	// Clock is the clock that faults go by. Nil means real time.
	Clock Clock
	// OnPowerCut cuts a unit's power and returns once that is done; the command that set
	// it off is held meanwhile. Nil means that there is no switch.
	OnPowerCut func(PowerCut)
	// OnDisconnect closes the connections of a unit's clients, on the same terms.
	OnDisconnect func(targetID, lun uint8)
}

// A Device is a host bus adapter. Its driver uses it as a pci.Function, its owner
// through the remaining methods.
//
// # Locks
//
// Outermost first. None is held while an interrupt is delivered, a command
// executes or a register write returns.
//
//	Device.undoMu      faults of units that will end
//	  Device.mu        queues coming and going, workers' commands, resets
//	    queue.postMu   the completion ring
//	    Device.unitMu  which units are attached
//	interrupts.mu
//	  interrupts.lineMu
//
// The role of a queue's engine is not a lock: nobody waits for it.
type Device struct {
	iommu   *dma.IOMMU
	log     *slog.Logger
	cap     Capability
	workers int
	bar     registers
	config  [configSpaceBytes]byte

	slots   []slot // by queue pair
	targets [MaxTargets]atomic.Pointer[target.Target]
	intr    interrupts

	unitsChanged atomic.Uint64
	eventRaised  atomic.Bool
	raiseLater   atomic.Uint64 // queue pairs whose interrupt the event goroutine owes
	runOwed      atomic.Uint64 // queue pairs that the event goroutine is to run
	resets       atomic.Uint64

	clock        Clock
	onPowerCut   func(PowerCut)
	onDisconnect func(targetID, lun uint8)
	// faults are the rules in force, nil if there are none. Stored under mu.
	faults atomic.Pointer[faultTable]

	undoMu sync.Mutex // serialises the ending of unit faults
	// +checklocks:undoMu
	undos []*undo

	stop       chan struct{} // closed by Close
	goroutines sync.WaitGroup

	unitMu sync.Mutex // serialises AddUnit, RemoveUnit and unplugging
	// unplugged are the units that a fault has pulled out, by address.
	// +checklocks:unitMu
	unplugged map[address]*target.Unit

	mu sync.Mutex
	// +checklocks:mu
	enabled bool
	// +checklocks:mu
	fatal bool
	// +checklocks:mu
	resetting bool
	// +checklocks:mu
	closed bool
	// +checklocks:mu
	queueSelect uint64
	// lines are the commands that wait for a worker.
	// +checklocks:mu
	lines [lineCount]recordList
	// +checklocks:mu
	arrivals uint64 // commands ever put into lines
	// lanes are the units' lanes by address; lanesMade lists those that exist.
	// +checklocks:mu
	lanes []*lane
	// +checklocks:mu
	lanesMade []*lane
	// now is the clock of lanes; watches says whether they have timers.
	now     func() time.Time // immutable
	watches bool             // immutable
	// busy counts the workers that run a command of a line.
	// +checklocks:mu
	busy [lineCount]int
	// controls are the aborts, resets and other controls that wait for commands to end.
	// Each abort or reset holds a place in a completion ring.
	// +checklocks:mu
	controls []*control
	// resetStuck: a reset of the device has been requested and has not been carried out.
	// +checklocks:mu
	resetStuck bool
	// parked counts the commands that faults hold; timed are those of them that go on by
	// themselves.
	// +checklocks:mu
	parked int
	// +checklocks:mu
	timed timedRecords
	// stopTimer stops the pending timer for timed; timerDue is when it expires.
	// +checklocks:mu
	stopTimer func() bool
	// +checklocks:mu
	timerDue time.Duration
	// hauntings are the late completions and transfers to come.
	// +checklocks:mu
	hauntings map[*haunting]struct{}
	// muted are the queue pairs for which a fault has suppressed an interrupt.
	// +checklocks:mu
	muted map[*fault.Fault]uint64
	// ruleTimers are the timers of time-triggered rules, by rule and unit.
	// +checklocks:mu
	ruleTimers map[ruleUnit]*ruleTimer

	work  sync.Cond // on mu: signalled when a line gets a record, broadcast by Close
	quiet sync.Cond // on mu: broadcast when a reset has finished
}

// An address is the target and unit number of a unit.
type address struct{ target, lun uint8 }

// A slot is the place of one queue pair: the registers that describe it, the
// queue while there is one, and counters that outlive it.
type slot struct {
	queue atomic.Pointer[queue]
	_     [56]byte
	count counters
	regs  queueRegisters
	_     [32]byte
}

// New builds a device. Close ends it.
func New(c Config) (*Device, error) {
	d, err := newDevice(c)
	if err != nil {
		return nil, err
	}
	d.watches = true
	d.goroutines.Go(d.events)
	for i := range d.workers {
		d.goroutines.Go(func() { d.worker(ownEvents + 1 + i) })
	}
	return d, nil
}

// newDevice builds a device whose goroutines have not been started.
func newDevice(c Config) (*Device, error) {
	if c.QueuePairs == 0 {
		c.QueuePairs = DefaultQueuePairs
	}
	if c.RingEntries == 0 {
		c.RingEntries = DefaultRingEntries
	}
	if c.Workers == 0 {
		c.Workers = DefaultWorkers
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Clock == nil {
		c.Clock = wallClock{time.Now()}
	}
	switch {
	case c.IOMMU == nil:
		return nil, errors.New("hba: Config.IOMMU is missing")
	case c.QueuePairs < 1 || c.QueuePairs > MaxQueuePairs:
		return nil, fmt.Errorf("hba: %d queue pairs: want 1 to %d", c.QueuePairs, MaxQueuePairs)
	case c.RingEntries < 0 || !validEntries(uint64(c.RingEntries), MaxRingEntries):
		return nil, fmt.Errorf("hba: %d ring entries: want a power of two from %d to %d", c.RingEntries, minRingEntries, MaxRingEntries)
	case c.Workers < 1 || c.Workers > MaxWorkers:
		return nil, fmt.Errorf("hba: %d workers: want 1 to %d", c.Workers, MaxWorkers)
	case binary.NativeEndian.Uint16([]byte{1, 0}) != 1:
		return nil, errors.New("hba: rings are little endian and this machine is not")
	}
	d := &Device{
		iommu: c.IOMMU,
		log:   c.Log,
		clock: c.Clock,

		onPowerCut: c.OnPowerCut, onDisconnect: c.OnDisconnect,
		workers:    c.Workers,
		slots:      make([]slot, c.QueuePairs),
		stop:       make(chan struct{}),
		lanes:      make([]*lane, MaxTargets*MaxLuns),
		ruleTimers: make(map[ruleUnit]*ruleTimer),
		hauntings:  make(map[*haunting]struct{}),
		muted:      make(map[*fault.Fault]uint64),
		unplugged:  make(map[address]*target.Unit),
		now:        time.Now,
		cap: Capability(c.QueuePairs) |
			Capability(bits.Len(uint(c.RingEntries))-1)<<16 |
			MaxTargets<<32 | MaxLuns<<40 |
			MaxTransferBytes>>16<<48,
	}
	d.bar = registers{d}
	d.work.L, d.quiet.L = &d.mu, &d.mu
	d.intr.init(c.QueuePairs + 1)
	d.config = configSpace(d.bar.SizeBytes(), d.Messages())
	return d, nil
}

// Close resets the device, waits until it no longer touches host memory and stops its
// goroutines. It waits for a command that is blocked in its medium. Later register
// accesses do nothing.
func (d *Device) Close() {
	d.mu.Lock()
	first := !d.closed
	d.closed = true
	d.resetStuck = false
	d.setTimersLocked(nil)
	d.endHauntingsLocked(func(*haunting) bool { return true })
	d.startResetLocked()
	for d.resetting {
		d.quiet.Wait()
	}
	d.work.Broadcast()
	d.mu.Unlock()
	if first {
		close(d.stop)
	}
	d.goroutines.Wait()
}

func (d *Device) isClosed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.closed
}

func checkAddress(targetID, lun uint8) error {
	if targetID >= MaxTargets || lun >= MaxLuns {
		return fmt.Errorf("%w: target %d unit %d: want targets below %d, units below %d", ErrBadAddress, targetID, lun, MaxTargets, MaxLuns)
	}
	return nil
}

// AddUnit attaches u at an address, at any time. The driver is notified through
// RegUnitsChanged and the event message.
//
// Errors: ErrBadAddress, ErrUnitExists, ErrClosed.
func (d *Device) AddUnit(targetID, lun uint8, u *target.Unit) error {
	if err := checkAddress(targetID, lun); err != nil {
		return err
	}
	if d.isClosed() {
		return ErrClosed
	}
	d.unitMu.Lock()
	defer d.unitMu.Unlock()
	if d.unplugged[address{targetID, lun}] != nil {
		return fmt.Errorf("%w: target %d unit %d", ErrUnitExists, targetID, lun)
	}
	return d.attachLocked(targetID, lun, u)
}

// attachLocked attaches a unit and signals the change.
//
// +checklocks:d.unitMu
func (d *Device) attachLocked(targetID, lun uint8, u *target.Unit) error {
	t := d.targets[targetID].Load()
	if t == nil {
		t = target.NewTarget()
	}
	if t.Unit(lun) != nil {
		return fmt.Errorf("%w: target %d unit %d", ErrUnitExists, targetID, lun)
	}
	if err := t.AddUnit(lun, u); err != nil {
		return err
	}
	d.targets[targetID].Store(t)
	d.unitsChanged.Add(1)
	d.signalEvent()
	return nil
}

// RemoveUnit detaches the unit at an address, at any time, and waits until no command
// runs on it any more: its medium may then be closed. Later commands find no unit and
// meet none of its faults. The driver is notified as by AddUnit. A unit that a fault has
// unplugged is removed, too, and does not come back.
//
// Errors: ErrBadAddress, ErrNoUnit, or the context's error, in which case the unit is
// detached but a command may still run.
func (d *Device) RemoveUnit(ctx context.Context, targetID, lun uint8) error {
	if err := checkAddress(targetID, lun); err != nil {
		return err
	}
	if _, err := d.detachUnit(targetID, lun); err != nil {
		return err
	}
	// Its rules apply neither to commands that still come for it nor to the next unit
	// here.
	d.mu.Lock()
	if t := d.faults.Load(); t != nil {
		d.faults.Store(t.without(targetID, lun))
	}
	d.mu.Unlock()
	return d.drain(ctx, targetID, lun)
}

// detachUnit detaches a unit, plugged in or not, and signals the change.
func (d *Device) detachUnit(targetID, lun uint8) (*target.Unit, error) {
	d.unitMu.Lock()
	defer d.unitMu.Unlock()
	if u := d.unplugged[address{targetID, lun}]; u != nil {
		delete(d.unplugged, address{targetID, lun})
		return u, nil
	}
	return d.detachLocked(targetID, lun)
}

// +checklocks:d.unitMu
func (d *Device) detachLocked(targetID, lun uint8) (*target.Unit, error) {
	t := d.targets[targetID].Load()
	if t == nil || t.Unit(lun) == nil {
		return nil, fmt.Errorf("%w: target %d unit %d", ErrNoUnit, targetID, lun)
	}
	u := t.Unit(lun)
	if err := t.RemoveUnit(lun); err != nil {
		return nil, err
	}
	empty := true
	for lun := range uint8(MaxLuns) {
		empty = empty && t.Unit(lun) == nil
	}
	if empty {
		d.targets[targetID].Store(nil) // nobody answers there any more
	}
	d.unitsChanged.Add(1)
	d.signalEvent()
	return u, nil
}

// fail puts the device into StatusFatal, which only a reset ends.
func (d *Device) fail(reason string, queueIndex int) {
	yieldLock("lock to fail", &d.mu)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failLocked(reason, queueIndex)
}

// strayDoorbell handles a doorbell of a queue pair that does not exist. Around a reset,
// the doorbell is merely late, and harmless; on a running device, the driver has lost
// its way.
func (d *Device) strayDoorbell(queueIndex int) {
	yieldLock("lock for a stray doorbell", &d.mu)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.enabled {
		d.failLocked("doorbell of a queue pair that does not exist", queueIndex)
	}
}

// +checklocks:d.mu
func (d *Device) failLocked(reason string, queueIndex int) {
	if d.fatal || d.resetting {
		return
	}
	d.fatal = true
	d.updateGatesLocked()
	d.log.Error("device is broken until reset", "reason", reason, "queue", queueIndex)
	d.signalEvent()
}

// BAR implements pci.Function.
func (d *Device) BAR(n int) pci.Registers {
	if n != BAR {
		return nil
	}
	return d.bar
}

// ReadConfig implements pci.Function.
func (d *Device) ReadConfig(offset int, p []byte) int {
	if offset < 0 || offset >= len(d.config) {
		return 0
	}
	return copy(p, d.config[offset:])
}

var _ pci.Function = (*Device)(nil)
