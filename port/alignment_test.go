package port

import (
	"fmt"
	"testing"
)

// A buffer that is not aligned as the adapter needs it never gets to the
// miniport.
func TestAlignmentMask(t *testing.T) {
	for _, tt := range []struct {
		mask   uint32
		offset int
		want   Status
	}{
		{0, 1, StatusSuccess},
		{1, 1, StatusInvalidRequest},
		{3, 2, StatusInvalidRequest},
		{3, 4, StatusSuccess},
		{0x1ff, 256, StatusInvalidRequest},
		{0x1ff, 512, StatusSuccess},
	} {
		t.Run(fmt.Sprintf("mask %#x, offset %d", tt.mask, tt.offset), func(t *testing.T) {
			d := &driver{model: FullDuplex, features: func(c *Config) { c.AlignmentMask = tt.mask }}
			built := 0
			d.buildIo = func(*Processor, *SRB) bool { built++; return true }
			d.startIo = func(p *Processor, srb *SRB) bool { d.complete(p, srb); return true }
			b := newBench(t, d, AdapterOptions{})
			memory := b.arena.Alloc(4096)
			defer b.arena.Free(memory)
			s := b.srb(&finished{})
			defer b.a.FreeSRB(s)
			s.Flags |= FlagDataIn
			s.DataBuffer, s.DataTransferBytes = memory[tt.offset:][:512], 512
			b.lu.Submit(b.p, []*SRB{s})
			if s.Status != tt.want || (built == 1) != (tt.want == StatusSuccess) {
				t.Errorf("%s, %d calls of BuildIo; want %s", s, built, tt.want)
			}
			b.wantNoViolations()
		})
	}
}

// An alignment that is no power of two is refused.
func TestAlignmentMask_Invalid(t *testing.T) {
	b := newBench(t, &driver{model: FullDuplex}, AdapterOptions{})
	for _, mask := range []uint32{2, 5, 0x1fe, 0x3ff} {
		d := &driver{model: FullDuplex, features: func(c *Config) { c.AlignmentMask = mask }}
		if _, err := b.sys.AddAdapter(b.p, &wire{messages: 1}, d, AdapterOptions{}); err == nil {
			t.Errorf("AlignmentMask %#x: no error", mask)
		}
	}
	b.wantViolations(CheckFindAdapter, 4)
}

// Data that go neither way never get to the miniport.
func TestSubmit_NoDirection(t *testing.T) {
	d := &driver{model: FullDuplex}
	b := newBench(t, d, AdapterOptions{})
	memory := b.arena.Alloc(512)
	defer b.arena.Free(memory)
	s := b.srb(&finished{})
	defer b.a.FreeSRB(s)
	s.DataBuffer, s.DataTransferBytes = memory[:512], 512
	b.lu.Submit(b.p, []*SRB{s})
	if held := d.take(); s.Status != StatusInvalidRequest || len(held) != 0 {
		t.Errorf("%s, the miniport has %v; want %s", s, held, StatusInvalidRequest)
	}
	b.wantNoViolations()
}
