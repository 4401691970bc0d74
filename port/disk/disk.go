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

// MaxPayloadBytes is the maximum length of READ and WRITE that clients are told.
const MaxPayloadBytes = 64 << 20

// maxRangeBytes bounds one command that covers blocks without moving them. A
// medium may have to write them all, and a command should end, or be aborted,
// long before its time is up.
const maxRangeBytes = 256 << 20

// maxReleaseBytes bounds one command that releases blocks, which needs no writing.
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
	// Nexus is the value that requests carry as SRB.Nexus, read when they begin. Whoever
	// ends the nexus must first kill the connections: a request that begins later finds its
	// connection dead, or gets the next number. Nil: requests carry none.
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
	geometry atomic.Pointer[geometry]
	gate     rangeGate
	groups   groupSet
	refresh  port.WorkItem
	// learnMu lets one learn run at a time. It is held across I/O.
	learnMu sync.Mutex
	stats   stats
	// lossEvents counts events that may have cost acknowledged writes: failed flushes and
	// calls of LostWrites. losses counts the same events, and one more for each write that
	// was under way at such an event and was answered later. A session that has not seen
	// the latest value of losses fails its next flush. Both are stored under lossMu.
	lossEvents atomic.Uint64
	losses     atomic.Uint64
	lossMu     sync.Mutex
	// lossWrites is what the gate had let in at the latest loss: when the flush that told
	// of it began, or when LostWrites or TellAgain was called.
	// +checklocks:lossMu
	lossWrites writesSeen
	// lossesAnswered is the latest value of losses since which there is known to have been
	// a moment when no write was being answered; a flush that tells of a loss shows it, too.
	// +checklocks:lossMu
	lossesAnswered uint64
	// lossUntold is the latest value of losses that Flush has counted and no client has been
	// told of, or zero.
	// +checklocks:lossMu
	lossUntold uint64
}

var _ nbd.Device = (*Disk)(nil)

// geometry is what the unit said about itself. It is replaced as a whole.
type geometry struct {
	serial     string
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

// zeroesFast reports whether the unit claims to zero blocks without writing them:
// unmapped blocks read as zeros or, with noHole, anchored ones do.
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
// Level: Passive. Errors: the unit is no disk, does not answer, or gives impossible
// answers.
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
func (d *Disk) Serial() string { return d.geometry.Load().serial }

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

// Flush makes the writes durable that were acknowledged before. If it fails, that counts as
// a loss, and no client has asked for it: those that are connected, and those that come until
// one has been told, get an error for their next flush, once. A unit reports a loss once, and
// whoever has written and comes again later would not learn of it.
//
// Level: Passive.
func (d *Disk) Flush(p *port.Processor) error {
	t, err := d.newTalker(p)
	if err != nil {
		return err
	}
	defer t.close()
	t.timeoutSecs = d.options.flushTimeoutSecs()
	before, writes := d.losses.Load(), d.gate.writes()
	err = t.command("SYNCHRONIZE CACHE", scsi.PutSynchronizeCache16(&t.srb.CDB, 0, 0, false), 0)
	if err != nil {
		d.lossMu.Lock()
		defer d.lossMu.Unlock()
		if n, counted := d.flushFailedLocked(before, writes); counted {
			d.lossUntold = n
		}
	}
	return err
}

// LostWrites tells the disk that its unit has lost writes that were acknowledged
// and not flushed, as when its power was cut. Every connection that is open now
// gets an error for its next flush, once, even if that flush works: the writes that
// it is for may be gone. If a flush is under way now, writes that are answered while it
// is may be gone, too: then the flush after it fails as well. Whoever cuts the unit's
// power calls LostWrites before restoring it.
//
// Concurrency: any goroutine.
func (d *Disk) LostWrites() {
	d.lossMu.Lock()
	defer d.lossMu.Unlock()
	d.lossEvents.Add(1)
	d.loseLocked()
}

// TellAgain tells every open connection of the loss again: a write that was under way at
// a loss may have been answered since. To writes that are under way now it is no loss.
//
// The disk itself calls it for each such write that it knows of, but not for writes whose
// replies were already on their way to the client at LostWrites. Whoever restores the
// power calls it just before, for the connections that were not dropped.
//
// Concurrency: any goroutine.
func (d *Disk) TellAgain() {
	d.lossMu.Lock()
	defer d.lossMu.Unlock()
	d.loseLocked()
}

// loseLocked counts a loss that covers at least the writes answered by now.
//
// +checklocks:d.lossMu
func (d *Disk) loseLocked() {
	d.lossWrites = d.gate.writes()
	n := d.losses.Add(1)
	if !d.lossWrites.answering {
		d.lossesAnswered = n
	}
}

// lossTold notes that a client has been told of loss n, and that there has been a moment since
// then when no write was being answered.
func (d *Disk) lossTold(n uint64) {
	d.lossMu.Lock()
	defer d.lossMu.Unlock()
	d.lossesAnswered = max(d.lossesAnswered, n)
	if n >= d.lossUntold {
		d.lossUntold = 0
	}
}

// lossesOfOthers is the latest loss that a new session need not be told of, because its
// writes were answered before. The latest loss of all is not such a one if it may concern
// a write that is still being answered, too late to see the loss. Nor is one that no client
// has been told of.
func (d *Disk) lossesOfOthers() uint64 {
	d.lossMu.Lock()
	defer d.lossMu.Unlock()
	if d.lossUntold != 0 {
		return d.lossUntold - 1
	}
	n := d.losses.Load()
	if d.lossesAnswered != n && d.gate.writes().answering {
		return n - 1
	}
	d.lossesAnswered = n
	return n
}

// flushFailed counts the loss that a failed flush has told of, and returns how many losses
// there are then. before and writes are Disk.losses and the gate's writes when it began.
// Two flushes that are under way together may tell of the same loss. That is certain only
// if no write has been under way since the first of them to tell of it began: otherwise
// this one may tell of a later write.
func (d *Disk) flushFailed(before uint64, writes writesSeen) uint64 {
	d.lossMu.Lock()
	defer d.lossMu.Unlock()
	n, _ := d.flushFailedLocked(before, writes)
	return n
}

// flushFailedLocked is flushFailed. counted says that it is a loss of its own.
//
// +checklocks:d.lossMu
func (d *Disk) flushFailedLocked(before uint64, writes writesSeen) (losses uint64, counted bool) {
	n := d.losses.Load()
	if n != before && d.lossWrites.quiet && d.gate.writes() == d.lossWrites {
		return n, false
	}
	d.lossEvents.Add(1)
	d.lossWrites = writes
	return d.losses.Add(1), true
}

// Rescan asks the unit again what it is, so that open and later connections see a
// change of size. The disk does this by itself when a command meets the unit attention
// for the change; Rescan does not wait for one.
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
	// lost: the port has given up a command. SRB and buffer are not ours any more;
	// they are freed if the SRB comes back.
	lost bool
}

const talkerBytes = 4096

// errGivenUp means that no reset could make the unit answer.
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

// command sends the CDB that was put into t.srb and reads up to inBytes into t.data;
// t.srb.DataTransferBytes is then how many bytes came.
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

// learn asks for everything that geometry holds. For a change meanwhile, attention asks
// again after this.
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
	if old := d.geometry.Load(); old != nil {
		g.serial = old.serial // that of a unit does not change
	}
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
		if serial, ok := scsi.ParseVPDSerial(b); ok && g.serial == "" {
			g.serial = serial
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
