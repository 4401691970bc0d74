package nbd

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/vhbad/vhbad/internal/dma"
)

// Sizes of blocks, in bytes.
const (
	// minBlockBytes is all that an idle connection keeps.
	minBlockBytes = 32 << 10
	// maxBlockBytes is what receive and reply blocks grow to under load.
	maxBlockBytes = 256 << 10
	// minReplyBlockBytes is the first size of a reply block.
	minReplyBlockBytes = 64 << 10
	// scarceBytes is what a connection may hold when memory is scarce: enough to
	// make progress, little enough that the reserve suffices for many.
	scarceBytes = 128 << 10
	// ownBlockBytes is the longest payload that is awaited in a receive block.
	ownBlockBytes = 64 << 10
)

// memoryWait is how long a large request waits for arena memory before it is
// answered with ENOMEM. Other requests queue behind it, and the arena may be too
// fragmented ever to have such a block.
const memoryWait = 5 * time.Second

// A small block has at most smallBlockBytes, and at most 1/smallBlockShare of the
// arena. One will be free as soon as others are done.
const (
	smallBlockBytes = 4 << 20
	smallBlockShare = 64
)

// patience is how long a request waits for a block of sizeBytes. The wait for a small
// block outlasts every client that stalls: a slow device, or one being reset, must not
// become an error that makes the client's file system give up.
func (c *Conn) patience(sizeBytes int) time.Duration {
	if sizeBytes <= min(smallBlockBytes, c.arena.SizeBytes()/smallBlockShare) {
		return c.limits.ReplyTimeout + memoryWait
	}
	return memoryWait
}

// A block is arena memory shared by requests of one connection.
//
// Each request whose Data lies in it holds a reference until its reply is sent;
// the reader holds one while it receives into the block or carves from it. A
// block with the reader's reference alone is the reader's to fill anew.
type block struct {
	mem  []byte
	refs atomic.Int32
}

// alone says whether there is a block, and nobody refers to it but the reader.
func (b *block) alone() bool { return b != nil && b.refs.Load() == 1 }

// allocate returns a block with one reference, or nil if there is no memory or
// budget now: then the reader must send the replies it has and call awaitMemory.
//
// Concurrency: reader only.
func (c *Conn) allocate(sizeBytes int) *block {
	size := dma.BlockBytes(sizeBytes)
	mem := c.granted
	if mem != nil {
		if cap(mem) != size {
			c.arena.Free(mem)
			mem = nil
		}
		c.granted = nil
	}
	c.mu.Lock()
	// Granted memory was within the budget when it was waited for, and may itself be what
	// makes memory scarce now: if it were given back, it would be offered again at once.
	if mem == nil && c.overBudgetLocked(size) {
		c.mu.Unlock()
		return nil
	}
	var b *block
	if n := len(c.spare); n > 0 {
		b = c.spare[n-1]
		c.spare = c.spare[:n-1]
	}
	c.heldBytes.Add(int64(size))
	c.mu.Unlock()
	if b == nil {
		b = &block{}
	}
	if mem == nil {
		mem = c.arena.Alloc(size)
	}
	if mem == nil {
		c.giveBack(b, size)
		return nil
	}
	b.mem = mem[:size]
	b.refs.Store(1)
	return b
}

// overBudgetLocked says whether size more bytes have to wait. With no request in
// flight they never do, so the largest request always gets through.
//
// +checklocks:c.mu
func (c *Conn) overBudgetLocked(size int) bool {
	budget := c.limits.MaxBytesInFlight
	if c.arena.Scarce() {
		budget = min(budget, scarceBytes)
	}
	return int(c.heldBytes.Load())+size > budget && c.inFlightLocked() > 0
}

// plenty says whether there is enough memory and budget to take sizeBytes that may turn
// out not to be needed.
func (c *Conn) plenty(sizeBytes int) bool {
	return c.arena.Plenty() && int(c.heldBytes.Load())+dma.BlockBytes(sizeBytes) <= c.limits.MaxBytesInFlight
}

// giveBack returns a block's shell and its budget.
func (c *Conn) giveBack(b *block, size int) {
	c.mu.Lock()
	c.spare = append(c.spare, b)
	c.heldBytes.Add(int64(-size))
	c.mu.Unlock()
}

// drop gives up a reference, the reader's or a loan's. If that was the last, the memory is
// free.
//
// Concurrency: the owner of the reference.
func (c *Conn) drop(b *block) {
	if b == nil || b.refs.Add(-1) != 0 {
		return
	}
	size := len(b.mem)
	c.arena.Free(b.mem)
	b.mem = nil
	c.giveBack(b, size)
}

// A waiter is a connection's wait for memory, as those see it who may end it. The zero value
// is none. Conn.mu guards it.
type waiter struct {
	end context.CancelFunc
	// timer, unless nil, ends the wait, and leaves it a moment when a drain begins.
	timer   *time.Timer
	hurried bool
	// own, unless nil, is a block of the reader's that will do as well once it is alone.
	own *block
}

// hurryLocked ends the wait for memory: at once if the client has left, and at once or in a moment
// if a drain has begun. It may be called any number of times.
//
// +checklocks:c.mu
func (c *Conn) hurryLocked() {
	w := &c.wait
	switch {
	case w.end == nil:
	case c.left.Load():
		w.end()
	case !c.draining() || w.hurried:
	case w.timer == nil:
		w.end()
	default:
		w.hurried = true
		w.timer.Reset(lastOrdersTime)
	}
}

// ownLocked ends the wait for memory if a block that will do as well is alone. It is called when
// requests have given up their references to blocks.
//
// +checklocks:c.mu
func (c *Conn) ownLocked() {
	if c.wait.own.alone() {
		c.wait.end()
	}
}

// allocWait is AllocWait of the arena, for a wait that others may end.
func (c *Conn) allocWait(ctx context.Context, sizeBytes int, w waiter) ([]byte, error) {
	c.mu.Lock()
	c.wait = w
	// Either may have come about before anybody could see the wait.
	c.hurryLocked()
	c.ownLocked()
	c.mu.Unlock()
	mem, err := c.arena.AllocWait(ctx, sizeBytes)
	c.mu.Lock()
	c.wait = waiter{}
	c.mu.Unlock()
	return mem, err
}

// What awaitMemory waited for in vain.
var (
	errMemory      = errors.New("no memory")
	errMemoryDrain = errors.New("no memory, and the server is shutting down")
)

// awaitMemory waits until allocate(sizeBytes) is worth another try, or own, unless nil, is
// alone. A client that closes does not end the wait at once: what it has sent before, up to
// its DISC, is still to be done if that is possible.
//
// Concurrency: reader only, asleep in the sense of Conn.park.
// Errors: errMemory; errMemoryDrain; errLeft; or that the connection is dead.
func (c *Conn) awaitMemory(sizeBytes int, own *block) error {
	size := dma.BlockBytes(sizeBytes)
	c.watchLeaving()
	c.mu.Lock()
	for c.overBudgetLocked(size) && !own.alone() && !c.dead.Load() && !c.left.Load() {
		c.cond.Wait()
	}
	c.mu.Unlock()
	switch {
	case own.alone():
		return nil // there may be no budget for more
	case c.left.Load():
		return errLeft
	}
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	timer := time.AfterFunc(c.patience(size), cancel)
	defer timer.Stop()
	mem, err := c.allocWait(ctx, size, waiter{end: cancel, timer: timer, own: own})
	switch {
	case err == nil:
		c.granted = mem
		return nil
	case c.ctx.Err() != nil:
		return c.ctx.Err()
	case own.alone():
		return nil
	case c.draining():
		return errMemoryDrain
	case c.left.Load():
		return errLeft
	}
	return errMemory
}
