package daemon

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/admin"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/metrics"
	"github.com/vhbad/vhbad/hba/fault"
	"github.com/vhbad/vhbad/port"
)

// faults are the daemon's rules. The device has the compiled ones.
type faults struct {
	mu sync.Mutex // serialises changes; before Daemon.mu
	// +checklocks:mu
	rules []fault.Rule
	// ended is set once the daemon stops: nothing misbehaves any more.
	// +checklocks:mu
	ended bool
	// coming are disks that are not in the machine's list yet, but are already covered by
	// the rules.
	// +checklocks:mu
	coming []*export
}

// errNoMachine is the answer while there is no machine: before the disks are there, and
// once they are being taken down.
func errNoMachine() error { return admin.Unavailable("the daemon starts or stops: try again") }

// withMachine calls fn while the machine is sure to stay. fn must not take long.
func (d *Daemon) withMachine(fn func(m *machine) error) error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.machine == nil {
		return errNoMachine()
	}
	return fn(d.machine)
}

// startFaults puts the configuration's rules into force.
func (d *Daemon) startFaults() error {
	d.faults.mu.Lock()
	defer d.faults.mu.Unlock()
	return d.setFaultsLocked(slices.Clone(d.o.Config.Faults))
}

// endFaults ends all rules for good, so that a daemon that stops waits for nothing that a
// rule holds.
func (d *Daemon) endFaults() {
	d.faults.mu.Lock()
	defer d.faults.mu.Unlock()
	d.faults.ended = true
	// No rules cannot be wrong rules; and without a machine there are none.
	_ = d.setFaultsLocked(nil)
}

// meetFaults makes a disk subject to the rules before it is on offer. At the end of the
// change the disk is in the machine's list, or it was taken back; rules that do not fit
// then end (refreshFaults).
func (d *Daemon) meetFaults(e *export) {
	d.faults.mu.Lock()
	defer d.faults.mu.Unlock()
	d.faults.coming = append(d.faults.coming, e)
	if !d.faults.ended && len(d.faults.rules) != 0 {
		_ = d.setFaultsLocked(slices.Clone(d.faults.rules))
	}
}

// refreshFaults compiles the rules anew for the present disks, at the end of a change.
// Rules for a disk that is gone end, as do the rules that come after them.
func (d *Daemon) refreshFaults() {
	d.faults.mu.Lock()
	defer d.faults.mu.Unlock()
	d.faults.coming = nil
	if d.faults.ended || len(d.faults.rules) == 0 {
		return
	}
	rules := slices.Clone(d.faults.rules)
	gone := func(r fault.Rule) bool {
		after := r.Match.AfterRule
		return after != "" && !slices.ContainsFunc(rules, func(other fault.Rule) bool { return other.Name == after })
	}
	_ = d.withMachine(func(m *machine) error {
		rules = slices.DeleteFunc(rules, func(r fault.Rule) bool { return r.Disk != "" && m.find(r.Disk) == nil })
		return nil
	})
	for {
		for slices.ContainsFunc(rules, gone) {
			rules = slices.DeleteFunc(slices.Clone(rules), gone)
		}
		err := d.setFaultsLocked(slices.Clone(rules))
		if err == nil {
			return
		}
		// For example, its range may be too long for the state that it keeps for each block
		// of a new disk.
		wrong, ok := errors.AsType[*fault.RuleError](err)
		if !ok {
			return // the machine is gone
		}
		d.log.Error("a fault is not in force any more: it does not fit the disks", "rule", wrong.Rule, "error", err)
		rules = slices.DeleteFunc(rules, func(r fault.Rule) bool { return r.Name == wrong.Rule })
	}
}

// setFaultsLocked puts rules into force, all or none, and tells of those that come
// and go by that.
//
// +checklocks:d.faults.mu
func (d *Daemon) setFaultsLocked(rules []fault.Rule) error {
	var was, s *fault.Set
	coming := d.faults.coming
	err := d.withMachine(func(m *machine) (err error) {
		was = m.device.Faults()
		s, err = fault.NewSet(fault.Config{
			Rules: rules, Units: faultUnits(m, coming), Hostile: d.o.Config.Hostile, Now: m.device.Now(), Old: was, OnFire: d.faultFired,
		})
		if err != nil {
			return err
		}
		for _, f := range comers(was, s) { // before a command can meet them
			r := f.Rule()
			d.events.Publish(client.EventFaultSet, r.Disk,
				slog.String("rule", r.Name), slog.String("kind", string(r.Action.Kind)), slog.Bool("hostile", r.Hostile), slog.Uint64("seed", r.Seed))
		}
		m.injected.Replace(was, s, func() { m.device.SetFaults(s) })
		return nil
	})
	if err != nil {
		return err
	}
	d.faults.rules = s.Rules()
	for _, f := range comers(was, s) {
		r := f.Rule()
		d.log.Info("fault in force", "rule", r.Name, "kind", string(r.Action.Kind), "disk", r.Disk, "hostile", r.Hostile, "seed", r.Seed)
	}
	for _, f := range was.Faults() {
		r, fired := f.Rule(), f.Stats().Fired
		if d.faults.ended || s.Fault(r.Name) != nil {
			continue // the daemon stops with all its rules, or another rule has replaced it
		}
		d.log.Info("fault removed", "rule", r.Name, "fired", fired)
		d.events.Publish(client.EventFaultRemoved, r.Disk, slog.String("rule", r.Name), slog.Uint64("fired", fired))
	}
	return nil
}

// comers returns the rules of a set that were not already in force in the same form.
func comers(was, is *fault.Set) (out []*fault.Fault) {
	for _, f := range is.Faults() {
		if was.Fault(f.Rule().Name) != f {
			out = append(out, f)
		}
	}
	return out
}

// faultUnits returns the units of the disks, as rules see them, including disks that are
// being added. The device knows which of them it has.
func faultUnits(m *machine, coming []*export) []fault.Unit {
	disks := slices.Clone(m.list())
	for _, e := range coming {
		if !slices.Contains(disks, e) {
			disks = append(disks, e)
		}
	}
	var out []fault.Unit
	for _, e := range disks {
		c := e.config()
		out = append(out, fault.Unit{
			Disk: c.Name, Target: e.targetID, Lun: e.lun, BlockBytes: uint32(c.BlockSize), PowerSwitch: e.power.cache != nil,
			Blocks: uint64(e.medium.Size()) / uint64(c.BlockSize), // not the capacity that a rule may have it report
		})
	}
	return out
}

// faultFired reports a fault that a command has met. It runs on the device's path, at most
// a few times a second for each rule.
func (d *Daemon) faultFired(f fault.Firing) {
	r, c := f.Fault.Rule(), &f.Command
	fields := []slog.Attr{
		slog.String("rule", r.Name), slog.String("kind", string(r.Action.Kind)), slog.String("class", f.Fault.Class()),
		slog.String("op", c.Op.String()), slog.Uint64("tag", uint64(c.Tag)), slog.Uint64("seed", r.Seed), slog.Uint64("times", f.Times),
	}
	if c.Ranged {
		fields = append(fields, slog.Uint64("lba", c.LBA), slog.Uint64("blocks", c.Blocks))
	}
	d.events.Publish(client.EventFault, f.Disk, fields...)
	if f.First {
		// Writing the log may take time, so it is not done here; it happens once for each
		// rule.
		go d.log.LogAttrs(context.Background(), slog.LevelWarn, "fault injected; more of this rule are events only",
			append([]slog.Attr{slog.String("disk", f.Disk)}, fields...)...)
	}
}

// disconnect closes the connections of the disk at an address.
func (m *machine) disconnect(targetID, lun uint8) {
	if e := m.exportAt(targetID, lun); e != nil {
		m.server.Drop(e.name())
	}
}

// Faults implements admin.Faults.
func (d *Daemon) Faults() (client.Faults, error) {
	out := client.Faults{HostileAllowed: d.o.Config.Hostile, Faults: []client.Fault{}}
	err := d.withMachine(func(m *machine) error {
		s := m.device.Faults()
		for _, f := range s.Faults() {
			out.Faults = append(out.Faults, faultStatus(m, s, f))
		}
		return nil
	})
	return out, err
}

func faultStatus(m *machine, s *fault.Set, f *fault.Fault) client.Fault {
	n := f.Stats()
	return client.Fault{
		Rule: *f.Rule(), State: string(s.State(f, m.device.Now())), Hostile: f.Hostile(),
		Matched: n.Matched, Fired: n.Fired, LeftOut: n.LeftOut, Held: n.Held,
	}
}

// Fault implements admin.Faults.
func (d *Daemon) Fault(name string) (out client.Fault, err error) {
	err = d.withMachine(func(m *machine) error {
		s := m.device.Faults()
		f := s.Fault(name)
		if f == nil {
			return noFault(name)
		}
		out = faultStatus(m, s, f)
		return nil
	})
	return out, err
}

func noFault(name string) error {
	return admin.NotFound("no fault %q: `vhbad fault list` shows those in force", name)
}

// PutFault implements admin.Faults.
func (d *Daemon) PutFault(r client.FaultRule) (client.Fault, error) {
	d.faults.mu.Lock()
	defer d.faults.mu.Unlock()
	if d.faults.ended {
		return client.Fault{}, errNoMachine()
	}
	rules := slices.Clone(d.faults.rules)
	if i := slices.IndexFunc(rules, func(old fault.Rule) bool { return old.Name == r.Name }); i >= 0 {
		rules[i] = r
	} else {
		rules = append(rules, r)
	}
	if err := d.setFaultsLocked(rules); err != nil {
		return client.Fault{}, faultProblem(err)
	}
	return d.Fault(r.Name)
}

// faultProblem turns a rule's error into one for a client.
func faultProblem(err error) error {
	switch {
	case errors.Is(err, fault.ErrHostile):
		return admin.Conflict("%v", err)
	case isRuleError(err):
		return admin.Invalid("%v", err)
	}
	return err
}

func isRuleError(err error) bool {
	_, ok := errors.AsType[*fault.RuleError](err)
	return ok
}

// RemoveFault implements admin.Faults.
func (d *Daemon) RemoveFault(name string) error {
	d.faults.mu.Lock()
	defer d.faults.mu.Unlock()
	i := slices.IndexFunc(d.faults.rules, func(r fault.Rule) bool { return r.Name == name })
	if i < 0 {
		return noFault(name)
	}
	for _, r := range d.faults.rules {
		if r.Match.AfterRule == name {
			return admin.Conflict("fault %q: fault %q comes after it: remove that first", name, r.Name)
		}
	}
	if err := d.setFaultsLocked(slices.Delete(slices.Clone(d.faults.rules), i, i+1)); err != nil {
		return faultProblem(err)
	}
	return nil
}

// ReleaseFault implements admin.Faults.
func (d *Daemon) ReleaseFault(name string, count int) (released int, err error) {
	err = d.withMachine(func(m *machine) error {
		f := m.device.Faults().Fault(name)
		if f == nil {
			return noFault(name)
		}
		released = m.device.ReleaseHeld(f, count)
		d.events.Publish(client.EventFaultReleased, f.Rule().Disk, slog.String("rule", name), slog.Int("released", released))
		return nil
	})
	return released, err
}

// SetMark implements admin.Faults.
func (d *Daemon) SetMark(text string) (rules int, err error) {
	err = d.withMachine(func(m *machine) error {
		d.events.Publish(client.EventMark, "", slog.String("text", text))
		for _, e := range m.list() {
			e.power.trace.mark(text) // before anything that the mark may cause
		}
		rules = m.device.Mark(text)
		return nil
	})
	return rules, err
}

// ResetDisk implements admin.Faults.
func (d *Daemon) ResetDisk(name string, level client.ResetLevel) error {
	levels := map[client.ResetLevel]port.ResetLevel{
		client.ResetLun: port.ResetUnit, client.ResetTarget: port.ResetTarget, client.ResetBus: port.ResetBus,
	}
	var m *machine
	var e *export
	err := d.withMachine(func(now *machine) error {
		if m, e = now, now.find(name); e == nil {
			return admin.NoDisk(name)
		}
		return nil
	})
	if err != nil {
		return err
	}
	// A reset takes its time; an adapter that is gone reports that.
	err = m.onProcessor("reset", func(p *port.Processor) error {
		return m.adapter.ResetNow(p, e.LogicalUnit(), levels[level])
	})
	if err != nil {
		return admin.Conflict("disk %q: %v", name, err)
	}
	return nil
}

// faultSnapshot returns the metrics of the rules in force.
func (m *machine) faultSnapshot() (out []metrics.Fault) {
	s := m.device.Faults()
	for _, f := range s.Faults() {
		r := f.Rule()
		out = append(out, metrics.Fault{Rule: r.Name, Class: f.Class(), State: string(s.State(f, m.device.Now())), Held: f.Stats().Held})
	}
	return out
}
