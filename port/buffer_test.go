package port

import "testing"

// A buffer that no device can be given ends the SRB, unseen by the miniport: one outside
// the arena, or shorter than the data to be moved. Of a longer one the device gets only
// the part to be moved.
func TestSubmit_Buffer(t *testing.T) {
	for _, strict := range []bool{false, true} {
		for _, tt := range []struct {
			name   string
			buffer func(arena []byte) []byte
			bytes  uint32
			want   Status
		}{
			{"all", func(m []byte) []byte { return m[:8192] }, 8192, StatusSuccess},
			{"a part", func(m []byte) []byte { return m }, 5000, StatusSuccess},
			{"too short", func(m []byte) []byte { return m[:512] }, 513, StatusInvalidRequest},
			{"none", func([]byte) []byte { return nil }, 512, StatusInvalidRequest},
			{"outside of the arena", func([]byte) []byte { return make([]byte, 512) }, 512, StatusInvalidRequest},
			{"outside of the arena, of which a part", func([]byte) []byte { return make([]byte, 512) }, 511, StatusInvalidRequest},
		} {
			t.Run(tt.name, func(t *testing.T) {
				moved, built := uint32(0), 0
				d := &driver{model: FullDuplex}
				d.buildIo = func(*Processor, *SRB) bool { built++; return true }
				d.startIo = func(p *Processor, srb *SRB) bool {
					for _, s := range srb.SGL {
						moved += s.Bytes
					}
					d.complete(p, srb)
					return true
				}
				b := newBench(t, d, AdapterOptions{StrictSegments: strict})
				memory := b.arena.Alloc(16384)
				defer b.arena.Free(memory)
				s := b.srb(&finished{})
				defer b.a.FreeSRB(s)
				s.Flags |= FlagDataIn
				s.DataBuffer, s.DataTransferBytes = tt.buffer(memory), tt.bytes
				b.lu.Submit(b.p, []*SRB{s})
				if s.Status != tt.want || (built == 1) != (tt.want == StatusSuccess) {
					t.Errorf("%s, %d calls of BuildIo; want %s", s, built, tt.want)
				}
				if tt.want == StatusSuccess && moved != tt.bytes {
					t.Errorf("the scatter/gather list has %d bytes, want %d", moved, tt.bytes)
				}
				b.wantNoViolations()
			})
		}
	}
}
