package attach

import (
	"errors"
	"fmt"
)

// adoptTries is how often an attempt may find none dead of the connections that
// another process made, after the kernel said that one is: it says so before it
// acts accordingly.
const adoptTries = 4

// errNoneDead means that nothing was dead, after all.
var errNoneDead = errors.New("no connection is dead")

// errNotYetDead means to look again for a dead connection.
var errNotYetDead = errors.New("the kernel has not yet given up any connection")

// An adoption is what is known of connections that another process has made, and
// of which we have no descriptor. Only the kernel's LINK_DEAD tells of their end,
// and only an attempt to replace them tells how many have ended. Each that is
// replaced becomes one of ours.
type adoption struct {
	foreign int
	tries   int // that are left; zero while nothing suggests that any has ended
}

// suspect has the next attempt replace what is dead.
func (d *adoption) suspect() {
	if d.foreign > 0 {
		d.tries = adoptTries
	}
}

func (d *adoption) suspected() bool { return d.tries > 0 }

// settle notes how an attempt went: how many sockets took the place of ours and
// how many of foreign ones.
//
// Errors: errNoneDead, errNotYetDead.
func (d *adoption) settle(ours, foreign int) error {
	d.foreign -= foreign
	switch {
	case d.tries == 0:
		return nil
	case ours+foreign > 0: // that was what suspect was called for
		d.tries = 0
		return nil
	}
	if d.tries--; d.tries > 0 {
		return errNotYetDead
	}
	return errNoneDead
}

// adopt takes a device over that a process which has ended attached. It returns
// nil if there is nothing to take over.
func (k *kernel) adopt(o Options) (*Attachment, error) {
	if err := o.check(&k.sysfs); err != nil || o.Device == "" {
		return nil, err
	}
	index, err := k.index(o.Device)
	if err != nil {
		return nil, err
	}
	st, err := k.state(index)
	if err != nil {
		return nil, err
	}
	if st.pid == 0 || st.backend != o.backendID() || k.runs(st.pid) {
		return nil, nil
	}
	d, err := k.open()
	if err != nil {
		return nil, err
	}
	a := &Attachment{
		Device: Device{
			Path: k.path(index), Export: o.Server.Export, SizeBytes: st.sizeBytes, BlockBytes: st.blockBytes,
			ReadOnly: st.readOnly, Connections: o.Connections, BackendID: st.backend,
		},
		kernel: k, driver: d, options: o, index: index, pid: st.pid, exportBytes: st.sizeBytes,
		// Whatever has ended while nobody looked, the kernel noticed long ago.
		adoption: adoption{foreign: o.Connections, tries: 1}, TakenOver: true,
	}
	// What flags the kernel was told cannot be asked: attempt takes the server's.
	err = d.reconfigure(reconfigureRequest{
		index: index, backend: st.backend, timeout: o.Timeout, deadConnTimeout: o.DeadConnTimeout,
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("take over %s, which process %d attached: %w", a.Device.Path, st.pid, err), a.Close())
	}
	return a, nil
}
