// Package disk is the class driver: it turns requests of package nbd into CDBs
// and SRBs for one logical unit, and SRB status and sense data into errors.
//
// A Disk learns all it knows about its unit by SCSI, as any class driver does:
// capacity, block size, write protection, cache, provisioning, limits. It
// implements nbd.Device; each connection opens a session, with an SRB for each
// request slot and a processor for the connection's goroutine.
//
// # A request's way
//
// A request becomes one SCSI command after another: pieces of at most the
// adapter's longest transfer, and single blocks where it starts or ends inside
// one. Most are one piece. All commands of a batch go to the port together.
//
//	READ           READ(16)
//	WRITE          WRITE(16), with FUA as asked
//	FLUSH          SYNCHRONIZE CACHE(16)
//	TRIM           UNMAP, of the whole blocks inside the range
//	WRITE_ZEROES   WRITE SAME(16) without data, with UNMAP unless NO_HOLE
//	CACHE          PRE-FETCH(16)
//	BLOCK_STATUS   GET LBA STATUS
//
// TRIM and WRITE_ZEROES with FUA are followed by SYNCHRONIZE CACHE(16).
//
// A WRITE_ZEROES with FAST_ZERO is refused if the unit would write the zeros: it
// must say that unmapped blocks read as zeros (LBPRZ) and, for NO_HOLE, that it
// anchors blocks (ANC_SUP); then WRITE SAME goes out with UNMAP and ANCHOR. The
// parts of blocks at both ends are written in any case.
//
// A long request that moves no data is sent one piece at a time: pieces of 256 MiB, or of
// 1 GiB if blocks are only released. If the client goes away, the rest is dropped. After
// some pieces the rest is left to the port's worker, so that a medium that never blocks
// does not keep the connection's goroutine busy.
//
// # Holes
//
// BLOCK_STATUS (status.go) passes on the answers to GET LBA STATUS, sent one after
// another until the client has enough. A long read for a client that takes holes
// (sparse.go) asks first, once, and reads only the data. Blocks whose status the unit
// does not give, or gives in a way that makes no sense, count as data: that is always
// right.
//
// # Bytes and blocks
//
// Clients may address bytes; units have blocks. A write that covers part of a
// block reads the block, changes it and writes it back, and no other write may
// come in between. rangeGate sees to that, and costs writes of whole blocks no
// lock while no such write is under way. Reads never wait for it; a part of a block
// is read by way of a buffer of its own.
//
// # Clients that go
//
// What a client left under way is not continued where that can be helped, and its writes
// are over before later ones of others to the same place begin (fence.go).
//
// # Memory
//
// A request slot gets its SRB when it is first used. If there is no memory for one, the
// slot's requests wait for the connection's spare command: they become slower, but none
// fails.
//
// # A unit that hangs
//
// When no reset brings the unit back, the port gives up the SRBs that it holds
// (orphan.go). Their requests fail, and the session ends, or goes on without the memory
// that the unit may still touch.
//
// # Locks
//
// rangeGate.mu and session.mu are leaves, except for the arena's lock; neither is held
// across Submit. A connection's lock comes before rangeGate.mu, in Fence. So does
// Disk.lossMu, under which rangeGate.mu is taken to see the writes under way.
// Disk.learnMu is outermost, and held across commands.
package disk
