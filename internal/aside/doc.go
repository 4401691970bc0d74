// Package aside lets others have the processor for a turn.
//
// A goroutine that waits for something that takes microseconds gives up its processor, as
// what it waits for may have none: a client on this machine, or another of our threads.
// Who gives up a processor gives up a whole time slice, though, and a process that
// computes without end takes it. So turns that were long are paid for by time without
// any; see Step.
package aside
