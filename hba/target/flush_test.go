package target_test

import (
	"runtime"
	"testing"

	"github.com/vhbad/vhbad/hba/target"
	"github.com/vhbad/vhbad/internal/scsi"
)

// A tellingMedium has a flush end when the test says, with what it says.
type tellingMedium struct {
	*fakeMedium
	flushes chan chan error // one for each, as it begins
}

func (m *tellingMedium) Flush() error {
	finish := make(chan error)
	m.flushes <- finish
	return <-finish
}

// TestFlush_LossIsToldToAll: a medium tells of lost writes once. Who was under way then,
// and flushed later, is told nothing by it, and fails all the same.
func TestFlush_LossIsToldToAll(t *testing.T) {
	synchronize := func(c *[16]byte) int { return scsi.PutSynchronizeCache16(c, 0, 0, false) }
	through := func(c *[16]byte) int { return scsi.PutWrite16(c, 5, 1, true, false) }
	lost := scsi.Sense{Key: scsi.KeyMediumError, Additional: scsi.WriteError}
	for name, tt := range map[string]struct {
		told, other put
		sooner      bool // other's flush is over when the one who was told has not come back yet
	}{
		"a write, and a flush": {through, synchronize, true},
		"a flush, and a write": {synchronize, through, false},
		"two flushes":          {synchronize, synchronize, false},
	} {
		t.Run(name, func(t *testing.T) {
			_, fake := newFakeUnit(t, 1<<20, target.Config{WriteCache: true}, 0)
			m := &tellingMedium{fake, make(chan chan error)}
			u := newUnit(t, m, target.Config{WriteCache: true})
			start := func(p put) (task *target.Task, over chan struct{}, finish chan error) {
				task, over = newTask(p, target.NoData), make(chan struct{})
				if scsi.Opcode(task.CDB[0]) == scsi.OpWrite16 {
					task = newTask(p, target.DataOut, filled(256, 1), filled(256, 1)) // in pieces, so that it flushes
				}
				go func() {
					defer close(over)
					if !u.Execute(task, true) {
						t.Error("not done")
					}
				}()
				return task, over, <-m.flushes
			}
			first, firstOver, one := start(tt.told)
			second, secondOver, two := start(tt.other)
			if tt.sooner {
				two <- nil
				for over := false; !over && !u.SynchronizeWaits(); runtime.Gosched() {
					select {
					case <-secondOver: // too soon, as its result will tell
						over = true
					default:
					}
				}
				one <- errBroken
				<-firstOver
			} else {
				one <- errBroken
				<-firstOver
				two <- nil
			}
			<-secondOver
			wantSense(t, first, lost)
			wantSense(t, second, lost)
			third, over, finish := start(synchronize)
			finish <- nil
			<-over
			if third.Status != scsi.StatusGood {
				t.Errorf("the next flush: %v, want it told no more", third)
			}
		})
	}
}
