package miniport_test

import (
	"errors"
	"testing"

	"github.com/vhbad/vhbad/hba"
	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/miniport"
	"github.com/vhbad/vhbad/port"
	"github.com/vhbad/vhbad/port/porttest"
)

// TestBuildIo_NoWindow: without an IOMMU window for a chained list, a request is
// turned away before the device hears of it, and works when there is one.
func TestBuildIo_NoWindow(t *testing.T) {
	m := porttest.NewMachine(t, porttest.ArenaBytes)
	r := newRig(t, m.IOMMU, miniport.Options{Queues: 1}, hba.Config{})
	p := m.Processor(t, "test")
	a := m.Adapter(t, p, r.subject(true)) // a segment for each page
	lu := a.LogicalUnits()[0]
	batch := m.NewBatch(t, a, 1, 64<<10)
	x := batch.Requests[0]
	var taken []dma.Window
	for {
		w, err := m.IOMMU.NewWindow(nil)
		if errors.Is(err, dma.ErrNoWindow) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		taken = append(taken, w)
	}
	done := r.device.Stats().Queues[0].Commands
	x.Write(0, 64, 512)
	batch.Run(p, lu, 1)
	if x.SRB.Status.Code() != port.StatusInsufficientResources {
		t.Errorf("%s, want StatusInsufficientResources", x.SRB)
	}
	if n := r.device.Stats().Queues[0].Commands; n != done {
		t.Errorf("the device fetched %d commands", n-done)
	}
	x.Write(0, 1, 512) // this one needs no list
	batch.Run(p, lu, 1)
	if x.SRB.Status.Code() != port.StatusSuccess {
		t.Errorf("a short write: %s", x.SRB)
	}
	for _, w := range taken {
		m.IOMMU.FreeWindow(w)
	}
	x.Write(0, 64, 512)
	batch.Run(p, lu, 1)
	if x.SRB.Status.Code() != port.StatusSuccess {
		t.Errorf("with windows: %s", x.SRB)
	}
	if s := r.driver.Stats()[0]; s.Outstanding != 0 {
		t.Errorf("%d tags are out", s.Outstanding)
	}
}
