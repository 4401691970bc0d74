package nbd

import (
	"errors"
	"io"
	"runtime"
)

const (
	// maxBatch is how many requests go to Session.Submit at once.
	maxBatch = 64
	// maxBatchBytes closes a batch early, so that its first reply does not wait
	// for megabytes and data stays in the processor's cache.
	maxBatchBytes = 1 << 20
	// longCommandBytes is counted for a command that has little data but may be much
	// work for the device: a trim, or a search for holes.
	longCommandBytes = 128 << 10
	// minReadBytes is the least room worth a read.
	minReadBytes = 4 << 10
	// readsPerTurn is how many reads of a connection go by before others have a turn.
	readsPerTurn = 32
)

// A receiver is the reading half of a Conn.
//
// Concurrency: everything here belongs to the reader goroutine.
type receiver struct {
	format format // immutable; the sender has the same

	// rx is the receive block. While it is alone, that is, while no request's payload lies
	// in it, everything but unparsed input may be overwritten.
	rx *block
	// rx.mem[start:end] is the input that is received and not yet parsed.
	start, end int
	// needBytes is how much input, from start on, the next step of parse wants: never more
	// than rx.mem holds.
	needBytes int
	// rxBytes is the size wanted for the next receive block: not less than rx.mem's, as it
	// has to hold all that this one can. If it is more, rx should grow. Only awaitRoom makes
	// it less, while it waits.
	rxBytes int

	tx *block
	// txAt is where the next reply is carved from tx.
	txAt    int
	txBytes int // the size wanted for the next reply block
	// statusExtents is how many extents the next BLOCK_STATUS has room for.
	statusExtents int

	// free holds request slots; slotsMade of them exist.
	free      []*Request
	slotsMade int
	// taken counts the requests that were ever enqueued or answered.
	taken uint64

	batch      [maxBatch]*Request
	batchLen   int
	batchBytes int
	started    [OpCount + 1]uint64 // requests since the last publication

	// filling is a write whose payload is being read into its own block; filled bytes
	// of it have arrived so far.
	filling *Request
	filled  int
	ahead   ahead
	// parts are what the read that is under way may fill.
	parts [4][]byte

	// skipBytes of payload are to be discarded before skipFor is answered.
	skipBytes int
	skipFor   *Request

	// wantBytes is the size of the block that could not be had, for awaitBlock to wait
	// for; denied is set when it has waited in vain. wantOwn, unless nil, is the reader's
	// own block that will do instead once it is alone.
	wantBytes int
	wantOwn   *block
	denied    bool
	// granted is the memory that awaitMemory got, of wantBytes. It is for the next allocate,
	// which gives it back if asked for another size. So whoever had to wait must ask for the
	// same size again, and txBytes stays what it was.
	granted []byte

	readNs int64 // when the input was read

	gather gatherer
	orders lastOrders
	// onHangup is leaves, made when it is first needed.
	onHangup func()
	// untilYield is how many reads there may be before others have a turn.
	untilYield int
	// takenBefore is what taken was when the input was read, and dataBytes the data of
	// the requests enqueued since then.
	takenBefore uint64
	dataBytes   int
}

// A step says why parse stopped.
type step uint8

const (
	stepInput   step = iota // it needs needBytes from start on, or more payload
	stepFull                // the batch is full
	stepSlot                // every slot is in flight
	stepMemory              // there is no block of wantBytes
	stepDisc                // the client disconnects
	stepMagic               // the stream is out of step
	stepTooLong             // a payload is too long to skip
)

// receive reads and submits requests until there is a reason to stop.
func (c *Conn) receive() CloseReason {
	for {
		c.rules.sizeBytes = c.export.Device.SizeBytes()
		s := c.parse()
		c.submit()
		switch s {
		case stepInput:
			if reason, stop := c.fill(); stop {
				return reason
			}
		case stepFull:
			c.awaitSent()
			if c.left.Load() {
				return c.stopped() // it may have a fence up, and not be about to stop
			}
			runtime.Gosched() // others have their turn before the next batch
		case stepSlot:
			c.park()
			c.awaitSlot()
			c.unpark()
			if c.draining() || c.left.Load() {
				return c.stopped()
			}
		case stepMemory:
			if c.orders.taken {
				return CloseShutdown // what it waits for may be withheld
			}
			if !c.awaitBlock() {
				return c.stopped()
			}
		case stepDisc:
			return CloseDisconnect
		case stepMagic:
			return CloseBadMagic
		case stepTooLong:
			return ClosePayloadTooLong
		}
		if c.dead.Load() {
			return CloseKilled // kill knows the true reason
		}
	}
}

// parse turns what was received into requests of the batch.
func (c *Conn) parse() step {
	var h requestHeader
	for {
		have := c.end - c.start
		if c.skipFor != nil {
			n := min(have, c.skipBytes)
			c.start += n
			c.skipBytes -= n
			if c.skipBytes > 0 {
				c.needBytes = 1
				return stepInput
			}
			c.answer(c.skipFor, c.skipFor.errno)
			c.skipFor = nil
			continue
		}
		if c.filling != nil {
			if c.filled < len(c.filling.Data) {
				return stepInput
			}
			r := c.filling
			c.filling = nil
			c.enqueue(r)
			continue
		}
		if c.batchLen == maxBatch || c.batchBytes >= maxBatchBytes {
			return stepFull
		}
		if n := c.format.requestBytes(); have < n {
			c.needBytes = n
			return stepInput
		}
		if !c.format.decodeRequest(c.rx.mem[c.start:c.end], &h) {
			return stepMagic
		}
		if h.typ == cmdDisc {
			return stepDisc // offset and length are not looked at
		}
		if c.ahead.block != nil && !c.foreseen(&h) {
			c.fold()
		}
		r := c.slot()
		if r == nil {
			return stepSlot
		}
		if s, ok := c.parseRequest(r, &h); !ok {
			return s
		}
	}
}

// parseRequest fills slot r from header h at c.start. If it cannot go on it consumes
// nothing, puts the slot back and returns the reason.
func (c *Conn) parseRequest(r *Request, h *requestHeader) (s step, ok bool) {
	consumed := c.format.requestBytes()
	r.cookie, r.wireOffset = h.cookie, h.offset
	payload := c.rules.payload(h)
	known := true // the meta context
	if payload == statusPayloadBytes && c.rules.statusFilter(h) {
		if c.end-c.start < consumed+statusPayloadBytes {
			c.putBack(r)
			c.needBytes = consumed + statusPayloadBytes
			return stepInput, false
		}
		known = decodeStatusPayload(c.rx.mem[c.start+consumed:], h)
		consumed += statusPayloadBytes
		payload = 0
	}
	op, errno, why := c.rules.check(h)
	switch {
	case errno != OK:
	case !known:
		errno, why = EINVAL, causeContexts
	case c.denied && h.length > 0:
		errno, why = ENOMEM, causeMemory
	}
	c.denied = false
	c.describe(r, h, op)
	r.cause = why
	switch {
	case errno != OK && payload > uint64(max(skipFactor*c.limits.MaxPayloadBytes, minSkipBytes)):
		c.putBack(r)
		return stepTooLong, false
	case errno != OK && payload > 0:
		r.errno = errno
		c.skipFor, c.skipBytes = r, int(payload)
	case errno != OK:
		c.answer(r, errno)
	case op == OpFlush:
		r.OffsetBytes, r.LengthBytes = 0, 0
		c.enqueue(r)
	case h.length == 0:
		c.answer(r, OK) // nothing to do, and no reason to disconnect
	case op == OpWrite:
		return c.parseWrite(r, int(h.length))
	case c.roomFor(r):
		c.enqueue(r)
	default:
		c.putBack(r)
		return c.noMemory(), false
	}
	c.start += consumed
	return 0, true
}

// noMemory is the step of parse when there is no block of wantBytes.
func (c *Conn) noMemory() step {
	if c.batchLen > 0 {
		return stepFull // its replies may free what is wanted
	}
	return stepMemory
}

// describe fills slot r from h, and clears what is left of the slot's last request.
func (c *Conn) describe(r *Request, h *requestHeader, op Op) {
	r.Op, r.counted = op, op
	r.FUA = h.flags&cmdFlagFUA != 0 && (op == OpWrite || op == OpTrim || op == OpWriteZeroes)
	r.NoHole = h.flags&cmdFlagNoHole != 0
	r.FastZero = h.flags&cmdFlagFastZero != 0
	r.OneExtent = h.flags&cmdFlagReqOne != 0
	r.Sparse = op == OpRead && c.format != formatSimple && h.flags&cmdFlagDF == 0
	r.OffsetBytes, r.LengthBytes = h.offset, h.length
	r.Data, r.block, r.dataAt = nil, nil, 0
	r.holeCount = 0
	r.failedAtKnown, r.badCookie = false, false
	r.receivedNs = c.readNs
}

// roomFor gives a request the memory that its reply needs, if any. If there is none it
// returns false, and wantBytes says how much is wanted.
func (c *Conn) roomFor(r *Request) bool {
	switch r.Op {
	case OpRead:
		if !c.carve(r, int(r.LengthBytes)) { // at most a payload
			return false
		}
		c.refer(r)
	case OpBlockStatus:
		return c.carveStatus(r)
	case OpWrite, OpFlush, OpTrim, OpWriteZeroes, OpCache, OpCount:
	}
	return true
}

// parseWrite gives a write its payload: in place, if it has arrived; if it is short,
// parseWrite waits for it in place; else the payload gets a block of its own, where some
// of it may be already.
func (c *Conn) parseWrite(r *Request, length int) (s step, ok bool) {
	header := c.format.requestBytes()
	at := c.start + header
	if b := c.ahead.block; b != nil {
		r.block = b
		r.Data = b.mem[:length:length]
		c.filled = c.ahead.filled
		c.ahead = ahead{}
		c.start = at
		c.filling = r
		return 0, true
	}
	if c.end-at >= length {
		r.Data = c.rx.mem[at : at+length : at+length]
		r.block = c.rx
		c.rx.refs.Add(1)
		c.start = at + length
		c.enqueue(r)
		return 0, true
	}
	if length <= ownBlockBytes && header+length <= len(c.rx.mem) {
		c.putBack(r)
		c.needBytes = header + length
		return stepInput, false
	}
	b := c.allocate(length)
	if b == nil {
		c.putBack(r)
		c.wantBytes, c.wantOwn = length, nil
		return c.noMemory(), false
	}
	r.block = b // the request's own reference
	r.Data = b.mem[:length:length]
	c.filled = copy(r.Data, c.rx.mem[at:c.end])
	c.start = c.end
	c.filling = r
	return 0, true
}

// slot takes a free request, or nil if MaxRequests are in flight.
func (c *Conn) slot() *Request {
	if len(c.free) == 0 {
		c.mu.Lock()
		c.free, c.returned = c.returned, c.free
		c.mu.Unlock()
	}
	if len(c.free) == 0 {
		n := min(slotChunk, c.limits.MaxRequests-c.slotsMade)
		if n == 0 {
			return nil
		}
		c.makeSlots(n)
	}
	r := c.free[len(c.free)-1]
	c.free = c.free[:len(c.free)-1]
	return r
}

func (c *Conn) makeSlots(n int) {
	chunk := make([]Request, n)
	for i := range chunk {
		chunk[i].Slot = c.slotsMade + i
		chunk[i].conn = c
	}
	// Backwards, so that low slots are used first.
	for i := n - 1; i >= 0; i-- {
		c.free = append(c.free, &chunk[i])
	}
	c.slotsMade += n
}

// putBack undoes slot.
func (c *Conn) putBack(r *Request) { c.free = append(c.free, r) }

// awaitSlot waits until a slot comes back, or there is no point any more.
func (c *Conn) awaitSlot() {
	c.watchLeaving()
	c.mu.Lock()
	for len(c.returned) == 0 && !c.dead.Load() && !c.draining() && !c.left.Load() {
		c.cond.Wait()
	}
	c.mu.Unlock()
}

// awaitSent waits while the client takes the replies to earlier requests. There is more
// to do, but its data would only push theirs out of the processor's cache.
//
// It need not park: whoever sends also takes what completes meanwhile.
func (c *Conn) awaitSent() {
	c.mu.Lock()
	for c.flushing && !c.dead.Load() && !c.draining() && !c.left.Load() {
		c.cond.Wait()
	}
	c.mu.Unlock()
}

// enqueue adds r to the batch.
func (c *Conn) enqueue(r *Request) {
	r.state = slotSubmitted
	c.taken++
	c.started[r.counted]++
	c.batch[c.batchLen] = r
	c.batchLen++
	c.batchBytes += len(r.Data)
	if r.Op > OpFlush {
		c.batchBytes += longCommandBytes
	}
	c.dataBytes += len(r.Data)
}

// answer completes a request that never reaches the device.
func (c *Conn) answer(r *Request, errno Errno) {
	r.state = slotSubmitted
	c.taken++
	c.started[r.counted]++
	r.Complete(errno) // the reader is awake, so it flushes
}

// submit hands the batch to the device and sends what it completed, and what
// was answered without it.
func (c *Conn) submit() {
	for op, n := range c.started {
		if n > 0 {
			c.ops[op].started.Add(n)
			c.started[op] = 0
		}
	}
	if n := c.batchLen; n > 0 {
		c.batchLen, c.batchBytes = 0, 0
		c.session.Submit(c.batch[:n])
	}
	c.Flush()
}

// park is called before the reader waits for something. It sends what is queued, and
// leaves replies that are queued while the reader sleeps for others to send.
func (c *Conn) park() {
	c.mu.Lock()
	for len(c.replies) > 0 && !c.flushing && !c.withheld {
		c.mu.Unlock()
		c.Flush()
		c.mu.Lock()
	}
	c.readerAwake = false
	c.mu.Unlock()
}

func (c *Conn) unpark() {
	c.mu.Lock()
	c.readerAwake = true
	c.mu.Unlock()
}

// stopped is why the reader has stopped waiting, for memory or for a slot.
func (c *Conn) stopped() CloseReason {
	switch {
	case c.dead.Load():
		return CloseKilled // kill knows the true reason
	case c.draining():
		return CloseShutdown
	}
	return CloseEOF
}

// fill reads more input.
func (c *Conn) fill() (reason CloseReason, stop bool) {
	if c.draining() && !c.takeLastOrders() {
		return CloseShutdown, true
	}
	if !c.makeRoom() {
		return c.stopped(), true
	}
	room := c.rx.mem[c.end:]
	parts := append(c.parts[:0], room)
	if c.filling != nil {
		// Read what follows, too: copying some of it to the next payload's block costs less
		// than leaving it in the socket, for whose room the client waits.
		parts = c.lookAhead(append(c.parts[:0], c.filling.Data[c.filled:]), room)
	}
	c.park()
	soon := c.beforeRead()
	n, err := c.stream.read(parts, soon)
	c.requestSince.Store(0)
	c.unpark()
	c.readNs = now()
	c.reads.Add(1)
	if err != nil {
		c.dropAhead()
		return c.readFailed(err)
	}
	c.received(n)
	return 0, false
}

// begun says whether a request has arrived in part.
func (c *Conn) begun() bool { return c.filling != nil || c.skipFor != nil || c.start < c.end }

// beforeRead gives others a turn, and pauses if that pays. It says whether there will be
// something to read in a moment.
func (c *Conn) beforeRead() (soon bool) {
	if c.untilYield--; c.untilYield <= 0 {
		c.untilYield = readsPerTurn
		c.stream.yield()
	}
	c.gather.took(int(c.taken-c.takenBefore), c.dataBytes, c.readNs)
	c.takenBefore, c.dataBytes = c.taken, 0
	if !c.begun() {
		return c.gather.pause(c.stream, c.readNs)
	}
	// The clock starts only here: earlier steps may have waited for memory.
	c.requestSince.Store(now())
	return c.filling != nil // a payload follows its header
}

// readFailed says what becomes of the connection.
func (c *Conn) readFailed(err error) (reason CloseReason, stop bool) {
	switch {
	case isTimeout(err) && c.quiet():
		return CloseShutdown, true // that was all
	case isTimeout(err):
		c.heed()
		return 0, false
	case c.dead.Load():
		return CloseKilled, true
	case !errors.Is(err, io.EOF):
		return CloseReadError, true
	case c.begun():
		return CloseTruncated, true
	}
	return CloseEOF, true
}

// received is called when a read has brought n bytes, of the payload that is awaited and of
// what follows it.
func (c *Conn) received(n int) {
	c.receivedBytes.Add(uint64(n))
	if c.filling != nil {
		k := min(n, len(c.filling.Data)-c.filled)
		c.filled += k
		n -= k
	}
	full := n == len(c.rx.mem)-c.end
	c.end += n
	if c.ahead.block != nil {
		c.tookAhead(n)
	}
	if full && n >= len(c.rx.mem)/2 {
		c.rxBytes = min(2*c.rxBytes, maxBlockBytes) // more was waiting, probably
	}
}
