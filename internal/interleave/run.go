package interleave

import (
	"errors"
	"fmt"
	"math/bits"
	"runtime/debug"
	"sync"
)

const (
	maxTasks = 16
	// maxSteps ends a run that has no end of its own.
	maxSteps = 20000
)

// A Run is one run of a scenario.
//
// Concurrency: the scenario's function, then its tasks, then its checks use it,
// always one at a time.
type Run struct {
	decide decider

	tasks   []*task
	checks  []func() error
	current *task // nil outside of tasks

	steps []step
	woken map[*sync.Cond]int // broadcasts so far

	closing bool // only tasks in Serve are left
	failure error
	ended   chan struct{} // closed when no task is to go on
}

// A step is one decision: which task goes on, and what it does next.
type step struct {
	task  uint8
	point string
}

// A task is one goroutine of a run.
type task struct {
	id    uint8
	name  string
	body  func()
	point string      // where it stands
	ready func() bool // nil: it may go on at once
	done  bool
	wake  chan struct{} // the baton; capacity 1
	// serving says that it waits in Serve.
	serving bool
}

// A decider picks the task that goes on, from the bit set enabled. current is the
// task that asks, or -1 if it cannot go on.
type decider interface {
	pick(enabled uint16, current int) (int, error)
}

// Go adds a task. It is called by the scenario's function.
func (r *Run) Go(name string, body func()) {
	if r.current != nil || len(r.tasks) == maxTasks {
		panic("interleave: Go from a task, or more than 16 tasks")
	}
	r.tasks = append(r.tasks, &task{
		id: uint8(len(r.tasks)), name: name, body: body, point: "start",
		wake: make(chan struct{}, 1),
	})
}

// Check adds a condition that must hold once all tasks have ended.
func (r *Run) Check(check func() error) { r.checks = append(r.checks, check) }

// Yield is a step of the current task: others may run before it goes on. point
// says what it does next. Outside of tasks it does nothing.
func (r *Run) Yield(point string) {
	if t := r.current; t != nil {
		r.stand(t, point, nil)
	}
}

// Until is a Yield after which the task goes on only when ready returns true. ready must
// depend on nothing but what tasks do.
func (r *Run) Until(point string, ready func() bool) {
	t := r.current
	if t == nil {
		if !ready() {
			panic("interleave: " + point + ": would wait for ever outside of tasks")
		}
		return
	}
	r.stand(t, point, ready)
}

// Lock waits until mu is free. The caller must take mu next, before any other step.
func (r *Run) Lock(point string, mu *sync.Mutex) {
	r.Until(point, func() bool { return isFree(mu) })
}

// isFree reports whether nobody holds mu.
//
// +checklocksignore: TryLock is not understood.
func isFree(mu *sync.Mutex) bool {
	if !mu.TryLock() {
		return false
	}
	mu.Unlock()
	return true
}

// Wait is c.Wait.
//
// +checklocksignore: as of sync.Cond, the caller holds the lock before and after.
func (r *Run) Wait(point string, c *sync.Cond) {
	if r.current == nil {
		panic("interleave: " + point + ": would wait for ever outside of tasks")
	}
	before := r.woken[c]
	c.L.Unlock()
	r.Until(point, func() bool {
		if r.woken[c] == before {
			return false
		}
		// A condition's lock is a mutex wherever this is used.
		mu := c.L.(*sync.Mutex)
		return isFree(mu)
	})
	c.L.Lock()
}

// Broadcast wakes those in Wait.
func (r *Run) Broadcast(c *sync.Cond) {
	if r.woken == nil {
		r.woken = make(map[*sync.Cond]int)
	}
	r.woken[c]++
	c.Broadcast()
}

// Serve is Until for a task that serves others, as a worker does. It returns true when
// ready does, and false when no task is left to serve: every task has ended or waits in
// Serve in vain. The calling task should end then.
func (r *Run) Serve(point string, ready func() bool) bool {
	t := r.current
	t.serving = true
	r.stand(t, point, ready)
	t.serving = false
	return !r.closing
}

// Failf fails the run. In a task it does not return.
func (r *Run) Failf(format string, args ...any) {
	if r.failure == nil {
		r.failure = fmt.Errorf(format, args...)
	}
	if r.current != nil {
		r.abort()
	}
}

// abort ends the run in the middle. Its tasks stay where they are for ever: running
// their deferred calls would be one more schedule, and a wrong one. A search has only
// one such run, its last.
func (r *Run) abort() {
	r.current = nil
	close(r.ended)
	select {}
}

// stand lets others run, until it is t's turn again.
func (r *Run) stand(t *task, point string, ready func() bool) {
	t.point, t.ready = point, ready
	next := r.next()
	if next == nil {
		r.abort()
	}
	if next != t {
		r.current = next
		next.wake <- struct{}{}
		<-t.wake
	}
	t.ready = nil
}

// next decides which task goes on. It returns nil if none does; failure then says why,
// unless all have ended.
func (r *Run) next() *task {
	var enabled, serving uint16
	left, current := 0, -1
	for i, t := range r.tasks {
		if t.done {
			continue
		}
		left++
		if t.serving {
			serving |= 1 << i
		}
		if t.ready == nil || t.ready() || t.serving && r.closing {
			enabled |= 1 << i
			if t == r.current {
				current = i
			}
		}
	}
	if enabled == 0 && bits.OnesCount16(serving) == left {
		r.closing = true
		enabled = serving
	}
	switch {
	case left == 0:
		return nil
	case enabled == 0:
		r.setFailure(r.deadlock())
		return nil
	case len(r.steps) == maxSteps:
		r.setFailure(fmt.Errorf("no end after %d steps", maxSteps))
		return nil
	}
	i, err := r.decide.pick(enabled, current)
	if err != nil {
		r.setFailure(err)
		return nil
	}
	t := r.tasks[i]
	r.steps = append(r.steps, step{t.id, t.point})
	return t
}

func (r *Run) setFailure(err error) {
	if r.failure == nil {
		r.failure = err
	}
}

func (r *Run) deadlock() error {
	errs := []error{errors.New("deadlock")}
	for _, t := range r.tasks {
		if !t.done {
			errs = append(errs, fmt.Errorf("%s waits at %q", t.name, t.point))
		}
	}
	return errors.Join(errs...)
}

// run is the body of a task's goroutine.
func (r *Run) run(t *task) {
	defer func() {
		t.done = true
		if v := recover(); v != nil {
			r.setFailure(fmt.Errorf("%s panicked: %v\n%s", t.name, v, debug.Stack()))
			r.abort()
		}
		if r.current = r.next(); r.current != nil {
			r.current.wake <- struct{}{}
		} else {
			close(r.ended)
		}
	}()
	<-t.wake
	t.body()
}

// execute runs the scenario once.
func execute(scenario func(*Run), d decider) *Run {
	r := &Run{decide: d, ended: make(chan struct{})}
	scenario(r)
	if len(r.tasks) == 0 {
		panic("interleave: a scenario without tasks")
	}
	for _, t := range r.tasks {
		go r.run(t)
	}
	if r.current = r.next(); r.current != nil {
		r.current.wake <- struct{}{}
		<-r.ended
	}
	if r.failure == nil {
		for _, check := range r.checks {
			if err := check(); err != nil {
				r.failure = err
				break
			}
		}
	}
	return r
}
