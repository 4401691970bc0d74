package port_test

import (
	"encoding/binary"
	"fmt"
	"sync"
	"testing"

	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/internal/pci"
	"github.com/vhbad/vhbad/internal/scsi"
	"github.com/vhbad/vhbad/port"
	"github.com/vhbad/vhbad/port/porttest"
)

// What a miniport for a new device looks like: first the device, two RAM disks
// behind one doorbell register and one interrupt, then the miniport for it.

const (
	ramBlockBytes = 512
	ramBlocks     = porttest.MinBlocks
	ramDoorbell   = 0 // register: any value makes the device run what it was given
)

// ramCommand is what the miniport gives the device. Real hardware would get its
// fields through a ring in memory; srb is only handed back.
type ramCommand struct {
	srb    *port.SRB
	opcode scsi.Opcode
	lun    uint8
	offset int // bytes
	memory []port.Segment
	bytes  uint32 // moved
	status port.Status
}

// ramDevice is the hardware. mu is its own business: no driver can take it.
type ramDevice struct {
	iommu *dma.IOMMU
	units [2][]byte

	mu          sync.Mutex
	raise       pci.InterruptFunc
	given, done []ramCommand
	holds       int
}

// The bus's view of the device: one message, one register, no configuration space.
func (d *ramDevice) ReadConfig(int, []byte) int            { return 0 }
func (d *ramDevice) BAR(int) pci.Registers                 { return d }
func (d *ramDevice) Messages() int                         { return 1 }
func (d *ramDevice) DisconnectInterrupt()                  {}
func (d *ramDevice) Asserted() bool                        { return false }
func (d *ramDevice) MaskMessage(pci.Message)               {}
func (d *ramDevice) UnmaskMessage(pci.Runner, pci.Message) {}
func (d *ramDevice) SizeBytes() uint32                     { return 8 }
func (d *ramDevice) Read32(pci.Runner, uint32) uint32      { return 0 }
func (d *ramDevice) Read64(pci.Runner, uint32) uint64      { return 0 }
func (d *ramDevice) Write64(pci.Runner, uint32, uint64)    {}

func (d *ramDevice) ConnectInterrupt(_ pci.LineMode, raise pci.InterruptFunc, _ func(string) pci.Runner) error {
	d.raise = raise
	return nil
}

// Write32 is the doorbell: the device runs on the goroutine that rings it, and
// raises one interrupt for all that it has done.
func (d *ramDevice) Write32(r pci.Runner, _, _ uint32) {
	d.mu.Lock()
	for d.holds == 0 && len(d.given) > 0 {
		d.done = append(d.done, d.execute(d.given[0]))
		d.given = d.given[1:]
	}
	raise := len(d.done) > 0
	d.mu.Unlock()
	if raise {
		d.raise(r, 0)
	}
}

// execute runs one command: it moves data by DMA, to or from the driver's memory.
func (d *ramDevice) execute(c ramCommand) ramCommand {
	var b [64]byte
	data := b[:]
	switch c.opcode {
	case scsi.OpRead16, scsi.OpWrite16:
		data = d.units[c.lun][c.offset:]
	case scsi.OpInquiry:
		data = data[:scsi.PutInquiryData(data, &scsi.Inquiry{Peripheral: scsi.PeripheralDisk, Vendor: "VHBAD", Product: "RAM disk", CommandQueuing: true})]
	case scsi.OpReportLUNs:
		n := scsi.PutReportLUNsHeader(data, len(d.units))
		for lun := range d.units {
			n += scsi.PutLUN(data[n:], uint8(lun))
		}
		data = data[:n]
	case scsi.OpServiceActionIn16:
		data = data[:scsi.PutReadCapacity16Data(data, &scsi.Capacity{Blocks: ramBlocks, BlockBytes: ramBlockBytes})]
	default:
		data = nil
	}
	c.bytes, c.status = 0, port.StatusSuccess
	for _, s := range c.memory {
		if c.opcode == scsi.OpWrite16 {
			from, _ := d.iommu.Translate(s.Addr, int(s.Bytes), dma.Read)
			c.bytes += uint32(copy(data[c.bytes:], from))
		} else {
			to, _ := d.iommu.Translate(s.Addr, int(s.Bytes), dma.Write)
			c.bytes += uint32(copy(to, data[c.bytes:]))
		}
	}
	return c
}

// stop takes back the commands of a unit, or of all, that the device has not done.
func (d *ramDevice) stop(matches func(lun uint8) bool) (stopped []ramCommand) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var kept []ramCommand
	for _, c := range d.given {
		if matches(c.lun) {
			stopped = append(stopped, c)
		} else {
			kept = append(kept, c)
		}
	}
	d.given = kept
	return stopped
}

func (d *ramDevice) reap() []ramCommand {
	d.mu.Lock()
	defer d.mu.Unlock()
	done := d.done
	d.done = nil
	return done
}

func (d *ramDevice) hold(n int) {
	d.mu.Lock()
	d.holds += n
	d.mu.Unlock()
}

// ramDriver is the miniport: the device extension is the struct itself.
type ramDriver struct {
	device    *ramDevice // stands for rings in memory that the device reads
	a         *port.Adapter
	registers *port.RegisterRange
	// served is shared with the interrupt handler. It opens only with the token
	// that the handler and SynchronizeAccess routines get.
	served port.Guarded[int]
}

func (d *ramDriver) FindAdapter(p *port.Processor, a *port.Adapter, c *port.Config) port.FindResult {
	d.a, d.registers = a, a.GetDeviceBase(p, 0)
	d.served.Bind(a, port.AllMessages)
	c.SynchronizationModel = port.FullDuplex
	c.InterruptSynchronizationMode = port.InterruptSynchronizeAll
	c.MaximumTransferLength, c.NumberOfPhysicalBreaks = 1<<20, 256
	c.MaxNumberOfIO, c.MaxIOsPerLun = 64, 64
	c.MaximumNumberOfLogicalUnits = len(d.device.units)
	c.SrbExtensionBytes = 8
	return port.Found
}

func (d *ramDriver) Initialize(*port.Processor, port.SyncToken) bool { return true }

func (d *ramDriver) AdapterControl(*port.Processor, port.ControlType) port.ControlResult {
	return port.ControlSuccess
}

// BuildIo runs with no lock, on many processors at once: it checks the request and
// leaves in the SRB's extension what StartIo needs. What the device would not
// understand is completed here.
func (d *ramDriver) BuildIo(p *port.Processor, srb *port.SRB) bool {
	switch srb.Function {
	case port.FunctionExecuteScsi:
	case port.FunctionResetLogicalUnit, port.FunctionResetDevice:
		return true
	default:
		return d.finish(p, srb, port.StatusInvalidRequest)
	}
	if int(srb.Lun) >= len(d.device.units) {
		return d.finish(p, srb, port.StatusNoDevice)
	}
	switch scsi.Opcode(srb.CDB[0]) {
	case scsi.OpRead16, scsi.OpWrite16:
		lba, blocks, _ := scsi.BlockRange(&srb.CDB)
		if lba >= ramBlocks || uint64(blocks) > ramBlocks-lba || int(srb.DataTransferBytes) != int(blocks)*ramBlockBytes {
			return d.refuse(p, srb, scsi.LBAOutOfRange)
		}
		binary.LittleEndian.PutUint64(srb.Extension, lba*ramBlockBytes)
		return true
	case scsi.OpInquiry, scsi.OpReportLUNs, scsi.OpServiceActionIn16, scsi.OpTestUnitReady, scsi.OpSynchronizeCache16:
		return true
	default:
		return d.refuse(p, srb, scsi.InvalidCommandOperationCode)
	}
}

// StartIo runs under the StartIo lock: it only hands the command over.
func (d *ramDriver) StartIo(p *port.Processor, srb *port.SRB) bool {
	if srb.Function != port.FunctionExecuteScsi {
		return d.resetUnits(p, srb)
	}
	c := ramCommand{
		srb: srb, opcode: scsi.Opcode(srb.CDB[0]), lun: srb.Lun, memory: d.a.GetScatterGatherList(p, srb),
		offset: int(binary.LittleEndian.Uint64(srb.Extension)),
	}
	d.device.mu.Lock()
	d.device.given = append(d.device.given, c)
	d.device.mu.Unlock()
	return true
}

// CommitIo rings the doorbell once for all that StartIo handed over.
func (d *ramDriver) CommitIo(p *port.Processor, _ int) {
	d.a.WriteRegisterUlong(p, d.registers, ramDoorbell, 1)
}

// Interrupt drains what the device has done. It runs under the interrupt lock.
func (d *ramDriver) Interrupt(p *port.Processor, t port.SyncToken) bool {
	done := d.device.reap()
	*d.served.Open(t) += len(done)
	for _, c := range done {
		c.srb.DataTransferBytes = c.bytes
		d.finish(p, c.srb, c.status)
	}
	return len(done) > 0
}

// ramReset is what a SynchronizeAccess routine of a reset needs.
type ramReset struct {
	d       *ramDriver
	matches func(lun uint8) bool
	status  port.Status
}

// resetRoutine cannot overlap Interrupt: what the device has done is completed
// with its result, and what it has not done only after it gave it back.
func resetRoutine(t port.SyncToken, r ramReset) bool {
	p := t.Processor()
	stopped := r.d.device.stop(r.matches)
	r.d.Interrupt(p, t)
	for _, c := range stopped {
		r.d.finish(p, c.srb, r.status)
	}
	return true
}

// resetUnits does FunctionResetLogicalUnit and FunctionResetDevice.
func (d *ramDriver) resetUnits(p *port.Processor, srb *port.SRB) bool {
	matches := func(lun uint8) bool { return srb.Function == port.FunctionResetDevice || lun == srb.Lun }
	port.SynchronizeAccess(d.a, p, resetRoutine, ramReset{d, matches, port.StatusAborted})
	d.finish(p, srb, port.StatusSuccess)
	return true
}

func (d *ramDriver) ResetBus(p *port.Processor, _ uint8) bool {
	return port.SynchronizeAccess(d.a, p, resetRoutine, ramReset{d, func(uint8) bool { return true }, port.StatusBusReset})
}

// Served counts the commands that the device has done.
func (d *ramDriver) Served(p *port.Processor) (n int) {
	port.SynchronizeAccess(d.a, p, func(t port.SyncToken, n *int) bool {
		*n = *d.served.Open(t)
		return true
	}, &n)
	return n
}

// finish completes srb, which is the port's from here on. Its result is what
// BuildIo returns after it.
func (d *ramDriver) finish(p *port.Processor, srb *port.SRB, status port.Status) bool {
	srb.Status = status
	d.a.Complete(p, srb)
	return false
}

// refuse completes srb with CHECK CONDITION and sense data.
func (d *ramDriver) refuse(p *port.Processor, srb *port.SRB, why scsi.Additional) bool {
	status := port.StatusError
	srb.ScsiStatus = scsi.StatusCheckCondition
	if srb.Flags&port.FlagDisableAutosense == 0 {
		srb.SenseBytes = uint8(scsi.PutFixedSense(srb.Sense[:], &scsi.Sense{Key: scsi.KeyIllegalRequest, Additional: why}))
		status |= port.StatusAutosenseValid
	}
	return d.finish(p, srb, status)
}

func newRAMDevice(iommu *dma.IOMMU) *ramDevice {
	d := &ramDevice{iommu: iommu}
	for i := range d.units {
		d.units[i] = make([]byte, ramBlocks*ramBlockBytes)
	}
	return d
}

// Example writes a block to a RAM disk and reads it back. Every SRB runs through
// BuildIo, StartIo, CommitIo, the device, Interrupt and back on one goroutine.
func Example() {
	arena, err := dma.NewArena(1 << 20)
	if err != nil {
		fmt.Println(err)
		return
	}
	iommu := dma.NewIOMMU(arena)
	system := port.NewSystem(port.SystemConfig{IOMMU: iommu, Verify: true, Strict: true})
	p, err := system.NewProcessor("example")
	if err != nil {
		fmt.Println(err)
		return
	}
	driver := &ramDriver{device: newRAMDevice(iommu)}
	adapter, err := system.AddAdapter(p, driver.device, driver, port.AdapterOptions{Name: "ram0"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer adapter.Remove(p)
	if err := adapter.Enumerate(p); err != nil {
		fmt.Println(err)
		return
	}
	unit := adapter.LogicalUnits()[0]
	srb, err := adapter.NewSRB(1)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer adapter.FreeSRB(srb)
	block := arena.Alloc(ramBlockBytes)

	copy(block, "hello")
	srb.Flags, srb.QueueAction = port.FlagQueueActionEnable|port.FlagDataOut, port.SimpleTag
	srb.DataBuffers[0], srb.DataTransferBytes = block, ramBlockBytes
	srb.CDBBytes = uint8(scsi.PutWrite16(&srb.CDB, 7, 1, false, false))
	unit.Execute(p, srb)
	fmt.Println("write:", srb.Status == port.StatusSuccess)

	clear(block)
	srb.Flags = port.FlagQueueActionEnable | port.FlagDataIn
	srb.DataTransferBytes = ramBlockBytes
	srb.CDBBytes = uint8(scsi.PutRead16(&srb.CDB, 7, 1, false, false))
	unit.Execute(p, srb)
	fmt.Printf("read: %t, %q\n", srb.Status == port.StatusSuccess, block[:5])
	fmt.Println("served:", driver.Served(p), "commands, 3 of them to find the units")

	// Output:
	// write: true
	// read: true, "hello"
	// served: 5 commands, 3 of them to find the units
}

// TestExample_Conformance: the example is a good miniport.
func TestExample_Conformance(t *testing.T) {
	porttest.TestMiniport(t, func(t *testing.T, m *porttest.Machine) porttest.Subject {
		device := newRAMDevice(m.IOMMU)
		releaser := m.Processor(t, "releaser")
		return porttest.Subject{
			Function: device,
			Miniport: &ramDriver{device: device},
			Hold: func() func() {
				device.hold(1)
				return sync.OnceFunc(func() {
					device.hold(-1)
					device.Write32(releaser, ramDoorbell, 1)
				})
			},
		}
	})
}
