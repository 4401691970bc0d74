// Package fault decides when a disk misbehaves, and how.
//
// A Rule is what people write: a name, which commands it is about (Match), what
// becomes of them (Action), and how often at the most (Budget). It has one shape
// in configuration files, in requests to the daemon and on the command line. A
// Set is a list of rules in force, compiled for the units of one device. For each
// command the device asks the unit's Plan and gets a Decision, which says what to
// do; the device carries out each part where it belongs. Nothing here executes,
// waits or looks at a clock.
//
//	rule.go      Rule, Match and what they may hold
//	action.go    Action: every kind, its parameters, and whether a correct drive does it
//	op.go        kinds of commands
//	check.go     what is wrong with a rule
//	set.go       Set, Plan: rules compiled
//	fault.go     a rule in force: its counters, its chance
//	tally.go     how often rules have fired, those that have gone included
//	decide.go    from a command to a Decision
//	latency.go   distributions of time
//	pace.go      caps, lanes and stalls
//	bad.go       which blocks are bad or rotten
//	blocks.go    earlier versions of blocks
//	power.go     power cuts
//	chance.go    random numbers
//
// # Legal and hostile
//
// A correct drive may be slow, busy, broken or gone, and says so. It never loses what it
// acknowledged as durable, never answers twice, and never makes up data. Kinds of faults
// that do are hostile; a rule has to say `hostile: true` to use one, so that nobody who
// tests against legal drives meets one by accident. Counts of hostile faults are kept
// apart.
//
// # Determinism
//
// A rule numbers the commands that it matches. Whether it fires on the k-th, and
// with which random numbers, is a function of its seed, its name and k, and of
// nothing else. So the same commands in the same order meet the same faults. What
// depends on time besides (windows, caps, lanes) is as reproducible as time is.
//
// # Concurrency
//
// A Set is immutable, except for state that is atomic or guarded by a lock of the one
// rule that it belongs to. Any number of goroutines may ask one Plan.
package fault
