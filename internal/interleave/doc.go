// Package interleave runs a few goroutines one step at a time, in every order
// that matters, so that a test can show that an algorithm without locks, or with
// several, is right and not just lucky. It is for tests.
//
// # How it works
//
// A scenario sets up a world and its tasks (Run.Go), and says what must be true
// when all tasks have ended (Run.Check). Each task is a goroutine, but only the one
// that holds the baton runs. At each step that others could notice (an atomic
// load or store, taking a lock) the code under test calls Run.Yield or
// Run.Lock, and there the run decides which task goes on. So a run is a function of
// its decisions, which are its schedule: the same schedule gives the same run.
//
// Code under test keeps its yield points for good: they call a function that does
// nothing in an ordinary build, and calls the Run in a build with the tag
// "interleave".
//
// # Search
//
// A Search tries schedules. First it is exhaustive: all schedules with no
// preemption, then all with one, two and so on up to a bound. Most bugs of this
// kind need two or three, and the first failure found has as few as possible.
// (Musuvathi and Qadeer, "Iterative Context Bounding for Systematic Testing of
// Multithreaded Programs", PLDI 2007.) Then it is random, one schedule for each
// seed, for bugs that need more.
//
// A failed run prints its schedule, such as a5b2a1: five steps of the first
// task, two of the second, one of the first. The flag -interleave.replay runs
// that schedule alone. A run in which no task can go on is a deadlock, and fails;
// so does a run without an end.
//
// # What it cannot see
//
// Between two yield points a task runs alone, so if a yield point is missing the
// interleavings there are not explored; and a run is sequentially consistent, as Go's
// atomics are. Data races are for the race detector, in tests with real goroutines.
//
// # Who tests the tests
//
// Mutants builds a test binary in which mistakes can be switched on, one at a
// time, in the code under test itself. A scenario is good when it finds them.
package interleave
