package disk

import (
	"sync/atomic"
	"testing"

	"github.com/vhbad/vhbad/internal/scsi"
	"github.com/vhbad/vhbad/port"
	"github.com/vhbad/vhbad/port/porttest"
)

// A named miniport answers what a disk asks about its unit. It does not answer for the
// block limits, which come after the serial number, unless it is well.
type named struct {
	*porttest.Miniport
	a    *port.Adapter
	well atomic.Bool
}

func (m *named) FindAdapter(p *port.Processor, a *port.Adapter, c *port.Config) port.FindResult {
	m.a = a
	return m.Miniport.FindAdapter(p, a, c)
}

func (m *named) BuildIo(p *port.Processor, srb *port.SRB) bool {
	var answer [scsi.ModeSenseMaxBytes]byte
	n := 0
	switch {
	case scsi.Opcode(srb.CDB[0]) == scsi.OpModeSense10:
		n, _ = scsi.PutModeSenseData(answer[:], &scsi.Mode{}, &scsi.ModeRequest{Ten: true, Page: scsi.ModePageCaching})
	case scsi.Opcode(srb.CDB[0]) != scsi.OpInquiry || srb.CDB[1]&scsi.CDBEVPD == 0:
		return m.Miniport.BuildIo(p, srb)
	case scsi.VPDPage(srb.CDB[2]) == scsi.VPDSupportedPages:
		n = scsi.PutVPDSupportedPages(answer[:], []scsi.VPDPage{scsi.VPDSupportedPages, scsi.VPDUnitSerialNumber, scsi.VPDBlockLimits})
	case scsi.VPDPage(srb.CDB[2]) == scsi.VPDUnitSerialNumber:
		n = scsi.PutVPDSerial(answer[:], "A1")
	case m.well.Load():
		n = scsi.PutVPDBlockLimits(answer[:], &scsi.BlockLimits{})
	}
	srb.Status = port.StatusInvalidRequest
	if n > 0 {
		srb.Status = port.StatusSuccess
		srb.DataTransferBytes = uint32(copy(m.a.GetSystemAddress(p, srb), answer[:n]))
	}
	m.a.Complete(p, srb)
	return false
}

// A disk that cannot find out all about its unit stays as it was, its serial number, too.
func TestRescan_Fails(t *testing.T) {
	m := porttest.NewMachine(t, porttest.ArenaBytes)
	p := m.Processor(t, "test")
	fake := porttest.New(m, porttest.Options{})
	mp := &named{Miniport: fake}
	d := newDisk(t, m, p, porttest.Subject{Function: fake.Function(), Miniport: mp})
	d.geometry.Store(&geometry{})
	if err := d.Rescan(p); err == nil || d.Serial() != "" || d.SizeBytes() != 0 {
		t.Errorf("without block limits: %v, serial number %q, %d bytes; want an error, and the disk as it was", err, d.Serial(), d.SizeBytes())
	}
	mp.well.Store(true)
	if err := d.Rescan(p); err != nil || d.Serial() != "A1" || d.SizeBytes() == 0 {
		t.Errorf("with block limits: %v, serial number %q, %d bytes", err, d.Serial(), d.SizeBytes())
	}
}
