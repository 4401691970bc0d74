package hba

import (
	"testing"
	"time"

	"github.com/vhbad/vhbad/internal/scsi"
)

// TestLane follows writes of one unit: only a leader is work for one more worker;
// that one goes through the rest; and after a slow run the next go down the line,
// more of them each time.
func TestLane(t *testing.T) {
	var at time.Time
	d := &Device{workers: 4, lanes: make([]*lane, MaxTargets*MaxLuns), now: func() time.Time { return at }}
	q := &queue{dev: d}
	arrive := func(op scsi.Opcode, fua bool) (more bool) {
		d.mu.Lock()
		defer d.mu.Unlock()
		rec := &record{queue: q, arrival: d.arrivals}
		d.arrivals++
		rec.cmd.CDB[0] = uint8(op)
		if fua {
			rec.cmd.CDB[1] = scsi.CDBFUA
		}
		rec.line = lineOf(&rec.cmd)
		return d.queueLocked(rec)
	}
	// run has a worker take what is next in line, and returns how many commands
	// it runs, each for so long.
	run := func(each time.Duration) int {
		d.mu.Lock()
		defer d.mu.Unlock()
		var w crew
		next, ok := d.nextInLineLocked()
		if !ok {
			t.Fatal("nothing in line")
		}
		d.beginLocked(&w, d.lines[next].pop())
		for {
			at = at.Add(each)
			if d.nextOfRunLocked(&w) == nil {
				return w.count
			}
		}
	}
	wantMore := func(want bool, op scsi.Opcode, fua bool) {
		t.Helper()
		if got := arrive(op, fua); got != want {
			t.Errorf("work for one more worker: %t, want %t", got, want)
		}
	}
	wantRun := func(each time.Duration, want int) {
		t.Helper()
		if got := run(each); got != want {
			t.Errorf("a run of %d commands, want %d", got, want)
		}
	}
	wantMore(true, scsi.OpWrite16, false)
	for range runCommands + 1 {
		wantMore(false, scsi.OpWrite10, false)
	}
	wantMore(true, scsi.OpWrite16, true) // it waits for the medium
	wantMore(true, scsi.OpRead16, false)
	wantRun(time.Microsecond, runCommands)
	wantRun(0, 1) // the write with FUA came before the lane's new leader
	wantRun(0, 1)
	wantRun(time.Microsecond, 2)

	detours := minLanePenalty
	for range 3 {
		wantMore(true, scsi.OpWrite16, false)
		wantRun(2*slowCommand, 1)
		for range detours {
			wantMore(true, scsi.OpWrite16, false)
		}
		for range detours {
			wantRun(2*slowCommand, 1)
		}
		detours *= 2
	}
	wantMore(true, scsi.OpWrite16, false)
	wantMore(false, scsi.OpWrite16, false)
	wantRun(slowCommand/2, 2)
	wantMore(true, scsi.OpWrite16, false)
	wantRun(2*slowCommand, 1)
	d.mu.Lock()
	defer d.mu.Unlock()
	if l := d.lanesMade[0]; l.detours != minLanePenalty {
		t.Errorf("%d detours after one slow run, want %d", l.detours, minLanePenalty)
	}
}
