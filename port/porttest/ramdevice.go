package porttest

import (
	"sync"

	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/internal/pci"
	"github.com/vhbad/vhbad/internal/scsi"
	"github.com/vhbad/vhbad/port"
)

// What a driver must know of a RAMDevice.
const (
	RAMUnits      = 2   // logical units, from 0
	RAMBlockBytes = 512 // of a block; each unit has MinBlocks
	RAMDoorbell   = 0   // register: any value makes the device run what it was given
)

// A RAMCommand is what a miniport gives a RAMDevice, and gets back. Real hardware
// would have its fields in a ring in memory.
type RAMCommand struct {
	SRB         *port.SRB // the driver's: only handed back
	Opcode      scsi.Opcode
	Lun         uint8
	OffsetBytes uint64         // of reads and writes
	Memory      []port.Segment // valid until the SRB completes
	// The device's answer.
	MovedBytes uint32
	Status     port.Status
}

// A RAMDevice is hardware for an example: RAM disks of MinBlocks blocks behind one
// doorbell register and one interrupt message. It reads, writes, and answers the
// commands by which a disk is found; it runs the commands given to it on the goroutine
// that rings the doorbell.
//
// Concurrency: any goroutine.
type RAMDevice struct {
	iommu *dma.IOMMU
	units [RAMUnits][]byte

	mu sync.Mutex
	// +checklocks:mu
	raise pci.InterruptFunc
	// +checklocks:mu
	given []RAMCommand
	// +checklocks:mu
	done []RAMCommand
	// +checklocks:mu
	holds int
}

// NewRAMDevice makes a device whose disks are all zero.
func NewRAMDevice(iommu *dma.IOMMU) *RAMDevice {
	d := &RAMDevice{iommu: iommu}
	for i := range d.units {
		d.units[i] = make([]byte, MinBlocks*RAMBlockBytes)
	}
	return d
}

// Give hands the device a command, for the next ring of the doorbell.
func (d *RAMDevice) Give(c RAMCommand) {
	d.mu.Lock()
	d.given = append(d.given, c)
	d.mu.Unlock()
}

// Stop takes back the commands of matching units that the device has not begun.
func (d *RAMDevice) Stop(matches func(lun uint8) bool) (stopped []RAMCommand) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var kept []RAMCommand
	for _, c := range d.given {
		if matches(c.Lun) {
			stopped = append(stopped, c)
		} else {
			kept = append(kept, c)
		}
	}
	d.given = kept
	return stopped
}

// Reap returns what the device has done since the last call, in order.
func (d *RAMDevice) Reap() []RAMCommand {
	d.mu.Lock()
	defer d.mu.Unlock()
	done := d.done
	d.done = nil
	return done
}

// Hold keeps the device from running anything until release is called; the device then
// runs as r.
func (d *RAMDevice) Hold(r pci.Runner) (release func()) {
	hold := func(n int) {
		d.mu.Lock()
		d.holds += n
		d.mu.Unlock()
	}
	hold(1)
	return sync.OnceFunc(func() {
		hold(-1)
		d.ring(r)
	})
}

// Function is the device as the bus shows it: one message, one register, no
// configuration space.
func (d *RAMDevice) Function() pci.Function { return ramFunction{d} }

type ramFunction struct{ d *RAMDevice }

func (f ramFunction) ReadConfig(int, []byte) int            { return 0 }
func (f ramFunction) BAR(int) pci.Registers                 { return f }
func (f ramFunction) Messages() int                         { return 1 }
func (f ramFunction) DisconnectInterrupt()                  {}
func (f ramFunction) Asserted() bool                        { return false }
func (f ramFunction) MaskMessage(pci.Message)               {}
func (f ramFunction) UnmaskMessage(pci.Runner, pci.Message) {}
func (f ramFunction) SizeBytes() uint32                     { return 8 }
func (f ramFunction) Read32(pci.Runner, uint32) uint32      { return 0 }
func (f ramFunction) Read64(pci.Runner, uint32) uint64      { return 0 }
func (f ramFunction) Write32(r pci.Runner, _, _ uint32)     { f.d.ring(r) }
func (f ramFunction) Write64(pci.Runner, uint32, uint64)    {}

func (f ramFunction) ConnectInterrupt(_ pci.InterruptMode, raise pci.InterruptFunc, _ func(string) pci.Runner) error {
	f.d.mu.Lock()
	f.d.raise = raise
	f.d.mu.Unlock()
	return nil
}

// ring is the doorbell. The device raises one interrupt for all that it has done.
func (d *RAMDevice) ring(r pci.Runner) {
	d.mu.Lock()
	for d.holds == 0 && len(d.given) > 0 {
		d.done = append(d.done, d.execute(d.given[0]))
		d.given = d.given[1:]
	}
	raise, done := d.raise, len(d.done) > 0
	d.mu.Unlock()
	if done {
		raise(r, 0)
	}
}

// execute runs one command: it moves data by DMA, from or to the memory that the
// command names.
func (d *RAMDevice) execute(c RAMCommand) RAMCommand {
	var b [64]byte
	data := b[:]
	switch c.Opcode {
	case scsi.OpRead16, scsi.OpWrite16:
		data = d.units[c.Lun][c.OffsetBytes:]
	case scsi.OpInquiry:
		data = data[:scsi.PutInquiryData(data, &scsi.Inquiry{Peripheral: scsi.PeripheralDisk, Vendor: "VHBAD", Product: "RAM disk", CommandQueuing: true})]
	case scsi.OpReportLUNs:
		n := scsi.PutReportLUNsHeader(data, len(d.units))
		for lun := range d.units {
			n += scsi.PutLUN(data[n:], uint8(lun))
		}
		data = data[:n]
	case scsi.OpServiceActionIn16:
		data = data[:scsi.PutReadCapacity16Data(data, &scsi.Capacity{Blocks: MinBlocks, BlockBytes: RAMBlockBytes})]
	default:
		data = nil
	}
	c.MovedBytes, c.Status = 0, port.StatusSuccess
	for _, s := range c.Memory {
		if c.Opcode == scsi.OpWrite16 {
			from, _ := d.iommu.Translate(s.Addr, int(s.Bytes), dma.Read)
			c.MovedBytes += uint32(copy(data[c.MovedBytes:], from))
		} else {
			to, _ := d.iommu.Translate(s.Addr, int(s.Bytes), dma.Write)
			c.MovedBytes += uint32(copy(to, data[c.MovedBytes:]))
		}
	}
	return c
}
