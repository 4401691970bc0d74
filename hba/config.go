package hba

import "encoding/binary"

// configSpaceBytes is the length of conventional configuration space.
// Source: PCI Local Bus Specification 3.0, 6.1.
const configSpaceBytes = 256

// Offsets in configuration space and values there.
// Source: PCI Local Bus Specification 3.0, 6.1, 6.2 and 6.8.2.
const (
	configVendor       = 0x00
	configDevice       = 0x02
	configCommand      = 0x04
	configStatus       = 0x06
	configRevision     = 0x08
	configClass        = 0x09
	configBAR0         = 0x10
	configSubVendor    = 0x2c
	configSubDevice    = 0x2e
	configCapabilities = 0x34
	configInterruptPin = 0x3d
	configMSIX         = 0x40

	commandMemoryAndMaster = 0x0006
	statusCapabilities     = 0x0010
	classSCSI              = 0x010000 // mass storage, SCSI controller
	barMemory64            = 0x4
	capabilityMSIX         = 0x11
	pinINTA                = 1
)

// configSpace returns what a bus scan finds: identity, one 64-bit memory range, the
// MSI-X capability and interrupt pin A. Nothing in it can be written. The MSI-X table
// lies behind the registers and belongs to the bus, which operates it through
// MaskMessage and UnmaskMessage.
func configSpace(barBytes uint32, messages int) (c [configSpaceBytes]byte) {
	le := binary.LittleEndian
	le.PutUint16(c[configVendor:], VendorID)
	le.PutUint16(c[configDevice:], DeviceID)
	le.PutUint16(c[configCommand:], commandMemoryAndMaster)
	le.PutUint16(c[configStatus:], statusCapabilities)
	c[configRevision] = Revision
	c[configClass], c[configClass+1], c[configClass+2] = classSCSI&0xff, classSCSI>>8&0xff, classSCSI>>16&0xff
	le.PutUint32(c[configBAR0:], barMemory64)
	le.PutUint16(c[configSubVendor:], VendorID)
	le.PutUint16(c[configSubDevice:], DeviceID)
	c[configCapabilities] = configMSIX
	c[configInterruptPin] = pinINTA
	c[configMSIX] = capabilityMSIX
	le.PutUint16(c[configMSIX+2:], uint16(messages-1))
	le.PutUint32(c[configMSIX+4:], barBytes/2|BAR)   // table
	le.PutUint32(c[configMSIX+8:], barBytes/4*3|BAR) // pending bits
	return c
}
