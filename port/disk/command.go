package disk

import (
	"github.com/vhbad/vhbad/internal/scsi"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/port"
)

// A command is one request of a session on its way: a sequence of steps, each
// one SCSI command of the same SRB.
//
// Concurrency: it belongs to whoever runs its next step: the session's
// goroutine, then whatever processor completes its SRB.
type command struct {
	s    *session
	srb  *port.SRB
	one  [1]*port.SRB // srb, as a batch of its own
	slot int
	// isSpare: it belongs to no slot; see session.spare.
	isSpare bool
	req     *nbd.Request

	// param holds the parameter list of UNMAP or the answer of GET LBA STATUS, in
	// arena memory.
	param  []byte
	status statusAnswer

	pos, end  uint64 // bytes of the range still to be done
	until     uint64 // end, or where the next hole of a read may begin
	stepBytes uint64 // bytes of the range that the current step covers
	want      uint32 // bytes that the current step must move
	step      step
	tries     int
	steps     int // that have been done
	errno     nbd.Errno

	// eventsBefore is Disk.lossEvents when the command began; lossesBefore is Disk.losses,
	// and writesBefore what the gate had let in, when its stepSync began.
	eventsBefore, lossesBefore uint64
	writesBefore               writesSeen

	goOn port.WorkItem // continues a long command elsewhere

	failedAt      uint64 // where on the unit errno happened
	failedAtKnown bool

	hold             hold
	lockFrom, lockTo uint64 // blocks' byte range for the gate
	nextGranted      *command
	ownsBounce       bool

	// orphaned: the port has given the SRB up, and no slot has taken the command
	// since it came back; see orphan.go.
	orphaned bool
	estate   estate
}

var _ port.Abandoner = (*command)(nil)

// A step says what the SRB under way does.
type step uint8

const (
	stepNone      step = iota
	stepBlocks         // whole blocks: the request itself, or a piece of it
	stepStatus         // asks which blocks are mapped
	stepReadPart       // reads the block around a part of one
	stepWritePart      // writes it back, changed
	stepSync           // makes the rest durable
)

// begin starts a request. True: its SRB is ready for the caller to submit.
func (c *command) begin(p *port.Processor, r *nbd.Request) (submit bool) {
	g := c.s.d.geometry.Load()
	c.req, c.errno, c.tries, c.step = r, nbd.OK, 0, stepNone
	c.failedAtKnown, c.status, c.steps = false, statusAnswer{}, 0
	c.eventsBefore = c.s.d.lossEvents.Load()
	c.pos, c.end = r.OffsetBytes, r.OffsetBytes+r.LengthBytes
	mask := g.blockBytes - 1
	if r.Op == nbd.OpTrim {
		c.pos, c.end = wholeBlocksOf(c.pos, c.end, mask)
	}
	c.until = c.end
	if n := c.s.d.options.Nexus; n != nil {
		c.srb.Nexus = uint8(n.Load())
	}
	if c.unwanted(p) { // behind the nexus; see Options.Nexus
		return false
	}
	switch r.Op {
	case nbd.OpWriteZeroes:
		if r.FastZero && !g.zeroesFast(r.NoHole) {
			c.errno = nbd.ENOTSUP
			c.finish(p)
			return false
		}
		fallthrough
	case nbd.OpTrim:
		c.s.known.forget()
		fallthrough
	case nbd.OpWrite:
		c.lockFrom, c.lockTo = c.pos&^mask, (c.end+mask)&^mask
		if (c.pos|c.end)&mask != 0 {
			startGranted(p, c.s.d.gate.enterSlow(c, holdExclusive))
			return false
		}
		if r.LengthBytes >= longRangeBytes && r.Op != nbd.OpWrite || !c.s.d.gate.enterFast(&c.s.fast) {
			startGranted(p, c.s.d.gate.enterSlow(c, holdShared))
			return false
		}
		c.hold = holdFast
	case nbd.OpRead:
		if r.Sparse && r.LengthBytes >= sparseMinBytes && g.provisioned && c.s.known.worthAsking(c.pos, c.end) {
			c.status.wanted = true
			c.until = c.pos
		}
	case nbd.OpFlush, nbd.OpCache, nbd.OpBlockStatus, nbd.OpCount:
	}
	switch c.prepare(g) {
	case ready:
		return true
	case finished:
		c.finish(p)
	case waiting:
	}
	return false
}

// wholeBlocksOf is the part of a range that is whole blocks. A trim is only a hint, so
// the rest of its range can be ignored.
func wholeBlocksOf(from, to, mask uint64) (uint64, uint64) {
	from, to = (from+mask)&^mask, to&^mask
	return from, max(from, to)
}

// longRangeBytes is the shortest trim or zeroing that tells the gate its range, so
// that a write of a part of a block elsewhere need not wait for it.
const longRangeBytes = 1 << 20

// startGranted runs commands, of any session, that the gate let in.
func startGranted(p *port.Processor, granted *command) {
	for x := granted; x != nil; {
		next := x.nextGranted // x may be done, and in such a list again, when advance returns
		x.nextGranted = nil
		x.advance(p)
		x = next
	}
}

// advance prepares the next step and submits it, or finishes.
func (c *command) advance(p *port.Processor) {
	if c.pos < c.end && c.unwanted(p) {
		return
	}
	switch c.prepare(c.s.d.geometry.Load()) {
	case ready:
		c.s.d.lu.Submit(p, c.one[:])
	case finished:
		c.finish(p)
	case waiting:
	}
}

// unwanted drops the rest of a request whose client has gone, and reports whether it
// has. The rest may be most of a large disk, and as little of it as possible should come
// after the next client's writes.
func (c *command) unwanted(p *port.Processor) bool {
	if c.s.conn.Alive() {
		return false
	}
	c.errno = nbd.ESHUTDOWN
	c.req.Blame(nbd.BlameAborted)
	c.finish(p)
	return true
}

// outcome of prepare.
type outcome uint8

const (
	ready    outcome = iota // the SRB is filled
	finished                // nothing is left to do
	waiting                 // the command continues when the block buffer is free
)

// prepare fills the SRB for the next step.
func (c *command) prepare(g *geometry) outcome {
	r := c.req
	if r.Op == nbd.OpFlush {
		if c.step == stepSync {
			return finished
		}
		c.sync()
		return ready
	}
	if c.pos >= c.end {
		if c.step != stepSync && c.step != stepNone && c.syncsAfter(g) {
			c.sync()
			return ready
		}
		return finished
	}
	if r.Op == nbd.OpBlockStatus {
		return c.blockStatus(g)
	}
	if c.pos >= c.until {
		if c.status.wanted {
			c.ask(g, c.param)
			return ready
		}
		if c.skipHoles(g); c.pos >= c.end {
			return finished
		}
	}
	mask := g.blockBytes - 1
	if c.pos&mask != 0 || c.until-c.pos < g.blockBytes {
		if r.Op == nbd.OpCache {
			// A hint again: the whole block will do.
			c.pos &^= mask
			c.end = (c.end + mask) &^ mask
			c.until = c.end
		} else {
			return c.partOfBlock(g)
		}
	}
	c.wholeBlocks(g)
	return ready
}

// syncsAfter reports whether the request's durability needs a command of its
// own.
func (c *command) syncsAfter(g *geometry) bool {
	if !c.req.FUA {
		return false
	}
	switch c.req.Op {
	case nbd.OpTrim, nbd.OpWriteZeroes:
		return true
	case nbd.OpWrite:
		return !g.fua
	case nbd.OpRead, nbd.OpFlush, nbd.OpCache, nbd.OpBlockStatus, nbd.OpCount:
	}
	return false
}

// reset makes the SRB ready to be filled.
func (c *command) reset(s step, cdbBytes int) {
	c.step = s
	srb := c.srb
	srb.Function = port.FunctionExecuteScsi
	srb.CDBBytes = uint8(cdbBytes)
	srb.Flags = port.FlagQueueActionEnable | port.FlagNoQueueFreeze
	srb.QueueAction = port.SimpleTag
	srb.TimeoutSecs = c.s.d.options.TimeoutSecs
	srb.DataBuffer = nil
	srb.DataTransferBytes, c.want = 0, 0
	if c.s.group != 0 {
		scsi.SetGroup(&srb.CDB, c.s.group)
	}
}

func (c *command) data(flags port.Flags, b []byte) {
	c.srb.Flags |= flags
	c.srb.DataBuffer = b
	c.want = uint32(len(b))
	c.srb.DataTransferBytes = c.want
}

func (c *command) sync() {
	c.stepBytes = 0
	c.lossesBefore = c.s.d.losses.Load()
	c.writesBefore = c.s.d.gate.writes()
	c.reset(stepSync, scsi.PutSynchronizeCache16(&c.srb.CDB, 0, 0, false))
	c.srb.TimeoutSecs = c.s.d.options.flushTimeoutSecs()
}

// wholeBlocks fills the SRB for as many whole blocks from pos on as one command
// takes.
func (c *command) wholeBlocks(g *geometry) {
	r := c.req
	lba := c.pos / g.blockBytes
	blocks := (c.until - c.pos) / g.blockBytes
	done := c.pos - r.OffsetBytes
	cdb := &c.srb.CDB
	switch r.Op {
	case nbd.OpRead:
		blocks = min(blocks, g.maxTransfer)
		c.reset(stepBlocks, scsi.PutRead16(cdb, lba, uint32(blocks), false, false))
		c.data(port.FlagDataIn, r.Data[done:done+blocks*g.blockBytes])
	case nbd.OpWrite:
		blocks = min(blocks, g.maxTransfer)
		c.reset(stepBlocks, scsi.PutWrite16(cdb, lba, uint32(blocks), r.FUA && g.fua, false))
		c.data(port.FlagDataOut, r.Data[done:done+blocks*g.blockBytes])
	case nbd.OpTrim:
		blocks = g.piece(lba, blocks, g.maxUnmap)
		n := scsi.PutUnmapHeader(c.param, 1)
		scsi.PutUnmapDescriptor(c.param[n:], lba, uint32(blocks))
		c.reset(stepBlocks, scsi.PutUnmap(cdb, false, unmapParameterBytes))
		c.data(port.FlagDataOut, c.param[:unmapParameterBytes])
	case nbd.OpWriteZeroes:
		anchor := r.NoHole && r.FastZero // which the unit has promised to be fast
		unmap := anchor || !r.NoHole && g.unmapZeros
		if unmap && !anchor {
			blocks = g.piece(lba, blocks, g.maxRelease)
		} else {
			blocks = min(blocks, g.maxWriteSame)
		}
		c.reset(stepBlocks, scsi.PutWriteSame16(cdb, lba, uint32(blocks), unmap, anchor, true))
	case nbd.OpCache:
		blocks = min(blocks, g.maxPrefetch)
		c.reset(stepBlocks, scsi.PutPreFetch16(cdb, lba, uint32(blocks), false))
	case nbd.OpFlush, nbd.OpBlockStatus, nbd.OpCount:
		panic("disk: no blocks in this operation")
	}
	c.stepBytes = blocks * g.blockBytes
}

// pieceAlignBytes is the alignment of the ends of pieces. It is a multiple of any unit
// in which media give space back.
const pieceAlignBytes = 1 << 20

// piece is how many of the blocks from lba on one command should release, at most limit.
// Only the last piece may end in the middle of an allocation unit of the medium: a unit
// that lies half in one command and half in the next would be released by neither.
func (g *geometry) piece(lba, blocks, limit uint64) uint64 {
	if blocks <= limit {
		return blocks
	}
	if over := (lba + limit) & (pieceAlignBytes/g.blockBytes - 1); over < limit {
		return limit - over
	}
	return limit
}

// partOfBlock fills the SRB to read the block around pos into the block buffer.
func (c *command) partOfBlock(g *geometry) outcome {
	if !c.ownsBounce && !c.s.takeBounce(c) {
		return waiting
	}
	if c.bounceMemory() == nil {
		c.errno = nbd.ENOMEM
		return finished
	}
	c.s.d.stats.partialBlocks.Add(1)
	inBlock := c.pos & (g.blockBytes - 1)
	c.stepBytes = min(g.blockBytes-inBlock, c.until-c.pos)
	c.reset(stepReadPart, scsi.PutRead16(&c.srb.CDB, c.pos/g.blockBytes, 1, false, false))
	c.data(port.FlagDataIn, c.bounce()[:g.blockBytes])
	return ready
}

// writePart changes the block in the buffer and fills the SRB to write it back.
func (c *command) writePart(g *geometry) {
	r := c.req
	inBlock := c.pos & (g.blockBytes - 1)
	part := c.bounce()[inBlock : inBlock+c.stepBytes]
	if r.Op == nbd.OpWrite {
		copy(part, r.Data[c.pos-r.OffsetBytes:])
	} else {
		clear(part)
	}
	fua := r.FUA && g.fua && r.Op == nbd.OpWrite
	c.reset(stepWritePart, scsi.PutWrite16(&c.srb.CDB, c.pos/g.blockBytes, 1, fua, false))
	c.data(port.FlagDataOut, c.bounce()[:g.blockBytes])
}

// CompleteSRB implements port.Completer.
func (c *command) CompleteSRB(p *port.Processor, srb *port.SRB) {
	if c.orphaned {
		c.s.comeHome(c)
		return
	}
	v, errno := judge(srb, c.want)
	if srb.CutReply {
		c.req.CutReply(srb.ReplyBytes) // port.HalfReply is nbd.HalfReply
	}
	if srb.BadCookie {
		c.req.BadCookie()
	}
	if c.step == stepStatus && statusArrived(srb, c.want) {
		v = verdictDone
	}
	if v == verdictDone {
		c.tries = 0
		c.stepDone(p)
		return
	}
	d := c.s.d
	if a, ok := unitAttention(srb); ok {
		d.attention(p, a)
	}
	// A sync goes on: if it fails, others hear of it.
	wanted := c.step == stepSync || c.s.conn.Alive()
	if v == verdictRetry && wanted && c.tries < d.options.RetryCount {
		c.tries++
		d.stats.retries.Add(1)
		srb.DataTransferBytes = c.want
		d.lu.Submit(p, c.one[:])
		return
	}
	if c.step == stepStatus && c.doWithoutStatus(srb) {
		c.advance(p)
		return
	}
	c.errno = errno
	c.req.Blame(blame(srb))
	c.failedAt, c.failedAtKnown = c.offsetOfFailure(srb)
	c.finish(p)
}

// offsetOfFailure is where on the unit srb failed, in bytes, if it says so.
func (c *command) offsetOfFailure(srb *port.SRB) (offsetBytes uint64, ok bool) {
	g := c.s.d.geometry.Load()
	lba, ok := failedBlock(srb)
	if !ok || lba >= g.blocks {
		return 0, false
	}
	offsetBytes = lba * g.blockBytes
	if from := c.req.OffsetBytes; offsetBytes < from && from-offsetBytes < g.blockBytes {
		offsetBytes = from // it begins within the block
	}
	return offsetBytes, true
}

// stepDone goes on after a step that worked.
func (c *command) stepDone(p *port.Processor) {
	switch c.step {
	case stepReadPart:
		if c.req.Op != nbd.OpRead {
			if c.unwanted(p) {
				return
			}
			c.writePart(c.s.d.geometry.Load())
			c.s.d.lu.Submit(p, c.one[:])
			return
		}
		inBlock := c.pos & (c.s.d.geometry.Load().blockBytes - 1)
		copy(c.req.Data[c.pos-c.req.OffsetBytes:], c.bounce()[inBlock:inBlock+c.stepBytes])
	case stepStatus:
		c.statusDone()
	case stepBlocks, stepWritePart, stepSync, stepNone:
	}
	c.pos += c.stepBytes
	if c.ownsBounce {
		c.passBounce(p)
	}
	if c.pos >= c.end && !c.req.FUA {
		c.finish(p)
		return
	}
	if c.steps++; c.steps%stepsInARow == 0 && c.s.d.adapter.QueueWorkItem(p, &c.goOn) {
		return
	}
	c.advance(p)
}

// stepsInARow is how many steps of a command may run in a row, each on the goroutine
// where the previous one completed. On a medium that never blocks that is the connection's
// goroutine, whose other requests wait meanwhile; so the rest is left to the port's worker.
const stepsInARow = 16

// passBounce gives the block buffer to the next command in line and continues that.
func (c *command) passBounce(p *port.Processor) {
	if next := c.s.releaseBounce(c); next != nil {
		next.advance(p)
	}
}

// leaveGate lets others at a command's range, returns the commands granted by that, and
// then settles the command. The order matters: if its write is lost too late for the
// command to notice, then the loss, and any later flush, see that it is being answered.
// wrote: it counts as being answered until session.answered is called.
func (c *command) leaveGate() (granted *command, wrote bool) {
	wrote = c.hold != holdNone
	granted = c.s.d.gate.leave(c)
	c.settle(wrote)
	return granted, wrote
}

// answered is called when a command that left the gate has been answered.
func (s *session) answered(wrote bool) {
	if wrote {
		s.fast.Add(-writeAnswered)
	}
}

// settle keeps answers true when writes were lost. A unit reports a loss once, and the
// writes may be those of any connection: a later flush of another one may work, and would
// promise durability for writes that are lost. So each connection is told, once, by a flush.
func (c *command) settle(isWrite bool) {
	d := c.s.d
	switch {
	case c.errno != nbd.OK:
		if c.step == stepSync {
			c.tell(d.flushFailed(c.lossesBefore, c.writesBefore))
		}
	case c.req.Op == nbd.OpFlush:
		if n := d.losses.Load(); c.s.told.Load() != n {
			c.tell(n)
			c.errno = nbd.EIO
		}
	case !isWrite || d.lossEvents.Load() == c.eventsBefore:
	case c.step == stepSync:
		c.errno = nbd.EIO // lost before it was synced, maybe
	case !c.req.FUA:
		d.TellAgain() // of this one, maybe; a flush that came before it has told of others
	}
}

// tell notes that c's failure tells the client of loss n. It does not count as told if a
// write may have been answered after c began and before the loss: c does not cover that
// write, but the next flush does, and would promise it. Nor does it if a write was being
// answered when c began, too late to see the loss.
func (c *command) tell(n uint64) {
	if c.lossesBefore == n && !c.writesBefore.answering || c.writesBefore.quiet && c.writesBefore == c.s.d.gate.writes() {
		c.s.told.Store(n)
		c.s.d.lossTold(n) // answered when c began, or now
	}
}

// finish answers the request. The slot may be reused as soon as Complete is called,
// and the spare command as soon as nobody waits for it; so those steps come last.
func (c *command) finish(p *port.Processor) {
	if c.ownsBounce {
		c.passBounce(p)
	}
	if c.status.large {
		c.s.releaseLarge()
	}
	granted, wrote := c.leaveGate()
	s, r, errno := c.s, c.req, c.errno
	failedAt, failedAtKnown := c.failedAt, c.failedAtKnown
	c.req = nil
	c.srb.DataBuffer = nil
	if c.srb.TakeSample() {
		r.FollowReply()
	}
	var next *nbd.Request
	if c.isSpare {
		next = s.passSpare()
	}
	owed := false
	if failedAtKnown {
		owed = r.Fail(errno, failedAt)
	} else {
		owed = r.Complete(errno)
	}
	s.answered(wrote)
	if owed {
		p.Defer(s)
	}
	startGranted(p, granted)
	if next != nil && c.begin(p, next) {
		s.d.lu.Submit(p, c.one[:])
	}
}
