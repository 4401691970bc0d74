package nbd

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vhbad/vhbad/internal/dma"
)

// slotChunk is how many request slots are made at a time.
const slotChunk = 16

// A Conn is one client's connection.
//
// It goes through four states, in this order: negotiating, by the rules of
// handshake.go; transmitting, with the reader in transmit; finishing, after DISC or
// when the server drains: nothing more is read, and what is in flight is answered;
// dead, after any failure and at the end of finishing: replies are dropped. A dead
// Conn stays until the device has completed every request, however late, and only
// then closes its Session and returns its memory.
type Conn struct {
	// Immutable after the negotiation.
	server  *Server
	arena   *dma.Arena
	limits  *Limits
	nc      net.Conn // the socket as accepted: for deadlines and for closing
	wire    net.Conn // carries the talk with the client: nc, or TLS over it
	stream  stream
	splicer splicer      // the stream; nil if everything is to be copied
	pipes   atomic.Int32 // how many its requests have
	id      uint64
	remote  string
	since   time.Time
	export  Export
	info    Info
	rules   rules
	agreed  agreement
	session Session
	ctx     context.Context // ends when the connection is dead
	cancel  context.CancelFunc
	ended   chan struct{} // closed when its session is

	tls        string // version and cipher suite, empty without TLS
	clientName string // the first in the client's verified certificate, if any
	number     uint8  // see SetNumber
	peer       peer   // nobody if peers are not counted

	// reserved says whether the connection counts as one of an export's. Server.mu guards
	// it, and what follows.
	reserved       bool
	reservedName   string
	reservedDevice Device

	receiver // the reader's

	// wishes are what the server asks of the reader; see poke.
	wishes atomic.Uint32
	dead   atomic.Bool
	left   atomic.Bool   // the reader is to wait no more; see leave.go. Stored with mu held
	reason atomic.Uint32 // a CloseReason, once dead

	// transmitting is guarded by Server.mu. The sweeper looks at it and at what follows, and
	// keeps visits for itself.
	transmitting bool
	visits       visits

	// requestSince is when the client last made progress with a request that it has
	// begun to send, replySince with a reply that it is owed, in ns since epoch; zero
	// if there is none.
	requestSince atomic.Int64
	replySince   atomic.Int64
	// reads counts reads, by which the server recognizes idle connections.
	reads atomic.Uint64

	heldBytes     atomic.Int64 // of blocks; stored with mu held
	receivedBytes atomic.Uint64
	sentBytes     atomic.Uint64
	lentBytes     atomic.Uint64 // of those sent
	ops           [OpCount + 1]opCounters
	// statusRoom says how well the room for extents fitted the last BLOCK_STATUS.
	statusRoom atomic.Uint32

	mu   sync.Mutex
	cond sync.Cond // L is &mu; the reader waits here
	// replies are completed requests that nobody is sending yet.
	// +checklocks:mu
	replies []*Request
	// returned are slots on their way back to the reader.
	// +checklocks:mu
	returned []*Request
	// answered counts the requests whose slots have come back, ever.
	// +checklocks:mu
	answered uint64
	// spare are blocks without memory, for reuse.
	// +checklocks:mu
	spare []*block
	// readerAwake is set while the reader is sure to call Flush before it sleeps.
	// +checklocks:mu
	readerAwake bool
	// promised is set while some caller of Complete owes a Flush.
	// +checklocks:mu
	promised bool
	// withheld keeps replies back; see lastOrders.
	// +checklocks:mu
	withheld bool
	// fencer is the session from the beginning of transmission on, unless it is none, until its
	// fence is up.
	// +checklocks:mu
	fencer Fencer
	// wait is the wait for memory that the connection is in.
	// +checklocks:mu
	wait waiter
	// flushing is the right to send. Its holder owns sender.
	// +checklocks:mu
	flushing bool

	sender sender
}

// Wishes: what a server asks of a reader by poke.
const (
	wishDrain = 1 << iota // stop reading, finish
	wishTrim              // give memory back, the connection is idle
)

var epoch = time.Now()

// now is the time in nanoseconds since epoch; it never goes back.
func now() int64 { return int64(time.Since(epoch)) }

// Remote returns the peer's address, empty if it has none: most unix sockets.
func (c *Conn) Remote() string { return c.remote }

// ID returns a number that no other connection of the server has.
func (c *Conn) ID() uint64 { return c.id }

// SetNumber sets the device's own number for the connection, for ConnStats; zero means
// that it has none.
//
// Concurrency: in Device.Open alone.
func (c *Conn) SetNumber(n uint8) { c.number = n }

// MaxRequests is one more than the largest Request.Slot of this connection.
func (c *Conn) MaxRequests() int { return c.limits.MaxRequests }

// Flush sends the replies that are queued. A caller for whom Request.Complete
// returned true owes one call, which may cover any number of completions.
//
// It does not wait for the client: replies that the socket does not take at once are
// left to the connection's writer goroutine.
//
// Concurrency: any goroutine, no lock needed; it makes a system call, so it
// should not be called with one held.
func (c *Conn) Flush() {
	c.mu.Lock()
	c.promised = false
	if c.flushing || c.withheld || len(c.replies) == 0 {
		c.mu.Unlock()
		return
	}
	c.flushing = true
	c.takeRepliesLocked()
	c.mu.Unlock()
	c.pump(false)
}

// Complete ends the request with errno and queues its reply. The request and
// its Data are no longer the caller's. Completing twice panics.
//
// If it returns true the caller must make sure that Flush of the request's Conn is
// called once afterwards, soon and by any goroutine: nobody else will send the reply.
// It has to fetch the Conn before it calls Complete.
//
// Concurrency: any goroutine; takes a lock for a few instructions.
func (r *Request) Complete(errno Errno) (flush bool) {
	c := r.conn
	if r.Op == OpBlockStatus && errno == OK {
		if r.count == 0 {
			panic("nbd: block status completed without an extent")
		}
		r.judgeStatusRoom()
	}
	if r.pipe != nil && (errno != OK || !c.arena.Disarm(r.pipe)) {
		c.returnPipe(r) // the data are in memory, or nowhere
	}
	c.mu.Lock()
	if r.state != slotSubmitted {
		c.mu.Unlock()
		panic("nbd: request completed twice, or never submitted")
	}
	r.state = slotCompleted
	r.errno = errno
	c.replies = append(c.replies, r)
	if !c.readerAwake && !c.promised && !c.flushing {
		c.promised = true
		flush = true
	}
	c.mu.Unlock()
	return flush
}

// Fail is Complete with an error that is known to have happened at offsetBytes of the
// device. A client that has agreed on structured replies is told the offset, unless
// it is outside the request's range.
//
// Concurrency: as for Complete.
func (r *Request) Fail(errno Errno, offsetBytes uint64) (flush bool) {
	// Written so that nothing overflows: the offset may be anything.
	if offsetBytes >= r.OffsetBytes && offsetBytes-r.OffsetBytes < r.LengthBytes {
		r.failedAt, r.failedAtKnown = offsetBytes, true
	}
	return r.Complete(errno)
}

// Blame sets what caused the error that the request is about to complete with. Without
// it, the client or the device did.
//
// Concurrency: before Complete or Fail, by whoever calls that.
func (r *Request) Blame(b Blame) { r.blame = min(b, blameCount-1) }

// FollowReply measures how long the reply takes to be sent, for Stats.ReplyTimes. It
// is meant for a sample of the requests, because it reads the clock.
//
// Concurrency: before Complete or Fail, by whoever calls that.
func (r *Request) FollowReply() { r.followedNs = now() }

// Conn returns the connection that the request came by.
func (r *Request) Conn() *Conn { return r.conn }

// slotState follows a Request: free, taken by the reader, submitted to the
// session, completed and waiting for its reply to be sent, free.
type slotState uint8

const (
	slotFree slotState = iota
	slotSubmitted
	slotCompleted
)

// transmission is the connection's part of a Request.
type transmission struct {
	cookie     uint64
	wireOffset uint64 // the offset as it was sent
	receivedNs int64  // when its header was read, since epoch
	followedNs int64  // when FollowReply was called, since epoch, or zero
	// block holds Data; nil if there is none.
	block *block
	// pipe, unless nil, may receive what is to be read into Data, in place of Data. Once
	// the request is completed, a pipe that is not nil holds the data.
	pipe *dma.Pipe
	// dataAt is where in block Data begins, if it is for the reply: right behind
	// room for its header, or at 0.
	dataAt int
	errno  Errno
	cause  cause // of errno
	blame  Blame // of errno
	state  slotState
	// failedAt is where on the device errno happened, if that is known.
	failedAt      uint64
	failedAtKnown bool
	// endsAt is where the encoded reply ends among those that are sent with it.
	endsAt int
	// counted is the operation for statistics: Op, or opUnknown.
	counted Op
	// cut makes the reply break off after cutAt bytes; see CutReply.
	cut   bool
	cutAt uint32
	// badCookie: cookie is not the request's any more; see BadCookie.
	badCookie bool
}

// inFlightLocked is the number of requests whose reply is not yet sent. Only the
// reader may ask: taken is its own.
//
// +checklocks:c.mu
func (c *Conn) inFlightLocked() int { return int(c.taken - c.answered) }

// kill makes the connection dead, for the first reason given, and wakes everyone who
// waits for the client. If the connection was dead before, its socket is left to
// whoever killed it: it is closed by now or, after breakOff, open until the reader
// closes it in mourn.
//
// Concurrency: any goroutine, no lock held.
func (c *Conn) kill(reason CloseReason) {
	if c.die(reason) {
		_ = c.nc.Close() // there is nobody to tell
	}
}

// die is kill without closing the socket. If it returns true, this reason was the first
// and the caller has to close the socket.
func (c *Conn) die(reason CloseReason) (first bool) {
	c.mu.Lock()
	if first = !c.dead.Load(); first {
		c.fenceLocked() // the client does not know yet
		c.reason.Store(uint32(reason))
		c.dead.Store(true)
	}
	c.cond.Signal()
	c.mu.Unlock()
	if first {
		c.cancel()
	}
	return first
}

// poke asks the reader to heed wish, waking it if it waits for input.
//
// Concurrency: any goroutine.
func (c *Conn) poke(wish uint32) {
	c.wishes.Or(wish)
	// A waiting read ends with a deadline error. An error here means that the
	// connection is closed, and then nobody reads.
	_ = c.nc.SetReadDeadline(time.Unix(1, 0))
	// A reader that waits for memory is woken, too: memory may not be scarce any more,
	// and nobody else would tell it.
	c.mu.Lock()
	c.cond.Signal()
	c.hurryLocked()
	c.mu.Unlock()
}

// draining says whether the server is shutting down.
func (c *Conn) draining() bool { return c.wishes.Load()&wishDrain != 0 }

// heed is called by the reader when a read has hit its deadline. It lifts the deadline
// before it looks at the wishes, so that none is lost.
func (c *Conn) heed() {
	_ = c.nc.SetReadDeadline(time.Time{})
	if w := c.wishes.Load(); w&wishTrim != 0 {
		c.wishes.And(^uint32(wishTrim))
		c.trim()
	}
}

func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

// lingerTime is how long a connection that ends in good order waits for the client to close.
const lingerTime = 250 * time.Millisecond

// begin fits the connection to what was agreed on.
func (c *Conn) begin() {
	c.rules.agree(&c.agreed)
	c.format = c.agreed.format()
	c.sender.format = c.format
	c.statusExtents = minStatusExtents
	if s, ok := c.stream.(*tlsStream); ok {
		s.begin()
	}
}

// transmit serves the connection from the end of its negotiation to its end.
func (c *Conn) transmit() {
	c.begin()
	fencer, _ := c.session.(Fencer)
	c.mu.Lock()
	c.fencer = fencer
	c.mu.Unlock()
	reason := c.receive()
	if fencer != nil {
		fencer.NarrowFence()
	}
	c.handOut()
	switch reason {
	case CloseDisconnect:
		c.mu.Lock()
		c.fenceLocked() // the client may close its socket, and go on elsewhere, at once
		c.mu.Unlock()
		c.finish()
		c.farewell()
		if c.tls != "" {
			c.linger() // the client ends TLS behind its DISC
		}
	case CloseShutdown:
		c.finish()
		c.farewell()
		c.linger()
	default:
	}
	c.kill(reason)
	c.mourn()
	c.finish()
	c.abandon()
	c.session.Close()
	c.stopWriter()
}

// finish waits until nothing is in flight: every request is completed and its
// reply sent or, on a dead connection, dropped.
func (c *Conn) finish() {
	c.park()
	c.mu.Lock()
	for c.inFlightLocked() > 0 || c.flushing {
		if len(c.replies) > 0 && !c.flushing {
			c.mu.Unlock()
			c.Flush()
			c.mu.Lock()
			continue
		}
		c.cond.Wait()
	}
	c.mu.Unlock()
}

// mournBytes is how much is read at a time of input that nobody will answer.
const mournBytes = 4 << 10

// linger gives the client time to take the last replies: closing a TCP socket
// that holds unread requests resets it, and a reset throws replies away. Input that
// arrives meanwhile is discarded. It must not go into the receive block, whose data may
// be on loan.
func (c *Conn) linger() {
	w, ok := c.nc.(interface{ CloseWrite() error })
	if !ok || w.CloseWrite() != nil {
		return
	}
	var trash [mournBytes]byte
	until := time.Now().Add(lingerTime)
	if c.nc.SetReadDeadline(until) != nil {
		return
	}
	for {
		_, err := c.nc.Read(trash[:])
		if isTimeout(err) && time.Now().Before(until) { // a poke's
			err = c.nc.SetReadDeadline(until)
		}
		if err != nil {
			return
		}
	}
}

// loadOps adds the connection's counters to t.
func (c *Conn) loadOps(t *OpTable) {
	for i := range c.ops {
		c.ops[i].load(&t[i])
	}
}
