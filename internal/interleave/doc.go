// Package interleave runs a few goroutines one step at a time, in every order
// that matters, so that a test can say that an algorithm without locks, or with
// several, is right and not only lucky. It is for tests.
//
// # How it works
//
// A scenario makes a world and its tasks (Run.Go), and says what must be true
// when all have ended (Run.Check). Each task is a goroutine, but only the one
// that holds the baton runs. At each step that others could notice (an atomic
// load or store, taking a lock) the code under test calls Run.Yield or
// Run.Lock, and there the run decides who goes on. So a run is a function of
// its decisions, which are its schedule: the same schedule gives the same run.
//
// Code under test has its yield points in place for good: a function that does
// nothing in an ordinary build, and calls the Run in one with the build tag
// "interleave".
//
// # Search
//
// A Search tries schedules. First it is exhaustive: all schedules with no
// preemption, then all with one, two and so on up to a bound. Most bugs of this
// kind need two or three, and the first one found is as short as they come.
// (Musuvathi and Qadeer, "Iterative Context Bounding for Systematic Testing of
// Multithreaded Programs", PLDI 2007.) Then it is random, one schedule for each
// seed, for what needs more.
//
// A failed run prints its schedule, such as a5b2a1: five steps of the first
// task, two of the second, one of the first. The flag -interleave.replay runs
// that schedule alone. A run in which nobody can go on is a deadlock and fails;
// so is one without an end.
//
// # What it cannot see
//
// Between two yield points a task is alone, so what is missing there is not
// explored; and a run is sequentially consistent, as Go's atomics are. Data
// races are for the race detector, in tests with real goroutines.
//
// # Who tests the tests
//
// Mutants builds a test binary in which mistakes can be switched on, one at a
// time, in the code under test itself. A scenario is good when it finds them.
package interleave
