package port

import (
	"errors"
	"fmt"
	"sync"

	"github.com/vhbad/vhbad/internal/dma"
)

// maxPoolBytes bounds what one adapter's miniport may have in pool.
const maxPoolBytes = 64 << 20

// ErrNoResources means that memory or IOMMU windows ran out.
var ErrNoResources = errors.New("port: no memory or IOMMU window left")

// miniportMemory is what a miniport has allocated beside its extensions. It
// leaves nothing behind: release takes back what the miniport forgot.
type miniportMemory struct {
	mu sync.Mutex
	// pool holds the length of each piece by its first byte.
	// +checklocks:mu
	pool map[*byte]int
	// +checklocks:mu
	poolBytes int
	// +checklocks:mu
	poolInStartIo uint64
	// +checklocks:mu
	dma map[*DmaMemory]struct{}
}

// AllocatePool returns sizeBytes of zeroed memory that the device cannot reach; nil
// if there is no more (64 MiB for each adapter), or if it may not be called here. A
// miniport may just as well use make; this is for memory to be counted and checked.
//
// Level: up to Dispatch, and so not in StartIo in half duplex. In StartIo in full
// duplex it is allowed and counted (AdapterStats.PoolInStartIo), but not a good idea.
// Source: storport.h StorPortAllocatePool.
func (a *Adapter) AllocatePool(p *Processor, sizeBytes int) []byte {
	if !p.check(routineAllocatePool) || sizeBytes <= 0 {
		return nil
	}
	m := &a.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	if sizeBytes > maxPoolBytes-m.poolBytes {
		return nil
	}
	if p.callback == inStartIo {
		m.poolInStartIo++
	}
	if m.pool == nil {
		m.pool = map[*byte]int{}
	}
	b := make([]byte, sizeBytes)
	m.pool[&b[0]] = sizeBytes
	m.poolBytes += sizeBytes
	return b
}

// FreePool gives back, whole, what AllocatePool returned. It reports whether it
// did: memory that was freed already, or is not from the pool, is left alone, and the
// verifier reports the call.
//
// Level: up to Dispatch.
// Source: storport.h StorPortFreePool.
func (a *Adapter) FreePool(p *Processor, b []byte) bool {
	p.check(routineFreePool)
	if len(b) > 0 && a.memory.freePool(&b[0]) {
		return true
	}
	if p.verify {
		p.violate(CheckCallingPlace, nil, fmt.Sprintf("FreePool of %d bytes that are not in the pool", len(b)))
	}
	return false
}

func (m *miniportMemory) freePool(first *byte) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, ok := m.pool[first]
	if ok {
		delete(m.pool, first)
		m.poolBytes -= n
	}
	return ok
}

// DmaMemory is memory that both miniport and device reach, for as long as the
// miniport keeps it.
type DmaMemory struct {
	Bytes  []byte   // zeroed at first
	Addr   dma.Addr // where the device finds the first byte
	window dma.Window
}

// AllocateDmaMemory returns sizeBytes of memory for the device. Unlike
// GetUncachedExtension it may be called after FindAdapter and more than once.
//
// Level: up to Dispatch. Errors: ErrNoResources, an impossible size.
// Source: storport.h StorPortAllocateDmaMemory,
// StorPortAllocateContiguousMemorySpecifyCacheNode.
func (a *Adapter) AllocateDmaMemory(p *Processor, sizeBytes int) (*DmaMemory, error) {
	p.check(routineAllocateDmaMemory)
	d, err := a.makeDma(sizeBytes)
	if err != nil {
		return nil, err
	}
	a.memory.mu.Lock()
	defer a.memory.mu.Unlock()
	if a.memory.dma == nil {
		a.memory.dma = map[*DmaMemory]struct{}{}
	}
	a.memory.dma[d] = struct{}{}
	return d, nil
}

// makeDma makes memory for the device, zeroed.
func (a *Adapter) makeDma(sizeBytes int) (*DmaMemory, error) {
	if sizeBytes < 1 || sizeBytes > dma.MaxMapBytes {
		return nil, fmt.Errorf("port: DMA memory of %d bytes: want 1 to %d", sizeBytes, dma.MaxMapBytes)
	}
	iommu := a.sys.iommu
	w, err := iommu.NewWindow(nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoResources, err)
	}
	b := iommu.Arena().Alloc(sizeBytes)
	if b == nil {
		iommu.FreeWindow(w)
		return nil, ErrNoResources
	}
	clear(b)
	return &DmaMemory{Bytes: b, Addr: iommu.Map(w, b, dma.Read|dma.Write), window: w}, nil
}

// FreeDmaMemory gives back what AllocateDmaMemory returned. The device must be
// done with it.
//
// Level: up to Dispatch.
// Source: storport.h StorPortFreeDmaMemory.
func (a *Adapter) FreeDmaMemory(p *Processor, d *DmaMemory) {
	p.check(routineAllocateDmaMemory)
	a.memory.mu.Lock()
	_, ok := a.memory.dma[d]
	delete(a.memory.dma, d)
	a.memory.mu.Unlock()
	if !ok {
		if p.verify {
			p.violate(CheckCallingPlace, nil, "FreeDmaMemory of memory that is not allocated")
		}
		return
	}
	a.returnDma(d)
}

// returnDma undoes makeDma.
func (a *Adapter) returnDma(d *DmaMemory) {
	a.sys.iommu.Unmap(d.window)
	a.sys.iommu.FreeWindow(d.window)
	a.sys.iommu.Arena().Free(d.Bytes)
	d.Bytes, d.Addr = nil, 0
}

// releaseMemory takes back what the miniport has not given back.
func (a *Adapter) releaseMemory() {
	m := &a.memory
	m.mu.Lock()
	left, poolBytes := m.dma, m.poolBytes
	m.dma, m.pool, m.poolBytes = nil, nil, 0
	m.mu.Unlock()
	for d := range left {
		a.returnDma(d)
	}
	if len(left) > 0 || poolBytes > 0 {
		a.sys.log.Warn("the miniport left memory behind", "adapter", a.options.Name, "dma_pieces", len(left), "pool_bytes", poolBytes)
	}
}

// GetVirtualAddress is the inverse of GetPhysicalAddress: the memory from addr to the
// end of the uncached extension or, with srb not nil, of srb's extension. Nil: addr lies
// elsewhere.
//
// Level: any.
// Source: storport.h StorPortGetVirtualAddress.
func (a *Adapter) GetVirtualAddress(_ *Processor, srb *SRB, addr dma.Addr) []byte {
	region, base := a.uncached.Bytes, a.uncached.Addr
	if srb != nil {
		region, base = srb.Extension, srb.extAddr
	}
	if base == 0 || addr < base || addr-base >= dma.Addr(len(region)) {
		return nil
	}
	return region[addr-base:]
}

// GetSystemAddress returns srb's data as the processor sees them. It does not fail, as
// data are always mapped here. If the miniport has given the SRB to the device, the
// device may be writing to them.
//
// Level: up to Dispatch.
// Source: storport.h StorPortGetSystemAddress.
func (a *Adapter) GetSystemAddress(p *Processor, srb *SRB) []byte {
	p.check(routineGetSystemAddress)
	if !srb.mapped {
		return nil
	}
	return srb.DataBuffer
}

// A ScatterGatherList is a list for memory of the miniport's own.
type ScatterGatherList struct {
	// Segments is valid from the routine's call to PutScatterGatherList.
	Segments []Segment
	// Context is the miniport's own.
	Context any

	a       *Adapter
	window  dma.Window
	routine func(p *Processor, l *ScatterGatherList)
	dpc     Dpc
	store   [1]Segment
}

// BuildScatterGatherList maps buffer, a piece of DmaMemory or other memory of the
// arena, for the device, and schedules routine to run with the list: when it returns,
// routine has not run yet. direction is FlagDataIn, FlagDataOut or both.
// PutScatterGatherList undoes the mapping.
//
// Level: exactly Dispatch; routine runs at Dispatch, too, with no lock held. Errors:
// wrong level, the list is in use, buffer is empty, too long or not arena memory, no
// direction, no routine, ErrNoResources.
// Source: storport.h StorPortBuildScatterGatherList.
func (a *Adapter) BuildScatterGatherList(p *Processor, l *ScatterGatherList, buffer []byte, direction Flags, routine func(p *Processor, l *ScatterGatherList)) error {
	if err := p.exactlyDispatch("BuildScatterGatherList"); err != nil {
		return err
	}
	access := accessOf(direction)
	switch {
	case l.window != 0:
		return errors.New("port: the scatter/gather list is in use")
	case len(buffer) == 0 || len(buffer) > dma.MaxMapBytes:
		return fmt.Errorf("port: scatter/gather list for %d bytes: want 1 to %d", len(buffer), dma.MaxMapBytes)
	case !a.sys.iommu.Arena().Has(buffer):
		return errors.New("port: scatter/gather list for memory outside of the arena")
	case access == 0:
		return errors.New("port: scatter/gather list without FlagDataIn or FlagDataOut")
	case routine == nil:
		return errors.New("port: scatter/gather list without a routine")
	}
	w, err := a.sys.iommu.NewWindow(nil)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoResources, err)
	}
	l.a, l.window, l.routine = a, w, routine
	l.store[0] = Segment{Addr: a.sys.iommu.Map(w, buffer, access), Bytes: uint32(len(buffer))}
	l.Segments = l.store[:]
	l.dpc.a, l.dpc.routine, l.dpc.Context = a, runListRoutine, l
	a.IssueDpc(p, &l.dpc)
	return nil
}

// runListRoutine is the routine of every list's DPC.
func runListRoutine(p *Processor, d *Dpc) {
	l := d.Context.(*ScatterGatherList)
	l.routine(p, l)
}

// PutScatterGatherList ends what BuildScatterGatherList began. The device must be
// done with the memory. If the list's routine has not begun, it is not called.
//
// Level: exactly Dispatch. Errors: wrong level, a list that is not in use.
// Source: storport.h StorPortPutScatterGatherList.
func (a *Adapter) PutScatterGatherList(p *Processor, l *ScatterGatherList) error {
	if err := p.exactlyDispatch("PutScatterGatherList"); err != nil {
		return err
	}
	if l.window == 0 || l.a != a {
		return errors.New("port: the scatter/gather list is not in use")
	}
	a.CancelDpc(p, &l.dpc)
	a.sys.iommu.Unmap(l.window)
	a.sys.iommu.FreeWindow(l.window)
	l.window, l.Segments = 0, nil
	return nil
}

// exactlyDispatch checks the level of a routine that must be called at Dispatch.
func (p *Processor) exactlyDispatch(routine string) error {
	if p.level == Dispatch {
		return nil
	}
	what := routine + " called at " + p.level.String() + ", want Dispatch"
	if p.verify {
		p.violate(CheckCallingPlace, nil, what)
	}
	return errors.New("port: " + what)
}

// accessOf is what a data direction lets the device do with memory.
func accessOf(direction Flags) dma.Access {
	var access dma.Access
	if direction&FlagDataIn != 0 {
		access |= dma.Write
	}
	if direction&FlagDataOut != 0 {
		access |= dma.Read
	}
	return access
}
