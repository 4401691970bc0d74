package miniport_test

import (
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vhbad/vhbad/hba"
	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/hba/target"
	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/miniport"
	"github.com/vhbad/vhbad/port"
	"github.com/vhbad/vhbad/port/porttest"
)

// A gatedMedia is a memory medium whose calls wait while it is closed. Open, it
// never waits, so that the device runs commands where they were rung.
type gatedMedia struct {
	*media.Memory
	closed atomic.Bool
	mu     sync.RWMutex // locked while closed
}

// NeverBlocks implements media.NeverBlocker.
func (*gatedMedia) NeverBlocks() bool { return false }

// Supports implements media.Supporter: only what waits at the gate.
func (*gatedMedia) Supports(a media.Ability) bool {
	return a == media.AbilityTryRead || a == media.AbilityTryWrite
}

func (m *gatedMedia) ReadAt(p []byte, off int64) (int, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.Memory.ReadAt(p, off)
}

func (m *gatedMedia) WriteAt(p []byte, off int64) (int, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.Memory.WriteAt(p, off)
}

func (m *gatedMedia) TryReadAt(p []byte, off int64) (bool, error) {
	if m.closed.Load() {
		return false, nil
	}
	return m.Memory.TryReadAt(p, off)
}

func (m *gatedMedia) TryWriteAt(p []byte, off int64) (bool, error) {
	if m.closed.Load() {
		return false, nil
	}
	return m.Memory.TryWriteAt(p, off)
}

// shut keeps mu until open.
//
// +checklocksignore: held on return.
func (m *gatedMedia) shut() {
	m.mu.Lock()
	m.closed.Store(true)
}

// +checklocksignore: see shut.
func (m *gatedMedia) open() {
	m.closed.Store(false)
	m.mu.Unlock()
}

// A rig is a device with two units, and the driver for it.
type rig struct {
	device *hba.Device
	driver *miniport.Driver
	media  []*gatedMedia
}

func discard() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// newRig builds a device and a driver; they end with the test.
func newRig(t testing.TB, iommu *dma.IOMMU, o miniport.Options, c hba.Config) *rig {
	t.Helper()
	c.IOMMU, c.Log = iommu, discard()
	device, err := hba.New(c)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{device: device, driver: miniport.New(o)}
	t.Cleanup(device.Close)
	for lun := range uint8(2) {
		memory, err := media.NewMemory(media.MemoryConfig{SizeBytes: 64 << 20})
		if err != nil {
			t.Fatal(err)
		}
		m := &gatedMedia{Memory: memory}
		unit, err := target.NewUnit(m, target.Config{Serial: fmt.Sprintf("rig%d", lun), WriteCache: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := device.AddUnit(0, lun, unit); err != nil {
			t.Fatal(err)
		}
		r.media = append(r.media, m)
	}
	t.Cleanup(func() {
		for _, m := range r.media {
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	return r
}

// hold closes the gates of both units.
func (r *rig) hold() (release func()) {
	for _, m := range r.media {
		m.shut()
	}
	return sync.OnceFunc(func() {
		for _, m := range r.media {
			m.open()
		}
	})
}

func (r *rig) subject(strict bool) porttest.Subject {
	return porttest.Subject{
		Function: r.device,
		Miniport: r.driver,
		Options:  port.AdapterOptions{BusyRetryCount: -1, BusyPauseTime: time.Millisecond, StrictSegments: strict},
		Hold:     r.hold,
	}
}

// bring brings a rig up on a machine of its own, on processor p.
func bring(t testing.TB, o miniport.Options) (*porttest.Machine, *rig, *port.Processor, *port.Adapter) {
	t.Helper()
	m := porttest.NewMachine(t, porttest.ArenaBytes)
	r := newRig(t, m.IOMMU, o, hba.Config{})
	p := m.Processor(t, "test")
	return m, r, p, m.Adapter(t, p, r.subject(false))
}
