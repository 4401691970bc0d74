package port

import (
	"testing"

	"github.com/vhbad/vhbad/internal/pci"
)

// With redirection to the current processor, a DPC runs on the one that asked for
// it, whichever sent the I/O, and completions arrive by the messages of the
// range. Redirection to the sender's processor is neither offered nor taken.
func TestPerfOpts_DpcRedirection(t *testing.T) {
	const redirect = PerfDpcRedirection | PerfDpcRedirectionCurrentCPU | PerfInterruptMessageRanges
	var asked, ran []int // processors
	d := &driver{model: FullDuplex, mode: InterruptSynchronizePerMessage, messages: 3}
	d.initialize = func(p *Processor, _ SyncToken) bool {
		var offer PerfConfigurationData
		if err := d.a.InitializePerfOpts(p, true, &offer); err != nil || offer.Flags&redirect != redirect {
			t.Errorf("query: flags %#x, %v", offer.Flags, err)
		}
		sender := PerfConfigurationData{Flags: PerfDpcRedirection | PerfInterruptMessageRanges, LastRedirectionMessageNumber: 2}
		if err := d.a.InitializePerfOpts(p, false, &sender); err == nil {
			t.Error("redirection to the sender: no error")
		}
		return d.a.InitializePerfOpts(p, false, &PerfConfigurationData{
			Flags: redirect, FirstRedirectionMessageNumber: 1, LastRedirectionMessageNumber: 2,
		}) == nil
	}
	d.passiveInit = func(p *Processor) bool {
		d.a.InitializeDpc(p, &d.dpcs[0], func(p *Processor, _ *Dpc) {
			ran = append(ran, p.Number())
			for _, srb := range d.take() {
				d.complete(p, srb)
			}
		})
		return true
	}
	d.handler = func(p *Processor, _ SyncToken, message uint16) bool {
		if message != 1 {
			t.Errorf("message %d, want 1, the best of the range", message)
		}
		asked = append(asked, p.Number())
		return d.a.IssueDpc(p, &d.dpcs[0])
	}
	b := newBench(t, d, AdapterOptions{})
	other := b.processor("other")
	done := &finished{}
	s := b.srb(done)
	for _, p := range []*Processor{b.p, other} {
		b.lu.Submit(b.p, []*SRB{s})
		b.w.raise(p, pci.Message(d.a.GetStartIoPerfParams(b.p, s).MessageNumber))
	}
	if n := len(done.list()); n != 2 {
		t.Fatalf("%d completions, want 2", n)
	}
	for i, p := range []*Processor{b.p, other} {
		if asked[i] != p.Number() || ran[i] != p.Number() {
			t.Errorf("on processor %d: asked for on %d, ran on %d", p.Number(), asked[i], ran[i])
		}
	}
	b.a.FreeSRB(s)
	b.wantNoViolations()
}
