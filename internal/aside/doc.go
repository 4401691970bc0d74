// Package aside gives the processor to others for a turn.
//
// A goroutine that waits for something that takes microseconds gives up its processor,
// because whatever it waits for, a client on this machine or another thread of the process,
// may have none. But a process that computes without end would take a whole time slice in
// return. So a long turn is paid for by a time without turns; see Step.
package aside
