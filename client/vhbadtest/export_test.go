package vhbadtest

import "time"

// SetWait sets how long WaitEvent waits.
func (d *Daemon) SetWait(wait time.Duration) { d.wait = wait }
