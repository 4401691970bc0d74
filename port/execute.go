package port

// Execute sends srb and waits for it. It returns true if srb has completed, false if the
// port has given it up: then there is no device for it, and srb, its extension and its
// data stay the miniport's until release is called, which may be never. See Abandoner.
// A nil release leaves them to the garbage collector.
//
// Level: Passive, no lock held; release is called at Dispatch. It replaces srb's
// Completer.
func (lu *LogicalUnit) Execute(p *Processor, srb *SRB, release func()) bool {
	if !p.check(routineExecute) {
		panic("port: Execute at " + p.level.String() + ": it waits")
	}
	w := &waiter{done: make(chan struct{}), release: release}
	srb.Completer = w
	lu.Submit(p, []*SRB{srb})
	<-w.done
	return !w.abandoned
}

// A waiter lets one goroutine wait for an SRB.
type waiter struct {
	done      chan struct{} // closed when there is nothing to wait for any more
	abandoned bool
	release   func()
}

// CompleteSRB implements Completer.
func (w *waiter) CompleteSRB(*Processor, *SRB) {
	switch {
	case !w.abandoned:
		close(w.done)
	case w.release != nil:
		w.release()
	}
}

// AbandonSRB implements Abandoner.
func (w *waiter) AbandonSRB(*Processor, *SRB) {
	w.abandoned = true
	close(w.done)
}
