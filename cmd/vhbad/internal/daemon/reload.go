package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/admin"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/sandbox"
	"github.com/vhbad/vhbad/hba/fault"
)

// A reload reads the configuration again and brings what is served into line with it.
// Everything that can fail comes first: reading, checking, opening media, attaching units,
// opening addresses, giving sockets their owners, and last, because it cannot be undone,
// growing disks. If any of it fails, what has been opened is closed, and the last good
// configuration stays in force. Otherwise the new set of exports is published at once, and
// then whatever has gone is drained and closed.

// The parts of a configuration that a reload can change. Any other difference is an error.
var (
	liveConfig = map[string]bool{"Listen": true, "Disks": true, "LogLevel": true, "ReadOnly": true, "Faults": true}
	liveLimits = map[string]bool{"DrainTimeout": true}
	liveDisk   = map[string]bool{
		"Name": true, "Description": true, "Hidden": true, "TLSOnly": true, "Allow": true, "Connections": true,
		"Memory": true, "Size": true, // which may grow
	}
)

// differences describes the fields, with their values, in which two structures differ,
// except those that live allows to change.
func differences(was, is any, live map[string]bool) []string {
	a, b := reflect.ValueOf(was), reflect.ValueOf(is)
	var out []string
	for i := range a.NumField() {
		f := a.Type().Field(i)
		if live[f.Name] || reflect.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()) {
			continue
		}
		key, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if key == "" {
			key = strings.ToLower(f.Name)
		}
		if f.Type.Kind() == reflect.Struct {
			for _, d := range differences(a.Field(i).Interface(), b.Field(i).Interface(), liveLimits) {
				out = append(out, key+" "+d)
			}
			continue
		}
		out = append(out, fmt.Sprintf("%s from %v to %v", key, show(a.Field(i)), show(b.Field(i))))
	}
	return out
}

// show formats a value as people write it.
func show(v reflect.Value) string {
	if v.Kind() == reflect.String && v.Len() == 0 {
		return "none"
	}
	return fmt.Sprint(v.Interface())
}

// lastReload is the outcome of reading the configuration the last time.
type lastReload struct {
	mu sync.Mutex
	// +checklocks:mu
	err error
	// +checklocks:mu
	goodAt time.Time
}

func (l *lastReload) set(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err = err; err == nil {
		l.goodAt = time.Now().Round(0)
	}
}

func (l *lastReload) get() (goodAt time.Time, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.goodAt, l.err
}

// Config returns the configuration in force. It must not be changed.
func (d *Daemon) Config() *config.Config { return d.current.Load() }

// Reload implements admin.Reload.
func (d *Daemon) Reload(ctx context.Context) (client.Reload, error) {
	if d.o.Reload == nil {
		return client.Reload{}, admin.Conflict("there is nothing to read again: the daemon was started without --config")
	}
	ctx, m, end, err := d.beginChange(ctx)
	if err != nil {
		return client.Reload{}, err
	}
	defer end()
	next, err := readAgain(ctx, d.reading, d.o.Reload)
	var r client.Reload
	if err == nil {
		r, err = d.become(ctx, m, next)
	}
	d.reloaded.set(err)
	if d.o.Reloaded != nil {
		d.o.Reloaded(d, err)
	}
	if err != nil {
		d.log.Error("the configuration is not reloaded: the last good one stays in force", "error", err)
		d.events.Publish(client.EventReloadFailed, "", slog.String("error", err.Error()))
		return client.Reload{}, err
	}
	all := func(names []string) []string { return append([]string{}, names...) } // so that none is an empty list, not null
	d.log.Info("configuration reloaded", "disks_added", all(r.DisksAdded), "disks_removed", all(r.DisksRemoved), "disks_changed", all(r.DisksChanged),
		"listeners_added", all(r.ListenersAdded), "listeners_removed", all(r.ListenersRemoved))
	d.events.Publish(client.EventReloaded, "",
		slog.Int("disks_added", len(r.DisksAdded)), slog.Int("disks_removed", len(r.DisksRemoved)), slog.Int("disks_changed", len(r.DisksChanged)),
		slog.Int("listeners_added", len(r.ListenersAdded)), slog.Int("listeners_removed", len(r.ListenersRemoved)))
	return r, nil
}

// readLimit is how long it may take to read the configuration again.
const readLimit = 10 * time.Second

// readAgain calls read, and gives it up after readLimit or when ctx ends: a file system
// whose server is gone keeps its readers waiting for as long as it likes, and meanwhile
// nothing could be changed, and the daemon could not stop. What was given up goes on, and
// keeps a thread: reading holds a value as long as something reads, and the next waits for
// that within its time.
func readAgain(ctx context.Context, reading chan struct{}, read func() (*config.Config, error)) (*config.Config, error) {
	ctx, cancel := context.WithTimeout(ctx, readLimit)
	defer cancel()
	type outcome struct {
		c   *config.Config
		err error
	}
	done := make(chan outcome, 1)
	select {
	case reading <- struct{}{}:
		go func() {
			c, err := read()
			<-reading
			done <- outcome{c, err}
		}()
	case <-ctx.Done():
	}
	select {
	case o := <-done:
		if o.err != nil {
			return nil, admin.Invalid("%v", o.err)
		}
		return o.c, nil
	case <-ctx.Done():
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return nil, admin.Unavailable("the configuration could not be read within %s: does the file system that it is on answer?", readLimit)
	}
	return nil, admin.Unavailable("the daemon stops, and the configuration has not been read")
}

// A plan says what a reload is to do, and holds what has been made for it.
type plan struct {
	add     []*config.Disk
	change  map[*export]*config.Disk
	grow    map[*export]int64
	remove  []*export
	order   []string // names, as the configuration has them
	open    []config.Address
	reshape []admin.UnixSocket
	shut    []*socket
	// changeFaults is set if the configuration has other rules than before.
	changeFaults bool

	// Set by prepare.
	opened    []*socket
	brought   []*export
	undoShape func() error
}

// plan compares what is served with a configuration.
//
// Errors: everything that would have to change but cannot while it is served.
func (d *Daemon) plan(m *machine, next *config.Config) (*plan, error) {
	var errs []error
	for _, what := range differences(*d.Config(), *next, liveConfig) {
		errs = append(errs, admin.Conflict("%s: cannot change while the daemon runs: restart it, with --takeover if clients are to stay", what))
	}
	p := &plan{change: make(map[*export]*config.Disk), grow: make(map[*export]int64)}
	all := slices.Clone(next.Disks)
	for i := range next.Disks {
		c := &next.Disks[i]
		p.order = append(p.order, c.Name)
		e := m.find(c.Name)
		if e == nil {
			p.add = append(p.add, c)
			continue
		}
		errs = append(errs, p.keep(e, c))
	}
	for _, e := range m.list() {
		switch {
		case slices.Contains(p.order, e.name()) || e.leaving.Load():
		case e.fromAPI.Load():
			all = append(all, *e.config())
		default:
			p.remove = append(p.remove, e)
		}
	}
	// Disks added by the API stay: they must be compatible with the new ones.
	if _, err := next.WithDisks(all); err != nil {
		errs = append(errs, admin.Conflict("with the disks that were added by the API: %v", err))
	}
	if !reflect.DeepEqual(d.Config().Faults, next.Faults) {
		p.changeFaults = true
		names := make([]string, len(all))
		for i := range all {
			names[i] = all[i].Name
		}
		if _, err := fault.CheckRules(d.faultsWith(d.Config().Faults, next.Faults), names, next.Hostile); err != nil {
			errs = append(errs, admin.Conflict("with the faults that were set by the API: %v", err))
		}
	}
	errs = append(errs, p.listeners(d.sockets, d.Config().Listen, next.Listen))
	return p, errors.Join(errs...)
}

// keep plans for a disk that stays.
func (p *plan) keep(e *export, c *config.Disk) error {
	was := e.config()
	if e.leaving.Load() {
		return admin.Conflict("disk %q: one of this name is still being removed", c.Name)
	}
	var errs []error
	for _, what := range differences(*was, *c, liveDisk) {
		errs = append(errs, admin.Conflict("disk %q: %s: cannot change while it is served: remove the disk and add it again, or restart", c.Name, what))
	}
	want, old, now := c.Memory+c.Size, was.Memory+was.Size, config.Size(e.SizeBytes())
	switch {
	case want == 0, want == old, want == now: // it has that size, or may have grown from it
	case want < now:
		errs = append(errs, admin.Conflict("disk %q: size %s: want at least the present one, %s: disks do not shrink", c.Name, want, now))
	case c.ReadOnly:
		errs = append(errs, admin.Conflict("disk %q: size %s: it is read-only, and has %s", c.Name, want, now))
	default:
		p.grow[e] = int64(want)
	}
	if !sameDisk(was, c) || e.fromAPI.Load() {
		p.change[e] = c
	}
	return errors.Join(errs...)
}

// listeners plans for the addresses, given those that the configuration had and has.
func (p *plan) listeners(sockets []*socket, was, is []config.Address) error {
	var errs []error
	left := slices.DeleteFunc(slices.Clone(sockets), func(s *socket) bool { return s.purpose != purposeNBD || s.origin == "" })
	for _, a := range is {
		i := slices.IndexFunc(left, func(s *socket) bool { return s.origin == origin(a) })
		if i < 0 {
			p.open = append(p.open, a)
			continue
		}
		left = slices.Delete(left, i, i+1)
		if a.Network != "unix" {
			continue
		}
		if slices.ContainsFunc(was, func(b config.Address) bool { return origin(b) == origin(a) && forgets(b, a) }) {
			errs = append(errs, admin.Conflict("listen on %s: says less of mode or owner than before, and a socket does not go back to what it would be without: say them, as in unix:///PATH?mode=0755&owner=USER:GROUP, or restart", a))
			continue
		}
		if isRemoved(a) {
			errs = append(errs, admin.Conflict("listen on %s: somebody has removed the socket, and nobody can connect by it: restart, with --takeover if clients are to stay", a))
			continue
		}
		u, err := unixSocket(a)
		if err != nil {
			errs = append(errs, admin.Invalid("listen on %s: %v", a, err))
			continue
		}
		p.reshape = append(p.reshape, u)
	}
	p.shut = left
	return errors.Join(errs...)
}

// forgets reports whether the address of a socket no longer specifies the mode or the owner
// that it did.
func forgets(was, is config.Address) bool {
	oldUser, oldGroup, _ := strings.Cut(was.Owner, ":")
	user, group, _ := strings.Cut(is.Owner, ":")
	return oldUser != "" && user == "" || oldGroup != "" && group == "" || was.Mode != 0 && is.Mode == 0 && is.Owner == ""
}

// become brings what is served into line with a configuration, or leaves it as it is.
func (d *Daemon) become(ctx context.Context, m *machine, next *config.Config) (client.Reload, error) {
	p, err := d.plan(m, next)
	if err != nil {
		return client.Reload{}, err
	}
	had := d.Config().Faults
	if err = d.prepare(ctx, m, p, next); err == nil {
		err = d.commit(m, p, next)
	}
	if err != nil {
		return client.Reload{}, errors.Join(err, d.undo(m, p))
	}
	return d.finish(ctx, m, p, had, next.Faults), nil
}

// prepare does everything that can fail. Whether it fails or not, undo takes back what it
// has done, except for disks that have grown.
func (d *Daemon) prepare(ctx context.Context, m *machine, p *plan, next *config.Config) (err error) {
	for _, a := range p.open {
		l, err := listen(ctx, a)
		if err != nil {
			return fmt.Errorf("listen on %s: %w", a, p.inTheWay(a, inSandbox(a, err)))
		}
		p.opened = append(p.opened, &socket{Listener: l, purpose: purposeNBD, origin: origin(a)})
	}
	for _, c := range p.add {
		e, err := d.bring(ctx, m, c, false)
		if err != nil {
			return err
		}
		p.brought = append(p.brought, e)
	}
	if p.undoShape, err = reshape(p.reshape); err != nil {
		return err
	}
	if p.changeFaults {
		if err := d.tryFaults(m, p, next); err != nil {
			return err
		}
	}
	for _, e := range m.list() {
		if size := p.grow[e]; size != 0 {
			if err := d.grow(m, e, size); err != nil {
				return err
			}
		}
	}
	return nil
}

// undo takes back what prepare has done, however far it got.
func (d *Daemon) undo(m *machine, p *plan) error {
	var errs []error
	for _, s := range p.opened {
		_ = s.Close() // nothing has been accepted
	}
	for _, e := range p.brought {
		errs = append(errs, d.takeBack(m, e))
	}
	if p.undoShape != nil {
		errs = append(errs, p.undoShape())
	}
	return errors.Join(errs...)
}

// finish does what is left once the disks are published: it serves the new addresses, puts
// the faults into force, and drains and closes what has gone. It returns what has changed.
func (d *Daemon) finish(ctx context.Context, m *machine, p *plan, hadFaults, faults []fault.Rule) (r client.Reload) {
	for _, e := range p.brought {
		d.tellAdded(e)
		r.DisksAdded = append(r.DisksAdded, e.name())
	}
	for e := range p.change {
		r.DisksChanged = append(r.DisksChanged, e.name())
	}
	slices.Sort(r.DisksChanged)
	if p.changeFaults {
		if err := d.changeFaults(hadFaults, faults); err != nil {
			r.Warnings = append(r.Warnings, fmt.Sprintf("faults stay as they were: %v", err))
		}
	}
	for _, s := range p.opened {
		d.accept(m, s)
		r.ListenersAdded = append(r.ListenersAdded, endpointURI(s.Addr()))
	}
	for _, s := range p.shut {
		r.ListenersRemoved = append(r.ListenersRemoved, endpointURI(s.Addr()))
		d.shut(s)
	}
	var warnings []string
	r.DisksRemoved, warnings = d.removeAll(ctx, m, p.remove)
	r.Warnings = append(r.Warnings, warnings...)
	return r
}

// inTheWay adds to the error of an address that its port belongs to an address that is
// about to be closed.
func (p *plan) inTheWay(a config.Address, err error) error {
	var addrs []net.Addr
	for _, s := range p.shut {
		addrs = append(addrs, s.Addr())
	}
	if has := holder(a, err, addrs); has != nil {
		return fmt.Errorf("%w: it is this daemon's %s, which the reload would close afterwards: take it away by a reload of its own first, or restart", syscall.EADDRINUSE, endpointURI(has))
	}
	return err
}

// holder returns the one of addrs because of which listening at a has failed, or nil.
func holder(a config.Address, err error, addrs []net.Addr) net.Addr {
	if a.Network != "tcp" || !errors.Is(err, syscall.EADDRINUSE) {
		return nil
	}
	want, resolveErr := net.ResolveTCPAddr("tcp", a.Target)
	if resolveErr != nil {
		return nil
	}
	for _, addr := range addrs {
		if has, ok := addr.(*net.TCPAddr); ok && has.Port == want.Port && overlap(has.IP, want.IP) {
			return has
		}
	}
	return nil
}

// overlap reports whether listening at both addresses on one port would conflict.
func overlap(a, b net.IP) bool {
	isAll := func(ip net.IP) bool { return len(ip) == 0 || ip.IsUnspecified() }
	return isAll(a) || isAll(b) || a.Equal(b)
}

// inSandbox adds to the error of an address how the sandbox may have caused it.
func inSandbox(a config.Address, err error) error {
	_, noName := errors.AsType[*net.DNSError](err)
	switch {
	case !sandbox.Entered():
	case noName:
		return fmt.Errorf("%w: names of hosts cannot be looked up in the sandbox: want a number, or restart, with --takeover if clients are to stay", err)
	case a.Network == "unix" && errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: the sandbox makes no unix sockets: restart, with --takeover if clients are to stay", err)
	}
	return err
}

// faultsWith returns the rules in force, with the configuration's old rules (had) replaced
// by its new ones (has).
func (d *Daemon) faultsWith(had, has []fault.Rule) []fault.Rule {
	d.faults.mu.Lock()
	defer d.faults.mu.Unlock()
	return d.faultsWithLocked(had, has)
}

// +checklocks:d.faults.mu
func (d *Daemon) faultsWithLocked(had, has []fault.Rule) []fault.Rule {
	all := slices.DeleteFunc(slices.Clone(d.faults.rules), func(r fault.Rule) bool {
		named := func(other fault.Rule) bool { return other.Name == r.Name }
		return slices.ContainsFunc(had, named) || slices.ContainsFunc(has, named)
	})
	return slices.Concat(has, all)
}

// tryFaults returns an error if a rule does not fit the disks of the plan. Disks that are
// to go count: they are still there when the rules come into force.
func (d *Daemon) tryFaults(m *machine, p *plan, next *config.Config) error {
	units := faultUnits(m, p.brought)
	for i := range units {
		if size := p.grow[m.find(units[i].Disk)]; size != 0 {
			units[i].Blocks = uint64(size) / uint64(units[i].BlockBytes)
		}
	}
	_, err := fault.NewSet(fault.Config{
		Rules: d.faultsWith(d.Config().Faults, next.Faults), Units: units, Hostile: next.Hostile, Now: m.device.Now(), Old: m.device.Faults(),
	})
	if err != nil {
		return fmt.Errorf("faults: %w", faultProblem(err))
	}
	return nil
}

// changeFaults puts the configuration's rules into force, all or none, in place of those
// that it had before and alongside those that the API has set meanwhile.
func (d *Daemon) changeFaults(had, has []fault.Rule) error {
	d.faults.mu.Lock()
	defer d.faults.mu.Unlock()
	if d.faults.ended {
		return errNoMachine()
	}
	return d.setFaultsLocked(d.faultsWithLocked(had, has))
}

// commit publishes the disks as the plan has them.
func (d *Daemon) commit(m *machine, p *plan, next *config.Config) error {
	was := make(map[*export]*config.Disk, len(p.change))
	for e, c := range p.change {
		was[e] = e.config()
		e.settings.Store(c)
	}
	for _, e := range p.remove {
		e.leaving.Store(true)
	}
	disks := slices.Concat(m.list(), p.brought)
	rank := func(e *export) int {
		if i := slices.Index(p.order, e.name()); i >= 0 {
			return i
		}
		return len(p.order) // in the order in which they came
	}
	slices.SortStableFunc(disks, func(a, b *export) int { return rank(a) - rank(b) })
	if err := m.publish(disks); err != nil {
		for e, c := range was {
			e.settings.Store(c)
		}
		for _, e := range p.remove {
			e.leaving.Store(false)
		}
		return err
	}
	for e := range p.change {
		e.fromAPI.Store(false)
	}
	d.current.Store(next)
	if d.o.LogLevel != nil {
		d.o.LogLevel.Set(next.LogLevel)
	}
	return nil
}

// removeAll removes disks that are no longer published, all at once, and returns their
// names and what went wrong.
func (d *Daemon) removeAll(ctx context.Context, m *machine, disks []*export) (names, warnings []string) {
	limit := d.Config().Limits.DrainTimeout.Std()
	type outcome struct {
		r   client.DiskRemoval
		err error
	}
	outcomes := make([]outcome, len(disks))
	var wg sync.WaitGroup
	for i, e := range disks {
		wg.Go(func() { outcomes[i].r, outcomes[i].err = d.vacate(ctx, m, e, limit, unitTimeout) })
	}
	wg.Wait()
	for i, e := range disks {
		names = append(names, e.name())
		if err := m.publish(slices.DeleteFunc(slices.Clone(m.list()), func(x *export) bool { return x == e })); err != nil {
			warnings = append(warnings, err.Error())
		}
		d.tellRemoved(m, &outcomes[i].r, outcomes[i].err)
		if s := outcomes[i].r.FlushError; s != "" {
			warnings = append(warnings, fmt.Sprintf("disk %q: what was written last may not be durable: %s", e.name(), s))
		}
		if err := outcomes[i].err; err != nil {
			warnings = append(warnings, err.Error())
		}
	}
	return names, warnings
}
