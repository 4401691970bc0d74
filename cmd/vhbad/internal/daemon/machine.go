package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/sandbox"
	"github.com/vhbad/vhbad/hba"
	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/hba/target"
	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/miniport"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/port"
	"github.com/vhbad/vhbad/port/disk"
)

// spareProcessors are for the port's services and for operations of the daemon.
const spareProcessors = 64

// machine is everything between the media and the NBD server.
type machine struct {
	media   []media.Media // by index of Config.Disks
	arena   *dma.Arena
	iommu   *dma.IOMMU
	device  *hba.Device
	system  *port.System
	driver  *miniport.Driver
	adapter *port.Adapter
	exports []*export // by index of Config.Disks
	server  *nbd.Server

	// statsMu has one snapshot at a time: each needs a processor.
	statsMu sync.Mutex
}

// export is a disk under its name. The description is the daemon's to give: a
// unit knows its serial number and no more.
type export struct {
	*disk.Disk
	config *config.Disk
}

var _ nbd.Device = (*export)(nil)

// Info implements nbd.Device.
func (e *export) Info() nbd.Info {
	i := e.Disk.Info()
	i.Description = e.config.Description
	return i
}

// onProcessor runs fn at Passive on a processor of its own.
func (m *machine) onProcessor(name string, fn func(p *port.Processor) error) error {
	p, err := m.system.NewProcessor(name)
	if err != nil {
		return err
	}
	defer p.Close()
	return fn(p)
}

// startMachine builds the machine and publishes it.
func (d *Daemon) startMachine(ctx context.Context) (*machine, error) {
	m := &machine{}
	for _, start := range []func(*machine) error{d.openMedia, d.startDevice, d.startAdapter, d.attachDisks} {
		if err := start(m); err != nil {
			return nil, err
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	set, err := nbd.NewExportSet(exportList(m.exports)...)
	if err != nil {
		return nil, err
	}
	l := &d.o.Config.Limits
	m.server = &nbd.Server{
		Exports: set,
		Arena:   m.arena,
		Limits: nbd.Limits{
			MaxConnections: l.Connections, MaxConnectionsPerPeer: l.ConnectionsPerPeer, MaxConnectionRate: l.ConnectionRate,
			MaxRequests: l.Requests, MaxBytesInFlight: int(l.BytesInFlight), MaxPayloadBytes: int(l.Payload),
			MaxOptions: l.Options, MaxOptionBytes: int(l.OptionBytes),
			HandshakeTimeout: l.HandshakeTimeout.Std(), ReplyTimeout: l.ReplyTimeout.Std(), IdleTimeout: l.IdleTimeout.Std(),
		},
		Log: d.log, Opened: d.connectionOpened, Closed: d.connectionClosed,
	}
	if d.certificates != nil {
		m.server.TLSMode, m.server.TLSConfig = tlsMode(d.o.Config.TLS.Mode), d.certificates.config
	}
	d.setMachine(m)
	d.push("status", func(context.Context) error {
		d.setMachine(nil)
		return nil
	})
	return m, nil
}

func (d *Daemon) setMachine(m *machine) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.machine = m
}

func tlsMode(m config.TLSMode) nbd.TLSMode {
	switch m {
	case config.TLSOptional:
		return nbd.TLSOptional
	case config.TLSRequired:
		return nbd.TLSRequired
	case config.TLSOff:
	}
	return nbd.TLSOff
}

func exportList(exports []*export) []nbd.Export {
	out := make([]nbd.Export, len(exports))
	for i, e := range exports {
		out[i] = nbd.Export{
			Name: e.config.Name, Device: e,
			Hidden: e.config.Hidden, TLSOnly: e.config.TLSOnly, AllowedNames: e.config.Allow, MaxConnections: e.config.Connections,
		}
	}
	return out
}

func (d *Daemon) openMedia(m *machine) error {
	for i := range d.o.Config.Disks {
		c := &d.o.Config.Disks[i]
		open := d.o.OpenMedium
		if open == nil {
			open = openMedium
		}
		md, err := open(c)
		if err != nil {
			return fmt.Errorf("disk %q: %w", c.Name, err)
		}
		m.media = append(m.media, md)
		d.push("medium of disk "+c.Name, func(context.Context) error { return md.Close() })
	}
	return nil
}

func openMedium(c *config.Disk) (media.Media, error) {
	if c.File == "" {
		return media.NewMemory(media.MemoryConfig{SizeBytes: int64(c.Memory)})
	}
	if err := sandbox.Reaches(c.File); err != nil {
		return nil, err
	}
	return media.OpenFile(media.FileConfig{
		Path: c.File, SizeBytes: int64(c.Size), BlockBytes: uint32(c.BlockSize), ReadOnly: c.ReadOnly,
	})
}

// address is where disk i hangs.
func address(i int) (targetID, lun uint8) {
	return uint8(i / config.UnitsPerTarget), uint8(i % config.UnitsPerTarget)
}

func (d *Daemon) startDevice(m *machine) error {
	c := d.o.Config
	arena, err := dma.NewArena(int(c.Limits.Memory))
	if err != nil {
		return err
	}
	d.push("memory", func(context.Context) error { return arena.Close() })
	m.arena, m.iommu = arena, dma.NewIOMMU(arena)
	m.device, err = hba.New(hba.Config{QueuePairs: c.HBA.Queues, Workers: c.HBA.Workers, IOMMU: m.iommu, Log: d.log})
	if err != nil {
		return err
	}
	d.push("device", func(context.Context) error {
		m.device.Close()
		return nil
	})
	for i, md := range m.media {
		dc := &c.Disks[i]
		unit, err := target.NewUnit(md, target.Config{
			Serial: serial(dc.Name), BlockBytes: uint32(dc.BlockSize), ReadOnly: dc.ReadOnly,
			// A file's writes are in the page cache until a flush, and clients
			// know to flush: writing through would cost an fdatasync each.
			WriteCache: true,
		})
		if err != nil {
			return fmt.Errorf("disk %q: %w", dc.Name, err)
		}
		targetID, lun := address(i)
		if err := m.device.AddUnit(targetID, lun, unit); err != nil {
			return fmt.Errorf("disk %q: %w", dc.Name, err)
		}
	}
	return nil
}

func (d *Daemon) startAdapter(m *machine) error {
	c := d.o.Config
	m.system = port.NewSystem(port.SystemConfig{
		IOMMU:         m.iommu,
		MaxProcessors: c.Limits.Connections + c.HBA.Workers + spareProcessors,
		Verify:        c.HBA.Verify,
		HoldLimit:     d.o.HoldLimit,
		OnViolation:   d.violation,
		Log:           d.log,
	})
	m.driver = miniport.New(miniport.Options{
		HalfDuplex: c.HBA.HalfDuplex, Interrupts: interrupts(c.HBA.Interrupts),
		SingleMessage: c.HBA.Interrupts == config.InterruptsSingle, Queues: c.HBA.Queues, Log: d.log,
	})
	err := m.onProcessor("start", func(p *port.Processor) (err error) {
		m.adapter, err = m.system.AddAdapter(p, m.device, m.driver, port.AdapterOptions{
			Name: "hba0", StrictSegments: c.HBA.StrictSegments,
		})
		return err
	})
	if err != nil {
		return err
	}
	// Always: when time is up it takes a moment, and tells which SRBs were stuck.
	d.pushAlways("adapter", func(ctx context.Context) error {
		return m.onProcessor("stop", func(p *port.Processor) error {
			if err := m.adapter.StopContext(ctx, p); err != nil {
				return err
			}
			return m.adapter.RemoveContext(ctx, p)
		})
	})
	m.adapter.OnReset(d.resetDone)
	return m.onProcessor("enumerate", m.adapter.Enumerate)
}

func interrupts(i config.Interrupts) miniport.Interrupts {
	switch i {
	case config.InterruptsAll:
		return miniport.AllMessages
	case config.InterruptsLine:
		return miniport.Line
	case config.InterruptsPerMessage, config.InterruptsSingle:
	}
	return miniport.PerMessage
}

// maxSerialBytes is the longest serial number that a unit takes; see
// target.Config.
const maxSerialBytes = 32

// serial is the serial number of the disk's unit: its name, or a hash of it if
// the name is too long for one or is not ASCII. It does not change from one start
// to the next.
func serial(name string) string {
	foreign := func(r rune) bool { return r < ' ' || r > '~' }
	if len(name) <= maxSerialBytes && !strings.ContainsFunc(name, foreign) {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:maxSerialBytes/2])
}

// attachDisks makes a disk of each unit and finds out whose it is.
func (d *Daemon) attachDisks(m *machine) error {
	disks := d.o.Config.Disks
	m.exports = make([]*export, len(disks))
	index := make(map[string]int, len(disks))
	for i := range disks {
		index[serial(disks[i].Name)] = i
	}
	err := m.onProcessor("attach", func(p *port.Processor) error {
		for _, lu := range m.adapter.LogicalUnits() {
			dk, err := disk.Attach(p, lu, disk.Options{Arena: m.arena, Log: d.log})
			if err != nil {
				return err
			}
			i, ok := index[dk.Serial()]
			if !ok || m.exports[i] != nil {
				return fmt.Errorf("%s: its serial number %q is no disk's, or two units have it", lu, dk.Serial())
			}
			m.exports[i] = &export{Disk: dk, config: &disks[i]}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if i := slices.Index(m.exports, nil); i >= 0 {
		return fmt.Errorf("disk %q: no logical unit with this serial number has been found", disks[i].Name)
	}
	d.push("flush", m.flush)
	return nil
}

// flush makes all disks durable, by SYNCHRONIZE CACHE through the whole stack. It
// gives up when ctx ends; a medium that hangs keeps the goroutine that waits for
// it.
func (m *machine) flush(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- m.flushAll() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%w: what was written last may not be durable", ctx.Err())
	}
}

func (m *machine) flushAll() error {
	return m.onProcessor("flush", func(p *port.Processor) error {
		var errs []error
		for _, e := range m.exports {
			if e.config.ReadOnly {
				continue
			}
			if err := e.Flush(p); err != nil {
				errs = append(errs, fmt.Errorf("disk %q: %w", e.config.Name, err))
			}
		}
		return errors.Join(errs...)
	})
}
