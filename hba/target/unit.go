package target

import (
	"errors"
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/internal/scsi"
)

// Limits of a unit.
const (
	// MaxTransferBytes is the longest READ, WRITE or VERIFY.
	MaxTransferBytes = 32 << 20
	// maxUnmapDescriptors is how many ranges one UNMAP may have.
	maxUnmapDescriptors = 256
	// maxUnmapBlocks is how many blocks they may have together.
	maxUnmapBlocks = 1<<32 - 1
	// maxWriteSameBytes bounds WRITE SAME, which may have to write it all.
	maxWriteSameBytes = 4 << 30
	// inlineMaxBytes is how much a medium that never blocks may zero, release or compare
	// where waiting is not allowed: other commands, reads among them, wait meanwhile.
	inlineMaxBytes = 8 << 20
	// statusScanBytes is how many bytes of data one GET LBA STATUS looks through,
	// for the same reason. Holes cost less, by statusHoleShift.
	statusScanBytes = 16 << 30
	statusHoleShift = 12
)

const (
	defaultVendor   = "VHBAD"
	defaultProduct  = "Virtual Disk"
	defaultRevision = "1.0"
)

// Config describes a logical unit. What it can do besides comes from the
// medium's abilities.
type Config struct {
	// Serial is the unit serial number, of 1 to 32 printable ASCII characters;
	// hosts tell units apart by it.
	Serial string
	// Vendor, Product and Revision are the names in INQUIRY data, of at most 8,
	// 16 and 4 printable ASCII characters. Empty ones get a default.
	Vendor, Product, Revision string
	// BlockBytes is the logical block length, 512 or 4096; 512 if zero.
	BlockBytes uint32
	// PhysicalBlockBytes is BlockBytes times a power of two up to 2^15; shorter writes
	// are slow. BlockBytes if zero.
	PhysicalBlockBytes uint32
	// ReadOnly refuses everything that writes.
	ReadOnly bool
	// Rotational makes the unit a spinning disk in the eyes of hosts.
	Rotational bool
	// WriteCache says that the medium has a volatile cache which hosts have to flush.
	// Otherwise the unit makes every write durable before it is done.
	WriteCache bool
	// NoCache says that there is no such cache and that one cannot be requested: WCE is
	// clear and cannot be set. WriteCache has no meaning then.
	NoCache bool
	// MediumFailed, unless nil, is told of each failure of the medium that ends a command:
	// sense data have no room for its cause. It runs where the command does, and must not
	// wait.
	MediumFailed func(err error)
}

// Conditions of a unit, a bit each, by priority of the unit attentions.
const (
	attentionPowerOn  uint32 = 1 << iota // power came on since the last command
	attentionReset                       // reset since the last command
	attentionLUNs                        // the target's list of units has changed
	attentionCapacity                    // the size has changed
	conditionStopped                     // stopped by START STOP UNIT
	conditionOff                         // without power

	attentions = attentionPowerOn | attentionReset | attentionLUNs | attentionCapacity
)

// A Unit is a direct access block device: a device server for one medium.
type Unit struct {
	config Config
	medium media.Media
	can    media.Abilities

	shift          uint8 // logical block length as a power of two
	maxBlocks      uint32
	maxCompare     uint8
	provisioned    bool // blocks can be mapped or not, and which are is known or can be changed
	thin           bool // UNMAP works
	anchor         bool // so does the ANCHOR bit, without writing zeros
	neverBlocks    bool
	identification scsi.Identification

	// conditions is read by every command; it changes seldom.
	conditions atomic.Uint32
	// writeThrough: writes have to be made durable. It is the opposite of WCE.
	writeThrough atomic.Bool
	// powerCycles counts PowerOff, from two.
	powerCycles atomic.Uint32
	// losses is how often the medium has reported lost writes; see flush.go. It is
	// stored under cycleMu.
	losses atomic.Uint32
	// nexus is the number of the current I_T nexus, zero before the first loss.
	nexus atomic.Uint32
	// blocks is the capacity in logical blocks. Stored by NewUnit and under
	// sizeMu.
	blocks atomic.Uint64
	sizeMu sync.Mutex
	// limit, if not zero, is the most blocks that the unit reports.
	// +checklocks:sizeMu
	limit uint64

	// target is where the unit is attached, or nil.
	target atomic.Pointer[Target]

	// cycleMu is held while changing anything that a power cycle resets, so that no
	// command from before the power cycle changes it afterwards.
	cycleMu sync.Mutex
	// loss is the latest loss that the medium has reported, and owed the loss that is
	// still to be reported to a SYNCHRONIZE CACHE.
	// +checklocks:cycleMu
	loss, owed error
	// flushingMu is shared by flushFor, and held for a moment by SYNCHRONIZE CACHE. Lock
	// order: before cycleMu.
	flushingMu sync.RWMutex
}

// NewUnit returns a unit on medium m, which stays the caller's to close.
//
// Errors name what is wrong with the configuration.
func NewUnit(m media.Media, c Config) (*Unit, error) {
	if err := c.complete(); err != nil {
		return nil, fmt.Errorf("target: %w", err)
	}
	if c.MediumFailed == nil {
		c.MediumFailed = func(error) {}
	}
	u := &Unit{config: c, medium: m, can: media.Probe(m), shift: uint8(bits.TrailingZeros32(c.BlockBytes))}
	size := m.Size()
	if size < int64(c.BlockBytes) || size%int64(c.BlockBytes) != 0 {
		return nil, fmt.Errorf("target: medium of %d bytes: want a multiple of the block length, %d bytes", size, c.BlockBytes)
	}
	u.blocks.Store(uint64(size) >> u.shift)
	u.neverBlocks = u.can.NeverBlocks
	u.maxBlocks = MaxTransferBytes >> u.shift
	if u.can.CompareAndWrite != nil && !c.ReadOnly {
		// The compared and the written data share a scratch buffer.
		u.maxCompare = uint8(min(scratchBytes/2>>u.shift, 255))
	}
	u.thin = u.can.Discard != nil && !c.ReadOnly
	u.provisioned = u.thin || u.can.Extents != nil
	u.anchor = u.thin && u.can.Zero != nil && u.can.ZeroIsFast
	u.writeThrough.Store(!c.WriteCache)
	u.powerCycles.Store(2)
	u.identification = scsi.Identification{
		Vendor: c.Vendor, Unique: c.Product + " " + c.Serial, NAA: naaLocal(c.Vendor, c.Product, c.Serial),
	}
	return u, nil
}

// complete fills in what has a default and checks everything.
func (c *Config) complete() error {
	c.WriteCache = c.WriteCache && !c.NoCache
	for _, s := range []struct {
		name, fallback string
		value          *string
		maxBytes       int
	}{
		{"serial number", "", &c.Serial, 32},
		{"vendor", defaultVendor, &c.Vendor, 8},
		{"product", defaultProduct, &c.Product, 16},
		{"revision", defaultRevision, &c.Revision, 4},
	} {
		if *s.value == "" {
			*s.value = s.fallback
		}
		if n := len(*s.value); n == 0 || n > s.maxBytes {
			return fmt.Errorf("%s %q: want 1 to %d characters", s.name, *s.value, s.maxBytes)
		}
		for _, b := range []byte(*s.value) {
			if b < 0x20 || b > 0x7e {
				return fmt.Errorf("%s %q: want printable ASCII", s.name, *s.value)
			}
		}
	}
	if c.BlockBytes == 0 {
		c.BlockBytes = 512
	}
	if c.BlockBytes != 512 && c.BlockBytes != 4096 {
		return fmt.Errorf("block length %d bytes: want 512 or 4096", c.BlockBytes)
	}
	if c.PhysicalBlockBytes == 0 {
		c.PhysicalBlockBytes = c.BlockBytes
	}
	ratio := c.PhysicalBlockBytes / c.BlockBytes
	if c.PhysicalBlockBytes%c.BlockBytes != 0 || bits.OnesCount32(ratio) != 1 || ratio > 1<<15 {
		return fmt.Errorf("physical block length %d bytes: want a multiple of %d by a power of two up to 2^15",
			c.PhysicalBlockBytes, c.BlockBytes)
	}
	return nil
}

// naaLocal returns an NAA locally assigned name: 3h and 60 bits from the unit's names by
// FNV-1a, so that it is the same after a restart.
func naaLocal(names ...string) uint64 {
	h := uint64(14695981039346656037)
	for _, s := range names {
		for i := range len(s) {
			h = (h ^ uint64(s[i])) * 1099511628211
		}
		h *= 1099511628211 // an end, so that "a"+"bc" is not "ab"+"c"
	}
	return 3<<60 | h&(1<<60-1)
}

// Config is the configuration, completed by defaults.
func (u *Unit) Config() Config { return u.config }

// Medium is what the unit keeps its blocks on.
func (u *Unit) Medium() media.Media { return u.medium }

// Blocks is the capacity in logical blocks.
func (u *Unit) Blocks() uint64 { return u.blocks.Load() }

// Reset tells the unit of a logical unit reset, which the next command reports. It does
// not end commands in progress. A stopped unit stays stopped.
func (u *Unit) Reset() { u.conditions.Or(attentionReset) }

// ErrNoResize means that the medium has a size that cannot change.
var ErrNoResize = errors.New("target: the medium cannot be resized")

// Resize changes the size of the medium and makes the next command report the change.
// Commands beyond a smaller size fail from then on.
//
// Concurrency: any goroutine; commands may be running.
// Errors: ErrNoResize, a size that is no multiple of the block length, or the
// medium's error.
func (u *Unit) Resize(sizeBytes int64) error {
	u.sizeMu.Lock()
	defer u.sizeMu.Unlock()
	if u.can.Resize == nil {
		return ErrNoResize
	}
	if sizeBytes < int64(u.config.BlockBytes) || sizeBytes&(1<<u.shift-1) != 0 {
		return fmt.Errorf("target: size of %d bytes: want a multiple of the block length, %d bytes", sizeBytes, u.config.BlockBytes)
	}
	if sizeBytes < u.medium.Size() {
		// The medium shrinks only after its end is out of reach.
		u.setBlocks(uint64(sizeBytes) >> u.shift)
	}
	err := u.can.Resize.Resize(sizeBytes)
	u.setBlocks(uint64(u.medium.Size()) >> u.shift)
	return err
}

// Limit makes the unit report a capacity of at most so many bytes, rounded down to
// blocks and at least one, and refuse everything beyond as out of range, like a disk
// whose maximum address was set. The medium keeps all of its data. Zero removes the
// limit.
//
// Concurrency: any goroutine; commands may be running.
func (u *Unit) Limit(sizeBytes int64) {
	u.sizeMu.Lock()
	defer u.sizeMu.Unlock()
	u.limit = 0
	if sizeBytes > 0 {
		u.limit = max(1, uint64(sizeBytes)>>u.shift)
	}
	u.setBlocks(uint64(u.medium.Size()) >> u.shift)
}

// setBlocks sets the capacity, subject to the limit, and the unit attention if that is a
// change.
//
// +checklocks:u.sizeMu
func (u *Unit) setBlocks(blocks uint64) {
	if u.limit != 0 {
		blocks = min(blocks, u.limit)
	}
	if u.blocks.Swap(blocks) != blocks {
		u.conditions.Or(attentionCapacity)
	}
}

// Execute runs t.
//
// If it reports false, which it does only if mayBlock is false, the command would have
// to wait: nothing has been reported, and the caller executes t again where it may wait.
//
// Concurrency: any number of calls, each with its own task.
func (u *Unit) Execute(t *Task, mayBlock bool) (done bool) {
	t.Status, t.TransferredBytes, t.SenseBytes, t.NoPower = scsi.StatusGood, 0, 0, false
	op := scsi.Opcode(t.CDB[0])
	// Loaded before the conditions: PowerOff sets them first, so that a command that
	// does not find the power off finds a different count in the end.
	cycle := u.powerCycles.Load()
	t.cycle, t.losses = cycle, u.losses.Load()
	if t.PowerCycle != 0 && t.PowerCycle != cycle {
		u.notPowered(t) // a drive that has lost its power knows no command from before
		return true
	}
	conditions := u.conditions.Load()
	// Checked after the conditions: a command that finds the power on again also finds
	// which nexus has been lost meanwhile.
	if u.HasLost(t.Nexus) {
		u.notPowered(t)
		return true
	}
	if conditions != 0 && u.checkConditions(t, op, conditions) {
		return true
	}
	done = u.execute(t, op, mayBlock)
	if done {
		u.checkPower(t, cycle)
	}
	return done
}

// execute is Execute without checking the conditions.
func (u *Unit) execute(t *Task, op scsi.Opcode, mayBlock bool) (done bool) {
	// The others follow.
	//exhaustive:ignore
	switch op {
	case scsi.OpRead16, scsi.OpRead10, scsi.OpRead12, scsi.OpRead6:
		return u.read(t, mayBlock)
	case scsi.OpWrite16, scsi.OpWrite10, scsi.OpWrite12, scsi.OpWrite6:
		return u.write(t, mayBlock)
	}
	return u.executeOther(t, op, mayBlock)
}

// executeOther is Execute for everything but READ and WRITE.
func (u *Unit) executeOther(t *Task, op scsi.Opcode, mayBlock bool) (done bool) {
	n := scsi.CDBBytes(op)
	if n == 0 {
		u.failCode(t, scsi.KeyIllegalRequest, scsi.InvalidCommandOperationCode)
		return true
	}
	if t.CDBBytes < n || t.CDB[n-1]&scsi.CDBNACA != 0 {
		u.invalidCDB(t, n-1)
		return true
	}
	// READ and WRITE went before.
	//exhaustive:ignore
	switch op {
	case scsi.OpTestUnitReady:
		// Whatever keeps the unit from being ready is a condition.
	case scsi.OpRequestSense:
		u.requestSense(t)
	case scsi.OpInquiry:
		u.inquiry(t)
	case scsi.OpModeSense6, scsi.OpModeSense10:
		u.modeSense(t, op == scsi.OpModeSense10)
	case scsi.OpModeSelect6, scsi.OpModeSelect10:
		return u.modeSelect(t, op == scsi.OpModeSelect10, mayBlock)
	case scsi.OpReportLUNs:
		u.reportLUNs(t)
	case scsi.OpReadCapacity10:
		u.readCapacity10(t)
	case scsi.OpServiceActionIn16:
		return u.serviceActionIn(t, mayBlock)
	case scsi.OpStartStopUnit:
		return u.startStop(t, mayBlock)
	case scsi.OpSynchronizeCache10, scsi.OpSynchronizeCache16:
		return u.synchronizeCache(t, mayBlock)
	case scsi.OpPreFetch10, scsi.OpPreFetch16:
		return u.preFetch(t, mayBlock)
	case scsi.OpVerify10, scsi.OpVerify12, scsi.OpVerify16:
		return u.verify(t, mayBlock)
	case scsi.OpCompareAndWrite:
		return u.compareAndWrite(t, mayBlock)
	case scsi.OpUnmap:
		return u.unmap(t, mayBlock)
	case scsi.OpWriteSame10, scsi.OpWriteSame16:
		return u.writeSame(t, mayBlock)
	default:
		u.failCode(t, scsi.KeyIllegalRequest, scsi.InvalidCommandOperationCode)
	}
	return true
}

// checkConditions ends t if the unit had no power when conditions were loaded, or if a
// unit attention is pending or the unit is stopped and op is not exempt. What is no
// command is none at a stopped unit, too.
func (u *Unit) checkConditions(t *Task, op scsi.Opcode, conditions uint32) (ended bool) {
	if conditions&conditionOff != 0 {
		if op == scsi.OpReportLUNs {
			return false // the target answers it
		}
		u.notPowered(t)
		return true
	}
	if op == scsi.OpInquiry || op == scsi.OpReportLUNs || op == scsi.OpRequestSense {
		return false
	}
	if code, ok := u.takeAttention(); ok {
		u.failCode(t, scsi.KeyUnitAttention, code)
		return true
	}
	if u.conditions.Load()&conditionStopped == 0 || op == scsi.OpStartStopUnit ||
		op == scsi.OpModeSense6 || op == scsi.OpModeSense10 || !scsi.Known(op) {
		return false
	}
	u.failCode(t, scsi.KeyNotReady, scsi.NotReadyInitializingRequired)
	return true
}

// takeAttention removes the unit attention of highest priority.
func (u *Unit) takeAttention() (code scsi.Additional, ok bool) {
	for {
		old := u.conditions.Load()
		pending := old & attentions
		if pending == 0 {
			return 0, false
		}
		bit := pending & -pending
		if !u.conditions.CompareAndSwap(old, old&^bit) {
			continue
		}
		switch bit {
		case attentionPowerOn:
			return scsi.PowerOnOccurred, true
		case attentionReset:
			return scsi.BusDeviceResetFunctionOccurred, true
		case attentionLUNs:
			return scsi.ReportedLUNsDataHasChanged, true
		}
		return scsi.CapacityDataHasChanged, true
	}
}

// mayRun reports whether a command other than READ or WRITE that covers n bytes may
// touch the medium now.
func (u *Unit) mayRun(mayBlock bool, n int64) bool {
	return mayBlock || u.neverBlocks && n <= inlineMaxBytes
}
