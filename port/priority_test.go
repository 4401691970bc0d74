package port

import (
	"slices"
	"testing"
)

// Priority is the miniport's business: what waits leaves the queue in the order in
// which it came, and only a queue action changes that.
func TestPriority_KeepsOrder(t *testing.T) {
	d := &driver{model: FullDuplex}
	var order []Priority
	d.startIo = func(p *Processor, srb *SRB) bool {
		order = append(order, d.a.GetRequestInfo(p, srb).Priority)
		d.complete(p, srb)
		return true
	}
	b := newBench(t, d, AdapterOptions{})
	came := []Priority{PriorityLow, PriorityCritical, PriorityVeryLow, PriorityHigh, PriorityNormal}
	var srbs []*SRB
	b.a.PauseDevice(b.p, 0, 0, 0, 600)
	for _, priority := range came {
		s := b.srb(&finished{})
		s.Priority = priority
		srbs = append(srbs, s)
		b.lu.Submit(b.p, []*SRB{s})
	}
	head := b.srb(&finished{})
	head.Priority, head.QueueAction = PriorityVeryLow, HeadOfQueueTag
	b.lu.Submit(b.p, []*SRB{head})
	b.a.ResumeDevice(b.p, 0, 0, 0)
	if want := append([]Priority{PriorityVeryLow}, came...); !slices.Equal(order, want) {
		t.Errorf("priorities in order of StartIo: %v, want %v", order, want)
	}
	for _, s := range append(srbs, head) {
		b.a.FreeSRB(s)
	}
	b.wantNoViolations()
}
