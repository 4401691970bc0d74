// Package nbd is the server side of the Network Block Device protocol: the
// fixed newstyle handshake, the request and reply codec, and the transmission
// phase. It knows devices only by the interface Device, and nothing of SCSI.
//
// Section numbers in comments are those of the protocol document, doc/proto.md
// of https://github.com/NetworkBlockDevice/nbd.
//
// # Parts
//
//	Server        listeners, the registry of connections, draining, statistics
//	  negotiation the handshake of one connection, see below
//	  Conn        its transmission phase
//	    receiver  socket -> Requests, by one reader goroutine (receive.go)
//	      room    the memory for its input and for replies (room.go)
//	      ahead   memory for the payload that is expected next (ahead.go)
//	      leave   that its client goes while it waits (leave.go)
//	    sender    completed Requests -> socket, by whoever flushes (send.go); long
//	              reads by reference to the device's pages (refer.go)
//	    lastOrders  what a draining connection still accepts (drain.go)
//	    gatherer  when to wait for more requests (gather.go), and whether that pays
//	              on this machine (trial.go)
//	    stream    sockets (stream.go), TLS over them (tlsstream.go), or any
//	              net.Conn
//	socket        waiting for sockets, a package of its own
//	Device        what an export stands for; Session is one connection's way in
//
// # Life of a request
//
//  1. The reader reads as much as its receive block holds and turns every
//     complete header into a Request: a slot of the connection, used again and
//     again. It checks flags, range, read-only and alignment; what fails is
//     answered at once and never seen by the device.
//  2. Data is memory of the arena, so that a device can reach it by DMA. The
//     payload of a write stays where the socket put it, in the receive block. A long
//     payload that has not arrived whole gets a block of its own, into which the rest
//     is read directly. A payload that is expected, because the last one was as long,
//     gets its block before it arrives. The destination of a read is carved from a
//     reply block, right behind room for its reply header.
//  3. Session.Submit takes the batch.
//  4. Request.Complete, on any goroutine, queues the reply.
//  5. Flush sends everything queued by one system call. The reader calls it after
//     Submit; while the reader sleeps, the completing goroutine calls it. Replies
//     leave in the order of completion. If the socket is full the connection's writer
//     goroutine takes over, and the reader goes on to the end of its batch, or until
//     slots or memory run out.
//  6. When the reply has been sent, the slot and its share of the block are free
//     again. A device that does not know when it will be done with the memory can have
//     the request answered and keep the memory: Request.Abandon (abandon.go).
//
// Blocks count their users: a receive block may be refilled once every request whose
// payload lies in it has been answered, and a reply block likewise. If the device
// completes requests inside Submit, the same two blocks are used for ever and the
// allocator is never called.
//
// # Formats
//
// A connection keeps one format for good (format.go): simple replies, structured
// replies, or extended headers both ways, whichever of those that Server.Replies offers
// the client has agreed on. The device need not know which. It reports the holes of a
// read by Request.AddHole, allocation by AddExtent, which writes the answer to
// BLOCK_STATUS in wire format, and the place of a failure by Fail. As much of that as the
// format can express becomes chunks (chunk.go). A chunk's header goes into free bytes
// right before its data, if there are any: in the block before the read's destination,
// or in the hole that precedes the data.
//
// Room for extents is modest at first, grows when it did not suffice, and shrinks when
// hardly any of it was needed (status.go): a reply may end early, and the client asks
// again. Errors carry a text from a fixed table (cause.go). Structured replies are
// used where the protocol asks for them and for errors; other successes stay simple.
//
// A WRITE with an extended header has a payload even if its flag PAYLOAD_LEN is
// missing; other commands with a payload are refused, their payload skipped.
//
// # TLS
//
// TLS works in memory between the socket and the connection: whoever flushes replies
// encrypts them and writes them without waiting, as without TLS, and each read takes
// every record that has arrived. A connection costs about 32 KiB more for input, and
// under load twice 64 KiB for output.
//
// # Bounds
//
// Limits bounds slots, bytes in blocks, options, option data, connections, connections
// accepted per second, and waiting times. When slots or bytes run out the reader stops
// reading, and the client notices through its socket; nothing grows. Only a large
// request that finds no memory for seconds is answered with ENOMEM, and while memory is
// short, connections whose clients crawl are closed (crawl.go).
//
// Connections are accepted at a limited rate (pace.go), and a reader that has filled
// a batch lets others go first. So a client that connects again and again, or asks
// for much, leaves time for others.
//
// # Locks
//
// Outermost first:
//
//	Server.mu       the registry and folded totals
//	  Conn.mu       queued replies, returned slots, block budget
//	    dma.Arena   leaf
//	    a session's in Fence
//
// trial.mu, which is only ever taken by TryLock, and recordConn.mu, which guards what
// TLS has sealed, are leaves, too.
//
// No lock is held over Session.Submit or a system call on the socket. The
// right to send belongs to one goroutine at a time: Conn.flushing.
//
// # Handshake
//
// One goroutine reads one option after another, never a byte ahead, and answers it
// (handshake.go, option.go, metacontext.go, tls.go). A device that is a Greeter
// (spoil.go) may make the client wait before it gets the export. The outcome is an
// agreement (agreement.go); STARTTLS starts it afresh. Every option that names an export
// is checked by access.go, so that no way in is more lenient than another.
//
// A client that leaves without the export it wanted is counted by reason, a
// NegotiationFailure, and leaves one line in the log: a warning or, if it never sent
// anything, as port probes do not, a line of level debug.
//
// # What is absent
//
// Features that hardly any client uses are absent: RESIZE, and meta contexts other than
// base:allocation. TLS authenticates by certificates only, not by pre-shared keys.
package nbd
