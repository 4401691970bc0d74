package target

import (
	"errors"

	"github.com/vhbad/vhbad/hba/media"
)

// A medium tells once of writes that it has lost, to whoever flushes it just then, and
// they need not be of that command. So if that is no SYNCHRONIZE CACHE, the next one fails
// as well. And whatever flushes and was under way as the medium told fails too: its own
// flush may have come after that, and what it covers, or has written itself, be lost. Two
// SYNCHRONIZE CACHEs at a time are the medium's to order: it shares or serializes flushes.

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

// synchronized is what becomes of t, a SYNCHRONIZE CACHE whose own flush gave err.
func (u *Unit) synchronized(t *Task, err error) error {
	if err == nil { // wait until what others have been told by now is written down
		u.flushingMu.Lock()
		defer u.flushingMu.Unlock()
	}
	return u.told(t, err, true)
}

// told is what becomes of t, whose flush gave err. Who comes after a power cut is not
// concerned by what was before.
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
