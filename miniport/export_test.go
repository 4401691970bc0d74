package miniport

import (
	"github.com/vhbad/vhbad/hba"
	"github.com/vhbad/vhbad/port"
)

// A forgery is a completion that the device did not send.
type forgery struct {
	d   *Driver
	tag uint32
}

// Forge puts a completion with tag at the head of queue 0's ring and services
// the queue. It reports whether that reaped an SRB. The device does not learn of
// it, so the driver can only be reset afterwards.
func (d *Driver) Forge(p *port.Processor, tag uint32) bool {
	return port.SynchronizeAccess(d.a, p, forge, forgery{d, tag})
}

func forge(t port.SyncToken, f forgery) bool {
	q := f.d.queues[0]
	s := q.shared.Open(t)
	s.down = true
	c := &q.completions[s.head&q.mask]
	*c = hba.Completion{Tag: f.tag}
	c.StorePhase(q.phaseAt(s.head))
	return f.d.drain(t.Processor(), q, s)
}

// TagOf is the tag that srb was built with.
func TagOf(srb *port.SRB) uint32 { return extensionOf(srb.Extension).command.Tag }
