package nbd

import (
	"cmp"
	"slices"
	"sync/atomic"
	"time"

	"github.com/vhbad/vhbad/internal/latency"
)

// A NegotiationFailure says why a connection never reached transmission. It is no
// failure if the client ends the handshake in good order, unless it was refused an
// export: then the last refusal is the reason.
type NegotiationFailure uint8

// Reasons of NegotiationFailure.
const (
	NegotiationTooManyConnections NegotiationFailure = iota // Limits.MaxConnections
	NegotiationProbe                                        // closed before it sent anything
	NegotiationTimeout                                      // Limits.HandshakeTimeout
	NegotiationBroken                                       // closed or reset in the middle
	NegotiationClientFlags                                  // unknown client flags
	NegotiationBadMagic                                     // an option without its magic
	NegotiationOptionTooLong                                // Limits.MaxOptionBytes
	NegotiationTooManyOptions                               // Limits.MaxOptions
	NegotiationNoExport                                     // no such export
	NegotiationOpenFailed                                   // the device refused
	NegotiationShutdown                                     // the server is draining
	NegotiationTooManyOfPeer                                // Limits.MaxConnectionsPerPeer
	NegotiationTooManyOfExport                              // Export.MaxConnections
	NegotiationTLSRequired                                  // no TLS, but the server or the export wants it
	NegotiationTLSFailed                                    // the TLS handshake failed
	NegotiationNotAllowed                                   // Export.AllowedNames
	NegotiationBlockSize                                    // the client did not ask for block sizes
	NegotiationExtendedName                                 // EXPORT_NAME after EXTENDED_HEADERS
	NegotiationFailureCount                                 // number of reasons, for tables
)

// String returns the reason as a metric label.
func (n NegotiationFailure) String() string {
	return [...]string{
		"too_many_connections", "probe", "timeout", "broken", "client_flags", "bad_magic", "option_too_long",
		"too_many_options", "no_export", "open_failed", "shutdown", "too_many_of_peer", "too_many_of_export",
		"tls_required", "tls_failed", "not_allowed", "block_size_required", "export_name_extended", "none",
	}[min(n, NegotiationFailureCount)]
}

// A CloseReason says why a connection left transmission.
type CloseReason uint8

// Values of CloseReason.
const (
	CloseDisconnect     CloseReason = iota // the client sent DISC
	CloseEOF                               // the client closed between requests
	CloseTruncated                         // the client closed inside a request
	CloseBadMagic                          // a request without its magic
	ClosePayloadTooLong                    // a payload too long even to skip
	CloseReadError                         // the socket failed on read
	CloseWriteError                        // the socket failed on write
	CloseReplyTimeout                      // the client did not take replies
	CloseRequestTimeout                    // the client did not finish a request
	CloseShutdown                          // the server drained
	CloseKilled                            // the drain ran out of time
	CloseIdle                              // Limits.IdleTimeout
	CloseTooSlow                           // the client held memory that others needed
	CloseDropped                           // Server.Drop
	CloseInjected                          // Request.CutReply
	CloseReasonCount                       // number of reasons, for tables
)

// String returns the reason as a metric label.
func (r CloseReason) String() string {
	return [...]string{
		"disconnect", "eof", "truncated", "bad_magic", "payload_too_long", "read_error", "write_error",
		"reply_timeout", "request_timeout", "shutdown", "killed", "idle", "too_slow", "dropped", "injected", "none",
	}[min(r, CloseReasonCount)]
}

// String returns the operation as a metric label.
func (op Op) String() string {
	return [...]string{"read", "write", "flush", "trim", "write_zeroes", "cache", "block_status", "unknown"}[min(op, OpCount)]
}

// Buckets of latency histograms. Their upper bounds in seconds are those of a
// Prometheus native histogram of schema LatencySchema, 2^LatencySchema to the
// octave, so that they serve as classic and as native buckets alike.
const (
	LatencySchema = latency.Schema
	// LatencyMinIndex is the native index of bucket 0, whose upper bound is
	// 2^(LatencyMinIndex/4) s, just under a microsecond.
	LatencyMinIndex = -20 << LatencySchema
	// LatencyBuckets is the number of bounded buckets; the last bound is 64 s.
	LatencyBuckets = 26<<LatencySchema + 1
)

// LatencyBound returns the upper bound, inclusive, of a bucket in seconds.
func LatencyBound(bucket int) float64 {
	return latency.Bound(bucket + LatencyMinIndex - latency.MinIndex)
}

// latencyBucket returns the bucket of ns, or LatencyBuckets if ns is beyond all bounds.
// Nothing here is faster than a microsecond, so all smaller buckets are one.
func latencyBucket(ns int64) int {
	return max(0, latency.Bucket(ns)-(LatencyMinIndex-latency.MinIndex))
}

// A Blame says what caused a request's error, for statistics.
type Blame uint8

// Values of Blame.
const (
	BlameNone     Blame = iota // the client or the device
	BlameAborted               // a reset, an abort or a lost device ended it
	BlameInjected              // a fault that somebody has asked for
	blameCount
)

// OpStats counts one operation of an export or a connection. A request counts when its
// reply is sent; a failed one counts even if the client is gone by then. Its latency
// runs from the read that brought its header to the writev that took its reply.
type OpStats struct {
	Requests uint64
	Errors   uint64 // replies with an error
	// Aborted and Injected count the errors that had that Blame.
	Aborted  uint64
	Injected uint64
	Bytes    uint64 // sum of the lengths of successful requests
	InFlight uint64
	// LatencySum and Latency are a histogram; the last bucket has no bound.
	LatencySum time.Duration
	Latency    [LatencyBuckets + 1]uint64
}

func (s *OpStats) add(o *OpStats) {
	s.Requests += o.Requests
	s.Errors += o.Errors
	s.Aborted += o.Aborted
	s.Injected += o.Injected
	s.Bytes += o.Bytes
	s.InFlight += o.InFlight
	s.LatencySum += o.LatencySum
	for i := range s.Latency {
		s.Latency[i] += o.Latency[i]
	}
}

// OpTable has one OpStats for each Op; the one at OpCount counts commands that
// the protocol does not know or the export did not offer.
type OpTable [OpCount + 1]OpStats

func (t *OpTable) add(o *OpTable) {
	for i := range t {
		t[i].add(&o[i])
	}
}

// ExportStats are the sums over all connections of an export, closed ones
// included.
type ExportStats struct {
	Name        string
	Connections int // open now
	Ops         OpTable
}

// ConnStats describe one open connection.
type ConnStats struct {
	ID           uint64
	Remote       string
	Export       string // empty while it negotiates
	Transmitting bool
	TLS          string // version and cipher suite, empty without TLS or while it negotiates
	ClientName   string // the first name in the client's verified certificate
	Replies      string // "simple", "structured" or "extended"; empty while it negotiates
	Number       uint8  // see Conn.SetNumber
	// Closing means that the client is gone, and the connection waits for the
	// device to complete what is in flight.
	Closing       bool
	Since         time.Time
	ReceivedBytes uint64
	SentBytes     uint64
	HeldBytes     int // arena memory
	Requests      uint64
	InFlight      uint64
}

// Stats is a snapshot of a Server's counters.
type Stats struct {
	ConnectionsOpen     int
	ConnectionsTotal    uint64
	NegotiationFailures [NegotiationFailureCount]uint64
	Closes              [CloseReasonCount]uint64
	// ReceivedBytes and SentBytes are of the transmission phase.
	ReceivedBytes, SentBytes uint64
	// LentBytes counts those of SentBytes that were sent from devices' own pages.
	LentBytes uint64
	// WithoutPauses says that connections do not pause for more requests before they read,
	// because more gets done that way. It changes for some milliseconds during each trial,
	// and is false while few requests come.
	WithoutPauses bool
	// ReplyTimes says how long replies took from FollowReply until they were sent, by Op.
	// It covers only requests for which FollowReply was called.
	ReplyTimes  [OpCount]latency.Counts
	Exports     []ExportStats // by name
	Connections []ConnStats   // by ID
}

// opCounters are a connection's counters of one operation. Whoever holds the right to
// send stores them, except started, which the reader stores; anyone may load them.
type opCounters struct {
	started    atomic.Uint64
	_          [56]byte // the reader's line and the sender's
	successes  atomic.Uint64
	errors     [blameCount]atomic.Uint64
	untold     atomic.Uint64 // would have been successes, but the client was gone
	bytes      atomic.Uint64
	latencySum atomic.Int64
	latency    [LatencyBuckets + 1]atomic.Uint64
}

// failures is how many requests failed.
func (c *opCounters) failures() (n uint64) {
	for i := range c.errors {
		n += c.errors[i].Load()
	}
	return n
}

// over is how many requests are no longer in flight.
func (c *opCounters) over() uint64 { return c.successes.Load() + c.failures() + c.untold.Load() }

// load adds the counters to s.
func (c *opCounters) load(s *OpStats) {
	started := c.started.Load()
	aborted, injected := c.errors[BlameAborted].Load(), c.errors[BlameInjected].Load()
	errors := c.errors[BlameNone].Load() + aborted + injected
	// The sum, so that errors never exceed the requests that they are among.
	requests := c.successes.Load() + errors
	s.Requests += requests
	// Loaded in this order the difference never exceeds what is in flight; it
	// may be negative, also because the reader publishes late.
	if over := requests + c.untold.Load(); started > over {
		s.InFlight += started - over
	}
	s.Errors += errors
	s.Aborted += aborted
	s.Injected += injected
	s.Bytes += c.bytes.Load()
	s.LatencySum += time.Duration(c.latencySum.Load())
	for i := range c.latency {
		s.Latency[i] += c.latency[i].Load()
	}
}

// Snapshot returns the counters as they are now.
//
// Concurrency: any goroutine; it takes no lock that a request needs.
func (s *Server) Snapshot() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := Stats{
		ConnectionsOpen:     len(s.conns),
		ConnectionsTotal:    s.nextID,
		NegotiationFailures: s.failures,
		Closes:              s.closes,
		ReceivedBytes:       s.receivedBytes,
		SentBytes:           s.sentBytes,
		LentBytes:           s.lentBytes,
		WithoutPauses:       s.pauses.without.Load(),
	}
	for op := range out.ReplyTimes {
		s.replyTimes[op].Load(&out.ReplyTimes[op])
	}
	byName := make(map[string]*ExportStats, len(s.folded))
	for name, ops := range s.folded {
		byName[name] = &ExportStats{Name: name, Ops: *ops}
	}
	for c := range s.conns {
		var ops OpTable
		cs := s.connStatsLocked(c, &ops)
		if c.transmitting {
			e := byName[c.export.Name]
			e.Connections++
			e.Ops.add(&ops)
			out.ReceivedBytes += cs.ReceivedBytes
			out.SentBytes += cs.SentBytes
			out.LentBytes += c.lentBytes.Load()
		}
		out.Connections = append(out.Connections, cs)
	}
	slices.SortFunc(out.Connections, func(a, b ConnStats) int { return cmp.Compare(a.ID, b.ID) })
	for _, e := range byName {
		out.Exports = append(out.Exports, *e)
	}
	slices.SortFunc(out.Exports, func(a, b ExportStats) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// connStats are a connection's counters as they are now.
func (s *Server) connStats(c *Conn) ConnStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.connStatsLocked(c, &OpTable{})
}

// connStatsLocked is connStats, and also adds the counters of the operations to ops.
//
// +checklocks:s.mu
func (s *Server) connStatsLocked(c *Conn, ops *OpTable) ConnStats {
	cs := ConnStats{ID: c.id, Remote: c.remote, Since: c.since}
	if !c.transmitting {
		return cs
	}
	cs.Transmitting = true
	cs.TLS, cs.ClientName, cs.Replies = c.tls, c.clientName, c.agreed.String()
	cs.Number = c.number
	cs.Closing = c.dead.Load()
	cs.Export = c.export.Name
	cs.ReceivedBytes = c.receivedBytes.Load()
	cs.SentBytes = c.sentBytes.Load()
	cs.HeldBytes = int(c.heldBytes.Load())
	c.loadOps(ops)
	for i := range ops {
		cs.Requests += ops[i].Requests
		cs.InFlight += ops[i].InFlight
	}
	return cs
}
