package hba

// An engine takes commands in batches, and after a turn it gives up the queue
// for a moment to raise its interrupt, so that completions of a long run do not
// wait for its end.
const (
	batchCommands = 32
	batchBytes    = 1 << 20
	turnBytes     = 4 << 20
)

// runnable reports whether an engine would find work.
func (q *queue) runnable() bool {
	yieldPoint("engine: is there work")
	return q.gate.Load()&gateOpen != 0 && q.fetchable() > 0
}

// fetchable is how many commands could be fetched now: those submitted, limited by the
// room in the completion ring.
func (q *queue) fetchable() uint32 {
	yieldPoint("engine: head")
	head := q.head.Load()
	yieldPoint("engine: tail and room")
	submitted := q.tail.Load() - head
	// Loaded before surplus: if this counts the consumption of a surplus completion,
	// surplus counts the completion.
	consumed := q.consumed.Load()
	// Signed: postSurplus counts its completion before it knows of room for it.
	room := int32(q.completionEntries) - int32(head+q.surplus.Load()-consumed)
	return min(submitted, uint32(max(0, room)))
}

// run makes the calling goroutine the queue's engine, if there is work and no other
// goroutine is the engine, and executes commands until there are no more.
//
// No wake-up is lost: a goroutine that stores a new tail and then finds an engine
// running leaves its entries to that engine, and an engine looks at the tail again after
// it has stopped being the engine.
//
// A goroutine that rings also runs what others have submitted, but not for ever: after
// maxTurns the event goroutine takes over, so that a client's goroutine gets back to its
// own client while others keep the queue full.
func (q *queue) run(src source) {
	for turn := 1; ; turn++ {
		commands, bytes, raise, news := 0, uint64(0), uint64(0), 0
		for commands < turnCommands && bytes < turnBytes && q.runnable() {
			yieldPoint("engine: become it")
			if !q.engine.CompareAndSwap(engineIdle, engineRunning) {
				break
			}
			for commands < turnCommands && bytes < turnBytes {
				n, b := q.runBatch()
				if n == 0 {
					break
				}
				commands += n
				bytes += b
			}
			raise |= q.raise
			news += q.news
			q.raise, q.news = 0, 0
			yieldPoint("engine: stop")
			q.engine.Store(engineIdle)
			yieldPoint("engine: is the queue dead")
			if q.gate.Load()&gateDead != 0 {
				q.dev.settle() // a reset may wait for this engine
			}
		}
		if raise == 1<<q.index && news != 0 {
			q.interrupt(src, news)
		} else if raise != 0 { // a reset or an abort has ended, here or on other queues
			q.unannounced.Add(uint32(news))
			q.dev.interruptAll(raise, src)
		}
		if commands < turnCommands && bytes < turnBytes {
			return
		}
		if turn >= maxTurns && q.runnable() {
			q.runLater()
			return
		}
	}
}

// runLater has the event goroutine run the queue. The caller is not the engine.
func (q *queue) runLater() {
	yieldPoint("engine: hand over")
	q.dev.runOwed.Or(1 << q.index)
	q.dev.intr.wake()
}

// runBatch fetches some commands, executes them and posts what is complete. The
// caller is the engine.
func (q *queue) runBatch() (commands int, bytes uint64) {
	if q.gate.Load()&gateOpen == 0 {
		return 0, 0
	}
	most := min(q.fetchable(), batchCommands)
	if most == 0 {
		return 0, 0
	}
	ring, ok := q.submissionRing()
	if !ok {
		q.dev.fail("the submission ring is not mapped", q.index)
		return 0, 0
	}
	entries := Commands(ring)
	head := q.head.Load()
	var n uint32
	for n < most && bytes < batchBytes {
		// Copied, so that the driver cannot change a command under our hands.
		q.batch[n] = entries[(head+n)&(q.submissionEntries-1)]
		bytes += uint64(q.batch[n].DataBytes)
		n++
	}
	yieldPoint("engine: fetched")
	q.head.Store(head + n)
	q.tally.commands += uint64(n)
	for i := range n {
		q.dispatch(head+i, &q.batch[i])
	}
	q.flush()
	yieldPoint("engine: settled")
	q.settled.Store(head + n)
	q.tally.addTo(q.count)
	yieldPoint("engine: any controls")
	if q.gate.Load()&gateControl != 0 {
		q.dev.advance(q)
	}
	return int(n), bytes
}

// dispatch executes one command or passes it on.
func (q *queue) dispatch(position uint32, c *Command) {
	yieldPoint("engine: gate")
	gate := q.gate.Load()
	if gate&gateDead != 0 {
		return
	}
	switch c.Opcode {
	case OpExecute:
		out := &q.out[q.results]
		switch {
		case gate&(gateControl|gateFaults) != 0:
			if q.examine(position, c, gate, out) {
				return
			}
		case !q.exec.run(q.dev, c, out, &q.tally, false):
			if q.handOver(position, c, out) {
				return
			}
		}
		q.results++
	case OpAbort, OpResetLun, OpResetTarget:
		// Earlier commands must be out of the engine's hands.
		q.flush()
		q.settled.Store(position)
		q.dev.startControl(q, position, c)
	default:
		q.out[q.results].set(c.Tag, CodeBadCommand)
		q.results++
	}
}

// examine is dispatch for a command that a reset may have aborted or that may meet a
// fault. It reports whether the command is no longer the engine's.
func (q *queue) examine(position uint32, c *Command, gate uint32, out *Completion) (taken bool) {
	treated := treatmentNone
	if gate&gateControl != 0 && q.dev.isAborted(q, position, c) {
		treated = treatmentAborted
	} else if gate&gateFaults != 0 {
		treated = q.dev.misbehave(q, position, c)
	}
	switch treated {
	case treatmentTaken:
		return true
	case treatmentAborted:
		out.set(c.Tag, CodeAborted)
		return false
	case treatmentNone:
	}
	return !q.exec.run(q.dev, c, out, &q.tally, false) && q.handOver(position, c, out)
}

// handOver gives a command that would block to the workers. False: it has been
// aborted.
func (q *queue) handOver(position uint32, c *Command, out *Completion) (taken bool) {
	if q.dev.handOver(q, position, c) {
		q.tally.handed++
		return true
	}
	out.set(c.Tag, CodeAborted)
	return false
}

// flush posts the results so far.
func (q *queue) flush() {
	if q.results == 0 {
		return
	}
	if !q.post(q.out[:q.results]) {
		q.dev.fail("the completion ring is not mapped", q.index)
	}
	q.news += q.results
	q.results = 0
	q.raise |= 1 << q.index
}

// set makes c the completion of a command without data or status.
func (c *Completion) set(tag uint32, code CompletionCode) {
	*c = Completion{Tag: tag, Code: code}
}
