// Package media is where a logical unit's bytes are at rest.
//
// A Media is a flat range of bytes with read, write and flush. Everything else that a
// medium may be able to do (discard, zero, list its holes, answer without blocking) is a
// one-method interface. Probe finds these once, when the medium is attached, so that no
// request has to.
//
//	Memory   sparse, in memory outside the Go heap; gone when closed
//	File     a sparse file or a block device; survives the process
//	Backend  any backend.Backend of go-nbd
//
// # Promises
//
// Every Media keeps these, and the conformance test of this package checks them:
//
//   - What was never written, or was discarded or zeroed, reads as zeros.
//   - A write that has returned is seen by every read that begins later.
//   - What was written before a Flush began is durable when Flush returns nil,
//     as far as the medium outlives anything at all.
//   - A range beyond Size is refused with ErrRange and changes nothing.
//   - A call that fails may have done a part of its work. An *Error says where
//     it stopped.
//   - Doing the same write, discard or zero again gives the same bytes.
//
// # Concurrency
//
// Any number of calls may run at once, on the same range too; a read then sees each byte
// as it was before or after a concurrent write to it. Memory never shows a block half
// written. File may, as the kernel's reads do not wait for its writes. Pages that a
// Referrer has lent may show later writes to them. Close waits for calls in progress;
// later ones return ErrClosed.
//
// # Lock order
//
// Within Memory: resizeMu, then lifeMu, then the stripes in ascending order, then
// pool.coolMu, then tableMu or pool.mu, which are leaves. Within File and Backend:
// lifeMu, the stripes in ascending order, then the flush group's mu, a leaf.
package media
