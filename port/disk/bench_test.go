package disk

import (
	"testing"

	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/port"
)

// BenchmarkBegin is a request's way to an SRB that could be submitted, and a write's
// out of the gate again.
func BenchmarkBegin(b *testing.B) {
	for _, o := range []struct {
		name string
		op   nbd.Op
	}{{"read", nbd.OpRead}, {"write", nbd.OpWrite}} {
		b.Run("op="+o.name+"/size=4KiB", func(b *testing.B) {
			const size = 4 << 10
			d := &Disk{}
			d.geometry.Store(&geometry{blocks: 1 << 20, blockBytes: 512, maxTransfer: 2048})
			s := &session{d: d, conn: &nbd.Conn{}}
			d.gate.register(s)
			c := &command{s: s, srb: &port.SRB{}}
			r := &nbd.Request{Op: o.op, OffsetBytes: 3 * size, LengthBytes: size, Data: make([]byte, size)}
			b.ReportAllocs()
			for b.Loop() {
				if !c.begin(nil, r) || c.srb.DataTransferBytes != size {
					b.Fatalf("%d bytes, errno %v", c.srb.DataTransferBytes, c.errno)
				}
				_, wrote := c.leaveGate()
				s.answered(wrote)
			}
		})
	}
}
