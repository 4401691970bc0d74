package daemon

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
	"github.com/vhbad/vhbad/hba"
	"github.com/vhbad/vhbad/hba/fault"
	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/miniport"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/port"
)

// spareProcessors are processors for the port's services and for operations of the daemon.
const spareProcessors = 64

// machine is everything between the media and the NBD server.
type machine struct {
	arena   *dma.Arena
	iommu   *dma.IOMMU
	device  *hba.Device
	system  *port.System
	driver  *miniport.Driver
	adapter *port.Adapter
	exports *nbd.ExportSet
	server  *nbd.Server
	units   unitWatch
	cuts    *cuts

	// disks is replaced as a whole, by the holder of Daemon.changing.
	disks atomic.Pointer[[]*export]
	// addresses are those in use, by target and unit.
	// +checklocks:addressMu
	addresses [config.MaxDisks]bool
	addressMu sync.Mutex
	// media are the media of all disks that are open.
	media mediaSet

	// injected counts what fault rules have done, including rules that are gone.
	injected fault.Tally

	// statsMu allows one snapshot at a time: each needs a processor.
	statsMu sync.Mutex
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
	m := &machine{cuts: newCuts(), units: unitWatch{tell: d.unitsChanged}}
	m.disks.Store(&[]*export{})
	for _, start := range []func(*machine) error{func(m *machine) error { return d.openDisks(ctx, m) }, d.startDevice, d.startAdapter, d.attachDisks} {
		if err := start(m); err != nil {
			return nil, err
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	var err error
	if m.exports, err = nbd.NewExportSet(exportList(m.list())...); err != nil {
		return nil, err
	}
	l := &d.o.Config.Limits
	m.server = &nbd.Server{
		Exports: m.exports,
		Arena:   m.arena,
		Limits: nbd.Limits{
			MaxConnections: l.Connections, MaxConnectionsPerPeer: l.ConnectionsPerPeer, MaxConnectionRate: l.ConnectionRate,
			MaxRequests: l.Requests, MaxBytesInFlight: int(l.BytesInFlight), MaxPayloadBytes: int(l.Payload),
			MaxOptions: l.Options, MaxOptionBytes: int(l.OptionBytes),
			HandshakeTimeout: l.HandshakeTimeout.Std(), ReplyTimeout: l.ReplyTimeout.Std(), IdleTimeout: l.IdleTimeout.Std(),
		},
		Replies: replies(d.o.Config.Replies), CopyReads: d.o.Config.CopyReads,
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
	if err := d.startFaults(); err != nil {
		return nil, fmt.Errorf("faults: %w", err)
	}
	return m, nil
}

func (d *Daemon) setMachine(m *machine) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.machine = m
}

func replies(r config.Replies) nbd.Replies {
	switch r {
	case config.RepliesStructured:
		return nbd.RepliesStructured
	case config.RepliesSimple:
		return nbd.RepliesSimple
	case config.RepliesExtended:
	}
	return nbd.RepliesExtended
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

func (d *Daemon) startDevice(m *machine) error {
	c := d.o.Config
	arena, err := dma.NewArena(int(c.Limits.Memory))
	if err != nil {
		return err
	}
	d.push("memory", func(context.Context) error { return arena.Close() })
	m.arena, m.iommu = arena, dma.NewIOMMU(arena)
	m.device, err = hba.New(hba.Config{
		QueuePairs: c.HBA.Queues, Workers: c.HBA.Workers, IOMMU: m.iommu, Log: d.log, Clock: d.o.Clock,
		OnPowerCut: func(p hba.PowerCut) { d.onPowerCut(m, p) }, OnDisconnect: m.disconnect,
	})
	if err != nil {
		return err
	}
	d.push("device", func(context.Context) error {
		m.device.Close()
		return nil
	})
	for _, e := range m.list() {
		if err := m.place(e); err != nil {
			return fmt.Errorf("disk %q: %w", e.name(), err)
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
			DefaultTimeoutSecs: seconds(c.HBA.SRBTimeout), ResetTimeout: c.HBA.ResetTimeout.Std(),
		})
		return err
	})
	if err != nil {
		return err
	}
	// Always: if time is up this takes only a moment, and it reports which SRBs were stuck.
	d.pushAlways("adapter", func(ctx context.Context) error {
		return m.onProcessor("stop", func(p *port.Processor) error {
			if err := m.adapter.StopContext(ctx, p); err != nil {
				return err
			}
			return m.adapter.RemoveContext(ctx, p)
		})
	})
	m.adapter.OnReset(func(r port.ResetReport) { d.resetDone(m, r) })
	m.adapter.OnUnitsChanged(m.units.update)
	return m.onProcessor("enumerate", m.adapter.Enumerate)
}

func seconds(d config.Duration) uint32 { return uint32(d.Std() / time.Second) }

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

// flush makes all disks durable. It gives up when ctx ends; if a medium hangs, the
// goroutine that waits for it stays behind.
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

// flush makes the disk durable, by SYNCHRONIZE CACHE through the whole stack, or directly
// by its medium if its unit has been unplugged.
func (e *export) flush(p *port.Processor) error {
	switch {
	case e.config().ReadOnly:
		return nil
	case e.unplugged.Load():
		return e.medium.Flush()
	}
	return e.Flush(p)
}

func (m *machine) flushAll() error {
	return m.onProcessor("flush", func(p *port.Processor) error {
		var errs []error
		for _, e := range m.list() {
			if err := e.flush(p); err != nil {
				errs = append(errs, fmt.Errorf("disk %q: %w", e.name(), err))
			}
		}
		return errors.Join(errs...)
	})
}
