// Package port is the port driver: it owns SRBs and decides when a miniport
// runs, after the model of Storport with a physical miniport.
//
// # Names
//
// A routine that stands for a vendor DDI keeps its spelling without the prefix
// (StorPortSynchronizeAccess is SynchronizeAccess, HwStorBuildIo is BuildIo), so
// that a search finds the vendor's page and our code alike. Everything else is
// ordinary Go.
//
// # Processors
//
// Go has no interrupt request level, so there is one here: every goroutine that
// enters the port owns a Processor, which knows its level, the locks held, the
// interrupts that wait for the level to drop, and the DPCs to run then. All
// callbacks and routines take it. See Processor.
//
// # An SRB's way
//
//  1. The class driver (package disk) fills an SRB and calls
//     LogicalUnit.Submit. The processor goes to Dispatch.
//  2. The unit's queue takes it. An SRB that may not go yet, because of queue
//     depth, a busy, paused, frozen or locked unit, or tag order, waits there.
//     (unit.go, issue.go)
//  3. Its buffers are mapped for DMA and BuildIo runs: no lock, on as many
//     processors at once as there are.
//  4. StartIo runs under the StartIo lock, in half duplex under the interrupt
//     locks as well, or under a channel; then CommitIo, with no lock.
//  5. The device raises an interrupt. It is serviced on the processor whose
//     goroutine the device has borrowed, at Device level under the message's lock:
//     at once, or when that processor's level drops. (interrupt.go)
//  6. The handler issues a DPC, which runs when the level drops below
//     Dispatch and calls Complete. (dpc.go, complete.go)
//  7. The port updates the unit's accounts, starts SRBs that were waiting, and
//     gives the SRB back to its Completer, at Dispatch with no lock held.
//
// If the device is fast, all of this happens on the goroutine that submitted,
// once for a whole batch.
//
// If the device does not answer, the unit's timer runs out and resets follow, each
// wider in scope than the last (recovery.go). If none helps, the unit is given up: those
// waiting for its SRBs are told, and the SRBs stay with the miniport (giveup.go).
//
// One SRB in SampleEvery carries a time stamp, and the times it spends in each stage
// go into histograms (stage.go), as do the times locks are waited for and held
// (lockcount.go).
//
// # Who runs beside whom
//
//	                BuildIo   StartIo   handler   DPC   SynchronizeAccess routine
//	BuildIo          yes       yes       yes      yes        yes
//	StartIo          yes       no (1)    yes (2)  yes        yes (2)
//	handler          yes       yes (2)   no (3)   yes        no
//	routine          yes       yes (2)   no       yes        no
//
// (1) yes on different concurrent channels. (2) no in half duplex. (3) yes for
// different messages with a lock per message.
//
// # Lock order
//
// Outermost first. Never take a lock while holding one listed under it, and several
// of one kind in ascending order only. The verifier checks this at run time, from
// startIoLock on.
//
//	Adapter.life                    one holder: Stop, Restart, Remove or SurpriseRemove; held across I/O
//	  Adapter.enumTurn              a token, held to enumerate; held across I/O
//	    Adapter.startIoLock         StartIo, timer, ResetBus
//	      Adapter.channelLocks      StartIo with concurrent channels; ResetBus takes all
//	        Dpc.lock                DpcLock
//	          KSpinLock.lock        the miniport's own, in the order of their initialization
//	            Adapter.interruptLocks   handlers, SynchronizeAccess; ascending by message
//	              LogicalUnit.mu    queue and accounts
//	              Adapter.mu
//	              System.mu, Verifier.mu, service.mu, extensionPool.mu, WorkItem.mu,
//	              Timer.mu, Event.mu, miniportMemory.mu
//
// The innermost are leaves, with two exceptions: Verifier.mu is also taken under
// LogicalUnit.mu, and service.mu under WorkItem.mu.
//
// On top of the locks that it was called with, a miniport may take only locks further
// down. The port holds none of its locks while it calls anything above it, or while it
// waits for a socket or a medium.
//
// docs/storport.md explains the whole model, and lists every vendor routine with ours.
//
// # The verifier
//
// With SystemConfig.Verify the port checks both sides of the contract, V1 to
// V20: see Check. Each breach is counted and reported as a Violation, with SRB,
// callback, level, locks and the processor's last events; with Strict it panics.
// With the verifier off, each hook costs one branch.
//
//	verifier.go  the checks, the records, the lock rules (V6) and their graph
//	places.go    what may be called from where (V7)
//	sealed.go    what happens to an SRB after its completion (V3)
//	hold.go      how long callbacks run and locks are held (V9)
//	limits.go    what the port promises the miniport (V4, V15, V17)
//
// The other checks are next to the code that they watch.
//
// # Where to read on
//
//	miniport.go config.go                                   what a miniport implements and negotiates
//	srb.go status.go                                        requests and their outcomes
//	processor.go level.go                                   virtual processors and their levels
//	lock.go spinlock.go synchronize.go                      locks, SynchronizeAccess, Guarded
//	unit.go issue.go flow.go                                queues and gates, the way down
//	interrupt.go dpc.go complete.go                         the way up
//	recovery.go giveup.go                                   time-outs, resets, and units that are given up
//	adapter.go enumerate.go removal.go                      an adapter's life, and its units
//	routines.go memory.go timer.go event.go service.go      support routines
//	system.go execute.go                                    what users of the port call
//	stats.go stage.go lockcount.go gatetime.go look.go      statistics
package port
