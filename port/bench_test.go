package port_test

import (
	"fmt"
	"testing"

	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/internal/scsi"
	"github.com/vhbad/vhbad/port"
	"github.com/vhbad/vhbad/port/porttest"
)

// instant completes TEST UNIT READY where it meets it first: in BuildIo, or in
// StartIo.
type instant struct {
	*porttest.Miniport
	a       *port.Adapter
	inStart bool
}

func (m *instant) FindAdapter(p *port.Processor, a *port.Adapter, c *port.Config) port.FindResult {
	m.a = a
	return m.Miniport.FindAdapter(p, a, c)
}

func isReady(srb *port.SRB) bool {
	return srb.Function == port.FunctionExecuteScsi && scsi.Opcode(srb.CDB[0]) == scsi.OpTestUnitReady
}

func (m *instant) BuildIo(p *port.Processor, srb *port.SRB) bool {
	if !isReady(srb) {
		return m.Miniport.BuildIo(p, srb)
	}
	if m.inStart {
		return true
	}
	srb.Status = port.StatusSuccess
	m.a.Complete(p, srb)
	return false
}

func (m *instant) StartIo(p *port.Processor, srb *port.SRB) bool {
	if !isReady(srb) {
		return m.Miniport.StartIo(p, srb)
	}
	srb.Status = port.StatusSuccess
	m.a.Complete(p, srb)
	return true
}

// tally counts completions.
type tally struct{ good, bad int }

func (c *tally) CompleteSRB(_ *port.Processor, srb *port.SRB) {
	if srb.Status == port.StatusSuccess {
		c.good++
	} else {
		c.bad++
	}
}

// BenchmarkSubmit is the port alone: a miniport that completes in BuildIo or StartIo,
// no device, no interrupt, no data. An operation is one SRB.
func BenchmarkSubmit(b *testing.B) {
	for _, in := range []string{"BuildIo", "StartIo"} {
		for _, batch := range []int{1, 32} {
			b.Run(fmt.Sprintf("in=%s/batch=%d", in, batch), func(b *testing.B) {
				arena, err := dma.NewArena(1 << 20)
				if err != nil {
					b.Fatal(err)
				}
				iommu := dma.NewIOMMU(arena)
				m := &porttest.Machine{Arena: arena, IOMMU: iommu, System: port.NewSystem(port.SystemConfig{IOMMU: iommu})}
				p := m.Processor(b, "benchmark")
				fake := porttest.New(m, porttest.Options{Model: port.FullDuplex})
				a := m.Adapter(b, p, porttest.Subject{Function: fake.Function(), Miniport: &instant{Miniport: fake, inStart: in == "StartIo"}})
				var done tally
				srbs := make([]*port.SRB, batch)
				for i := range srbs {
					if srbs[i], err = a.NewSRB(p); err != nil {
						b.Fatal(err)
					}
					b.Cleanup(func() { a.FreeSRB(srbs[i]) })
					srbs[i].Flags, srbs[i].QueueAction = port.FlagQueueActionEnable|port.FlagNoQueueFreeze, port.SimpleTag
					srbs[i].CDBBytes = uint8(scsi.PutTestUnitReady(&srbs[i].CDB))
					srbs[i].Completer = &done
				}
				lu := a.LogicalUnits()[0]
				b.ReportAllocs()
				b.ResetTimer()
				n := 0
				for ; n < b.N; n += batch {
					lu.Submit(p, srbs)
				}
				if done.good != n || done.bad != 0 {
					b.Fatalf("%d done, %d failed; want %d and 0", done.good, done.bad, n)
				}
			})
		}
	}
}
