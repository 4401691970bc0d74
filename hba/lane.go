package hba

import (
	"time"

	"github.com/vhbad/vhbad/internal/scsi"
)

// A lane takes the writes of one unit through a single worker while they are
// quick.
//
// A file system lets one write at a time into a file. Workers that write side by side
// only spin waiting for each other there, and each write costs the wake-up of a worker
// and an interrupt. One worker that goes from write to write, and posts the results
// together, gets several times as many done.
//
// Slow writes are another matter: a disk, or a server, does many of those at once. So
// after a slow run the next writes go down the line like everything else, a few at first
// and twice as many each time. And a write that does not come back does not block the
// others: those waiting behind it go to other workers (overtake).
//
// All of it is guarded by Device.mu.
type lane struct {
	dev *Device
	// waiting are the writes behind the leader. While led is set, the leader is in line
	// or on a worker.
	waiting recordList
	led     bool
	// crew is the worker that runs the leader, if it is running.
	crew *crew
	// detours is how many writes are still to bypass the lane. After a slow run it is
	// set to penalty, which doubles.
	detours, penalty int

	// watch calls overtake; armed says whether it is set.
	watch *time.Timer
	armed bool
}

const (
	// runCommands is how many writes a worker makes before it posts them, and runTime
	// how long a completion may be kept back.
	runCommands = 16
	runTime     = 200 * time.Microsecond

	// A run is slow if it took more than slowCommand for each of its writes and
	// slowByte for each byte: 1 GB/s.
	slowCommand = 100 * time.Microsecond
	slowByte    = time.Nanosecond

	// stallTime is how long a write may take before others overtake it, and the interval
	// at which this is checked.
	stallTime = 2 * time.Millisecond

	minLanePenalty = 32
	maxLanePenalty = 1 << 14
)

// A crew is what a worker works with: the executor and the run that it is on.
type crew struct {
	exec executor
	out  Completion // of the command that runs
	own  int        // for source

	// The rest is guarded by Device.mu: a run of commands from one queue and one lane. A
	// command without a lane is a run by itself.
	rec   *record              // the command that runs
	done  [runCommands]*record // commands that have run and are not posted
	outs  [runCommands]Completion
	count int
	made  int    // commands of this run, posted or not
	bytes uint64 // likewise
	// began is when the run began, and current when its present command did. They are
	// used for lanes only.
	began, current time.Time
}

// laneOfLocked returns the lane of a command, or nil if it has none: it is not a write,
// it has to wait for the medium, or it has met a fault.
//
// +checklocks:d.mu
func (d *Device) laneOfLocked(rec *record) *lane {
	c := &rec.cmd
	if rec.held {
		return nil
	}
	// Whatever else there is.
	//exhaustive:ignore
	switch scsi.Opcode(c.CDB[0]) {
	case scsi.OpWrite6:
	case scsi.OpWrite10, scsi.OpWrite12, scsi.OpWrite16:
		if c.CDB[1]&scsi.CDBFUA != 0 {
			return nil
		}
	default:
		return nil
	}
	at := &d.lanes[int(c.Target)*MaxLuns+int(c.Lun)]
	if *at == nil {
		*at = &lane{dev: d}
		d.lanesMade = append(d.lanesMade, *at)
	}
	return *at
}

// queueLocked puts a record in line or, if its lane has a leader, behind the leader. It
// reports whether there is work for one more worker.
//
// +checklocks:d.mu
func (d *Device) queueLocked(rec *record) (more bool) {
	if l := d.laneOfLocked(rec); l != nil {
		switch {
		case l.detours > 0:
			l.detours--
		case l.led:
			rec.lane = l
			l.waiting.push(rec)
			return false
		default:
			rec.lane = l
			l.led = true
		}
	}
	d.lines[rec.line].push(rec)
	return true
}

// leadLocked puts the first of the waiting writes in line, as the new leader.
//
// +checklocks:d.mu
func (d *Device) leadLocked(l *lane) {
	rec := l.waiting.pop()
	l.led = rec != nil
	if l.led {
		d.lines[rec.line].push(rec)
	}
}

// beginLocked begins a run with rec, which is next in line.
//
// +checklocks:d.mu
func (d *Device) beginLocked(w *crew, rec *record) {
	w.rec, w.made, w.bytes = rec, 0, 0
	if l := rec.lane; l != nil {
		l.crew = w
		w.began = d.now()
		w.current = w.began
		if d.watches && !l.armed {
			l.armed = true
			if l.watch == nil {
				l.watch = time.AfterFunc(stallTime, func() { d.overtake(l) })
			} else {
				l.watch.Reset(stallTime)
			}
		}
	}
}

// nextOfRunLocked notes that the present command has run, and returns the command that
// the same worker runs next, before anything is posted. Nil: the run is over.
//
// +checklocks:d.mu
func (d *Device) nextOfRunLocked(w *crew) *record {
	rec := w.rec
	w.done[w.count], w.outs[w.count] = rec, w.out
	if rec.aborted {
		w.outs[w.count].set(rec.cmd.Tag, CodeAborted)
	}
	w.count++
	w.made++
	w.bytes += uint64(rec.cmd.DataBytes)
	w.rec = nil
	l := rec.lane
	if l == nil {
		return nil
	}
	w.current = d.now()
	next := l.waiting.first
	if next != nil && next.queue == rec.queue && w.made < runCommands && w.current.Sub(w.began) < runTime && len(d.controls) == 0 {
		l.waiting.pop()
		next.state = recordRunning
		next.queue.busy++
		w.rec = next
		return next
	}
	l.crew = nil
	d.judgeLocked(l, w)
	d.leadLocked(l)
	return nil
}

// judgeLocked decides from a finished run which way the next writes go.
//
// +checklocks:d.mu
func (d *Device) judgeLocked(l *lane, w *crew) {
	if w.current.Sub(w.began) <= time.Duration(w.made)*slowCommand+time.Duration(w.bytes)*slowByte {
		l.penalty = 0
		return
	}
	d.detourLocked(l)
}

// detourLocked sends the next writes down the line.
//
// +checklocks:d.mu
func (d *Device) detourLocked(l *lane) {
	l.penalty = min(max(2*l.penalty, minLanePenalty), maxLanePenalty)
	l.detours = l.penalty
}

// postDoneLocked posts what w has done and gives the records back. It returns the
// queue's bit.
//
// +checklocks:d.mu
func (d *Device) postDoneLocked(w *crew) (raise uint64) {
	if w.count == 0 {
		return 0
	}
	q := w.done[0].queue
	// Posted before the records are released: until then a reset waits.
	if !q.postForOthers(w.outs[:w.count]) {
		d.failLocked("the completion ring is not mapped", q.index)
	}
	if q.gate.Load()&gateDead == 0 {
		raise = 1 << q.index
	}
	for _, rec := range w.done[:w.count] {
		q.busy--
		d.releaseLocked(rec)
	}
	clear(w.done[:w.count])
	w.count = 0
	if len(d.controls) != 0 {
		raise |= d.advanceLocked()
	}
	if q.gate.Load()&gateDead != 0 {
		d.settleLocked()
	}
	return raise
}

// overtake is called periodically while a lane is in use. If its worker is stuck in a
// write, the writes behind it go past; if its leader is in line, an idle worker is woken
// to take it.
func (d *Device) overtake(l *lane) {
	yieldLock("lock to overtake", &d.mu)
	d.mu.Lock()
	defer d.mu.Unlock()
	w := l.crew
	switch {
	case w == nil && !l.led:
		l.armed = false
		return
	case w == nil:
		// The worker that made this write the leader mostly takes it itself, once it has
		// raised its interrupt. But the interrupt's handler may keep it busy.
		d.work.Signal()
		l.watch.Reset(stallTime)
		return
	case d.now().Sub(w.current) < stallTime:
		l.watch.Reset(stallTime)
		return
	}
	l.armed = false
	d.interruptLater(d.overtakeLocked(l))
}

// overtakeLocked takes the lane from its worker, which keeps only the command
// that it runs. It returns the queues whose interrupt is to be raised.
//
// +checklocks:d.mu
func (d *Device) overtakeLocked(l *lane) (raise uint64) {
	w := l.crew
	l.crew = nil
	w.rec.lane = nil
	raise = d.postDoneLocked(w)
	d.detourLocked(l)
	for rec := l.waiting.pop(); rec != nil; rec = l.waiting.pop() {
		rec.lane = nil
		d.work.Signal()
		d.lines[rec.line].push(rec)
	}
	l.led = false
	return raise
}
