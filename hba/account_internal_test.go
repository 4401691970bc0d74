package hba

import (
	"sync"
	"testing"

	"github.com/vhbad/vhbad/hba/fault"
	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/hba/target"
	"github.com/vhbad/vhbad/internal/scsi"
)

// A toldMedium counts what it is told of lost writes.
type toldMedium struct {
	*media.Memory
	media.Promiser      // the other calls, of which none is made
	broke, durable, all int
}

func (m *toldMedium) Broke(string) { m.broke++ }

func (m *toldMedium) LostWrite(_, _ int64, _ [][]byte, durable bool) {
	m.all++
	if durable {
		m.durable++
	}
}

// A write that is answered and not done is told to the medium of the unit that is there,
// if one is, also while it is plugged in and out.
func TestNeverDone_UnitComesAndGoes(t *testing.T) {
	memory, err := media.NewMemory(media.MemoryConfig{SizeBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	m := &toldMedium{Memory: memory}
	unit, err := target.NewUnit(m, target.Config{Serial: "told", WriteCache: true})
	if err != nil {
		t.Fatal(err)
	}
	there := target.NewTarget()
	if err := there.AddUnit(0, unit); err != nil {
		t.Fatal(err)
	}
	var d Device
	x := newExecutor()
	rec := &record{hold: &hold{command: fault.Command{Op: fault.OpWrite}, unit: fault.Unit{BlockBytes: 512}}}
	rec.cmd.CDBBytes = uint8(scsi.PutWrite16(&rec.cmd.CDB, 0, 0, false, false))
	never := func() {
		var out Completion
		if x.neverDone(&d, rec, &out); out.ScsiStatus != 0 {
			t.Fatalf("%+v: want an answer as of a write", out)
		}
	}
	never()
	if m.broke != 0 {
		t.Error("a medium was told whose unit is not there")
	}
	d.targets[0].Store(there)
	never()
	if m.broke != 1 || m.all != 1 || m.durable != 0 {
		t.Errorf("told of %d commands, %d writes, %d of them durable: want 1, 1, 0", m.broke, m.all, m.durable)
	}
	stop := make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				d.targets[0].Store(nil)
				d.targets[0].Store(there)
			}
		}
	})
	for range 1_000_000 {
		never()
	}
	close(stop)
	group.Wait()
	if m.broke != m.all {
		t.Errorf("told of %d commands and %d writes", m.broke, m.all)
	}
}
