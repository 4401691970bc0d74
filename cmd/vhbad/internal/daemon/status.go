package daemon

import (
	"os"
	"slices"
	"time"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/metrics"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/port"
)

// Snapshot implements metrics.Source.
func (d *Daemon) Snapshot() (metrics.Snapshot, bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.machine == nil {
		return metrics.Snapshot{}, false
	}
	s, _ := d.machine.snapshot(d.o.Config.HBA.Verify, d.log.Error)
	s.Hostile = d.o.Config.Hostile
	var reloadErr error
	s.ReloadedAt, reloadErr = d.reloaded.get()
	s.Reloaded = reloadErr == nil
	if d.certificates != nil {
		s.CertificateNotAfter = d.certificates.notAfter()
	}
	return s, true
}

// snapshot returns everything's counters, and the disks in the order of the snapshot's
// Disks.
func (m *machine) snapshot(verify bool, complain func(string, ...any)) (metrics.Snapshot, []*export) {
	m.statsMu.Lock()
	defer m.statsMu.Unlock()
	s := metrics.Snapshot{
		NBD:      m.server.Snapshot(),
		Driver:   m.driver.Stats(),
		Device:   m.device.Stats(),
		Arena:    m.arena.Stats(),
		Windows:  m.iommu.WindowsInUse(),
		Faults:   m.iommu.Faults(),
		Rules:    m.faultSnapshot(),
		Injected: m.injected.Injections(m.device.Faults),
		Verify:   verify,
		Verifier: m.system.Verifier(),
		Stages:   m.adapter.StageTimes(),
		Locks:    m.adapter.Locks(),
	}
	err := m.onProcessor("statistics", func(p *port.Processor) error {
		s.Adapter = m.adapter.Stats(p)
		return nil
	})
	if err != nil {
		complain("no processor for statistics", "error", err)
	}
	disks := m.list()
	for _, e := range disks {
		info, c := e.Info(), e.config()
		s.Disks = append(s.Disks, metrics.Disk{
			Name: c.Name, Backend: c.Backend(), SizeBytes: info.SizeBytes, ReadOnly: info.ReadOnly,
			Unit: e.LogicalUnit().Stats(), Cache: e.power.metrics(m.hostileRule(c.Name)), Trace: e.power.trace.metrics(),
		})
	}
	return s, disks
}

// Status implements admin.Status.
func (d *Daemon) Status() client.Status {
	st := client.Status{
		Version:       d.o.Version,
		PID:           os.Getpid(),
		StartedAt:     d.started.Round(0),
		UptimeSeconds: time.Since(d.started).Seconds(),
		State:         state(d.state.Load()).String(),
		Listeners:     []string{},
		Disks:         []client.Disk{},
		Connections:   []client.Connection{},
	}
	loadedAt, reloadErr := d.reloaded.get()
	st.Configuration = client.Configuration{LoadedAt: loadedAt}
	if reloadErr != nil {
		st.Configuration.ReloadError = reloadErr.Error()
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.machine == nil {
		return st
	}
	snap, disks := d.machine.snapshot(d.o.Config.HBA.Verify, d.log.Error)
	if d.Ready() {
		st.HTTP = d.httpAddr
		st.TLS = d.tlsStatus()
		for _, e := range d.endpoints {
			st.Listeners = append(st.Listeners, e.URI)
		}
	}
	def, _ := d.machine.exports.Lookup("")
	for i, e := range disks {
		st.Disks = append(st.Disks, diskStatus(e, def.Device == e, &snap.Disks[i], &snap.NBD))
	}
	for i := range snap.NBD.Connections {
		c := &snap.NBD.Connections[i]
		phase := "negotiating"
		if c.Transmitting {
			phase = "transmitting"
		}
		st.Connections = append(st.Connections, client.Connection{
			ID: c.ID, Number: int(c.Number), Remote: c.Remote, Export: c.Export, State: phase, InFlight: int(c.InFlight),
			TLS: c.TLS, Replies: c.Replies, Since: c.Since.Round(0), ReceivedBytes: c.ReceivedBytes, SentBytes: c.SentBytes,
		})
	}
	st.Adapter = adapterStatus(d.machine, &snap)
	if d.o.Config.HBA.Interrupts == config.InterruptsSingle { // the driver's choice; the port does not know of it
		st.Adapter.Interrupts = "one message for all queues"
	}
	st.Memory = client.Memory{
		SizeBytes: snap.Arena.SizeBytes, InUseBytes: snap.Arena.InUseBytes, PeakBytes: snap.Arena.PeakBytes, Waiters: snap.Arena.Waiters,
	}
	return st
}

func (d *Daemon) tlsStatus() *client.TLS {
	if d.certificates == nil {
		return nil
	}
	c := &d.o.Config.TLS
	return &client.TLS{Mode: string(c.Mode), VerifyPeer: c.VerifyPeer, NotAfter: d.certificates.notAfter()}
}

func diskStatus(e *export, isDefault bool, disk *metrics.Disk, server *nbd.Stats) client.Disk {
	c, unit := e.config(), &disk.Unit
	out := client.Disk{
		Name: c.Name, Default: isDefault, Description: c.Description, State: e.state(), Origin: e.origin(),
		Backend: c.Backend(), Path: c.File,
		SizeBytes: disk.SizeBytes, BlockBytes: uint32(c.BlockSize), ReadOnly: disk.ReadOnly,
		Address: unitAddress(e.LogicalUnit()),
		Depth:   unit.Depth, Outstanding: unit.Outstanding, Queued: unit.Waiting,
		Hidden: c.Hidden, TLSOnly: c.TLSOnly, Allow: c.Allow, MaxConnections: c.Connections,
		Operations: []client.Operation{},
	}
	var x nbd.ExportStats
	at := slices.IndexFunc(server.Exports, func(x nbd.ExportStats) bool { return x.Name == c.Name })
	if at >= 0 {
		x = server.Exports[at]
	}
	out.Connections = x.Connections
	for op := range nbd.OpCount {
		o := &x.Ops[op]
		c := client.Operation{Op: op.String(), Requests: o.Requests, Errors: o.Errors, Bytes: o.Bytes, InFlight: int64(o.InFlight)}
		if o.Requests > 0 {
			c.MeanSeconds = o.LatencySum.Seconds() / float64(o.Requests)
		}
		out.Operations = append(out.Operations, c)
	}
	return out
}

func adapterStatus(m *machine, snap *metrics.Snapshot) client.Adapter {
	c := m.adapter.Config()
	out := client.Adapter{
		Synchronization: c.SynchronizationModel.String(),
		Interrupts:      c.InterruptSynchronizationMode.String(),
		DMAFaults:       snap.Faults,
		Timeouts:        snap.Adapter.Timeouts,
		Verify:          snap.Verify,
		Queues:          []client.Queue{},
	}
	for _, n := range snap.Adapter.Resets {
		out.Resets += n
	}
	for c := port.CheckDoubleCompletion; int(c) < port.Checks; c++ {
		out.Violations += snap.Verifier.Count(c)
	}
	for i := range snap.Device.Queues {
		q := &snap.Device.Queues[i]
		out.Queues = append(out.Queues, client.Queue{
			Queue: i, Commands: q.Commands, Completions: q.Completions, Interrupts: q.Interrupts,
			Doorbells: q.SubmissionDoorbells, InFlight: int(q.InFlight),
		})
	}
	return out
}
