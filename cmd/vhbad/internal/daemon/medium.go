package daemon

import (
	"log/slog"
	"sync"
	"time"
)

// failureInterval is how often the log has a line about one disk's medium at most.
const failureInterval = 10 * time.Second

// A failureLog has a line in the log for failures of one disk's medium: for the first one at
// once, then one for all that come in each interval, because a medium that is gone fails
// every request. Clients are told no more than an errno; why, and where, is in the log alone.
type failureLog struct {
	log *slog.Logger

	mu sync.Mutex
	// timer ends the interval after the last line; nil if none is under way.
	// +checklocks:mu
	timer *time.Timer
	// untold counts the failures since the last line, and last is the latest of them.
	// +checklocks:mu
	untold uint64
	// +checklocks:mu
	last error
}

// tell is a target.Config.MediumFailed.
func (f *failureLog) tell(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.untold++
	f.last = err
	if f.timer != nil {
		return
	}
	// Writing the log may take time, so it is not done here, on the device's path.
	log := f.lineLocked()
	go log()
	f.timer = time.AfterFunc(failureInterval, f.over)
}

// over ends an interval.
func (f *failureLog) over() {
	f.mu.Lock()
	if f.untold == 0 {
		f.timer = nil
		f.mu.Unlock()
		return
	}
	log := f.lineLocked()
	f.timer.Reset(failureInterval)
	f.mu.Unlock()
	log()
}

// end writes what has not been told, once no more failures come.
func (f *failureLog) end() {
	f.mu.Lock()
	if f.timer != nil {
		f.timer.Stop()
	}
	if f.untold == 0 {
		f.mu.Unlock()
		return
	}
	log := f.lineLocked()
	f.mu.Unlock()
	log()
}

// lineLocked returns what writes a line about the failures that have not been told.
//
// +checklocks:f.mu
func (f *failureLog) lineLocked() func() {
	err, others := f.last, f.untold-1
	f.untold, f.last = 0, nil
	return func() { f.log.Error("the medium failed", "error", err, "others_untold", others) }
}
