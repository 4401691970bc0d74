package attach

import (
	"errors"
	"fmt"
)

// adoptTries is how often an attempt may find none dead of the connections that
// another process made, after the kernel said that one is: it says so before it
// acts accordingly.
const adoptTries = 4

// errNoneDead means that no connection was dead after all.
var errNoneDead = errors.New("no connection is dead")

// errNotYetDead means that the caller should look again for a dead connection.
var errNotYetDead = errors.New("the kernel has not yet given up any connection")

// An adoption is what is known of connections that another process has made, and of which
// we have no descriptors. Only the kernel's LINK_DEAD tells that some have ended, and only
// an attempt to replace them tells how many. Each one that is replaced becomes one of ours.
type adoption struct {
	foreign int
	tries   int // attempts left; zero while nothing suggests that any connection has ended
}

// suspect makes the next attempt replace whatever is dead.
func (d *adoption) suspect() {
	if d.foreign > 0 {
		d.tries = adoptTries
	}
}

func (d *adoption) suspected() bool { return d.tries > 0 }

// settle records the outcome of an attempt: how many sockets took the place of ours and how
// many that of another process's.
//
// Errors: errNoneDead, errNotYetDead.
func (d *adoption) settle(ours, foreign int) error {
	d.foreign -= foreign
	switch {
	case d.tries == 0:
		return nil
	case ours+foreign > 0: // what suspect was called for is done
		d.tries = 0
		return nil
	}
	if d.tries--; d.tries > 0 {
		return errNotYetDead
	}
	return errNoneDead
}

// adopt takes over a device that was attached by a process that has ended. It returns nil
// if there is nothing to take over.
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
		// The kernel noticed long ago whatever ended while nobody was looking.
		adoption: adoption{foreign: o.Connections, tries: 1}, TakenOver: true,
	}
	// The kernel cannot be asked for the flags that it was given: attempt takes the
	// server's.
	err = d.reconfigure(reconfigureRequest{
		index: index, backend: st.backend, timeout: o.Timeout, deadConnTimeout: o.DeadConnTimeout,
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("take over %s, which process %d attached: %w", a.Device.Path, st.pid, err), a.Close())
	}
	return a, nil
}
