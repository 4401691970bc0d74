package port

import (
	"slices"
	"testing"
)

// EndUnwanted ends what waits and is unwanted, in its order, and nothing else; what is
// built it counts until that has gone down.
func TestEndUnwanted(t *testing.T) {
	d := &driver{model: FullDuplex}
	b := newBench(t, d, AdapterOptions{})
	b.a.SetDeviceQueueDepth(b.p, 0, 0, 0, 2)
	done := &finished{}
	s := b.srbs(6, done)
	down, built, waiting := s[0], s[1], s[2:]
	d.onceBuilt(built, func() { b.a.PauseDevice(b.p, 0, 0, 0, 3600) })
	b.lu.Submit(b.p, s[:1])
	b.lu.Submit(b.p, s[1:])
	if n := b.lu.Stats().Parked; n != 1 {
		t.Fatalf("%d SRBs parked, want 1", n)
	}
	unwanted := func(x *SRB) bool { return x != waiting[1] && x != waiting[3] }
	if left := b.lu.EndUnwanted(b.p, unwanted); left != 1 {
		t.Errorf("%d are left, want the one that is built", left)
	}
	ended := done.list()
	if !slices.Equal(ended, []*SRB{waiting[0], waiting[2]}) || waiting[0].Status != StatusRequestFlushed || waiting[2].Status != StatusRequestFlushed {
		t.Errorf("ended: %v", ended)
	}
	b.a.ResumeDevice(b.p, 0, 0, 0)
	if left := b.lu.EndUnwanted(b.p, unwanted); left != 0 {
		t.Errorf("%d are left, want none: all that is unwanted is at the miniport", left)
	}
	for held := d.take(); len(held) > 0; held = d.take() {
		for _, x := range held {
			d.complete(b.p, x)
		}
	}
	if got := done.list(); !slices.Equal(got, []*SRB{waiting[0], waiting[2], down, built, waiting[1], waiting[3]}) {
		t.Errorf("completed: %v", got)
	}
	// What waits behind one that needs the unit for itself goes when that has ended.
	alone, behind := s[0], s[3]
	alone.QueueAction = OrderedTag
	b.lu.Submit(b.p, s[2:3])
	b.lu.Submit(b.p, []*SRB{alone, behind})
	b.lu.EndUnwanted(b.p, func(x *SRB) bool { return x == alone })
	if held := d.take(); !slices.Equal(held, []*SRB{s[2], behind}) {
		t.Errorf("the miniport has %v, want what was behind, too", held)
	} else {
		d.complete(b.p, held[0])
		d.complete(b.p, held[1])
	}
	for _, x := range s {
		b.a.FreeSRB(x)
	}
	b.wantNoViolations()
}
