package nbd

// An Op is a transmission command as a Device sees it.
type Op uint8

// The commands that reach a Device. DISC never does.
const (
	OpRead Op = iota
	OpWrite
	OpFlush
	OpTrim
	OpWriteZeroes
	OpCache
	OpBlockStatus
	OpCount // number of operations, for tables indexed by Op
)

// Info describes a device to clients. Each negotiation asks for it anew, so that the
// next client sees a change such as a resize.
type Info struct {
	SizeBytes   uint64
	Description string
	ReadOnly    bool
	Rotational  bool
	// CanFlush, CanFUA, CanTrim, CanWriteZeroes, CanCache say which commands
	// and flags the device takes.
	CanFlush, CanFUA, CanTrim, CanWriteZeroes, CanCache bool
	// CanFastZero says that the device knows when writing zeroes would be slow,
	// and then refuses a Request with FastZero.
	CanFastZero bool
	// CanMultiConn promises that a flush or FUA on one connection covers what
	// was acknowledged on every other.
	CanMultiConn bool
	// Block sizes in bytes, all powers of two but the last, which is a multiple
	// of the preferred one.
	MinBlockBytes, PreferredBlockBytes, MaxPayloadBytes uint32
}

// A Device is what stands behind an export.
//
// Concurrency: any goroutine.
type Device interface {
	Info() Info

	// SizeBytes returns the current size. It is called for every batch of
	// requests, so it must cost next to nothing.
	SizeBytes() uint64

	// Open begins the device's side of one connection.
	Open(c *Conn) (Session, error)
}

// A Session is one connection's way into a Device.
type Session interface {
	// Submit starts every request of batch, in any order. Each must be completed exactly
	// once through Request.Complete, Fail or Abandon: before Submit returns or later, from
	// any goroutine, even after the client has gone. Requests that complete inside Submit
	// on the calling goroutine need no Conn.Flush.
	//
	// The caller has checked range, alignment to the minimum block size, read-only and
	// flags. The slice is the caller's again on return; each request, its Data included,
	// is the session's until it is completed.
	//
	// Concurrency: one call at a time, from the connection's reader. It must
	// not wait for the medium.
	Submit(batch []*Request)

	// Close ends the session. Every request has completed.
	Close()
}

// A Fencer is a Session that keeps what a client left under way apart from what other
// clients write. A client whose connection has ended sends its requests again on another
// one, and goes on from there: what is still under way on the former must not undo that.
//
// Concurrency: Fence is called once, with a lock held: it must not wait, nor call the
// connection. Whoever ends the connection calls it before its socket is closed, or whoever sees
// that the client has closed it, or has sent its DISC. NarrowFence is called by the connection's
// reader when it submits no more, before Fence or after, and before Close.
type Fencer interface {
	// Fence has writes of other sessions that begin from now on wait for the session's
	// own that they overlap: those under way, and those that its reader may still submit.
	Fence()
	// NarrowFence leaves those under way.
	NarrowFence()
}

// A Request is one NBD command in flight.
//
// A connection makes a bounded number of Requests and reuses them: see Slot.
type Request struct {
	// Slot is the request's index in its connection, from 0 and below
	// Limits.MaxRequests. It does not change, so a Session can keep what belongs
	// to a request in a slice of its own.
	Slot int

	Op Op
	// FUA asks that the command's effect be durable before it completes. It is
	// set on OpWrite, OpTrim and OpWriteZeroes only.
	FUA bool
	// NoHole forbids OpWriteZeroes to deallocate.
	NoHole bool
	// FastZero asks OpWriteZeroes to fail with ENOTSUP at once, having done
	// nothing, if it would take as long as writing zeros by OpWrite.
	FastZero bool
	// Sparse lets OpRead report holes by AddHole.
	Sparse bool
	// OneExtent asks OpBlockStatus for its first extent only; see AddExtent.
	OneExtent bool

	// OffsetBytes and LengthBytes are the range. Both are zero for OpFlush.
	OffsetBytes uint64
	LengthBytes uint64

	// Data is the payload of OpWrite and the destination of OpRead: LengthBytes
	// of memory in the arena of package dma. For OpBlockStatus it belongs to
	// AddExtent. It is nil otherwise.
	Data []byte

	conn      *Conn
	holeCount int
	transmission
	extents
	holes [maxHoles]hole // last: most requests never touch them
}
