// Package aside lets others have the processor for a turn.
//
// A goroutine that waits for something that takes microseconds gives up its processor,
// because what it waits for, a client on this machine or another thread of ours, may have
// none. But that gives up a whole time slice, which a process that computes without end
// takes. So a turn that was long is paid for by a time without turns; see Step.
package aside
