package disk

import (
	"sync/atomic"
	"testing"

	"github.com/vhbad/vhbad/internal/scsi"
	"github.com/vhbad/vhbad/port"
	"github.com/vhbad/vhbad/port/porttest"
)

// An attentive miniport answers the next SYNCHRONIZE CACHE with a unit attention,
// if there is one.
type attentive struct {
	*porttest.Miniport
	a         *port.Adapter
	condition atomic.Uint32 // a scsi.Additional; zero: none
}

func (m *attentive) FindAdapter(p *port.Processor, a *port.Adapter, c *port.Config) port.FindResult {
	m.a = a
	return m.Miniport.FindAdapter(p, a, c)
}

func (m *attentive) StartIo(p *port.Processor, srb *port.SRB) bool {
	if scsi.Opcode(srb.CDB[0]) != scsi.OpSynchronizeCache16 {
		return m.Miniport.StartIo(p, srb)
	}
	condition := scsi.Additional(m.condition.Swap(0))
	if condition == 0 {
		return m.Miniport.StartIo(p, srb)
	}
	srb.Status, srb.ScsiStatus = port.StatusError|port.StatusAutosenseValid, scsi.StatusCheckCondition
	srb.SenseBytes = uint8(scsi.PutFixedSense(srb.Sense[:], &scsi.Sense{Key: scsi.KeyUnitAttention, Additional: condition}))
	m.a.Complete(p, srb)
	return false
}

// A change of capacity that is reported to one of the driver's own commands is not
// lost: the parameters are read again, as after one on the I/O path.
func TestTalker_UnitAttention(t *testing.T) {
	m := porttest.NewMachine(t, porttest.ArenaBytes)
	p := m.Processor(t, "test")
	fake := porttest.New(m, porttest.Options{})
	mp := &attentive{Miniport: fake}
	d := newDisk(t, m, p, porttest.Subject{Function: fake.Function(), Miniport: mp})
	read := make(chan struct{}, 2)
	d.refresh.Routine = func(*port.Processor) { read <- struct{}{} }
	for i, condition := range []scsi.Additional{scsi.BusDeviceResetFunctionOccurred, scsi.CapacityDataHasChanged} {
		mp.condition.Store(uint32(condition))
		if err := d.Flush(p); err != nil {
			t.Fatal(err)
		}
		if s := d.Stats(); s.UnitAttentions != uint64(i+1) || s.Retries != uint64(i+1) {
			t.Errorf("after %d unit attentions: %+v", i+1, s)
		}
	}
	<-read
	if n := len(read); n != 0 {
		t.Errorf("the parameters were read %d times more than the capacity changed", n)
	}
}
