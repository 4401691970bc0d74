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
//	      room    the memory that it reads into and replies are made in (room.go)
//	      ahead   memory for the payload that is expected next (ahead.go)
//	    sender    completed Requests -> socket, by whoever flushes (send.go), long
//	              reads by reference to the device's pages (refer.go)
//	    lastOrders  what a draining connection still takes (drain.go)
//	    gatherer  when to wait for more requests (gather.go), and whether that pays
//	              on this machine (trial.go)
//	    stream    sockets (stream.go), TLS over them (tlsstream.go), or any
//	              net.Conn
//	socket        how sockets are waited for, in a package of its own
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
//     one that has not arrived whole gets a block of its own, into which the rest is
//     read directly; one that is expected, because the one before it was as long, has
//     its block before it arrives. The destination of a read is carved from a reply
//     block, right behind room for its reply header.
//  3. Session.Submit takes the batch.
//  4. Request.Complete, on any goroutine, queues the reply.
//  5. Flush sends everything queued by one system call. The reader calls it after
//     Submit, or while the reader sleeps, the completing goroutine. Replies leave in
//     the order of completion. If the socket is full the connection's writer
//     goroutine takes over, and the reader goes on to the end of its batch, or until
//     slots or memory run out.
//  6. When the reply is sent the slot and its share of the block go back. A device
//     that does not know when it will be done with the memory can have the request
//     answered and keep the memory: Request.Abandon (abandon.go).
//
// Blocks count their users: a receive block may be filled anew when every request
// whose payload lies in it has been answered, a reply block likewise. If a device
// completes inside Submit, the same two blocks are used for ever and the
// allocator is never called.
//
// # Formats
//
// A connection has one format for good (format.go): simple replies, structured
// replies, or extended headers both ways, of those that Server.Replies offers. The
// device need not know which. It reports the holes of a read by Request.AddHole,
// allocation by AddExtent, which writes the answer to BLOCK_STATUS in the form of the
// wire, and where something failed by Fail. What the format can say of it becomes
// chunks (chunk.go). Headers go into free bytes right before the data, if there are
// any: in the block before the read's destination, or in the hole before the data that
// follows it.
//
// Room for extents is modest at first, grows when it did not suffice, and shrinks when
// hardly any of it was needed (status.go): a reply may end early, and the client asks
// again. Errors come with words from a fixed table (cause.go). Structured replies are
// used where the protocol asks for them and for errors; other successes stay simple.
//
// A WRITE with an extended header has a payload even if its flag PAYLOAD_LEN is
// missing; other commands with a payload are refused, their payload skipped.
//
// # TLS
//
// TLS is memory between the socket and the connection: replies are encrypted by
// whoever flushes them and written without waiting, like others, and each read
// takes every record that has arrived. A connection costs about 32 KiB more for
// input, and under load twice 64 KiB for output.
//
// # Bounds
//
// Slots, bytes in blocks, options, option data, connections, how many are accepted
// in a second, and waiting times are bounded by Limits. When slots or bytes run out
// the reader stops reading, and the client feels it through its socket; nothing
// grows. Only a large request that finds no memory for seconds is answered with
// ENOMEM, and while memory is short clients that crawl are closed (crawl.go).
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
//
// trial.mu, which is only ever tried, and recordConn.mu, which guards what TLS has
// sealed, are leaves, too.
//
// No lock is held over Session.Submit or a system call on the socket. The
// right to send belongs to one goroutine at a time: Conn.flushing.
//
// # Handshake
//
// One goroutine reads one option after the other, exactly and never ahead, and
// answers it (handshake.go, option.go, metacontext.go, tls.go). A device that is a
// Greeter (spoil.go) may have the client wait before it gets the export. The outcome
// is an agreement (agreement.go); STARTTLS begins it anew. Every option that names an
// export asks access.go, so that no way in is more lenient than another.
//
// A client that leaves without the export it wanted is counted by the reason,
// NegotiationFailure, and leaves one line in the log: a warning, or if it never
// said a word, as probes of a port do, a line of level debug.
//
// # What is absent
//
// What hardly any client uses: RESIZE, and meta contexts other than base:allocation.
// TLS has certificates only, no pre-shared keys.
package nbd
