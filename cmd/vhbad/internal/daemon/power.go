package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/admin"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/metrics"
	"github.com/vhbad/vhbad/hba"
	"github.com/vhbad/vhbad/hba/cache"
	"github.com/vhbad/vhbad/hba/fault"
	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/hba/target"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/port"
)

// maxReports is how many reports of power cuts a disk remembers.
const maxReports = 16

// maxOff is how long a disk may be without power.
const maxOff = time.Duration(fault.MaxPowerOff)

// Triggers of power cuts, as in metrics.
const (
	triggerCommand = "command"
	triggerRule    = "rule"
)

// classFailed stands for the class of a cut of which nothing is known.
const classFailed = "failed"

// power is the switch of one disk, and its write cache.
type power struct {
	cache *cache.Cache // nil if the disk has none
	trace *recording   // nil if nothing is recorded
	unit  *target.Unit
	// nexus is the number of the I_T nexus; see loseNexus.
	nexus atomic.Uint32
	// stragglers and drops belong to whoever is cutting the power. drops counts the cuts
	// that dropped connections.
	stragglers []straggler
	drops      uint64

	mu sync.Mutex
	// +checklocks:mu
	off bool
	// +checklocks:mu
	cuts uint64
	// +checklocks:mu
	byCommand, byRule metrics.PowerCuts
	// +checklocks:mu
	reports []client.PowerReport // the latest, oldest first
}

// withCache puts the write cache that c asks for, if any, in front of md.
func withCache(md media.Media, c *config.Disk, hostile bool, record cache.Recorder) (*cache.Cache, error) {
	if c.Cache != config.CacheWriteback {
		return nil, nil
	}
	eviction, err := cache.ParseEviction(cmp.Or(c.CacheEviction, cache.EvictFIFO.String()))
	if err != nil {
		return nil, err
	}
	wc, err := cache.New(md, cache.Config{
		Name: c.Name, SectorBytes: int(c.BlockSize), SizeBytes: int64(c.CacheSize), Eviction: eviction, Seed: c.CacheSeed,
		CanLoseFlushed: hostile, Recorder: record,
	})
	if err != nil {
		return nil, err
	}
	for _, act := range c.Hostile {
		switch act {
		case string(cache.ActLyingFlush):
			wc.LieAboutFlush(true)
		case string(cache.ActIgnoredFUA):
			wc.IgnoreFUA(true)
		}
	}
	return wc, nil
}

// exportOf finds a disk whose power can be cut.
func (d *Daemon) exportOf(name string) (*machine, *export, error) {
	d.mu.RLock()
	m := d.machine
	d.mu.RUnlock()
	if m == nil {
		return nil, nil, admin.Unavailable("the daemon is %s", state(d.state.Load()))
	}
	e := m.find(name)
	if e == nil {
		return nil, nil, admin.NoDisk(name)
	}
	if e.power.cache == nil {
		return nil, nil, admin.Conflict("disk %q has no write cache, so it would lose nothing: serve it with cache=%s", name, config.CacheWriteback)
	}
	return m, e, nil
}

// cutOptions reads what was asked for.
func cutOptions(o *client.PowerCutOptions) (c cache.CutOptions, off time.Duration, err error) {
	if c.Policy, err = cache.ParsePolicy(cmp.Or(o.Policy, cache.PolicySubset.String())); err != nil {
		return c, 0, admin.Invalid("%v", err)
	}
	if c.Damage, err = cache.ParseDamage(cmp.Or(o.Damage, cache.DamageOld.String())); err != nil {
		return c, 0, admin.Invalid("%v", err)
	}
	switch o.Tear {
	case "", "none":
	case "512":
		c.TearBytes = 512
	case "4096":
		c.TearBytes = 4096
	default:
		return c, 0, admin.Invalid("tear %q: want none, 512 or 4096", o.Tear)
	}
	if c.LoseFlushed = o.LoseFlushed; o.LoseFlushed < 0 {
		return c, 0, admin.Invalid("lose_flushed %d: want 0 or more", o.LoseFlushed)
	}
	if o.OffForSeconds < 0 || o.OffForSeconds > maxOff.Seconds() {
		return c, 0, admin.Invalid("off_for_seconds %v: want 0 to %v", o.OffForSeconds, maxOff.Seconds())
	}
	if o.Seed != nil {
		c.Seed = *o.Seed
	} else {
		c.Seed = uint64(rand.Uint32()) // short enough for every JSON reader
	}
	return c, time.Duration(o.OffForSeconds * float64(time.Second)), nil
}

// cutPatience is how long a request for a power cut waits for the medium.
const cutPatience = 30 * time.Second

// CutPower implements admin.Power.
func (d *Daemon) CutPower(name string, o client.PowerCutOptions) (client.PowerReport, error) {
	return d.cutPowerWithin(name, o, cutPatience)
}

// cutPowerWithin is CutPower with the time after which the answer is that the cut is still
// waiting. The cut is made all the same, whether whoever asked for it is still there or
// not.
func (d *Daemon) cutPowerWithin(name string, o client.PowerCutOptions, patience time.Duration) (client.PowerReport, error) {
	type outcome struct {
		report client.PowerReport
		err    error
	}
	done, waits := make(chan outcome, 1), make(chan outcome, 1)
	go func() {
		r, err := d.cutPower(name, o, triggerCommand, "", patience, func(err error) { waits <- outcome{err: err} })
		done <- outcome{r, err}
	}()
	var x outcome
	select {
	case x = <-done:
	case x = <-waits:
		select {
		case x = <-done: // it came at the same moment
			return x.report, x.err
		default:
		}
		go func() { // nobody else learns why there is no report
			if late := <-done; late.err != nil && late.report.Number == 0 {
				d.log.Error("power cut", "disk", name, "trigger", triggerCommand, "error", late.err)
			}
		}()
	}
	return x.report, x.err
}

// onPowerCut cuts the power for fault rules.
func (d *Daemon) onPowerCut(m *machine, p hba.PowerCut) {
	e := m.exportAt(p.Target, p.Lun)
	if e == nil {
		return
	}
	rule := p.Fault.Rule().Name
	o := client.PowerCutOptions{DropConnections: true}
	if how := p.How; how != nil {
		o.Policy, o.Tear, o.Damage = how.Policy, how.Tear, how.Damage
		o.OffForSeconds = time.Duration(how.OffFor).Seconds()
		o.DropConnections = how.DropConnections == nil || *how.DropConnections
		if how.Seed != 0 {
			o.Seed = &how.Seed
		}
	}
	tell := func(err error) { d.log.Error("power cut by a rule", "disk", e.name(), "rule", rule, "error", err) }
	if _, err := d.cutPower(e.name(), o, triggerRule, rule, cutPatience, tell); err != nil {
		if _, off := errors.AsType[offError](err); off { // which is what the rule is for
			d.log.Info("power cut by a rule: the disk has no power already", "disk", e.name(), "rule", rule)
			return
		}
		tell(err)
	}
}

// An offError is that of a power cut of a disk that has no power.
type offError struct{ error }

func (e offError) Unwrap() error { return e.error }

// cutPower cuts the power of a disk and restores it after the time asked for, or when the
// daemon stops. If the losses are not decided within patience, waits is called, once, with
// what the cut is waiting for.
//
// The order matters. The unit goes first, so that nothing is done and answered between the
// cut and the moment when clients know of it. They know of it, by their connection's end or
// by Disk.LostWrites, before the unit is back. What is lost is decided only when no command
// that found the power on is still on its way: what those commands did, and what rules told
// the cache of them, counts toward this cut.
func (d *Daemon) cutPower(name string, o client.PowerCutOptions, trigger, rule string, patience time.Duration, waits func(error)) (client.PowerReport, error) {
	options, off, err := cutOptions(&o)
	if err != nil {
		return client.PowerReport{}, err
	}
	if options.LoseFlushed > 0 && !d.o.Config.Hostile {
		return client.PowerReport{}, admin.Invalid("lose_flushed %d: no correct drive does that: start the daemon with --hostile", options.LoseFlushed)
	}
	m, e, err := d.exportOf(name)
	if err != nil {
		return client.PowerReport{}, err
	}
	p := e.power
	if !p.switchOff() {
		return client.PowerReport{}, offError{admin.Conflict("disk %q has no power already", name)}
	}
	if !m.cuts.begin() {
		p.switchOn()
		return client.PowerReport{}, admin.Unavailable("the daemon stops")
	}
	defer m.cuts.end()
	started := time.Now()
	p.unit.PowerOff()
	p.cache.PowerOff()
	e.LostWrites()
	report, err := m.lose(e, options, patience, func(err error) {
		waits(admin.Unavailable("disk %q: its power is off, and the cut waits for its medium: %v; it is made, with seed %d, when that has ended: see vhbad power status %s",
			name, err, options.Seed, name))
	})
	p.trace.settle()   // so that whoever has the report can replay it
	if report == nil { // nothing is lost
		m.powerOn(e)
		p.switchOn()
		return client.PowerReport{}, err
	}
	var dropped nbd.Dropped
	if o.DropConnections {
		dropped = m.server.Drop(name)
		m.forgetGone(e)
		p.loseNexus(m.cuts.ctx, dropped)
	}
	d.tellCut(name, joinTrigger(trigger, rule), report, err)
	m.cuts.wait(off)
	if !o.DropConnections {
		e.TellAgain() // of what the unit had done and clients have got since
	}
	m.powerOn(e)
	offSeconds := time.Since(started).Seconds()
	out := PowerReport(report)
	out.Disk, out.Trigger, out.OffSeconds, out.DroppedConnections = name, joinTrigger(trigger, rule), offSeconds, dropped.Count()
	class := int(report.Class)
	if report.Error != "" {
		class = cache.Classes
	}
	p.done(&out, trigger, class)
	// Whoever receives this event finds the report, and may cut the power again.
	d.events.Publish(client.EventPowerOn, name, slog.Float64("off_seconds", offSeconds))
	return out, err
}

// lose makes a disk without power lose what is pending, once nothing is being executed on
// it. If the two together take longer than patience, waits is called, once.
func (m *machine) lose(e *export, o cache.CutOptions, patience time.Duration, waits func(error)) (*cache.Report, error) {
	late := fmt.Errorf("it has not ended within %v", patience)
	deadline := time.Now().Add(patience)
	ctx, cancel := context.WithDeadlineCause(m.cuts.ctx, deadline, late)
	defer cancel()
	if err := m.device.Settle(ctx, e.targetID, e.lun); err != nil && m.cuts.ctx.Err() == nil {
		waits(err)
		_ = m.device.Settle(m.cuts.ctx, e.targetID, e.lun) // or until the daemon stops
		return e.power.cache.Lose(o)
	}
	timer := time.AfterFunc(time.Until(deadline), func() { waits(fmt.Errorf("what the cache has begun to write or to read there: %w", late)) })
	defer timer.Stop()
	return e.power.cache.Lose(o)
}

// powerOn gives a disk its power back. If the disk was plugged in without power, the port
// has not yet found out what it is, and enumerates again; or the port has, but the daemon
// has not.
func (m *machine) powerOn(e *export) {
	e.power.cache.PowerOn()
	e.power.unit.PowerOn()
	if m.cuts.ctx.Err() != nil {
		return // the daemon stops
	}
	if m.units.at(e.targetID, e.lun) != nil {
		m.units.tell()
		return
	}
	// If no processor is free, the next bus change finds the disk.
	_ = m.onProcessor("power", func(p *port.Processor) error {
		m.adapter.BusChangeDetected(p)
		return nil
	})
}

// A straggler is a power cut whose dropped connections may still have commands under way.
// cut is how many such cuts there had been before it.
type straggler struct {
	nbd.Dropped
	cut uint64
}

// maxStraggle is how many power cuts a straggler may lag behind. There are 255 nexus
// numbers, and one must not be used again while an earlier command with it is under way.
const maxStraggle = 128

// loseNexus loses what dropped connections have under way. A machine that loses its power
// forgets what it has sent: wherever a command is, from the connection's goroutine to the
// HBA, and however late it arrives, the unit no longer executes it.
func (p *power) loseNexus(ctx context.Context, dropped nbd.Dropped) {
	over, cancel := context.WithCancel(ctx)
	cancel()
	p.stragglers = slices.DeleteFunc(p.stragglers, func(s straggler) bool {
		return s.Wait(over) == nil || p.drops-s.cut >= maxStraggle && s.Wait(ctx) == nil
	})
	p.stragglers = append(p.stragglers, straggler{dropped, p.drops})
	p.drops++
	next := uint8(p.drops%255) + 1
	p.nexus.Store(uint32(next))
	p.unit.LoseNexus(next)
}

// forgetGone tells a disk without power, whose nexus is about to be lost, that what dropped
// connections have under way is not executed any more. Those of the next nexus are not
// among them yet.
func (m *machine) forgetGone(e *export) {
	// If no processor is free, later writes wait for them until they have timed out.
	_ = m.onProcessor("power", func(p *port.Processor) error {
		e.ForgetGone(p)
		return nil
	})
}

// tellCut publishes a cut, including one that failed.
func (d *Daemon) tellCut(name, trigger string, r *cache.Report, err error) {
	event := []slog.Attr{
		slog.String("trigger", trigger), slog.Uint64("seed", r.Seed), slog.String("policy", r.Policy.String()),
		slog.Int("pending_sectors", r.Sectors.Pending),
	}
	if err != nil {
		d.events.Publish(client.EventPowerCut, name, append(event, slog.String("error", err.Error()))...)
		d.log.Error("power cut", "disk", name, "trigger", trigger, "seed", r.Seed, "policy", r.Policy.String(), "error", err)
		return
	}
	d.events.Publish(client.EventPowerCut, name, append(event,
		slog.String("class", r.Class.String()), slog.Int("lost_sectors", r.Sectors.Pending-r.Sectors.Kept))...)
	d.log.Info("power cut", "disk", name, "trigger", trigger, "seed", r.Seed,
		"policy", r.Policy.String(), "class", r.Class.String())
}

func joinTrigger(trigger, rule string) string {
	if rule == "" {
		return trigger
	}
	return trigger + " " + rule
}

// switchOff reports whether it has switched the power off: false if it was off already.
func (p *power) switchOff() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.off {
		return false
	}
	p.off = true
	return true
}

func (p *power) switchOn() {
	p.mu.Lock()
	p.off = false
	p.mu.Unlock()
}

// done numbers the report and keeps it.
func (p *power) done(r *client.PowerReport, trigger string, class int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.off = false
	p.cuts++
	r.Number = p.cuts
	counts := &p.byCommand
	if trigger == triggerRule {
		counts = &p.byRule
	}
	counts[class]++
	if len(p.reports) == maxReports {
		p.reports = append(p.reports[:0], p.reports[1:]...)
	}
	p.reports = append(p.reports, *r)
}

// cuts are the power cuts in progress.
type cuts struct {
	ctx    context.Context
	cancel context.CancelFunc
	group  sync.WaitGroup

	mu sync.Mutex
	// +checklocks:mu
	stopped bool
}

func newCuts() *cuts {
	c := &cuts{}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

func (c *cuts) begin() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped {
		return false
	}
	c.group.Add(1)
	return true
}

func (c *cuts) end() { c.group.Done() }

// wait returns after a time, or when the daemon stops.
func (c *cuts) wait(d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-c.ctx.Done():
	}
}

// stop gives every disk its power back and allows no more cuts.
//
// Errors: that of ctx, which means that a medium hangs.
func (c *cuts) stop(ctx context.Context) error {
	c.mu.Lock()
	c.stopped = true
	c.mu.Unlock()
	c.cancel()
	over := make(chan struct{})
	go func() {
		c.group.Wait()
		close(over)
	}()
	select {
	case <-over:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("a power cut waits for its medium: %w", ctx.Err())
	}
}

// Power implements admin.Power.
func (d *Daemon) Power(name string) (client.Power, error) {
	_, e, err := d.exportOf(name)
	if err != nil {
		return client.Power{}, err
	}
	p := e.power
	s, c := p.cache.Stats(), p.cache.Config()
	out := client.Power{
		WriteCache: p.unit.WriteCache(), Eviction: c.Eviction.String(), SizeBytes: c.SizeBytes,
		PendingBytes: s.PendingBytes, PendingWrites: s.PendingWrites, UnreadableSectors: s.UnreadableSectors,
		Hostile: []string{}, Reports: []client.PowerReport{},
	}
	if !s.OldestPending.IsZero() {
		t := s.OldestPending.Round(0)
		out.OldestPending = &t
	}
	for _, act := range p.cache.Hostile() {
		out.Hostile = append(out.Hostile, string(act))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	out.On, out.Cuts = !p.off, p.cuts
	out.Reports = append(out.Reports, p.reports...)
	out.Trace = p.trace.status()
	return out, nil
}

// hostileRule reports whether a hostile rule is about the disk.
func (m *machine) hostileRule(disk string) bool {
	return slices.ContainsFunc(m.device.Faults().Faults(), func(f *fault.Fault) bool {
		return f.Hostile() && (f.Rule().Disk == "" || f.Rule().Disk == disk)
	})
}

// metrics returns what the collector reports about the disk's write cache, nil if it has
// none. hostile says that a rule breaks promises of the disk.
func (p *power) metrics(hostile bool) *metrics.Cache {
	if p.cache == nil {
		return nil
	}
	c := &metrics.Cache{Stats: p.cache.Stats(), Hostile: hostile || len(p.cache.Hostile()) > 0 || p.cache.BrokenSinceCut()}
	p.mu.Lock()
	defer p.mu.Unlock()
	c.CutsByCommand, c.CutsByRule = p.byCommand, p.byRule
	return c
}

// PowerReport converts r to the API's form.
func PowerReport(r *cache.Report) client.PowerReport {
	out := client.PowerReport{
		Time: r.Time.Round(0), Seed: r.Seed, Policy: r.Policy.String(), Tear: "none", Damage: r.Damage.String(),
		Class: r.Class.String(), ImageClass: r.Verdict.Class.String(), CheckedSectors: r.Verdict.CheckedSectors, Error: r.Error,
		SectorBytes: r.SectorBytes, Sectors: client.PowerSectors(r.Sectors), ImageSHA256: r.ImageSHA256,
		Flushes: []client.PowerFlush{}, Writes: []client.PowerWrite{}, WritesOmitted: r.WritesOmitted,
	}
	out.LoseFlushed = r.LoseFlushed
	if r.TearBytes != 0 {
		out.Tear = fmt.Sprint(r.TearBytes)
	}
	if r.Error != "" {
		out.Class, out.ImageClass = classFailed, classFailed
	}
	for act, n := range r.Hostile {
		if out.Hostile == nil {
			out.Hostile = make(map[string]uint64)
		}
		out.Hostile[string(act)] = n
	}
	for act, n := range r.Verdict.Acts {
		if out.Acts == nil {
			out.Acts = make(map[string]int)
		}
		out.Acts[string(act)] = n
	}
	for _, f := range r.Verdict.Findings {
		out.Findings = append(out.Findings, client.PowerFinding{OffsetBytes: f.OffsetBytes, Act: string(f.Act), Write: f.Write})
	}
	for _, f := range r.Flushes {
		out.Flushes = append(out.Flushes, client.PowerFlush{
			Number: f.Number, BeforeWrite: f.Before, Writes: f.Writes, Time: f.Time.Round(0), Lie: f.Lie,
		})
	}
	for i := range r.Writes {
		w := &r.Writes[i]
		out.Writes = append(out.Writes, client.PowerWrite{
			ID: w.ID, Kind: w.Kind.String(), OffsetBytes: w.OffsetBytes, LengthBytes: w.LengthBytes, FUA: w.FUA,
			Acknowledged: w.Acknowledged, Promised: w.Promised, Epoch: w.Epoch, AgeSeconds: w.AgeMillis / 1000, Fate: w.Fate,
			SectorsKept: w.Kept, SectorsLost: w.Lost, SectorsOverwritten: w.Overwritten, SectorsDamaged: w.Damaged,
		})
	}
	return out
}
