package disk

import (
	"testing"

	"github.com/vhbad/vhbad/nbd"
)

// A write that was under way at a loss is settled while it holds its range: whoever
// begins to flush by then has not seen it end.
func TestLeaveGate_SettlesFirst(t *testing.T) {
	d := &Disk{}
	s := &session{d: d}
	d.gate.register(&s.fast)
	w := &command{s: s, req: &nbd.Request{Op: nbd.OpWrite}, hold: holdFast}
	d.gate.enterFast(&s.fast)
	d.LostWrites()
	w.leaveGate(nil)
	if n := d.losses.Load(); n != 2 {
		t.Errorf("%d losses, want the write to count as one more", n)
	}
	d.lossMu.Lock()
	defer d.lossMu.Unlock()
	if d.lossWrites.quiet {
		t.Error("it was settled when it had left")
	}
	if !d.gate.writes().quiet {
		t.Error("it has not left")
	}
}
