package port

import (
	"sync"
	"time"
)

// A service is a goroutine of the port with a processor of its own, and a queue
// of work for it. It carries what happens rarely: timers, work items, resets.
type service struct {
	p    *Processor
	wake chan struct{} // capacity 1
	done chan struct{}

	mu sync.Mutex
	// +checklocks:mu
	queue []func(p *Processor)
	// +checklocks:mu
	stopped bool
}

// newService makes a service, which accepts work at once and does it when run runs.
func (s *System) newService(name string) (*service, error) {
	p, err := s.NewProcessor(name)
	if err != nil {
		return nil, err
	}
	return &service{p: p, wake: make(chan struct{}, 1), done: make(chan struct{})}, nil
}

// run does the service's work. tick, if not nil, is called every second, and look
// every lookPeriod, or with tick for as long as it returns false.
func (v *service) run(tick func(p *Processor), look func(p *Processor) (again bool)) {
	defer close(v.done)
	defer v.p.Close()
	var ticks, looks <-chan time.Time
	var looker *time.Ticker
	resting := false
	if tick != nil {
		ticker := time.NewTicker(time.Second)
		looker = time.NewTicker(lookPeriod)
		defer ticker.Stop()
		defer looker.Stop()
		ticks, looks = ticker.C, looker.C
	}
	for {
		select {
		case <-ticks:
			tick(v.p)
			if resting && look(v.p) {
				resting = false
				looker.Reset(lookPeriod)
			}
		case <-looks:
			if !look(v.p) {
				resting = true
				looker.Stop()
			}
		case <-v.wake:
		}
		for {
			v.mu.Lock()
			if len(v.queue) == 0 {
				stopped := v.stopped
				v.mu.Unlock()
				if stopped {
					return
				}
				break
			}
			fn := v.queue[0]
			v.queue[0] = nil
			v.queue = v.queue[1:]
			v.mu.Unlock()
			fn(v.p)
		}
	}
}

// post queues fn, to be called at Passive. False: the service has stopped.
func (v *service) post(fn func(p *Processor)) bool {
	v.mu.Lock()
	if v.stopped {
		v.mu.Unlock()
		return false
	}
	v.queue = append(v.queue, fn)
	v.mu.Unlock()
	v.signal()
	return true
}

func (v *service) signal() {
	select {
	case v.wake <- struct{}{}:
	default:
	}
}

// end lets the service finish its queue; done is closed when it has.
func (v *service) end() {
	v.mu.Lock()
	v.stopped = true
	v.mu.Unlock()
	v.signal()
}

// stop is end, and waits for it.
func (v *service) stop() {
	v.end()
	<-v.done
}

// makeServices makes the adapter's services. They are separate because a work item may
// wait for I/O that only a reset brings back, and a reset for a timer; and because work for
// other units should not wait for a unit that does not answer an enumeration.
func (a *Adapter) makeServices() error {
	for _, x := range []struct {
		name string
		v    **service
	}{{"timer", &a.service}, {"worker", &a.worker}, {"enumerator", &a.enumerator}, {"recovery", &a.recovery}} {
		v, err := a.sys.newService(a.options.Name + " " + x.name)
		if err != nil {
			a.discardServices()
			return err
		}
		*x.v = v
	}
	return nil
}

// discardServices gives back services that were not started.
func (a *Adapter) discardServices() {
	for _, v := range []*service{a.service, a.worker, a.enumerator, a.recovery} {
		if v != nil {
			v.discard()
		}
	}
}

// discard ends a service that was not started, and forgets its work.
func (v *service) discard() {
	v.mu.Lock()
	v.stopped, v.queue = true, nil
	v.mu.Unlock()
	v.p.Close()
}

// startServices starts what makeServices made.
func (a *Adapter) startServices() {
	go a.service.run(a.tick, a.look)
	go a.worker.run(nil, nil)
	go a.enumerator.run(nil, nil)
	go a.recovery.run(nil, nil)
}

// after calls fn on the timer service once d has passed.
func (a *Adapter) after(d time.Duration, fn func(p *Processor)) *time.Timer {
	return time.AfterFunc(d, func() { a.service.post(fn) })
}

// tick counts down the units' timers, once a second. While the link is down
// they stand still: nobody answers, and no reset would change that.
func (a *Adapter) tick(p *Processor) {
	if a.gate.Load()&gateLinkDown != 0 {
		return
	}
	for _, lu := range a.units.Load().all {
		if p.verify {
			lu.checkOverdue(p)
		}
		if lu.removed() && a.state.Load() != adapterFailed {
			a.timeLeaver(p, lu)
			continue
		}
		lu.mu.Lock()
		expired := lu.countDownLocked()
		if expired {
			lu.closeGateLocked(gateRecovering)
		}
		lu.mu.Unlock()
		if expired {
			a.timeouts.Add(1)
			a.recovery.post(func(p *Processor) { a.recover(p, lu) })
		}
	}
}

// countDownLocked takes a second off the unit's timer. True: it has run out.
//
// +checklocks:lu.mu
func (lu *LogicalUnit) countDownLocked() (expired bool) {
	if lu.timeLeft <= 0 || lu.gate.Load()&gateRecovering != 0 {
		return false
	}
	lu.timeLeft--
	if lu.timeLeft > 0 {
		return false
	}
	lu.stats.Timeouts++
	return true
}

// RequestTimerCall sets the adapter's one timer: fn is called after d at Dispatch
// with the StartIo lock held, in half duplex at Device with the interrupt locks
// too. A new request replaces the previous one; a d of zero cancels it. After a call
// with the StartIo lock held, the previous fn does not begin any more. With concurrent
// channels StartIo does not take the StartIo lock, so fn and StartIo may overlap.
//
// Level: any.
// Source: storport.h StorPortNotification(RequestTimerCall).
func (a *Adapter) RequestTimerCall(p *Processor, fn func(p *Processor), d time.Duration) {
	yieldLock("RequestTimerCall", &a.mu)
	a.mu.Lock()
	a.timerTurn++
	turn := a.timerTurn
	a.mu.Unlock()
	if d <= 0 {
		return
	}
	if fn == nil {
		if p.verify {
			p.violate(CheckNotification, nil, "RequestTimerCall without a routine")
		}
		return
	}
	a.after(d, func(p *Processor) { a.callTimer(p, turn, fn) })
}

// callTimer calls fn, whose time has come, unless its request was replaced or cancelled.
// It checks with the StartIo lock held, so that callers who replace or cancel a request
// with that lock can rely on it.
func (a *Adapter) callTimer(p *Processor, turn uint64, fn func(p *Processor)) {
	old := a.acquireExclusive(p, false)
	yieldLock("the adapter's timer", &a.mu)
	a.mu.Lock()
	current := a.timerTurn == turn
	a.mu.Unlock()
	if current {
		e := p.enter(inTimer)
		fn(p)
		p.leave(e)
	}
	a.releaseExclusive(p, false, old)
}

// A WorkItem is work at Passive level that a miniport queues.
// Source: storport.h StorPortInitializeWorker.
type WorkItem struct {
	// Routine does the work. Level: Passive, no lock held; it may wait, but other work
	// items then wait for it.
	Routine func(p *Processor)
	// WaitsForIO: it sends SRBs and waits for them; so it takes turns with enumerations,
	// which do the same, and not with other work items. Ours.
	WaitsForIO bool

	mu sync.Mutex
	// +checklocks:mu
	queued bool
}

// QueueWorkItem makes w run soon. False: it is queued already, has no routine, or the
// adapter is being removed.
//
// Level: up to Dispatch.
// Source: storport.h StorPortQueueWorkItem.
func (a *Adapter) QueueWorkItem(p *Processor, w *WorkItem) bool {
	p.check(routineQueueWorkItem)
	if w.Routine == nil {
		if p.verify {
			p.violate(CheckCallingPlace, nil, "QueueWorkItem without a routine")
		}
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.queued {
		return false
	}
	v := a.worker
	if w.WaitsForIO {
		v = a.enumerator
	}
	w.queued = v.post(func(p *Processor) {
		w.mu.Lock()
		w.queued = false
		w.mu.Unlock()
		e := p.enter(inWorkItem)
		w.Routine(p)
		p.leave(e)
	})
	return w.queued
}
