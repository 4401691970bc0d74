package daemon

import (
	"context"
	"log/slog"
	"slices"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/port"
)

// A disk that a rule pulls out goes the way of a disk that is removed: the unit leaves the
// device, the port notices, its export goes, and its connections end. But the disk is kept,
// with its medium and its address, and when the port finds the unit again the export is
// back. To the port, the class driver and clients it is a new unit.

// unitsChanged is called when the port has found new units, or found some gone.
func (d *Daemon) unitsChanged() {
	if d.matching.CompareAndSwap(false, true) {
		go d.matchDisks()
	}
}

// matchDisks brings the disks served into line with the units that are there.
func (d *Daemon) matchDisks() {
	select {
	case d.changing <- struct{}{}:
	case <-d.life.Done():
		return
	}
	defer func() { <-d.changing }()
	d.matching.Store(false) // a later change may not be seen below: it needs another run
	var m *machine
	// A machine that is still being built starts with the units that it finds.
	_ = d.withMachine(func(now *machine) error { m = now; return nil })
	if m == nil || d.life.Err() != nil {
		return
	}
	for _, e := range m.list() {
		lu := m.units.at(e.targetID, e.lun)
		if e.leaving.Load() || lu == e.LogicalUnit() {
			continue
		}
		if !e.unplugged.Load() {
			d.unplugged(m, e)
		}
		if lu != nil {
			d.pluggedIn(m, e, lu)
		}
	}
}

// unplugged ends the connections of a disk whose unit has gone.
func (d *Daemon) unplugged(m *machine, e *export) {
	e.unplugged.Store(true)
	if err := m.publish(m.list()); err != nil {
		d.log.Error("a disk that was unplugged is still on offer", "disk", e.name(), "error", err)
	}
	closed := m.server.Users(e)
	ctx, cancel := context.WithTimeout(d.life, d.Config().Limits.DrainTimeout.Std())
	defer cancel()
	// The number killed says whether time was up.
	killed, _ := m.server.DrainDevice(ctx, e)
	d.log.Warn("disk unplugged, its connections are closed", "disk", e.name(), "connections_closed", closed, "connections_killed", killed)
	d.events.Publish(client.EventDiskUnplugged, e.name(), slog.Int("connections_closed", closed), slog.Int("connections_killed", killed))
}

// pluggedIn serves a disk again, whose unit is now lu.
func (d *Daemon) pluggedIn(m *machine, e *export, lu *port.LogicalUnit) {
	back := e.again()
	err := d.attach(m, back, lu)
	if err == nil {
		disks := slices.Clone(m.list())
		disks[slices.Index(disks, e)] = back
		err = m.publish(disks)
	}
	if err != nil {
		d.log.Error("a disk that was plugged in again cannot be served", "disk", e.name(), "error", err)
		return
	}
	d.log.Info("disk plugged in again", "disk", e.name(), "address", unitAddress(lu))
	d.events.Publish(client.EventDiskPlugged, e.name(), slog.String("address", unitAddress(lu)))
}

// again returns the same disk for another unit of the port's, which attach will set.
// Earlier connections belong to e.
func (e *export) again() *export {
	back := &export{
		medium: e.medium, failures: e.failures, power: e.power, unit: e.unit, device: e.device, targetID: e.targetID, lun: e.lun,
		createdTheFile: e.createdTheFile,
	}
	back.settings.Store(e.config())
	back.fromAPI.Store(e.fromAPI.Load())
	return back
}
