package disk

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"

	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/internal/scsi"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/port"
)

// MaxPayloadBytes is the longest READ or WRITE that clients are told of.
const MaxPayloadBytes = 64 << 20

// maxRangeBytes bounds one command that covers blocks without moving them. A
// medium may have to write them all, and a command should end, or be aborted,
// long before its time is up.
const maxRangeBytes = 256 << 20

// maxReleaseBytes bounds one that releases blocks, which needs no writing.
const maxReleaseBytes = 1 << 30

// flushTimeoutFactor is how much more time a flush gets than other commands: it
// waits for all that was written before.
// Source: disk.c of the vendor's sample class driver, DiskShutdownFlush.
const (
	flushTimeoutFactor      = 4
	defaultFlushTimeoutSecs = 60 * flushTimeoutFactor
)

// Options configure a Disk. Zero values stand for the defaults.
type Options struct {
	// Arena is where block buffers come from. Mandatory.
	Arena *dma.Arena
	// Description is shown to clients.
	Description string
	// RetryCount is how often a command is sent again after a unit attention, a
	// reset or a timeout. Default 8.
	RetryCount int
	// TimeoutSecs is the time-out of each command; a flush gets four times as
	// much. Default: the adapter's, and four minutes for a flush.
	TimeoutSecs uint32
	// Log may be nil.
	Log *slog.Logger
	// Nexus is what requests carry as SRB.Nexus, as it is when they begin. Whoever loses
	// the nexus kills the connections first: a request that begins thereafter finds that
	// its own is dead, or the next number. Nil: they carry none.
	Nexus *atomic.Uint32
}

func (o *Options) flushTimeoutSecs() uint32 {
	if o.TimeoutSecs == 0 {
		return defaultFlushTimeoutSecs
	}
	return o.TimeoutSecs * flushTimeoutFactor
}

// A Disk is one logical unit as clients see it. It implements nbd.Device.
//
// Concurrency: any goroutine.
type Disk struct {
	lu       *port.LogicalUnit
	adapter  *port.Adapter
	options  Options
	serial   string
	geometry atomic.Pointer[geometry]
	gate     rangeGate
	groups   groupSet
	refresh  port.WorkItem
	// learnMu lets one learn run at a time. It is held across I/O.
	learnMu sync.Mutex
	stats   stats
	// lossEvents counts what may have cost acknowledged writes: failed flushes, and
	// LostWrites. losses counts those, and again for each write that was under way then
	// and is answered since. A session that has not seen the latest of losses fails its
	// next flush. Both are stored under lossMu.
	lossEvents atomic.Uint64
	losses     atomic.Uint64
	lossMu     sync.Mutex
	// lossWrites is what of writes had been seen when the flush began that told of
	// the latest, or when LostWrites or TellAgain did.
	// +checklocks:lossMu
	lossWrites writesSeen
	// lossesAnswered is the latest of losses since which there was a time when no write
	// was being answered, as far as is known: whoever tells of a loss knows, too.
	// +checklocks:lossMu
	lossesAnswered uint64
}

var _ nbd.Device = (*Disk)(nil)

// geometry is what the unit said about itself. It is replaced as a whole.
type geometry struct {
	blocks     uint64
	blockBytes uint64
	readOnly   bool
	rotational bool
	fua        bool // WRITE takes FUA
	unmap      bool
	unmapZeros bool // WRITE SAME with UNMAP reads back as zeros
	// provisioned: GET LBA STATUS tells which blocks are mapped.
	provisioned bool
	readZeros   bool // unmapped blocks read as zeros
	anchor      bool // WRITE SAME can anchor blocks
	// Limits in blocks for one command.
	maxTransfer, maxUnmap, maxWriteSame, maxPrefetch uint64
	maxRelease                                       uint64 // of WRITE SAME with UNMAP
	preferredBytes                                   uint32
}

func (g *geometry) sizeBytes() uint64 { return g.blocks * g.blockBytes }

// zeroesFast reports whether the unit zeroes blocks without writing them, by its
// own word: unmapped ones read as zeros or, if they have to keep their place,
// anchored ones do.
func (g *geometry) zeroesFast(noHole bool) bool {
	return g.unmapZeros && (!noHole || g.anchor)
}

type stats struct {
	retries, unitAttentions, partialBlocks atomic.Uint64
}

// Stats is a snapshot of a disk's rare events.
type Stats struct {
	Retries        uint64 // commands sent again
	UnitAttentions uint64
	PartialBlocks  uint64 // blocks read, changed and written back, or read in part
}

// Stats returns the disk's counters.
func (d *Disk) Stats() Stats {
	return Stats{
		Retries: d.stats.retries.Load(), UnitAttentions: d.stats.unitAttentions.Load(),
		PartialBlocks: d.stats.partialBlocks.Load(),
	}
}

// Attach asks a unit what it is and returns the Disk for it.
//
// Level: Passive. Errors: the unit is no disk, does not answer, or says what
// cannot be.
func Attach(p *port.Processor, lu *port.LogicalUnit, o Options) (*Disk, error) {
	if o.RetryCount == 0 {
		o.RetryCount = 8
	}
	if o.Log == nil {
		o.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	d := &Disk{lu: lu, adapter: lu.Adapter(), options: o}
	d.refresh.Routine, d.refresh.WaitsForIO = d.readAgain, true
	q, ok := scsi.ParseInquiryData(lu.Inquiry())
	if !ok || !q.Disk() {
		return nil, fmt.Errorf("%s: not a disk (peripheral %#02x)", lu, q.Peripheral)
	}
	if err := d.learn(p); err != nil {
		return nil, fmt.Errorf("%s: %w", lu, err)
	}
	return d, nil
}

// Serial is the unit's serial number (VPD page 80h).
func (d *Disk) Serial() string { return d.serial }

// LogicalUnit is the unit behind the disk.
func (d *Disk) LogicalUnit() *port.LogicalUnit { return d.lu }

// Info implements nbd.Device.
func (d *Disk) Info() nbd.Info {
	g := d.geometry.Load()
	return nbd.Info{
		SizeBytes:   g.sizeBytes(),
		Description: d.options.Description,
		ReadOnly:    g.readOnly,
		Rotational:  g.rotational,
		CanFlush:    true,
		// A unit without FUA gets a SYNCHRONIZE CACHE after each such write.
		CanFUA:         true,
		CanTrim:        g.unmap,
		CanWriteZeroes: true,
		CanCache:       true,
		CanFastZero:    true,
		// Every connection reaches the same unit and the same cache, and a write
		// is acknowledged only when the unit has it.
		CanMultiConn:        true,
		MinBlockBytes:       1,
		PreferredBlockBytes: g.preferredBytes,
		MaxPayloadBytes:     MaxPayloadBytes,
	}
}

// SizeBytes implements nbd.Device.
func (d *Disk) SizeBytes() uint64 { return d.geometry.Load().sizeBytes() }

// Flush makes durable what was acknowledged before.
//
// Level: Passive.
func (d *Disk) Flush(p *port.Processor) error {
	t, err := d.newTalker(p)
	if err != nil {
		return err
	}
	defer t.close()
	t.timeoutSecs = d.options.flushTimeoutSecs()
	return t.command("SYNCHRONIZE CACHE", scsi.PutSynchronizeCache16(&t.srb.CDB, 0, 0, false), 0)
}

// LostWrites tells the disk that its unit has lost writes that were acknowledged
// and not flushed, as when its power was cut. Every connection that is open now
// gets an error for its next flush, once, although that flush may work: the writes
// that it is for may be gone. So may those be that are answered while it is under way,
// if it is now: then the one after it fails, too. Whoever takes the unit's power away
// calls it before giving it back.
//
// Concurrency: any goroutine.
func (d *Disk) LostWrites() {
	d.lossMu.Lock()
	defer d.lossMu.Unlock()
	d.lossEvents.Add(1)
	d.loseLocked()
}

// TellAgain has every connection that is open told again: a write that was under way at
// a loss may have been answered since. It is no loss to writes that are under way now.
//
// The disk calls it itself for each write that it knows to be one; not for those whose
// replies have been on their way to the client since before LostWrites. Whoever gives the
// power back calls it just before, for the connections that have not been dropped.
//
// Concurrency: any goroutine.
func (d *Disk) TellAgain() {
	d.lossMu.Lock()
	defer d.lossMu.Unlock()
	d.loseLocked()
}

// loseLocked counts a loss, of what has been answered by now at the least.
//
// +checklocks:d.lossMu
func (d *Disk) loseLocked() {
	d.lossWrites = d.gate.writes()
	n := d.losses.Add(1)
	if !d.lossWrites.answering {
		d.lossesAnswered = n
	}
}

// lossAnswered notes that since loss n no write was being answered for a moment.
func (d *Disk) lossAnswered(n uint64) {
	d.lossMu.Lock()
	defer d.lossMu.Unlock()
	d.lossesAnswered = max(d.lossesAnswered, n)
}

// lossesOfOthers is what a session that opens need not be told of: losses of writes
// that have been answered before. The latest may be one of a write that is being
// answered, too late to see the loss.
func (d *Disk) lossesOfOthers() uint64 {
	d.lossMu.Lock()
	defer d.lossMu.Unlock()
	n := d.losses.Load()
	if d.lossesAnswered != n && d.gate.writes().answering {
		return n - 1
	}
	d.lossesAnswered = n
	return n
}

// flushFailed counts what a flush has told of that failed, and returns how many
// losses there are then. before are losses and writes as it began. Two flushes that
// are under way together may tell of the same loss. That is certain only if no write
// has been under way since the one began that told of it first: else this one may tell
// of a write that came after the other.
func (d *Disk) flushFailed(before uint64, writes writesSeen) uint64 {
	d.lossMu.Lock()
	defer d.lossMu.Unlock()
	n := d.losses.Load()
	if n != before && d.lossWrites.quiet && d.gate.writes() == d.lossWrites {
		return n
	}
	d.lossEvents.Add(1)
	d.lossWrites = writes
	return d.losses.Add(1)
}

// Rescan asks the unit again what it is, so that a change of size is seen by
// connections that are open and by those to come. The disk does so by itself when
// a command meets the unit attention that tells of the change; Rescan does not
// wait for one.
//
// Level: Passive. Errors: as for Attach; then the disk stays as it was.
func (d *Disk) Rescan(p *port.Processor) error {
	if err := d.learn(p); err != nil {
		return fmt.Errorf("%s: %w", d.lu, err)
	}
	return nil
}

// readAgain is the work item that follows a unit attention.
func (d *Disk) readAgain(p *port.Processor) {
	if err := d.learn(p); err != nil {
		d.options.Log.Error("reading the unit's parameters again", "unit", d.lu.String(), "error", err)
	}
}

// A talker sends commands one at a time and waits for each.
type talker struct {
	d    *Disk
	p    *port.Processor
	srb  *port.SRB
	data []byte

	timeoutSecs uint32
	// lost: the port has given up a command. SRB and buffer are not ours any more,
	// and free themselves.
	lost bool
}

const talkerBytes = 4096

// errGivenUp means that no reset has made the unit answer.
var errGivenUp = errors.New("no reset makes the unit answer")

func (d *Disk) newTalker(p *port.Processor) (*talker, error) {
	srb, err := d.adapter.NewSRB(p)
	if err != nil {
		return nil, err
	}
	data := d.options.Arena.Alloc(talkerBytes)
	if data == nil {
		d.adapter.FreeSRB(srb)
		return nil, fmt.Errorf("no memory for a buffer of %d bytes", talkerBytes)
	}
	return &talker{d: d, p: p, srb: srb, data: data, timeoutSecs: d.options.TimeoutSecs}, nil
}

func (t *talker) close() {
	if !t.lost {
		t.free()
	}
}

func (t *talker) free() {
	t.d.options.Arena.Free(t.data)
	t.d.adapter.FreeSRB(t.srb)
}

// command sends the CDB that was put into t.srb and reads up to inBytes into
// t.data, of which it returns what came through srb.DataTransferBytes.
func (t *talker) command(name string, cdbBytes, inBytes int) error {
	for try := 0; ; try++ {
		clear(t.data)
		s := t.srb
		s.Function = port.FunctionExecuteScsi
		s.CDBBytes = uint8(cdbBytes)
		s.Flags = port.FlagQueueActionEnable | port.FlagNoQueueFreeze
		s.QueueAction = port.SimpleTag
		s.TimeoutSecs = t.timeoutSecs
		s.DataBuffer, s.DataTransferBytes = nil, 0
		if inBytes > 0 {
			s.Flags |= port.FlagDataIn
			s.DataBuffer, s.DataTransferBytes = t.data[:inBytes], uint32(inBytes)
		}
		if !t.d.lu.Execute(t.p, s, t.free) {
			t.lost = true
			return fmt.Errorf("%s: %w", name, errGivenUp)
		}
		if s.Status.Code() == port.StatusDataOverrun && s.DataTransferBytes <= uint32(inBytes) {
			return nil // shorter than the allocation length, which is usual
		}
		v, errno := judge(s, s.DataTransferBytes)
		if v == verdictDone {
			return nil
		}
		if a, ok := unitAttention(s); ok {
			t.d.attention(t.p, a)
		}
		if v == verdictFail || try >= t.d.options.RetryCount {
			return fmt.Errorf("%s: %s (%s)", name, errno, s)
		}
		t.d.stats.retries.Add(1)
	}
}

// in is the data of the last command.
func (t *talker) in() []byte { return t.data[:t.srb.DataTransferBytes] }

// learn asks for everything that geometry holds. What changes meanwhile makes
// attention ask again, after this time.
func (d *Disk) learn(p *port.Processor) error {
	d.learnMu.Lock()
	defer d.learnMu.Unlock()
	t, err := d.newTalker(p)
	if err != nil {
		return err
	}
	defer t.close()
	if err := t.command("TEST UNIT READY", scsi.PutTestUnitReady(&t.srb.CDB), 0); err != nil {
		return err
	}
	g := &geometry{}
	capacity, err := t.capacity()
	if err != nil {
		return err
	}
	g.blocks, g.blockBytes = capacity.Blocks, uint64(capacity.BlockBytes)
	if b := g.blockBytes; b < 512 || b > talkerBytes || b&(b-1) != 0 {
		return fmt.Errorf("block size %d bytes: want a power of two from 512 to %d", b, talkerBytes)
	}
	if g.blocks > math.MaxInt64/g.blockBytes {
		return fmt.Errorf("capacity of %d blocks of %d bytes exceeds %d bytes", g.blocks, g.blockBytes, int64(math.MaxInt64))
	}
	if err := t.mode(g); err != nil {
		return err
	}
	if err := t.pages(g, capacity); err != nil {
		return err
	}
	d.geometry.Store(g)
	return nil
}

func (t *talker) capacity() (scsi.Capacity, error) {
	const allocation = 32
	err16 := t.command("READ CAPACITY(16)", scsi.PutReadCapacity16(&t.srb.CDB, allocation), allocation)
	if err16 == nil {
		if c, ok := scsi.ParseReadCapacity16Data(t.in()); ok {
			return c, nil
		}
		return scsi.Capacity{}, fmt.Errorf("READ CAPACITY(16): %d bytes make no answer", len(t.in()))
	}
	if t.lost { // and with it the SRB for another question
		return scsi.Capacity{}, err16
	}
	err := t.command("READ CAPACITY(10)", scsi.PutReadCapacity10(&t.srb.CDB), scsi.ReadCapacity10Bytes)
	if err != nil {
		return scsi.Capacity{}, errors.Join(err16, err)
	}
	c, tooBig, ok := scsi.ParseReadCapacity10Data(t.in())
	if !ok || tooBig {
		return scsi.Capacity{}, errors.Join(err16, errors.New("READ CAPACITY(10): the capacity does not fit"))
	}
	return c, nil
}

// mode asks for write protection, FUA and the cache.
func (t *talker) mode(g *geometry) error {
	const allocation = 252
	err := t.command("MODE SENSE(10)", scsi.PutModeSense10(&t.srb.CDB, scsi.ModePageCaching, true, allocation), allocation)
	if err != nil {
		return err
	}
	m, ok := scsi.ParseModeSense10Data(t.in())
	if !ok {
		return fmt.Errorf("MODE SENSE(10): %d bytes make no answer", len(t.in()))
	}
	g.readOnly, g.fua = m.WriteProtected, m.DPOFUA
	return nil
}

// pages asks for the vital product data that matter, as far as the unit has
// them.
func (t *talker) pages(g *geometry, c scsi.Capacity) error {
	const allocation = 252
	page := func(n scsi.VPDPage) ([]byte, error) {
		err := t.command(fmt.Sprintf("INQUIRY page %#02x", uint8(n)), scsi.PutInquiryVPD(&t.srb.CDB, n, allocation), allocation)
		if err != nil {
			return nil, err
		}
		return t.in(), nil
	}
	list, err := page(scsi.VPDSupportedPages)
	if err != nil {
		return err
	}
	supported := append([]byte(nil), list...)
	if scsi.VPDSupports(supported, scsi.VPDUnitSerialNumber) {
		b, err := page(scsi.VPDUnitSerialNumber)
		if err != nil {
			return err
		}
		if serial, ok := scsi.ParseVPDSerial(b); ok && t.d.serial == "" {
			t.d.serial = serial
		}
	}
	var limits scsi.BlockLimits
	if scsi.VPDSupports(supported, scsi.VPDBlockLimits) {
		b, err := page(scsi.VPDBlockLimits)
		if err != nil {
			return err
		}
		limits, _ = scsi.ParseVPDBlockLimits(b)
	}
	if scsi.VPDSupports(supported, scsi.VPDBlockCharacteristics) {
		b, err := page(scsi.VPDBlockCharacteristics)
		if err != nil {
			return err
		}
		x, ok := scsi.ParseVPDBlockCharacteristics(b)
		g.rotational = ok && x.RotationRate != scsi.RotationNotReported && x.RotationRate != scsi.RotationNone
	}
	if c.Provisioned && scsi.VPDSupports(supported, scsi.VPDLogicalBlockProvisioning) {
		b, err := page(scsi.VPDLogicalBlockProvisioning)
		if err != nil {
			return err
		}
		x, ok := scsi.ParseVPDProvisioning(b)
		g.unmap = ok && x.Unmap
		g.readZeros = ok && x.ReadZeros && c.ReadZeros
		g.unmapZeros = g.readZeros && x.WriteSame16
		g.anchor = ok && x.Anchor
		g.provisioned = ok
	}
	t.d.limits(g, limits)
	return nil
}

// limits settles how much one command may cover.
func (d *Disk) limits(g *geometry, l scsi.BlockLimits) {
	least := func(limits ...uint64) uint64 {
		n := uint64(math.MaxUint32)
		for _, x := range limits {
			if x != 0 {
				n = min(n, x)
			}
		}
		return n
	}
	config := d.adapter.Config()
	// Whatever the buffers' pages are, the list of segments is long enough.
	segmentsBytes := uint64(config.NumberOfPhysicalBreaks) * 4096
	transferBytes := least(uint64(config.MaximumTransferLength), segmentsBytes)
	g.maxTransfer = max(1, least(transferBytes/g.blockBytes, uint64(l.MaxTransfer)))
	rangeBlocks, releaseBlocks := maxRangeBytes/g.blockBytes, maxReleaseBytes/g.blockBytes
	g.maxUnmap = least(releaseBlocks, uint64(l.MaxUnmap))
	g.maxRelease = least(releaseBlocks, l.MaxWriteSame)
	g.maxWriteSame = least(rangeBlocks, l.MaxWriteSame)
	g.maxPrefetch = least(rangeBlocks, uint64(l.MaxPrefetch))
	if l.MaxUnmap == 0 {
		g.unmap = false
	}
	g.preferredBytes = uint32(max(4096, uint64(l.OptimalGranularity)*g.blockBytes))
	if g.preferredBytes&(g.preferredBytes-1) != 0 {
		g.preferredBytes = 4096
	}
}

// attention is told of every unit attention.
func (d *Disk) attention(p *port.Processor, a scsi.Additional) {
	d.stats.unitAttentions.Add(1)
	d.options.Log.Info("unit attention", "unit", d.lu.String(), "condition", a.String())
	if a == scsi.CapacityDataHasChanged {
		d.adapter.QueueWorkItem(p, &d.refresh)
	}
}
