package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/admin"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/port"
)

// A change of what is served takes the hardware's way: a unit is attached to the device or
// removed from it, the device raises its event message, the miniport reports a bus change,
// and the port enumerates. Only then does the daemon make a disk of the unit and publish
// its export, all at once. A removal goes the same way backwards, beginning with the
// export: first no new client can use it, then the present ones end, then the disk is
// flushed through the whole stack, and then the unit goes.
//
// Only one change is made at a time.

// unitTimeout is how long the port may take to see a unit come or go.
const unitTimeout = 30 * time.Second

// beginChange waits for its turn to change what is served. The context that it returns also
// ends with the daemon; end passes the turn on.
func (d *Daemon) beginChange(ctx context.Context) (changing context.Context, m *machine, end func(), err error) {
	gone := func() error {
		return admin.Unavailable("the daemon is %s: want one that is ready", state(d.state.Load()))
	}
	select {
	case d.changing <- struct{}{}:
	case <-d.life.Done():
		return nil, nil, nil, gone()
	case <-ctx.Done():
		return nil, nil, nil, ctx.Err()
	}
	d.mu.RLock()
	m = d.machine
	d.mu.RUnlock()
	if m == nil || !d.Ready() {
		<-d.changing
		return nil, nil, nil, gone()
	}
	changing, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(d.life, cancel)
	return changing, m, func() {
		stop()
		cancel()
		d.refreshFaults()
		<-d.changing
	}, nil
}

// Disks implements admin.Disks.
func (d *Daemon) Disks() []client.Disk { return d.Status().Disks }

// diskNow returns what the API says about one disk.
func (d *Daemon) diskNow(name string) client.Disk {
	disks := d.Disks()
	if i := slices.IndexFunc(disks, func(x client.Disk) bool { return x.Name == name }); i >= 0 {
		return disks[i]
	}
	return client.Disk{Name: name}
}

// configs returns the configurations of disks.
func configs(disks []*export) []config.Disk {
	out := make([]config.Disk, len(disks))
	for i, e := range disks {
		out[i] = *e.config()
	}
	return out
}

// AddDisk implements admin.Disks.
func (d *Daemon) AddDisk(ctx context.Context, name string, spec client.DiskSpec) (client.Disk, error) {
	c := diskConfig(name, &spec)
	ctx, m, end, err := d.beginChange(ctx)
	if err != nil {
		return client.Disk{}, err
	}
	defer end()
	if spec.File != "" && !filepath.IsAbs(spec.File) {
		return client.Disk{}, admin.Invalid("disk %q: file %q: want an absolute path", name, spec.File)
	}
	if spec.Trace != "" && !filepath.IsAbs(spec.Trace) {
		return client.Disk{}, admin.Invalid("disk %q: trace %q: want an absolute path", name, spec.Trace)
	}
	alone, err := d.Config().WithDisks([]config.Disk{c})
	if err != nil {
		return client.Disk{}, admin.Invalid("%v", err)
	}
	if c = alone.Disks[0]; c.Memory > media.MaxMemoryBytes {
		return client.Disk{}, admin.Invalid("disk %q: memory of %d bytes: want at most %d", name, int64(c.Memory), int64(media.MaxMemoryBytes))
	}
	if e := m.find(name); e != nil {
		switch {
		case e.leaving.Load():
			return client.Disk{}, admin.Conflict("disk %q: one of this name is still being removed", name)
		case !sameDisk(e.config(), &c):
			return client.Disk{}, admin.Conflict("disk %q: there is one of this name already, which is %s: remove it first or choose another name", name, e.config())
		}
		return d.diskNow(name), nil
	}
	if _, err := d.Config().WithDisks(append(configs(m.list()), c)); err != nil {
		return client.Disk{}, admin.Conflict("%v", err)
	}
	if err := d.add(ctx, m, &c); err != nil {
		return client.Disk{}, err
	}
	return d.diskNow(name), nil
}

// add adds a disk for the API and publishes it, or leaves everything as it was.
func (d *Daemon) add(ctx context.Context, m *machine, c *config.Disk) error {
	e, err := d.bring(ctx, m, c, true)
	if err != nil {
		return err
	}
	if err := m.publish(append(slices.Clone(m.list()), e)); err != nil {
		return errors.Join(err, d.takeBack(m, e))
	}
	d.tellAdded(e)
	return nil
}

func (d *Daemon) tellAdded(e *export) {
	c := e.config()
	d.log.Info("disk added", "disk", c.Name, "address", unitAddress(e.LogicalUnit()), "backend", c.Backend(), "size_bytes", e.SizeBytes())
	d.events.Publish(client.EventDiskAdded, c.Name, slog.String("address", unitAddress(e.LogicalUnit())),
		slog.String("backend", c.Backend()), slog.Uint64("size_bytes", e.SizeBytes()), slog.String("origin", string(e.origin())))
}

// bring makes a disk that is ready to be published. If it fails, nothing of the disk is
// left.
func (d *Daemon) bring(ctx context.Context, m *machine, c *config.Disk, fromAPI bool) (*export, error) {
	e, err := d.openDisk(ctx, m, c)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, unitTimeout)
	defer cancel()
	e.fromAPI.Store(fromAPI)
	if err := m.place(e); err != nil {
		return nil, errors.Join(fmt.Errorf("disk %q: %w", c.Name, err), d.discard(m, e))
	}
	lu, err := m.units.wait(ctx, e.targetID, e.lun, true)
	if err != nil {
		err = fmt.Errorf("disk %q: the port has not found its unit: %w", c.Name, err)
	} else {
		err = d.attach(m, e, lu)
	}
	if err != nil {
		return nil, errors.Join(err, d.takeBack(m, e))
	}
	d.meetFaults(e)
	return e, nil
}

// takeBack undoes bring.
func (d *Daemon) takeBack(m *machine, e *export) error {
	ctx, cancel := context.WithTimeout(d.life, unitTimeout)
	defer cancel()
	if err := d.detach(ctx, m, e); err != nil {
		return err
	}
	return d.discard(m, e)
}

// discard closes a medium that was opened in vain, and removes its file if that was created
// in vain.
func (d *Daemon) discard(m *machine, e *export) error {
	err := m.media.close(e.medium)
	if e.createdTheFile && err == nil {
		d.removeMade(e.config())
	}
	return err
}

// detach removes a unit from the device and waits until the port has seen it go and no
// command runs on it.
//
// Errors: that has not happened in time. The unit's address then stays taken, and the
// medium open, until it has.
func (d *Daemon) detach(ctx context.Context, m *machine, e *export) error {
	idle := make(chan error, 1)
	go func() {
		err := m.device.RemoveUnit(d.life, e.targetID, e.lun)
		if err == nil {
			_, err = m.units.wait(d.life, e.targetID, e.lun, false)
		}
		if err == nil {
			m.free(e)
		}
		idle <- err
	}()
	select {
	case err := <-idle:
		return err
	case <-ctx.Done():
	}
	go func() {
		if <-idle == nil {
			err := m.media.close(e.medium)
			d.log.Info("the medium of a disk that was removed is closed now", "disk", e.name(), logged(err))
		}
	}()
	return fmt.Errorf("disk %q: commands still run on its medium, which stays open until they end: %w", e.name(), ctx.Err())
}

// RemoveDisk implements admin.Disks.
func (d *Daemon) RemoveDisk(ctx context.Context, name string, o client.RemoveOptions) (client.DiskRemoval, error) {
	ctx, m, end, err := d.beginChange(ctx)
	if err != nil {
		return client.DiskRemoval{}, err
	}
	defer end()
	e := m.find(name)
	if e == nil {
		return client.DiskRemoval{}, admin.NoDisk(name)
	}
	limit := o.DrainTimeout
	if limit == 0 {
		limit = d.Config().Limits.DrainTimeout.Std()
	}
	return d.remove(ctx, m, e, o.Force, limit)
}

// remove removes a disk. Unless forced, it leaves the disk alone if removing it would do
// harm.
func (d *Daemon) remove(ctx context.Context, m *machine, e *export, force bool, limit time.Duration) (client.DiskRemoval, error) {
	return d.removeWithin(ctx, m, e, force, limit, unitTimeout)
}

// removeWithin is remove, with a limit on the time that the port and the device have to let
// go.
func (d *Daemon) removeWithin(ctx context.Context, m *machine, e *export, force bool, limit, unitLimit time.Duration) (client.DiskRemoval, error) {
	r := client.DiskRemoval{Name: e.name()}
	var err error
	hide := func() {
		e.leaving.Store(true)
		err = m.publish(m.list())
	}
	if force {
		hide()
	} else if n := m.server.Unused(e, hide); n > 0 {
		return r, admin.Conflict("disk %q: %d clients use it: --force (force=true) ends their connections", r.Name, n)
	}
	if err != nil {
		e.leaving.Store(false)
		return r, err
	}
	if force {
		gone, err := d.vacate(ctx, m, e, limit, unitLimit)
		return d.removed(m, e, gone, err)
	}
	flush, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := m.flushOne(flush, e); err != nil {
		e.leaving.Store(false)
		return r, errors.Join(admin.Conflict("disk %q: cannot be flushed, and is served as before: %v: --force (force=true) removes it all the same", r.Name, err), m.publish(m.list()))
	}
	return d.removed(m, e, r, d.leave(ctx, m, e, unitLimit))
}

// vacate ends the connections of a disk that is no longer published, flushes it, and
// removes its unit. When ctx ends, because the daemon stops, the connections get no more
// time, but the flush does: nobody would do it later.
func (d *Daemon) vacate(ctx context.Context, m *machine, e *export, limit, unitLimit time.Duration) (client.DiskRemoval, error) {
	r := client.DiskRemoval{Name: e.name(), ConnectionsClosed: m.server.Users(e)}
	drain, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	// The number killed says whether time was up.
	r.ConnectionsKilled, _ = m.server.DrainDevice(drain, e)
	flush, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	if err := m.flushOne(flush, e); err != nil {
		r.FlushError = err.Error()
	}
	return r, d.leave(ctx, m, e, unitLimit)
}

// leave removes a disk's unit and closes its medium.
//
// Errors: a command still runs on the unit; the medium is then closed when the command has
// ended.
func (d *Daemon) leave(ctx context.Context, m *machine, e *export, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := d.detach(ctx, m, e); err != nil {
		return err
	}
	// The sessions of killed connections end with their last command. They cannot reach the
	// medium any more.
	_, err := m.server.DrainDevice(ctx, e)
	if err != nil {
		err = fmt.Errorf("disk %q: its connections have not ended: %w", e.name(), err)
	}
	e.failures.end()
	return errors.Join(err, m.media.close(e.medium))
}

// removed deletes a disk that has left from the list, and reports that it is gone.
func (d *Daemon) removed(m *machine, e *export, r client.DiskRemoval, err error) (client.DiskRemoval, error) {
	err = errors.Join(err, m.publish(slices.DeleteFunc(slices.Clone(m.list()), func(x *export) bool { return x == e })))
	d.tellRemoved(m, &r, err)
	return r, err
}

func (d *Daemon) tellRemoved(m *machine, r *client.DiskRemoval, err error) {
	m.server.Forget(r.Name)
	d.log.Info("disk removed", "disk", r.Name, "connections_closed", r.ConnectionsClosed, "connections_killed", r.ConnectionsKilled, "flush_error", r.FlushError, logged(err))
	d.events.Publish(client.EventDiskRemoved, r.Name, slog.Int("connections_closed", r.ConnectionsClosed),
		slog.Int("connections_killed", r.ConnectionsKilled), slog.String("flush_error", r.FlushError))
}

// flushOne makes one disk durable. It gives up when ctx ends; if a medium hangs, the
// goroutine that waits for it stays behind.
func (m *machine) flushOne(ctx context.Context, e *export) error {
	done := make(chan error, 1)
	go func() { done <- m.onProcessor("flush", e.flush) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("not done in time: %w", ctx.Err())
	}
}

// GrowDisk implements admin.Disks.
func (d *Daemon) GrowDisk(ctx context.Context, name string, sizeBytes int64) (client.Disk, error) {
	_, m, end, err := d.beginChange(ctx)
	if err != nil {
		return client.Disk{}, err
	}
	defer end()
	e := m.find(name)
	if e == nil {
		return client.Disk{}, admin.NoDisk(name)
	}
	if err := d.grow(m, e, sizeBytes); err != nil {
		return client.Disk{}, err
	}
	return d.diskNow(name), nil
}

// grow makes a disk larger: first the medium, then the unit, which raises a unit attention,
// then the port's view of it, by READ CAPACITY.
func (d *Daemon) grow(m *machine, e *export, sizeBytes int64) error {
	c, was := *e.config(), e.SizeBytes()
	switch {
	case e.unplugged.Load():
		return admin.Conflict("disk %q: is unplugged", c.Name)
	case sizeBytes < int64(was):
		return admin.Invalid("disk %q: size %s: want at least the present size, %s: disks do not shrink", c.Name, config.Size(sizeBytes), config.Size(was))
	case sizeBytes%int64(c.BlockSize) != 0:
		return admin.Invalid("disk %q: size %s: want a multiple of the block size, %d", c.Name, config.Size(sizeBytes), c.BlockSize)
	case c.ReadOnly && sizeBytes > int64(was):
		return admin.Conflict("disk %q: is read-only", c.Name)
	case c.File == "" && sizeBytes > media.MaxMemoryBytes:
		return admin.Invalid("disk %q: size %s: want at most %s of a disk in memory", c.Name, config.Size(sizeBytes), config.Size(media.MaxMemoryBytes))
	case sizeBytes == int64(was):
		return nil
	}
	if err := e.unit.Resize(sizeBytes); err != nil {
		return fmt.Errorf("disk %q: %w", c.Name, err)
	}
	if err := m.onProcessor("rescan", func(p *port.Processor) error { return e.Rescan(p) }); err != nil {
		return fmt.Errorf("disk %q: it has grown, but the port has not seen it: %w", c.Name, err)
	}
	d.log.Info("disk grown", "disk", c.Name, "size_bytes", sizeBytes, "was_bytes", was)
	d.events.Publish(client.EventDiskGrown, c.Name, slog.Int64("size_bytes", sizeBytes), slog.Uint64("was_bytes", was))
	return nil
}
