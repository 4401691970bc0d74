package port

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/internal/pci"
)

// A RegisterRange is a memory range of the adapter, mapped by GetDeviceBase.
type RegisterRange struct {
	registers pci.Registers
	sizeBytes uint32
}

// SizeBytes is the length of the range.
func (r *RegisterRange) SizeBytes() uint32 { return r.sizeBytes }

// GetDeviceBase maps memory range bar of the adapter; nil if it has none.
//
// Level: Passive, in FindAdapter.
// Source: storport.h StorPortGetDeviceBase.
func (a *Adapter) GetDeviceBase(p *Processor, bar int) *RegisterRange {
	if !p.check(routineGetDeviceBase) {
		return nil
	}
	r := a.function.BAR(bar)
	if r == nil {
		return nil
	}
	return &RegisterRange{registers: r, sizeBytes: r.SizeBytes()}
}

// inRange is V16: an access of n bytes must be aligned and inside the range.
// One that is not reads as all ones and writes nothing, as on a bus.
func (r *RegisterRange) inRange(p *Processor, offset, n uint32) bool {
	if offset%n == 0 && offset < r.sizeBytes && n <= r.sizeBytes-offset {
		return true
	}
	if p.verify {
		p.violate(CheckRegisterRange, nil, fmt.Sprintf("%d-byte register access at %#x of a range of %#x bytes", n, offset, r.sizeBytes))
	}
	return false
}

// ReadRegisterUlong reads a 32-bit register. Level: any.
// Source: storport.h StorPortReadRegisterUlong.
func (a *Adapter) ReadRegisterUlong(p *Processor, r *RegisterRange, offset uint32) uint32 {
	if !r.inRange(p, offset, 4) {
		return ^uint32(0)
	}
	w := p.lend()
	value := r.registers.Read32(p, offset)
	p.takeBack(w)
	return value
}

// ReadRegisterUlong64 reads a 64-bit register. Level: any.
// Source: storport.h StorPortReadRegisterUlong64.
func (a *Adapter) ReadRegisterUlong64(p *Processor, r *RegisterRange, offset uint32) uint64 {
	if !r.inRange(p, offset, 8) {
		return ^uint64(0)
	}
	w := p.lend()
	value := r.registers.Read64(p, offset)
	p.takeBack(w)
	return value
}

// WriteRegisterUlong writes a 32-bit register. Device code may run on p's
// goroutine and interrupts may be serviced before it returns.
// Level: any.
// Source: storport.h StorPortWriteRegisterUlong.
func (a *Adapter) WriteRegisterUlong(p *Processor, r *RegisterRange, offset, value uint32) {
	if r.inRange(p, offset, 4) {
		p.wrote = true
		w := p.lend()
		r.registers.Write32(p, offset, value)
		p.takeBack(w)
	}
}

// WriteRegisterUlong64 writes a 64-bit register; see WriteRegisterUlong.
// Source: storport.h StorPortWriteRegisterUlong64.
func (a *Adapter) WriteRegisterUlong64(p *Processor, r *RegisterRange, offset uint32, value uint64) {
	if r.inRange(p, offset, 8) {
		p.wrote = true
		w := p.lend()
		r.registers.Write64(p, offset, value)
		p.takeBack(w)
	}
}

// ReadRegisterBufferUlong reads consecutive 32-bit registers into b.
// Level: any.
// Source: storport.h StorPortReadRegisterBufferUlong.
func (a *Adapter) ReadRegisterBufferUlong(p *Processor, r *RegisterRange, offset uint32, b []uint32) {
	for i := range b {
		b[i] = a.ReadRegisterUlong(p, r, offset+4*uint32(i))
	}
}

// WriteRegisterBufferUlong writes b to consecutive 32-bit registers.
// Level: any.
// Source: storport.h StorPortWriteRegisterBufferUlong.
func (a *Adapter) WriteRegisterBufferUlong(p *Processor, r *RegisterRange, offset uint32, b []uint32) {
	for i, v := range b {
		a.WriteRegisterUlong(p, r, offset+4*uint32(i), v)
	}
}

// ReadRegisterBufferUlong64 reads consecutive 64-bit registers into b.
// Level: any.
// Source: storport.h StorPortReadRegisterBufferUlong64.
func (a *Adapter) ReadRegisterBufferUlong64(p *Processor, r *RegisterRange, offset uint32, b []uint64) {
	for i := range b {
		b[i] = a.ReadRegisterUlong64(p, r, offset+8*uint32(i))
	}
}

// WriteRegisterBufferUlong64 writes b to consecutive 64-bit registers.
// Level: any.
// Source: storport.h StorPortWriteRegisterBufferUlong64.
func (a *Adapter) WriteRegisterBufferUlong64(p *Processor, r *RegisterRange, offset uint32, b []uint64) {
	for i, v := range b {
		a.WriteRegisterUlong64(p, r, offset+8*uint32(i), v)
	}
}

// FreeDeviceBase gives a memory range back: accesses through r are out of range
// from now on.
//
// Level: Passive, in FindAdapter.
// Source: storport.h StorPortFreeDeviceBase.
func (a *Adapter) FreeDeviceBase(p *Processor, r *RegisterRange) {
	if p.check(routineGetDeviceBase) {
		r.registers, r.sizeBytes = nil, 0
	}
}

// GetBusData copies configuration space from offset on into b and returns how
// much there was.
//
// Level: Passive, in FindAdapter; up to Dispatch in AdapterControl.
// Source: storport.h StorPortGetBusData.
func (a *Adapter) GetBusData(p *Processor, offset int, b []byte) int {
	if !p.check(routineGetBusData) {
		return 0
	}
	return a.function.ReadConfig(offset, b)
}

// GetUncachedExtension returns sizeBytes of zeroed memory that the device can
// read and write, for as long as the adapter exists. A second call returns the
// first one's memory, however long. Nil: no memory, or not called from
// FindAdapter.
//
// Level: Passive, in FindAdapter, after c.SrbExtensionBytes is set.
// Source: storport.h StorPortGetUncachedExtension.
func (a *Adapter) GetUncachedExtension(p *Processor, c *Config, sizeBytes int) []byte {
	if !p.check(routineGetUncachedExtension) {
		return nil
	}
	if a.uncached.Bytes != nil {
		return a.uncached.Bytes
	}
	if c.SrbExtensionBytes == 0 && p.verify {
		p.violate(CheckCallingPlace, nil, "GetUncachedExtension before SrbExtensionBytes is set")
	}
	if d, err := a.makeDma(sizeBytes); err == nil {
		a.uncached = *d
	}
	return a.uncached.Bytes
}

// GetPhysicalAddress returns where the device finds the first byte of b. With
// srb nil, b lies in the uncached extension; otherwise in srb's extension,
// which is then mapped until the SRB completes. Zero: b lies elsewhere.
//
// Level: any.
// Source: storport.h StorPortGetPhysicalAddress.
func (a *Adapter) GetPhysicalAddress(p *Processor, srb *SRB, b []byte) dma.Addr {
	if srb == nil {
		off, ok := offsetIn(a.uncached.Bytes, b)
		if !ok {
			return 0
		}
		return a.uncached.Addr + dma.Addr(off)
	}
	off, ok := offsetIn(srb.Extension, b)
	if !ok {
		return 0
	}
	if srb.extAddr == 0 {
		if srb.extWindow == 0 {
			w, err := a.sys.iommu.NewWindow(&p.windows)
			if err != nil {
				return 0
			}
			srb.extWindow = w
		}
		srb.extAddr = a.sys.iommu.Map(srb.extWindow, srb.Extension, dma.Read|dma.Write)
	}
	return srb.extAddr + dma.Addr(off)
}

// EnablePassiveInitialization asks for PassiveInitialize after Initialize.
//
// In Initialize only; elsewhere it returns false and does nothing.
// Source: storport.h StorPortEnablePassiveInitialization.
func (a *Adapter) EnablePassiveInitialization(p *Processor) bool {
	if !p.check(routineEnablePassiveInitialization) {
		return false
	}
	a.wantPassive = true
	return true
}

// InitializePerfOpts negotiates performance options. With query it fills d with
// what the port supports; without, it applies what d asks for.
//
// A DPC runs on the processor whose goroutine issues it, which is the one that
// sent the I/O unless the device needs a goroutine of its own. Only that goroutine
// can run anything on its processor, so DPCs cannot be redirected to where the I/O came
// from: PerfDpcRedirection requires PerfDpcRedirectionCurrentCPU. With
// PerfInterruptMessageRanges it says which messages completions are spread over.
//
// In Initialize or PassiveInitialize. Errors: wrong place, unknown flag, a
// count out of range, a flag without another that it requires.
// Source: storport.h StorPortInitializePerfOpts.
func (a *Adapter) InitializePerfOpts(p *Processor, query bool, d *PerfConfigurationData) error {
	if !p.check(routineInitializePerfOpts) {
		return fmt.Errorf("port: InitializePerfOpts called from %s", p.callback)
	}
	supported := PerfDpcRedirection | PerfInterruptMessageRanges | PerfOptimizeForCompletionDuringStartIo | PerfDpcRedirectionCurrentCPU
	if a.config.SynchronizationModel == FullDuplex {
		supported |= PerfConcurrentChannels
	}
	if query {
		*d = PerfConfigurationData{Flags: supported, ConcurrentChannels: MaxChannels}
		return nil
	}
	switch {
	case d.Flags&^supported != 0:
		return fmt.Errorf("port: performance options %#x: want a subset of %#x", uint32(d.Flags), uint32(supported))
	case d.Flags&PerfConcurrentChannels != 0 && (d.ConcurrentChannels < 1 || d.ConcurrentChannels > MaxChannels):
		return fmt.Errorf("port: %d concurrent channels: want 1 to %d", d.ConcurrentChannels, MaxChannels)
	case d.Flags&(PerfInterruptMessageRanges|PerfOptimizeForCompletionDuringStartIo|PerfDpcRedirectionCurrentCPU) != 0 && d.Flags&PerfDpcRedirection == 0:
		return fmt.Errorf("port: performance options %#x need DPC redirection (%#x)", uint32(d.Flags), uint32(PerfDpcRedirection))
	case d.Flags&PerfDpcRedirection != 0 && d.Flags&PerfDpcRedirectionCurrentCPU == 0:
		return fmt.Errorf("port: performance options %#x: DPC redirection (%#x) only to the current processor (%#x)",
			uint32(d.Flags), uint32(PerfDpcRedirection), uint32(PerfDpcRedirectionCurrentCPU))
	case d.Flags&PerfInterruptMessageRanges != 0 && (d.FirstRedirectionMessageNumber > d.LastRedirectionMessageNumber ||
		int(d.LastRedirectionMessageNumber) >= len(a.interrupts)):
		return fmt.Errorf("port: interrupt messages %d to %d: want a range within 0 to %d",
			d.FirstRedirectionMessageNumber, d.LastRedirectionMessageNumber, len(a.interrupts)-1)
	}
	a.perf = *d
	return nil
}

// MaxChannels is the largest number of concurrent channels.
const MaxChannels = 64

// GetStartIoPerfParams returns the channel on which srb's StartIo runs and the
// message best raised for its completion. Both hold from BuildIo to Complete.
//
// Level: any.
// Source: storport.h StorPortGetStartIoPerfParams.
func (a *Adapter) GetStartIoPerfParams(_ *Processor, srb *SRB) StartIoPerfParams {
	return StartIoPerfParams{ChannelNumber: srb.channel, MessageNumber: a.messageOfChannel(srb.channel)}
}

// GetScatterGatherList returns srb's scatter/gather list, valid until Complete.
//
// Level: any.
// Source: storport.h StorPortGetScatterGatherList.
func (a *Adapter) GetScatterGatherList(_ *Processor, srb *SRB) []Segment { return srb.SGL }

// GetLogicalUnit finds a unit by its address; nil if there is none.
//
// Level: any.
// Source: storport.h StorPortGetLogicalUnit.
func (a *Adapter) GetLogicalUnit(_ *Processor, path, target, lun uint8) *LogicalUnit {
	return a.unit(path, target, lun)
}

// MSIInfo describes one interrupt message.
// Source: storport.h MESSAGE_INTERRUPT_INFORMATION.
type MSIInfo struct {
	Message uint16
	// Shared reports that the message shares one lock with all others.
	Shared bool
}

// GetMSIInfo describes a message. False: there is no such message.
//
// Level: any; not from MessageInterrupt.
// Source: storport.h StorPortGetMSIInfo.
func (a *Adapter) GetMSIInfo(p *Processor, message uint16) (MSIInfo, bool) {
	if !p.check(routineGetMSIInfo) || a.lineMode || int(message) >= len(a.interrupts) {
		return MSIInfo{}, false
	}
	return MSIInfo{Message: message, Shared: len(a.interruptLocks) == 1}, true
}

// MaskMsixInterrupt masks or unmasks one message. An interrupt that arrives while it is
// masked is delivered when it is unmasked.
//
// Level: any.
// Source: storport.h StorPortMaskMsixInterrupt.
func (a *Adapter) MaskMsixInterrupt(p *Processor, message uint16, masked bool) {
	if masked {
		a.function.MaskMessage(pci.Message(message))
		return
	}
	w := p.lend() // what was pending is delivered here
	a.function.UnmaskMessage(p, pci.Message(message))
	p.takeBack(w)
}

// Limits of StallExecution: a call over the first is reported by the verifier, and one
// over the second is cut short.
const (
	stallSoftLimit = time.Millisecond
	stallHardLimit = 100 * time.Millisecond
)

// StallExecution waits without giving up the processor, for less than a
// millisecond.
//
// Level: any; not in StartIo.
// Source: storport.h StorPortStallExecution.
func (a *Adapter) StallExecution(p *Processor, d time.Duration) {
	if p.verify && (d > stallSoftLimit || p.callback == inStartIo) {
		p.violate(CheckHoldTime, nil, fmt.Sprintf("StallExecution of %s in %s", d, p.callback))
	}
	end := time.Now().Add(min(d, stallHardLimit))
	for time.Now().Before(end) {
		continue // the point is to be busy
	}
}

// LogError writes an adapter's error to the log.
//
// Level: any.
// Source: storport.h StorPortLogError.
func (a *Adapter) LogError(p *Processor, message string, attrs ...slog.Attr) {
	a.log(p, slog.LevelError, message, attrs)
}
