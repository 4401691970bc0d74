package port_test

import (
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/internal/scsi"
	"github.com/vhbad/vhbad/port"
	"github.com/vhbad/vhbad/port/porttest"
)

// What a miniport for a new device looks like. The device is porttest.RAMDevice:
// two RAM disks behind one doorbell register and one interrupt.

// ramDriver is the miniport: the device extension is the struct itself.
type ramDriver struct {
	device    *porttest.RAMDevice // stands for rings in memory that it reads
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
	c.MaximumNumberOfLogicalUnits = porttest.RAMUnits
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
	if int(srb.Lun) >= porttest.RAMUnits {
		return d.finish(p, srb, port.StatusNoDevice)
	}
	switch scsi.Opcode(srb.CDB[0]) {
	case scsi.OpRead16, scsi.OpWrite16:
		lba, blocks, _ := scsi.BlockRange(&srb.CDB)
		if lba >= porttest.MinBlocks || uint64(blocks) > porttest.MinBlocks-lba || int(srb.DataTransferBytes) != int(blocks)*porttest.RAMBlockBytes {
			return d.refuse(p, srb, scsi.LBAOutOfRange)
		}
		binary.LittleEndian.PutUint64(srb.Extension, lba*porttest.RAMBlockBytes)
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
	d.device.Give(porttest.RAMCommand{
		SRB:         srb,
		Opcode:      scsi.Opcode(srb.CDB[0]),
		Lun:         srb.Lun,
		OffsetBytes: binary.LittleEndian.Uint64(srb.Extension),
		Memory:      d.a.GetScatterGatherList(p, srb),
	})
	return true
}

// CommitIo rings the doorbell once for all that StartIo handed over.
func (d *ramDriver) CommitIo(p *port.Processor, _ int) {
	d.a.WriteRegisterUlong(p, d.registers, porttest.RAMDoorbell, 1)
}

// Interrupt drains what the device has done. It runs under the interrupt lock.
func (d *ramDriver) Interrupt(p *port.Processor, t port.SyncToken) bool {
	done := d.device.Reap()
	*d.served.Open(t) += len(done)
	for _, c := range done {
		c.SRB.DataTransferBytes = c.MovedBytes
		d.finish(p, c.SRB, c.Status)
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
	stopped := r.d.device.Stop(r.matches)
	r.d.Interrupt(p, t)
	for _, c := range stopped {
		r.d.finish(p, c.SRB, r.status)
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

// Example writes a block to a RAM disk and reads it back. Every SRB runs through
// BuildIo, StartIo, CommitIo, the device, Interrupt and back on one goroutine.
func Example() {
	arena, err := dma.NewArena(1 << 20)
	check(err)
	iommu := dma.NewIOMMU(arena)
	system := port.NewSystem(port.SystemConfig{IOMMU: iommu, Verify: true, Strict: true})
	p, err := system.NewProcessor("example")
	check(err)
	device := porttest.NewRAMDevice(iommu)
	driver := &ramDriver{device: device}
	adapter, err := system.AddAdapter(p, device.Function(), driver, port.AdapterOptions{Name: "ram0"})
	check(err)
	defer adapter.Remove(p)
	check(adapter.Enumerate(p))
	unit := adapter.LogicalUnits()[0]
	srb, err := adapter.NewSRB(p)
	check(err)
	defer adapter.FreeSRB(srb)
	block := arena.Alloc(porttest.RAMBlockBytes)

	copy(block, "hello")
	srb.Flags, srb.QueueAction = port.FlagQueueActionEnable|port.FlagDataOut, port.SimpleTag
	srb.DataBuffer, srb.DataTransferBytes = block, porttest.RAMBlockBytes
	srb.CDBBytes = uint8(scsi.PutWrite16(&srb.CDB, 7, 1, false, false))
	unit.Execute(p, srb, nil)
	fmt.Println("write:", srb.Status == port.StatusSuccess)

	clear(block)
	srb.Flags = port.FlagQueueActionEnable | port.FlagDataIn
	srb.DataTransferBytes = porttest.RAMBlockBytes
	srb.CDBBytes = uint8(scsi.PutRead16(&srb.CDB, 7, 1, false, false))
	unit.Execute(p, srb, nil)
	fmt.Printf("read: %t, %q\n", srb.Status == port.StatusSuccess, block[:5])
	fmt.Println("served:", driver.Served(p), "commands, 3 of them to find the units")

	// Output:
	// write: true
	// read: true, "hello"
	// served: 5 commands, 3 of them to find the units
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

// TestExample_Conformance: the example is a good miniport.
func TestExample_Conformance(t *testing.T) {
	porttest.TestMiniport(t, func(t *testing.T, m *porttest.Machine) porttest.Subject {
		device, releaser := porttest.NewRAMDevice(m.IOMMU), m.Processor(t, "releaser")
		return porttest.Subject{
			Function: device.Function(),
			Miniport: &ramDriver{device: device},
			Hold:     func() func() { return device.Hold(releaser) },
		}
	})
}
