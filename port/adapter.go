package port

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vhbad/vhbad/internal/latency"
	"github.com/vhbad/vhbad/internal/pci"
)

// AdapterOptions are the port's own parameters for an adapter: what the vendor
// keeps in the registry. Zero values stand for the defaults.
type AdapterOptions struct {
	// Name is used in logs and errors.
	Name string
	// DefaultTimeoutSecs is for SRBs that name none. Default 60.
	DefaultTimeoutSecs uint32
	// BusyRetryCount is how often a BUSY SRB is tried again before its owner
	// sees it, resets and aborts aside. Default 20; negative: without limit.
	BusyRetryCount int
	// BusyPauseTime is how long a unit waits after BUSY. Default 250 ms.
	BusyPauseTime time.Duration
	// QueueFullWaitPercent is the share of the outstanding SRBs that must complete
	// after QUEUE FULL. Default 25.
	QueueFullWaitPercent int
	// ResetTimeout is how long each step of the reset road may take. Default 10 s.
	ResetTimeout time.Duration
	// StopTimeout bounds what Stop and Remove wait for the miniport. Default 2
	// minutes, which is long enough for a unit's timer and the whole reset road.
	StopTimeout time.Duration
	// LinkDownTimeout is how long LinkDown holds SRBs back. Default 30 s, at most
	// 600 s.
	LinkDownTimeout time.Duration
	// StrictSegments splits scatter/gather lists at every page.
	StrictSegments bool
}

// maxLinkDownTimeout bounds AdapterOptions.LinkDownTimeout.
const maxLinkDownTimeout = 600 * time.Second

func (o *AdapterOptions) setDefaults() {
	if o.Name == "" {
		o.Name = "hba0"
	}
	if o.DefaultTimeoutSecs == 0 {
		o.DefaultTimeoutSecs = 60
	}
	if o.BusyRetryCount == 0 {
		o.BusyRetryCount = 20
	}
	if o.BusyPauseTime == 0 {
		o.BusyPauseTime = 250 * time.Millisecond
	}
	if o.QueueFullWaitPercent == 0 {
		o.QueueFullWaitPercent = 25
	}
	if o.ResetTimeout == 0 {
		o.ResetTimeout = 10 * time.Second
	}
	if o.StopTimeout <= 0 {
		o.StopTimeout = 2 * time.Minute
	}
	if o.LinkDownTimeout <= 0 {
		o.LinkDownTimeout = 30 * time.Second
	}
	o.LinkDownTimeout = min(o.LinkDownTimeout, maxLinkDownTimeout)
}

// Adapter states.
const (
	adapterStarting uint32 = iota
	adapterRunning
	adapterStopped
	adapterFailed   // the miniport or its hardware is beyond recovery
	adapterRemoving // hardware gone, SRBs on their way back
	adapterRemoved  // gone: support routines do nothing
)

// Errors of the life cycle; they come wrapped in what was being done.
var (
	ErrNotFound       = errors.New("the miniport does not know this adapter")
	ErrBadConfig      = errors.New("the miniport rejects the adapter's configuration")
	ErrInitialize     = errors.New("the miniport could not initialize the adapter")
	ErrAdapterStopped = errors.New("the adapter is not running")
	ErrOutstanding    = errors.New("the miniport still holds SRBs")
)

// An Adapter is one host bus adapter: a device on the bus, the miniport that
// drives it, and the port's state between the two.
//
// Lock order: see the package comment. mu is a leaf.
type Adapter struct {
	sys      *System
	function pci.Function
	options  AdapterOptions
	config   Config // fixed after FindAdapter but for what Initialize negotiates

	miniport  Miniport
	builder   IoBuilder // nil: none
	committer IoCommitter
	messages  MessageInterrupter
	units     atomic.Pointer[unitTable]

	lineMode       bool
	connected      bool
	interrupts     []interrupt
	interruptLocks []spinLock // one, or one for each message
	startIoLock    spinLock
	channelLocks   []spinLock // not empty: concurrent channels
	perf           PerfConfigurationData
	wantPassive    bool               // EnablePassiveInitialization was called
	controls       [controlTypes]bool // optional control types, by SetFeatureList
	dpcCount       int
	ownedCount     int // KSpinLocks
	memory         miniportMemory
	uncached       DmaMemory // the uncached extension; zero: none
	kickDpc        Dpc

	state atomic.Uint32
	gate  atomic.Uint32
	_     [56]byte // the gate is read by all, outstanding is written by all
	// outstanding counts SRBs charged against MaxNumberOfIO; it changes once a
	// batch.
	outstanding atomic.Int64
	starved     atomic.Bool // a unit found outstanding at its limit
	_           [48]byte

	syncCount uint64 // SynchronizeAccess calls; under interrupt lock 0
	syncHold  holdTimes
	syncTimes latency.Histogram // as syncHold
	lockTimes [rankCount]lockTimes
	// stageTimes are as many as a power of two.
	stageTimes []*stageShard
	aborts     atomic.Uint64
	starting   [MaxChannels]atomic.Int32 // StartIo calls by channel; the verifier's
	resets     [3]atomic.Uint64
	timeouts   atomic.Uint64
	detected   atomic.Uint64 // ResetDetected
	nextTag    atomic.Uint32

	service    *service // timers and events; never waits
	worker     *service // work items
	enumerator *service // enumerations, and work items that wait for I/O
	recovery   *service // the reset road, and control of the adapter: they take turns

	// quietLooks is how many looks in a row saw nothing. The timer service's own.
	quietLooks int

	// gone is closed when the hardware is found to be gone.
	gone chan struct{}
	// failed is closed when the adapter is marked so.
	failed chan struct{}
	// halted: the miniport has stopped the adapter. The recovery service's own.
	halted bool
	// life is held by whoever stops, restarts or removes the adapter, surprise removal
	// included; it has room for one. Only its holder frees the adapter's memory.
	life chan struct{}

	mu sync.Mutex
	// held says how long the gate was closed.
	// +checklocks:mu
	held gateTimes
	// +checklocks:mu
	busyLeft int
	// +checklocks:mu
	pauseTurn uint64
	// +checklocks:mu
	linkTurn uint64
	// +checklocks:mu
	holdTurn uint64
	// +checklocks:mu
	timerTurn uint64
	// idle is closed when nothing is outstanding while Stop waits.
	// +checklocks:mu
	idle chan struct{}
	// +checklocks:mu
	onUnits func(added, removed []*LogicalUnit)
	// +checklocks:mu
	onReset func(ResetReport)
	// +checklocks:mu
	rescanQueued bool
	// enumAtRestart is set if the adapter was to enumerate while it was stopped.
	// +checklocks:mu
	enumAtRestart bool
	// enumAgain is the timer for the next enumeration, nil if none runs. enumAgainIn is
	// the delay of the latest such timer, zero once an enumeration has missed nothing.
	// +checklocks:mu
	enumAgain *time.Timer
	// +checklocks:mu
	enumAgainIn time.Duration
	// +checklocks:mu
	hardwareResetQueued bool
	// busBroken is set for a bus whose latest ResetBus failed, and resetAgainQueued
	// while a timer runs that will retry those buses; resetAgainIn is the delay of the
	// latest such timer.
	// +checklocks:mu
	busBroken [256]bool
	// +checklocks:mu
	resetAgainQueued bool
	// +checklocks:mu
	resetAgainIn time.Duration
	// stateChange is the highest change not looked at yet; zero: none.
	// +checklocks:mu
	stateChange StateChange
	// +checklocks:mu
	stateChangeDone func(p *Processor, change StateChange, found bool)
	// runners are the processors of the device's own goroutines.
	// +checklocks:mu
	runners []*Processor

	// enumTurn holds a token, which is taken in order to enumerate.
	enumTurn chan struct{}
	// resetSRBs are for the reset road: one for each level that uses an SRB. They belong
	// to the recovery service and, once that has stopped, to the holder of life.
	resetSRBs [2]*SRB
	// controlSRB is for FLUSH and SHUTDOWN; used by Stop and Remove only.
	controlSRB *SRB
}

// unitTable is the adapter's units; it is replaced as a whole, under the adapter's mu.
type unitTable struct {
	list []*LogicalUnit // by address
	// left are units that are gone, until the last of their SRBs has come back.
	left []*LogicalUnit
	all  []*LogicalUnit // both
}

func newUnitTable(list, left []*LogicalUnit) *unitTable {
	return &unitTable{list: list, left: left, all: slices.Concat(list, left)}
}

// AddAdapter brings an adapter up: FindAdapter, interrupts connected,
// Initialize, PassiveInitialize. Enumerate finds its units.
//
// Level: Passive. Errors: ErrNotFound, ErrBadConfig, ErrInitialize, or those of the
// device or of allocating memory.
func (s *System) AddAdapter(p *Processor, fn pci.Function, mp Miniport, o AdapterOptions) (*Adapter, error) {
	o.setDefaults()
	a := &Adapter{
		sys:      s,
		function: fn,
		options:  o,
		miniport: mp,
		gone:     make(chan struct{}),
		failed:   make(chan struct{}),
		life:     make(chan struct{}, 1),
		enumTurn: make(chan struct{}, 1),
	}
	a.enumTurn <- struct{}{}
	a.stageTimes = newStageShards(runtime.GOMAXPROCS(0))
	a.units.Store(&unitTable{})
	a.builder, _ = mp.(IoBuilder)
	a.committer, _ = mp.(IoCommitter)
	a.messages, _ = mp.(MessageInterrupter)
	a.initLock(&a.startIoLock, rankStartIo, 0)
	a.kickDpc.routine, a.kickDpc.a = a.dispatchAll, a
	a.initLock(&a.kickDpc.lock, rankDpc, 0)
	a.dpcCount = 1
	if err := a.makeServices(); err != nil {
		return nil, fmt.Errorf("%s: %w", o.Name, err)
	}
	if err := a.find(p); err != nil {
		a.discardServices()
		a.release()
		return nil, fmt.Errorf("%s: FindAdapter: %w", o.Name, err)
	}
	a.startServices()
	if err := a.initialize(p); err != nil {
		a.disconnect()
		return nil, errors.Join(fmt.Errorf("%s: %w", o.Name, err), a.end(context.Background(), nil))
	}
	if err := a.makeOwnSRBs(p); err != nil {
		a.Remove(p)
		return nil, fmt.Errorf("%s: %w", o.Name, err)
	}
	return a, nil
}

// ownSRBs is where the SRBs are that the port itself sends.
func (a *Adapter) ownSRBs() [3]**SRB {
	return [...]**SRB{&a.resetSRBs[0], &a.resetSRBs[1], &a.controlSRB}
}

// makeOwnSRBs makes them. They go down when nothing else may.
func (a *Adapter) makeOwnSRBs(p *Processor) error {
	for _, own := range a.ownSRBs() {
		srb, err := a.NewSRB(p)
		if err != nil {
			return err
		}
		srb.recovery = true
		*own = srb
	}
	return nil
}

// find runs FindAdapter and checks its result.
func (a *Adapter) find(p *Processor) error {
	c := &a.config
	*c = Config{
		InterruptMessages:      a.function.Messages(),
		MaximumTransferLength:  Uninitialized,
		NumberOfPhysicalBreaks: Uninitialized,
		MaxNumberOfIO:          1000, MaxIOsPerLun: 255, InitialLunQueueDepth: 20,
		NumberOfBuses: 1, MaximumNumberOfTargets: 1, MaximumNumberOfLogicalUnits: 255,
	}
	e := p.enter(inFindAdapter)
	result := a.miniport.FindAdapter(p, a, c)
	p.leave(e)
	switch result {
	case Found:
	case FindNotFound:
		return ErrNotFound
	case FindBadConfig:
		return ErrBadConfig
	case FindError, FoundNone:
		return fmt.Errorf("the miniport failed (result %d)", result)
	}
	if err := a.checkConfig(p); err != nil {
		return err
	}
	a.lineMode = c.InterruptSynchronizationMode == InterruptSupportNone
	if a.lineMode || c.InterruptMessages < 1 {
		c.InterruptMessages = 1
	}
	locks := 1
	if c.InterruptSynchronizationMode == InterruptSynchronizePerMessage {
		locks = c.InterruptMessages
	}
	a.interruptLocks = make([]spinLock, locks)
	for i := range a.interruptLocks {
		a.initLock(&a.interruptLocks[i], rankInterrupt, i)
	}
	a.interrupts = make([]interrupt, c.InterruptMessages)
	for i := range a.interrupts {
		a.interrupts[i].a, a.interrupts[i].message = a, uint16(i)
		a.interrupts[i].lock = a.lockOfMessage(uint16(i))
	}
	return nil
}

// checkConfig is V20 and the limits that the port relies on.
func (a *Adapter) checkConfig(p *Processor) error {
	c := &a.config
	var problems []error
	require := func(ok bool, format string, args ...any) {
		if !ok {
			problems = append(problems, fmt.Errorf(format, args...))
		}
	}
	require(c.MaximumTransferLength != Uninitialized && c.MaximumTransferLength > 0, "MaximumTransferLength is not set")
	require(c.NumberOfPhysicalBreaks != Uninitialized, "NumberOfPhysicalBreaks is not set")
	require(c.AlignmentMask <= 0x1ff && c.AlignmentMask&(c.AlignmentMask+1) == 0, "AlignmentMask %#x: want a power of two, 0x200 at most, less one", c.AlignmentMask)
	require(c.MaxNumberOfIO > 0, "MaxNumberOfIO %d: want at least 1", c.MaxNumberOfIO)
	require(c.MaxIOsPerLun > 0 && c.MaxIOsPerLun <= c.MaxNumberOfIO, "MaxIOsPerLun %d: want 1 to MaxNumberOfIO (%d)", c.MaxIOsPerLun, c.MaxNumberOfIO)
	require(c.InitialLunQueueDepth > 0 && c.InitialLunQueueDepth <= c.MaxIOsPerLun, "InitialLunQueueDepth %d: want 1 to MaxIOsPerLun (%d)", c.InitialLunQueueDepth, c.MaxIOsPerLun)
	require(c.NumberOfBuses > 0 && c.NumberOfBuses <= 255, "NumberOfBuses %d: want 1 to 255", c.NumberOfBuses)
	require(c.MaximumNumberOfTargets > 0 && c.MaximumNumberOfTargets <= 255, "MaximumNumberOfTargets %d: want 1 to 255", c.MaximumNumberOfTargets)
	require(c.MaximumNumberOfLogicalUnits > 0 && c.MaximumNumberOfLogicalUnits <= 255, "MaximumNumberOfLogicalUnits %d: want 1 to 255", c.MaximumNumberOfLogicalUnits)
	require(c.InterruptMessages >= 1 && c.InterruptMessages <= a.function.Messages(), "InterruptMessages %d: want 1 to %d", c.InterruptMessages, a.function.Messages())
	err := errors.Join(problems...)
	if err != nil && p.verify {
		p.violate(CheckFindAdapter, nil, err.Error())
	}
	return err
}

// initialize connects interrupts and runs Initialize and PassiveInitialize.
func (a *Adapter) initialize(p *Processor) error {
	mode := pci.MessageSignaled
	if a.lineMode {
		mode = pci.Line
	}
	var runnerErr error
	newRunner := func(name string) pci.Runner {
		r, err := a.sys.NewProcessor(name)
		if err != nil {
			runnerErr = err
			return nil
		}
		a.mu.Lock()
		a.runners = append(a.runners, r)
		a.mu.Unlock()
		return r
	}
	if err := a.function.ConnectInterrupt(mode, a.raiseInterrupt, newRunner); err != nil {
		return fmt.Errorf("connect interrupts: %w", cmp.Or(runnerErr, err))
	}
	a.connected = true
	a.wantPassive = false
	if !a.callInitialize(p) {
		return ErrInitialize
	}
	if a.wantPassive {
		pi, ok := a.miniport.(PassiveInitializer)
		if !ok {
			return fmt.Errorf("%w: EnablePassiveInitialization without a PassiveInitialize", ErrInitialize)
		}
		e := p.enter(inPassiveInitialize)
		ok = pi.PassiveInitialize(p)
		p.leave(e)
		if !ok {
			return ErrInitialize
		}
	}
	a.channelLocks = nil
	if a.perf.Flags&PerfConcurrentChannels != 0 {
		locks := make([]spinLock, a.perf.ConcurrentChannels)
		for i := range locks {
			a.initLock(&locks[i], rankChannel, i)
		}
		a.channelLocks = locks
	}
	// What the miniport can be asked for: after initialization, before any I/O.
	if a.control(p, ControlQuerySupported) != ControlSuccess {
		return fmt.Errorf("%w: AdapterControl(ControlQuerySupported) failed", ErrInitialize)
	}
	if !a.state.CompareAndSwap(adapterStarting, adapterRunning) {
		return fmt.Errorf("%w: it has failed already", ErrInitialize)
	}
	return nil
}

func (a *Adapter) callInitialize(p *Processor) bool {
	old := p.raise(Device)
	a.acquireInterrupts(p)
	e := p.enter(inInitialize)
	ok := a.miniport.Initialize(p, SyncToken{a: a, p: p, message: AllMessages})
	p.leave(e)
	a.releaseInterrupts(p)
	p.lower(old)
	return ok
}

// Config returns what FindAdapter and Initialize settled on.
func (a *Adapter) Config() Config { return a.config }

// Name is the adapter's name.
func (a *Adapter) Name() string { return a.options.Name }

// System is the machine that the adapter is in.
func (a *Adapter) System() *System { return a.sys }

// LogicalUnits returns the units found so far, in order of address.
func (a *Adapter) LogicalUnits() []*LogicalUnit {
	return append([]*LogicalUnit(nil), a.units.Load().list...)
}

// unit finds a unit by address. It is a linear search: the hot path never calls it.
func (a *Adapter) unit(path, target, lun uint8) *LogicalUnit {
	for _, lu := range a.units.Load().list {
		if lu.path == path && lu.target == target && lu.lun == lun {
			return lu
		}
	}
	return nil
}

// Stop is StopContext bounded only by AdapterOptions.StopTimeout.
func (a *Adapter) Stop(p *Processor) error { return a.StopContext(context.Background(), p) }

// StopContext waits until nothing is outstanding and stops the adapter
// (ScsiStopAdapter). SRBs submitted meanwhile wait for Restart.
//
// If the miniport caches data, each unit gets FunctionFlush first.
//
// If SRBs are still outstanding when ctx ends or AdapterOptions.StopTimeout is over, or
// if FunctionFlush or one of the port's own resets is after AdapterOptions.ResetTimeout,
// the adapter is removed for good, as one that has failed: waiting SRBs complete with
// StatusNoDevice, each bus is reset so that the miniport hands back what it holds, and
// the error names the SRBs that were stuck. It is ErrOutstanding if some still are: their
// memory stays mapped; see RemoveContext. No limit ends a callback that does not return:
// an adapter cannot be removed while one runs.
//
// Level: Passive.
func (a *Adapter) StopContext(ctx context.Context, p *Processor) error {
	if err := p.mayWait(a, routineStop); err != nil {
		return err
	}
	if !a.tryLife() {
		return fmt.Errorf("%s: stop: %w", a.options.Name, errBusyLife)
	}
	defer a.endLife()
	return a.stop(ctx, p, FunctionFlush)
}

// errBusyLife is the error of Stop and Restart while another of them, or Remove, runs.
var errBusyLife = fmt.Errorf("%w: it is being stopped, restarted or removed", ErrAdapterStopped)

// tryLife makes the caller the holder of life; false: there is another.
func (a *Adapter) tryLife() bool {
	select {
	case a.life <- struct{}{}:
		return true
	default:
		return false
	}
}

func (a *Adapter) endLife() { <-a.life }

// stop is StopContext. last are the functions sent last to each unit of a miniport
// that caches data. The caller holds life.
func (a *Adapter) stop(ctx context.Context, p *Processor, last ...Function) error {
	ctx, cancel := context.WithTimeout(ctx, a.options.StopTimeout)
	defer cancel()
	if !a.state.CompareAndSwap(adapterRunning, adapterStopped) {
		return fmt.Errorf("%s: stop: %w", a.options.Name, ErrAdapterStopped)
	}
	a.mu.Lock()
	a.closeGateLocked(gateStopped)
	a.mu.Unlock()
	idle := a.whenIdle()
	select {
	case <-idle:
	case <-a.gone:
	case <-a.failed: // what is outstanding may never come back
	case <-ctx.Done():
		select {
		case <-idle: // just in time
		default:
			return a.stopTooLate(ctx.Err(), p, true)
		}
	}
	if err := a.stillStopped(); err != nil {
		return err
	}
	if a.config.CachesData {
		for _, lu := range a.units.Load().list {
			for _, f := range last {
				a.sendControl(ctx, p, lu, f)
			}
		}
	}
	if err := a.stillStopped(); err != nil {
		return err // its SRBs may still be out
	}
	done := a.stopInTurn()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		select {
		case err = <-done: // soon, unless a reset is under way
		case <-time.After(takeAwayTime):
			err = errNoAnswer
		}
	}
	if errors.Is(err, errNoAnswer) {
		return a.stopTooLate(cmp.Or(ctx.Err(), err), p, true)
	}
	return err
}

// stopInTurn stops the miniport once no reset is under way: one that is still out has
// been given up. The channel delivers the result.
func (a *Adapter) stopInTurn() <-chan error {
	done := make(chan error, 1)
	if !a.recovery.post(func(p *Processor) { done <- a.stopHere(p) }) {
		done <- fmt.Errorf("%s: stop: %w: it was taken away meanwhile", a.options.Name, ErrAdapterStopped)
	}
	return done
}

// stopHere is stopInTurn on the recovery service.
func (a *Adapter) stopHere(p *Processor) error {
	if err := a.stillStopped(); err != nil {
		return err
	}
	if a.waitOwn(0) != nil {
		return errNoAnswer
	}
	if p.verify { // task management of class drivers is not waited for
		for _, lu := range a.units.Load().all {
			if n := lu.Stats().Outstanding; n != 0 {
				p.violate(CheckStopOutstanding, nil, fmt.Sprintf("%s: stopped with %d SRBs outstanding", lu, n))
			}
		}
	}
	result := a.controlHere(p, ControlStopAdapter)
	if err := a.stillStopped(); err != nil {
		return err
	}
	if result != ControlSuccess {
		return fmt.Errorf("%s: the miniport could not stop the adapter", a.options.Name)
	}
	return nil
}

func (a *Adapter) stillStopped() error {
	if a.state.Load() != adapterStopped {
		return fmt.Errorf("%s: stop: %w: it failed or was removed meanwhile", a.options.Name, ErrAdapterStopped)
	}
	return nil
}

// errNoAnswer is why a stop that has time left removes the adapter.
var errNoAnswer = errors.New("the miniport does not answer what the port itself has sent it")

// stopTooLate ends a stop that has waited long enough, for the reason why: it removes the
// adapter. inLife: the caller holds life.
func (a *Adapter) stopTooLate(why error, p *Processor, inLife bool) error {
	stuck := a.describeStuck()
	a.sys.log.Error("the adapter did not become idle, taking it away", "adapter", a.options.Name, "stuck", stuck)
	err := fmt.Errorf("%s: stop: %w: stuck: %s", a.options.Name, why, strings.Join(stuck, "; "))
	if taken := a.takeAway(p, inLife, false, takeAwayTime); taken != nil {
		return fmt.Errorf("%w: %w", err, taken)
	}
	return err
}

// describeStuck describes each unit that the miniport holds SRBs of: how many they are,
// and the oldest one.
func (a *Adapter) describeStuck() []string {
	var out []string
	for _, lu := range a.units.Load().all {
		if n, oldest := lu.stuck(); n > 0 {
			out = append(out, fmt.Sprintf("%s: %d outstanding, the oldest is %s", lu, n, oldest))
		}
	}
	return out
}

// stuck returns how many SRBs of the unit are outstanding, and describes the oldest one.
func (lu *LogicalUnit) stuck() (n int, oldest string) {
	lu.mu.Lock()
	defer lu.mu.Unlock()
	if lu.pendingHead != nil {
		oldest = lu.pendingHead.request()
	}
	return lu.outstanding, oldest
}

// Restart starts a stopped adapter again (ScsiRestartAdapter) and lets waiting
// SRBs go. An enumeration that was requested meanwhile happens now.
//
// Level: Passive.
func (a *Adapter) Restart(p *Processor) error {
	if err := p.mayWait(a, routineRestart); err != nil {
		return err
	}
	if !a.tryLife() {
		return fmt.Errorf("%s: restart: %w", a.options.Name, errBusyLife)
	}
	defer a.endLife()
	if a.state.Load() != adapterStopped {
		return fmt.Errorf("%s: restart: the adapter is not stopped", a.options.Name)
	}
	if a.controlInTurn(ControlRestartAdapter) != ControlSuccess {
		a.fail("the miniport could not restart the adapter")
		return fmt.Errorf("%s: the miniport could not restart the adapter", a.options.Name)
	}
	if !a.state.CompareAndSwap(adapterStopped, adapterRunning) {
		return fmt.Errorf("%s: restart: %w: it failed or was removed meanwhile", a.options.Name, ErrAdapterStopped)
	}
	a.mu.Lock()
	a.openGateLocked(gateStopped)
	look := a.enumAtRestart
	a.enumAtRestart = false
	a.mu.Unlock()
	a.kick(p)
	if look {
		a.BusChangeDetected(p)
	}
	return nil
}

// controlInTurn calls AdapterControl on the recovery service, so that none of the
// port's resets runs at the same time.
func (a *Adapter) controlInTurn(t ControlType) ControlResult {
	r := ControlUnsuccessful
	a.inTurn(func(p *Processor) { r = a.controlHere(p, t) })
	return r
}

// controlHere is controlInTurn on the recovery service.
func (a *Adapter) controlHere(p *Processor, t ControlType) ControlResult {
	r := a.control(p, t)
	if r == ControlSuccess {
		a.halted = t != ControlRestartAdapter
	}
	return r
}

// inTurn runs fn on the recovery service and waits for it. If the service has
// stopped, fn is not run.
func (a *Adapter) inTurn(fn func(p *Processor)) {
	done := make(chan struct{})
	if a.recovery.post(func(p *Processor) { fn(p); close(done) }) {
		<-done
	}
}

func (a *Adapter) control(p *Processor, t ControlType) ControlResult {
	old := p.raise(Dispatch)
	e := p.enter(inAdapterControl)
	r := a.miniport.AdapterControl(p, t)
	p.leave(e)
	p.lower(old)
	return r
}

// disconnect ends interrupts, and with them the device's use of its processors.
func (a *Adapter) disconnect() {
	if a.connected { // otherwise they may be another adapter's
		a.connected = false
		a.function.DisconnectInterrupt()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range a.runners {
		r.Close()
	}
	a.runners = nil
}

// NewSRB makes an SRB for this adapter. It belongs to the caller and is meant to be
// reused: make SRBs during set-up, not for each request. The SRB lies in memory beside
// others made on p, and apart from those of other processors; so p, which the caller owns,
// is best the processor that submits it, though any may. Nil means no particular one.
//
// Errors: no memory or no IOMMU window left.
func (a *Adapter) NewSRB(p *Processor) (*SRB, error) {
	s, windows := p.takeSRB()
	s.adapter = a
	s.Tag = a.nextTag.Add(1)
	var err error
	if s.window, err = a.sys.iommu.NewWindow(windows); err != nil {
		a.FreeSRB(s)
		return nil, err
	}
	segments := 1
	if a.options.StrictSegments {
		segments += min(int(a.config.NumberOfPhysicalBreaks)+1, int(a.config.MaximumTransferLength)/strictSegmentBytes+1)
	}
	if s.sglStore = s.sglInline[:0]; segments > len(s.sglInline) {
		s.sglStore = make([]Segment, 0, segments)
	}
	if n := a.config.SrbExtensionBytes; n > 0 {
		if s.Extension = a.sys.extensions.alloc(n); s.Extension == nil {
			a.FreeSRB(s)
			return nil, fmt.Errorf("port: no memory for an SRB extension of %d bytes", n)
		}
	}
	return s, nil
}

// FreeSRB gives back an SRB that the caller owns.
func (a *Adapter) FreeSRB(s *SRB) {
	if s.owner.Load() != ownerClass {
		panic("port: freed while it belongs to the port or the miniport: " + s.String())
	}
	if v := a.sys.verifier; v != nil {
		if what := s.intact(); what != "" {
			v.record(Violation{Check: CheckUseAfterComplete, What: what, Processor: "FreeSRB", SRB: s.String()})
		}
	}
	if s.window != 0 {
		a.sys.iommu.FreeWindow(s.window)
		s.window = 0
	}
	if s.extWindow != 0 {
		a.sys.iommu.FreeWindow(s.extWindow)
		s.extWindow = 0
	}
	if s.Extension != nil {
		a.sys.extensions.release(s.Extension)
		s.Extension = nil
	}
	// The SRBs that lie in its page may be needed for long.
	s.adapter, s.lu, s.next, s.Completer, s.VictimSRB, s.SGL, s.sglStore = nil, nil, nil, nil, nil, nil, nil
	s.DataBuffer = nil
}

// OnUnitsChanged sets a function that is told which units came and went, at
// Passive after each enumeration that found a change, and after MarkDeviceFailed of one. It
// must not call Enumerate, Remove or SurpriseRemove, nor wait for a caller of those: they
// wait for it.
func (a *Adapter) OnUnitsChanged(fn func(added, removed []*LogicalUnit)) {
	a.mu.Lock()
	a.onUnits = fn
	a.mu.Unlock()
}

// OnReset sets a function that is told how each step of the reset road went, at
// Passive on the goroutine that resets. It must not wait.
func (a *Adapter) OnReset(fn func(ResetReport)) {
	a.mu.Lock()
	a.onReset = fn
	a.mu.Unlock()
}
