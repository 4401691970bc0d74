// Package aside lets other processes have the processor for a turn.
//
// A goroutine that would wait for something a few microseconds long, and that what it
// waits for may lack a processor for, gives up its own: clients of this machine, or
// another of our threads. Who gives up a processor gives up a whole time slice, though,
// and a process that computes without end takes it. So turns that were long are paid for
// by time without any; see Step.
package aside
