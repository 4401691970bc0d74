package road

import (
	"cmp"
	"context"
	"errors"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vhbad/vhbad/hba"
	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/hba/target"
	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/internal/lockorder"
	"github.com/vhbad/vhbad/internal/pci"
	"github.com/vhbad/vhbad/miniport"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/port"
	"github.com/vhbad/vhbad/port/disk"
)

// A shape says how a road is built, and lets a test wrap its layers.
type shape struct {
	queues, ringEntries int
	workers             int  // 2 if zero
	strict, fast        bool // fast: without the verifier
	options             miniport.Options
	sizeBytes           int64
	patience            port.AdapterOptions // its time-outs count

	medium   func(*media.Memory) media.Media
	function func(pci.Function) pci.Function
	miniport func(*miniport.Driver) port.Miniport
	device   func(nbd.Device) nbd.Device
}

// A road is the whole stack, serving one disk on a unix socket.
type road struct {
	t      testing.TB
	system *port.System
	arena  *dma.Arena
	iommu  *dma.IOMMU
	path   string
	unit   *target.Unit
	disk   *disk.Disk

	hba     *hba.Device
	driver  *miniport.Driver
	adapter *port.Adapter
	memory  *media.Memory
	server  *nbd.Server
	nexus   atomic.Uint32 // 1
	// faultsAllowed: DMA faults are what the test is about.
	faultsAllowed bool
}

func newRoad(t testing.TB, s shape) *road {
	t.Helper()
	w := &road{t: t, path: filepath.Join(t.TempDir(), "nbd")}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	w.arena, err = dma.NewArena(256 << 20)
	must(err)
	w.iommu = dma.NewIOMMU(w.arena)
	memory, err := media.NewMemory(media.MemoryConfig{SizeBytes: s.sizeBytes})
	must(err)
	var medium media.Media = memory
	if s.medium != nil {
		medium = s.medium(memory)
	}
	device, err := hba.New(hba.Config{QueuePairs: s.queues, Workers: cmp.Or(s.workers, 2), IOMMU: w.iommu})
	must(err)
	unit, err := target.NewUnit(medium, target.Config{Serial: "disk0", BlockBytes: 512, WriteCache: true})
	must(err)
	must(device.AddUnit(0, 0, unit))
	w.unit = unit
	w.system = port.NewSystem(port.SystemConfig{IOMMU: w.iommu, Verify: !s.fast, HoldLimit: time.Minute})
	p, err := w.system.NewProcessor("start")
	must(err)
	o := s.options
	o.Queues, o.RingEntries = s.queues, s.ringEntries
	driver := miniport.New(o)
	var mp port.Miniport = driver
	if s.miniport != nil {
		mp = s.miniport(driver)
	}
	var fn pci.Function = device
	if s.function != nil {
		fn = s.function(device)
	}
	adapter, err := w.system.AddAdapter(p, fn, mp, port.AdapterOptions{
		StrictSegments: s.strict, DefaultTimeoutSecs: s.patience.DefaultTimeoutSecs, ResetTimeout: s.patience.ResetTimeout,
	})
	must(err)
	w.hba, w.driver, w.adapter, w.memory = device, driver, adapter, memory
	must(adapter.Enumerate(p))
	w.nexus.Store(1)
	d, err := disk.Attach(p, adapter.LogicalUnits()[0], disk.Options{Arena: w.arena, Nexus: &w.nexus})
	must(err)
	w.disk = d
	var nd nbd.Device = d
	if s.device != nil {
		nd = s.device(d)
	}
	exports, err := nbd.NewExportSet(nbd.Export{Name: "disk0", Device: nd})
	must(err)
	server := &nbd.Server{Exports: exports, Arena: w.arena}
	w.server = server
	l, err := net.Listen("unix", w.path)
	must(err)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		must(server.Shutdown(context.Background()))
		if err := <-served; !errors.Is(err, nbd.ErrServerClosed) {
			t.Error(err)
		}
		adapter.Remove(p)
		p.Close()
		device.Close()
		must(memory.Close())
		for _, v := range w.system.Verifier().Violations() {
			if w.faultsAllowed && v.Check == port.CheckDMA {
				continue
			}
			t.Errorf("violation: %s", v)
		}
		lockorder.Record(t, w.system.Verifier().LockOrder())
		if n := w.iommu.WindowsInUse(); n != 0 {
			t.Errorf("%d IOMMU windows left", n)
		}
		if n := w.system.ProcessorsInUse(); n != 0 {
			t.Errorf("%d processors left", n)
		}
		if n := w.iommu.Faults(); n != 0 && !w.faultsAllowed {
			t.Errorf("%d DMA faults", n)
		}
		must(w.arena.Close())
	})
	return w
}

// dial connects to the road. The connection is closed when the test ends.
func (w *road) dial() net.Conn {
	w.t.Helper()
	nc, err := net.Dial("unix", w.path)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = nc.Close() })
	return nc
}
