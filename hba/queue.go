package hba

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vhbad/vhbad/hba/fault"
	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/internal/pci"
)

// Bits of a queue's gate: what its engine must know before each command. They
// are stored under Device.mu.
const (
	gateOpen    uint32 = 1 << iota // commands may be fetched
	gateControl                    // Device.controls is not empty: look there
	gateDead                       // being deleted: drop everything
	gateFaults                     // rules are in force: ask them
)

// States of a queue's engine.
const (
	engineIdle    uint32 = iota
	engineRunning        // some goroutine is the engine
	engineGone           // the queue is deleted; nobody will be the engine again
)

// A queue is a queue pair from its creation to its deletion. Creating it again makes a
// new queue, so that a goroutine that still holds the old one can do no harm.
//
// Positions are free-running counts (ring.go):
//
//	consumed <= posted, consumed - surplus <= settled <= head <= tail
//
// Up to settled, commands are posted or have a record; up to head they are fetched. Each
// fetched command makes one completion. Faults may add more, surplus in all, so the
// completion ring must be able to hold head + surplus - consumed.
type queue struct {
	// Immutable.
	dev                                  *Device
	index                                int
	count                                *counters
	submission, completion               dma.Addr
	submissionEntries, completionEntries uint32 // powers of two
	message                              pci.Message

	_ [64]byte
	// tail is how far the driver has submitted; stored by its doorbells.
	tail atomic.Uint32
	// consumed is how far the driver has consumed; likewise.
	consumed atomic.Uint32
	_        [56]byte

	gate   atomic.Uint32
	engine atomic.Uint32 // one of the engine states
	// head and settled are stored by the engine.
	head, settled atomic.Uint32
	// surplus counts completions that answer no command; see postSurplus.
	surplus atomic.Uint32
	_       [44]byte

	engineState

	postMu sync.Mutex
	// posted is how far completions have been posted. It is stored under postMu.
	posted atomic.Uint32
	// unannounced counts the completions posted by others than the engine since an
	// interrupt was last raised for them: for statistics only.
	unannounced atomic.Uint32

	// The rest is guarded by Device.mu: commands that workers have or wait for.
	records []record // as many as completion entries: one for each command in flight
	free    *record
	busy    int // records that a worker runs
	// full are the faults that make the submission ring appear full, each once.
	full []fullRing
}

// A fullRing is a fault that makes a submission ring appear full until some time.
type fullRing struct {
	by    *fault.Fault
	until time.Duration
}

// engineState belongs to whoever is the engine.
type engineState struct {
	exec    executor
	results int    // in out, not yet posted
	raise   uint64 // queue pairs whose interrupt this engine owes
	news    int    // completions posted since this engine last raised
	tally   tally
	batch   [batchCommands]Command
	out     [batchCommands]Completion
	// decision is what the rules say of the command at hand.
	decision fault.Decision
}

// A tally collects during a batch what is added to counters at its end.
type tally struct {
	commands, handed             uint64
	bytesIn, bytesOut, dmaFaults uint64
}

func (t *tally) addTo(c *counters) {
	for _, x := range [...]struct {
		n  uint64
		to *atomic.Uint64
	}{
		{t.commands, &c.commands},
		{t.handed, &c.handed},
		{t.bytesIn, &c.bytesIn},
		{t.bytesOut, &c.bytesOut},
		{t.dmaFaults, &c.dmaFaults},
	} {
		if x.n != 0 {
			x.to.Add(x.n)
		}
	}
	*t = tally{}
}

// submissionRing and completionRing are the rings' memory, or false if the
// driver has unmapped it.
func (q *queue) submissionRing() ([]byte, bool) {
	return q.dev.iommu.Translate(q.submission, int(q.submissionEntries)*CommandBytes, dma.Read)
}

func (q *queue) completionRing() ([]byte, bool) {
	return q.dev.iommu.Translate(q.completion, int(q.completionEntries)*CompletionBytes, dma.Write)
}

// submit is the submission doorbell.
func (q *queue) submit(r pci.Runner, tail uint32) {
	for {
		yieldPoint("submit: tail")
		old := q.tail.Load()
		yieldPoint("submit: head")
		v := judge(old, tail, q.head.Load()+q.submissionEntries)
		if v == doorbellStale {
			return // whoever rang the newer one sees to everything
		}
		if v == doorbellBad {
			if q.tail.Load() != old {
				continue // head may have gone past what we compared with
			}
			q.dev.fail(fmt.Sprintf("submission tail %d, which is more than %d entries beyond what was fetched", tail, q.submissionEntries), q.index)
			return
		}
		yieldPoint("submit: new tail")
		if q.tail.CompareAndSwap(old, tail) {
			break
		}
	}
	q.run(source{runner: r})
}

// consume is the completion doorbell. It resumes an engine that stopped because
// the completion ring had no room.
func (q *queue) consume(r pci.Runner, consumed uint32) {
	for {
		yieldPoint("consume: consumed")
		old := q.consumed.Load()
		yieldPoint("consume: posted")
		switch judge(old, consumed, q.posted.Load()) {
		case doorbellStale:
			return
		case doorbellBad:
			if q.consumed.Load() != old {
				continue // posted may be older than what we compared with
			}
			q.dev.fail(fmt.Sprintf("completion head %d, which was not posted", consumed), q.index)
			return
		case doorbellNewer:
		}
		yieldPoint("consume: new consumed")
		if q.consumed.CompareAndSwap(old, consumed) {
			break
		}
	}
	q.run(source{runner: r})
}

// post stores completions into the ring and reports whether the ring could be
// reached. The caller raises the interrupt, with no lock held.
func (q *queue) post(results []Completion) bool {
	yieldPoint("post") // no step inside: nobody finds postMu taken
	q.postMu.Lock()
	defer q.postMu.Unlock()
	if q.gate.Load()&gateDead != 0 {
		return true // dropped
	}
	ring, ok := q.completionRing()
	if !ok {
		return false
	}
	entries := Completions(ring)
	position, head := q.posted.Load(), q.head.Load()
	if position+uint32(len(results))-q.consumed.Load() > q.completionEntries {
		panic(fmt.Sprintf("hba: queue %d: completion ring overrun: posted %d, %d more, consumed %d",
			q.index, position, len(results), q.consumed.Load()))
	}
	// Stored first, so that a driver that consumes an entry at once is not mistaken for
	// one that consumes what was never posted.
	q.posted.Store(position + uint32(len(results)))
	for i := range results {
		from, to := &results[i], &entries[position&(q.completionEntries-1)]
		to.Tag = from.Tag
		to.Code = from.Code
		to.ScsiStatus = from.ScsiStatus
		to.SenseBytes = from.SenseBytes
		to.Flags = from.Flags
		to.DataBytes = from.DataBytes
		to.SubmissionHead = head
		if from.SenseBytes != 0 {
			to.Sense = from.Sense
		}
		if from.Flags&CompletionCutReply != 0 {
			to.ReplyBytes = from.ReplyBytes
		}
		to.StorePhase(PhaseAt(position, int(q.completionEntries))) // pairs with the driver's LoadPhase
		position++
	}
	q.count.completions.Add(uint64(len(results)))
	return true
}

// postForOthers is post for callers other than the engine, which do not keep account of
// what the next interrupt announces.
func (q *queue) postForOthers(results []Completion) bool {
	q.unannounced.Add(uint32(len(results)))
	return q.post(results)
}

// interrupt raises the queue's interrupt, which announces so many completions. The
// caller holds no lock and is not the engine: the handler may call back through the
// registers.
func (q *queue) interrupt(src source, completions int) {
	q.count.interrupts[batchBucket(completions)].Add(1)
	q.dev.intr.raise(src, q.message, 1<<q.index)
}
