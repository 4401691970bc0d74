package daemon

import (
	"testing"

	"github.com/vhbad/vhbad/internal/lockorder"
)

// A6, for the whole program: the locks of a daemon that is started, serves all
// commands and is stopped are taken in the order that all other tests see.
func TestA6_LockOrder(t *testing.T) {
	s := newSettings(t, "disk0=memory:1MiB", "two=memory:1MiB")
	d, stop := s.mustStart(t)
	d.mu.Lock()
	v := d.machine.system.Verifier()
	d.mu.Unlock()
	data := make([]byte, 4096)
	for _, name := range []string{"disk0", "two"} {
		c := open(t, s.socket(), name)
		if _, err := c.do(cmdWrite, 0, len(data), data); err != nil {
			t.Error(err)
		}
		if _, err := c.do(cmdFlush, 0, 0, nil); err != nil {
			t.Error(err)
		}
		if _, err := c.do(cmdRead, 0, len(data), nil); err != nil {
			t.Error(err)
		}
	}
	stop()
	if len(v.LockOrder()) == 0 {
		t.Error("no lock was taken while another was held: nothing was seen")
	}
	lockorder.Record(t, v.LockOrder())
}
