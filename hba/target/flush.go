package target

import (
	"errors"

	"github.com/vhbad/vhbad/hba/media"
)

// A medium reports lost writes once, to whichever caller is flushing it just then, and
// the writes need not belong to that command. So if the command is not SYNCHRONIZE
// CACHE, the next SYNCHRONIZE CACHE fails as well. Every other command that flushes and
// was under way when the medium reported also fails: its own flush may have come after
// the report, and what it covers, or has written itself, may be lost. Two SYNCHRONIZE
// CACHEs at a time are the medium's to order: it shares or serializes flushes.

// flushFor flushes as a part of t, which is not SYNCHRONIZE CACHE, and ends t if
// that fails.
func (u *Unit) flushFor(t *Task) (ok bool) {
	u.flushingMu.RLock()
	err := u.told(t, u.medium.Flush(), false)
	u.flushingMu.RUnlock()
	if err != nil {
		u.flushFailed(t, err)
	}
	return err == nil
}

// synchronized returns the outcome of t, a SYNCHRONIZE CACHE whose own flush returned
// err.
func (u *Unit) synchronized(t *Task, err error) error {
	if err == nil { // wait until every loss reported to others by now has been recorded
		u.flushingMu.Lock()
		defer u.flushingMu.Unlock()
	}
	return u.told(t, err, true)
}

// told returns the outcome of t, whose flush returned err. A command that comes after a
// power cut is not affected by losses before it.
func (u *Unit) told(t *Task, err error, synchronizes bool) error {
	if errors.Is(err, media.ErrPowerLost) {
		return err
	}
	u.cycleMu.Lock()
	defer u.cycleMu.Unlock()
	if u.powerCycles.Load() != t.cycle {
		return err // it fails anyway
	}
	fresh := err != nil
	switch {
	case fresh && !synchronizes:
		u.owed = err
	case fresh:
	case u.losses.Load() != t.losses:
		err = u.loss
	case synchronizes && u.owed != nil:
		err, fresh = u.owed, true
	}
	if fresh {
		u.loss = err
		u.losses.Add(1)
	}
	if synchronizes {
		u.owed = nil
	}
	return err
}
