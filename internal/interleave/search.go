package interleave

import (
	"fmt"
	"math/bits"
	"math/rand/v2"
)

// A Search says which schedules to try.
type Search struct {
	// Preemptions bounds how often a task that could go on is interrupted, in the
	// exhaustive part.
	Preemptions int
	// Seeds is the number of random schedules, from seed FirstSeed on.
	Seeds     int
	FirstSeed uint64
}

// A Failure is a run that failed.
type Failure struct {
	Err      error
	Schedule string
	Story    string // who did what in which order
	How      string // how it was found
}

func (f *Failure) Error() string {
	return fmt.Sprintf("%v\nfound by %s, schedule %s:\n%s", f.Err, f.How, f.Schedule, f.Story)
}

// Unwrap returns what went wrong.
func (f *Failure) Unwrap() error { return f.Err }

func (r *Run) failed(how string) *Failure {
	if r.failure == nil {
		return nil
	}
	return &Failure{Err: r.failure, Schedule: schedule(r.steps), Story: r.story(), How: how}
}

// Find tries schedules until one fails. f is nil if none did; runs is how many it tried.
func (s Search) Find(scenario func(*Run)) (f *Failure, runs int) {
	for bound := range s.Preemptions + 1 {
		d := &depthFirst{bound: bound}
		for more := true; more; more = d.advance() {
			runs++
			r := d.run(scenario)
			if f := r.failed(fmt.Sprintf("exhaustive search with %d preemptions", bound)); f != nil {
				return f, runs
			}
		}
	}
	for i := range s.Seeds {
		runs++
		seed := s.FirstSeed + uint64(i)
		if f := execute(scenario, newWalk(seed)).failed(fmt.Sprintf("seed %d", seed)); f != nil {
			return f, runs
		}
	}
	return nil, runs
}

// Replay runs one schedule. It returns an error if schedule is not valid.
func Replay(scenario func(*Run), schedule string) (*Failure, error) {
	tasks, err := parseSchedule(schedule)
	if err != nil {
		return nil, err
	}
	return execute(scenario, &follower{tasks}).failed("replay"), nil
}

// unhurried preempts nobody, and takes the first task if it has to choose.
func unhurried(enabled uint16, current int) int {
	if current >= 0 {
		return current
	}
	return bits.TrailingZeros16(enabled)
}

// depthFirst goes through all schedules with at most bound preemptions. Each run repeats
// the one before with the last decision changed that can be.
type depthFirst struct {
	bound int
	stack []choice
	depth int // of this run
}

func (d *depthFirst) run(scenario func(*Run)) *Run {
	again := len(d.stack) // these decisions have been taken before
	d.depth = 0
	r := execute(scenario, d)
	if d.depth < again {
		r.setFailure(fmt.Errorf("interleave: the scenario is not deterministic: %d decisions, %d before", d.depth, again))
	}
	return r
}

// A choice is one decision among several tasks.
type choice struct {
	enabled     uint16
	current     int
	taken       int    // task
	tried       uint16 // tasks, with taken
	preemptions int    // before this one
}

func (c *choice) cost(task int) int {
	if c.current >= 0 && task != c.current {
		return 1
	}
	return 0
}

func (d *depthFirst) pick(enabled uint16, current int) (int, error) {
	if enabled&(enabled-1) == 0 {
		return bits.TrailingZeros16(enabled), nil
	}
	if d.depth == len(d.stack) {
		c := choice{enabled: enabled, current: current, taken: unhurried(enabled, current)}
		c.tried = 1 << c.taken
		if d.depth > 0 {
			last := &d.stack[d.depth-1]
			c.preemptions = last.preemptions + last.cost(last.taken)
		}
		d.stack = append(d.stack, c)
	}
	c := &d.stack[d.depth]
	d.depth++
	if c.enabled != enabled || c.current != current {
		return 0, fmt.Errorf("interleave: the scenario is not deterministic: tasks %#b of %d could go on, now %#b of %d",
			c.enabled, c.current, enabled, current)
	}
	return c.taken, nil
}

// advance prepares the next run. It returns false if all are done.
func (d *depthFirst) advance() bool {
	d.stack = d.stack[:d.depth]
	for len(d.stack) > 0 {
		c := &d.stack[len(d.stack)-1]
		if left := c.enabled &^ c.tried; left != 0 {
			task := bits.TrailingZeros16(left)
			if c.preemptions+c.cost(task) <= d.bound {
				c.taken = task
				c.tried |= 1 << task
				return true
			}
		}
		d.stack = d.stack[:len(d.stack)-1]
	}
	return false
}

// A walk decides at random. How readily it preempts depends on the seed, too: some bugs
// need many switches, and some need few at the right place.
type walk struct {
	random *rand.Rand
	odds   int // the task goes on without a random choice in all but one of so many steps
}

func newWalk(seed uint64) *walk {
	random := rand.New(rand.NewPCG(seed, 0x1e7e21ea7e))
	return &walk{random: random, odds: 2 << random.IntN(4)}
}

func (w *walk) pick(enabled uint16, current int) (int, error) {
	if current >= 0 && w.random.IntN(w.odds) != 0 {
		return current, nil
	}
	for n := w.random.IntN(bits.OnesCount16(enabled)); n > 0; n-- {
		enabled &= enabled - 1
	}
	return bits.TrailingZeros16(enabled), nil
}
