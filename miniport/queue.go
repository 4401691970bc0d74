package miniport

import (
	"sync/atomic"

	"github.com/vhbad/vhbad/hba"
	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/port"
)

// A queue is one queue pair.
type queue struct {
	d       *Driver
	index   int
	message uint16
	mask    uint32 // ring entries less one

	submissions     []hba.Command
	completions     []hba.Completion
	submissionsAddr dma.Addr
	completionsAddr dma.Addr

	// table has an entry for each tag.
	table []tagEntry

	// tail counts commands put into the submission ring. It is stored by
	// StartIo under the channel, after the slot was written, and loaded by
	// CommitIo.
	tail atomic.Uint32
	_    [60]byte
	// rung is the highest tail for which some CommitIo rings, or has rung, the doorbell.
	rung atomic.Uint32
	// ringers counts the calls of CommitIo that may write the doorbell now;
	// ResetBus waits for them.
	ringers atomic.Int32
	_       [56]byte
	// retired counts commands whose completion was consumed. It is stored under
	// the interrupt lock and loaded by StartIo: tail-retired commands are
	// outstanding, and while those are fewer than the ring's entries, the slot at
	// tail is free, because the device fetches in order and completes only what
	// it has fetched.
	retired atomic.Uint32
	// completing is set while the DPC has SRBs in hand. Set under the interrupt
	// lock, cleared without; ResetBus waits for it.
	completing atomic.Bool
	// guests are the reset SRBs waiting for this queue's DPC: see resets.go.
	guests atomic.Pointer[guest]
	_      [40]byte

	// shared is what the interrupt handler shares with BuildIo and the DPC.
	shared port.Guarded[queueShared]

	dpc port.Dpc
	// spare is swapped with queueShared.reaped at each DPC; the DPC's own.
	spare []*port.SRB
	// visitors are the guests that the DPC has in hand; the DPC's own.
	visitors *guest

	stale     atomic.Uint64
	queueFull atomic.Uint64
	refused   atomic.Uint64
	doorbells atomic.Uint64 // see Stats
}

// A tagEntry says which SRB a tag stands for. at and srb are read only under the
// interrupt lock and with live not zero.
type tagEntry struct {
	// live is the tag while the device has it, else zero. Stored by StartIo after
	// srb, and by the interrupt handler; it passes srb to the handler.
	live atomic.Uint32
	// at is the command's position in the submission ring.
	at  uint32
	srb *port.SRB
}

// queueShared is guarded by the lock of the queue's message.
type queueShared struct {
	pool tagPool
	// head counts completions consumed.
	head uint32
	// down: the device is being reset or stopped, and doorbells must not be
	// rung. Empty rings end it.
	down bool
	// reaped are SRBs that the device is done with, in order of completion, for
	// the DPC. Its capacity is enough for all SRBs there can be.
	reaped []*port.SRB
	// visitors are the guests that the next DPC may send on.
	visitors *guest
}

// setMemory gives q its rings, parts of the uncached extension.
func (q *queue) setMemory(p *port.Processor, submissions, completions []byte) {
	q.submissions = hba.Commands(submissions)
	q.completions = hba.Completions(completions)
	q.submissionsAddr = q.d.a.GetPhysicalAddress(p, nil, submissions)
	q.completionsAddr = q.d.a.GetPhysicalAddress(p, nil, completions)
}

// phaseAt is the phase of a valid entry at position head.
func (q *queue) phaseAt(head uint32) uint32 { return hba.PhaseAt(head, int(q.entries())) }

// entries is the size of each of the two rings.
func (q *queue) entries() uint32 { return q.mask + 1 }

// rewind makes both rings empty.
//
// The device is stopped, nobody is in CommitIo or StartIo, and the interrupt
// lock is held.
func (q *queue) rewind(s *queueShared) {
	for i := range q.completions {
		q.completions[i] = hba.Completion{}
		q.completions[i].StorePhase(0)
	}
	s.head, s.down = 0, false
	q.tail.Store(0)
	q.rung.Store(0)
	q.retired.Store(0)
}
