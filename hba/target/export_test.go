package target

// SynchronizeWaits says whether a SYNCHRONIZE CACHE waits for commands that flush besides.
//
// +checklocksignore: it does not know TryRLock.
func (u *Unit) SynchronizeWaits() bool {
	if u.flushingMu.TryRLock() {
		u.flushingMu.RUnlock()
		return false
	}
	return true
}
