package daemon

import (
	"log/slog"
	"sync"
	"time"
)

// failureInterval is how often the log has a line about one disk's medium at most.
const failureInterval = 10 * time.Second

// A failureLog has a line in the log for failures of one disk's medium: for the first one at
// once, then now and then, because a medium that is gone fails every request. Clients are
// told no more than an errno; why, and where, is in the log alone.
type failureLog struct {
	log *slog.Logger

	mu sync.Mutex
	// +checklocks:mu
	told time.Time
	// +checklocks:mu
	untold uint64
}

// tell is a target.Config.MediumFailed.
func (f *failureLog) tell(err error) {
	now := time.Now()
	f.mu.Lock()
	if !f.told.IsZero() && now.Sub(f.told) < failureInterval {
		f.untold++
		f.mu.Unlock()
		return
	}
	untold := f.untold
	f.told, f.untold = now, 0
	f.mu.Unlock()
	// Writing the log may take time, so it is not done here, on the device's path.
	go f.log.Error("the medium failed", "error", err, "others_untold", untold)
}
