package metrics

import (
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/vhbad/vhbad/hba/cache"
	"github.com/vhbad/vhbad/hba/fault"
	"github.com/vhbad/vhbad/hba/trace"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/port"
)

// A Collector is a prometheus.Collector over a Source.
type Collector struct {
	source  Source
	version string
}

var _ prometheus.Collector = (*Collector)(nil)

// NewRegistry returns a registry with the daemon's metrics and those of the Go
// runtime and the process.
func NewRegistry(source Source, version string) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(
		&Collector{source: source, version: version},
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return r
}

// all lists every description, for Describe.
var all []*prometheus.Desc

func desc(name, help string, labels ...string) *prometheus.Desc {
	d := prometheus.NewDesc("vhbad_"+name, help, labels, nil)
	all = append(all, d)
	return d
}

// The metrics, by layer.
var (
	buildInfo = desc("build_info", "1, with what this daemon was built from.", "version", "goversion")

	reloadOK = desc("config_last_reload_successful", "1 if the configuration was read and applied the last time that it was to be.")
	reloadAt = desc("config_last_reload_success_timestamp_seconds", "When the configuration in force was read.")

	exportInfo  = desc("export_info", "1, with what is behind an export.", "export", "backend", "read_only")
	exportSize  = desc("export_size_bytes", "Size of an export.", "export")
	requests    = desc("requests_total", "NBD requests answered: ok, error, aborted by a reset or a lost device, or with an injected fault.", "export", "op", "result")
	bytesMoved  = desc("request_bytes_total", "Bytes that successful NBD requests covered.", "export", "op")
	duration    = desc("request_duration_seconds", "Time from reading a request to sending its reply.", "export", "op")
	inFlight    = desc("requests_in_flight", "NBD requests begun and not answered yet.", "export", "op")
	oldest      = desc("oldest_request_age_seconds", "Age of the oldest command in the unit's queue or at the adapter, up to 0.1 s short; 0 if none is that old.", "export")
	ioTime      = desc("io_time_seconds_total", "Time in which the export had commands, as iostat counts it: an estimate, by a look ten times a second.", "export")
	ioWeighted  = desc("io_time_weighted_seconds_total", "Sum of the durations of all requests answered, as iostat counts them.", "export")
	stages      = desc("stage_duration_seconds", "Time that commands spend in each stage of the stack: a sample of one in "+strconv.Itoa(port.SampleEvery)+", at random. An op appears with its first sample.", "op", "stage")
	connections = desc("connections", "Clients that have the export open.", "export")

	connectionsTLS = desc("connections_tls", "Clients that have the export open by TLS.", "export")
	certificateEnd = desc("tls_certificate_expiry_timestamp_seconds", "When the server's certificate ends. Absent without TLS.")

	connectionsOpen  = desc("connections_open", "Connections, those that still negotiate included.")
	connectionsTotal = desc("connections_total", "Connections accepted.")
	failures         = desc("negotiation_failures_total", "Connections that never reached transmission.", "reason")
	closes           = desc("connection_closes_total", "Connections that left transmission.", "reason")
	networkBytes     = desc("network_bytes_total", "Bytes on the wire in transmission.", "direction")
	lentBytes        = desc("network_lent_bytes_total", "Bytes of those transmitted that were sent from the disks' own pages, without copying them.")
	withoutPauses    = desc("network_without_pauses", "1 while connections do not pause for more requests before they read, as more gets done so.")

	unitDepth       = desc("port_queue_depth", "Commands that the disk's logical unit takes at once.", "export")
	unitOutstanding = desc("port_outstanding_srbs", "Commands at the adapter.", "export")
	unitWaiting     = desc("port_waiting_srbs", "Commands that wait in the unit's queue.", "export")
	unitStarted     = desc("port_srbs_started_total", "Commands given to the adapter.", "export")
	unitCompleted   = desc("port_srbs_completed_total", "Commands finished.", "export")
	unitBusy        = desc("port_busy_total", "Commands that the adapter turned away, to be sent again.", "export", "reason")
	unitParked      = desc("port_parked_total", "Commands built that found the unit not ready, and were started later.", "export")
	unitHeld        = desc("port_held_seconds_total", "Time in which the unit's queue was held back, by reason.", "export", "reason")
	adapterHeld     = desc("port_adapter_held_seconds_total", "Time in which the queues of all units were held back, by reason.", "reason")
	unitTimeouts    = desc("port_timeouts_total", "Commands that ran out of time.", "export")
	unitAbandoned   = desc("port_abandoned_total", "Commands that were answered with an error while the device held them, as no reset worked.", "export")
	aborts          = desc("port_aborts_total", "Commands that abort another.")
	resets          = desc("port_resets_total", "Resets that the port driver asked for.", "level")
	resetsDetected  = desc("port_resets_detected_total", "Resets that the adapter reported by itself.")
	interruptEdges  = desc("port_interrupt_edges_total", "Interrupts that the device raised.", "message")
	interruptRuns   = desc("port_interrupts_total", "Calls of the interrupt handler: fewer than edges where they coalesced.", "message")
	interruptOthers = desc("port_interrupts_unhandled_total", "Interrupts that the handler disowned.", "message")
	synchronized    = desc("port_synchronize_access_total", "Calls of SynchronizeAccess.")
	syncHold        = desc("port_synchronize_access_hold_seconds", "Time that calls of SynchronizeAccess kept interrupts off: a sample of one in 64, or all with the verifier on.")
	lockCount       = desc("port_lock_acquisitions_total", "Acquisitions of the locks around callbacks: of StartIo, of its channels, of interrupts.", "lock")
	lockWait        = desc("port_lock_wait_seconds", "Time that those waited who could not have the lock at once: every contended acquisition.", "lock")
	lockHold        = desc("port_lock_hold_seconds", "Time that the lock was held: a sample of one acquisition in "+strconv.Itoa(port.SampleEvery)+", or all with the verifier on.", "lock")

	driverFull    = desc("miniport_queue_full_total", "Commands turned away because a ring or its tags ran out.", "queue")
	driverRefused = desc("miniport_refused_total", "Commands turned away because of a reset.", "queue")
	driverStale   = desc("miniport_stale_completions_total", "Completions of commands from before a reset.", "queue")

	hbaCommands    = desc("hba_commands_total", "Commands fetched.", "queue")
	hbaCompletions = desc("hba_completions_total", "Completions posted.", "queue")
	hbaInterrupts  = desc("hba_interrupts_total", "Interrupts raised: at most one for a batch of completions.", "queue")
	hbaBatches     = desc("hba_completions_per_interrupt", "Completions that an interrupt announced, all queues together.")
	hbaDoorbells   = desc("hba_doorbells_total", "Doorbell writes.", "queue", "ring")
	hbaHanded      = desc("hba_handed_to_workers_total", "Commands that would have blocked.", "queue")
	hbaRing        = desc("hba_ring_entries", "Commands by where they are.", "queue", "state")
	hbaDMA         = desc("hba_dma_bytes_total", "Bytes moved by DMA; in is towards host memory.", "queue", "direction")
	hbaFaults      = desc("hba_dma_fault_completions_total", "Commands ended by a DMA fault.", "queue")
	hbaResets      = desc("hba_resets_total", "Controller resets.")
	hbaWorkers     = desc("hba_workers", "Goroutines for commands that block.")
	hbaWorkersBusy = desc("hba_workers_busy", "Workers that run a command.")
	hbaWorkersWait = desc("hba_workers_waiting_commands", "Commands in line for a worker.")

	cacheDirty     = desc("cache_dirty_bytes", "Bytes in the write cache that are not durable.", "export")
	cachePending   = desc("cache_pending_writes", "Writes in the write cache that are not durable.", "export")
	cacheOldest    = desc("cache_oldest_pending_timestamp_seconds", "When the oldest write came that is not durable. Absent if all are.", "export")
	cacheEvictions = desc("cache_evictions_total", "Writes made durable before a flush asked for it.", "export", "reason")
	cacheBroken    = desc("cache_unreadable_sectors", "Sectors that a power cut left unreadable, until they are written.", "export")
	cacheFailed    = desc("cache_failed_flushes_total", "Flushes that could not make everything durable.", "export")
	cacheBehind    = desc("cache_failed_write_outs_total", "Times that the medium failed to take what was written out in the background. It stays in the cache, and flushes fail while the medium does.", "export")
	cacheFlushes   = desc("flush_covered_writes", "Writes that a flush had to make durable.", "export")
	powerCuts      = desc("power_cuts_total", "Power cuts, by the class that their reports give the drive; failed if the medium failed.", "export", "trigger", "class")
	crashSectors   = desc("crash_sectors_total", "Sectors that were not durable when the power was cut, by what became of them and the class of the cut.", "export", "outcome", "class")
	hostileActs    = desc("hostile_acts_total", "Commands to which a disk with a write cache did what no correct drive does, by what that was.", "export", "act")
	hostileMode    = desc("hostile_mode", "1 if the disk breaks promises, as it was told to, or has since its power was cut last.", "export")
	traceRecords   = desc("trace_records_total", "Records of the disk's trace.", "export")
	traceBytes     = desc("trace_file_bytes", "Length of the file of the disk's trace.", "export")
	traceWaits     = desc("trace_waits_total", "Commands that had to wait for the file of the disk's trace.", "export")
	traceFailed    = desc("trace_failed", "1 if the disk's trace has ended because its file failed, is full or too slow.", "export")
	hbaHeld        = desc("hba_held_commands", "Commands that faults hold.")

	faultInjections = desc("fault_injections_total", "Commands that met a fault, by rule. The last "+strconv.Itoa(fault.MaxPast)+" series of rules that have gone stay, and go on if such a rule comes again. No export means the adapter; class is legal for what a correct drive may do, or hostile.", "export", "rule", "kind", "class")
	faultLeftOut    = desc("fault_left_out_total", "Completions and transfers that a hostile rule was to make, and the device had no room for.", "export", "rule", "kind", "class")
	faultHeld       = desc("fault_held_commands", "Commands that a rule holds.", "rule")
	faultRules      = desc("fault_rules", "Fault rules in force.", "state", "class")
	hostileRules    = desc("hostile_rules_allowed", "1 if fault rules may break what a correct drive promises.")

	arenaSize    = desc("memory_size_bytes", "Memory for rings and buffers.")
	arenaInUse   = desc("memory_in_use_bytes", "Memory handed out.")
	arenaPeak    = desc("memory_peak_bytes", "Most memory ever handed out.")
	arenaWaiters = desc("memory_waiters", "Requests that wait for memory.")
	arenaPipes   = desc("memory_pipes_in_use", "Long reads on their way that may be sent without copying them.")
	iommuWindows = desc("iommu_windows_in_use", "Mappings reserved.")
	iommuFaults  = desc("iommu_faults_total", "Accesses of the device outside a live mapping.")

	verifierOn = desc("verifier_enabled", "1 if the verifier runs.")
	violations = desc("verifier_violations_total", "Breaches of the port's contract.", "check")
)

// Describe implements prometheus.Collector.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range all {
		ch <- d
	}
}

// sink sends constant metrics.
type sink chan<- prometheus.Metric

func (s sink) counter(d *prometheus.Desc, v uint64, labels ...string) {
	s <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
}

func (s sink) seconds(d *prometheus.Desc, v time.Duration, labels ...string) {
	s <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v.Seconds(), labels...)
}

func (s sink) gauge(d *prometheus.Desc, v float64, labels ...string) {
	s <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func (s sink) flag(d *prometheus.Desc, on bool, labels ...string) {
	v := 0.0
	if on {
		v = 1
	}
	s.gauge(d, v, labels...)
}

// Collect implements prometheus.Collector.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	s := sink(ch)
	s.gauge(buildInfo, 1, c.version, runtime.Version())
	snap, ok := c.source.Snapshot()
	if !ok {
		return
	}
	s.flag(reloadOK, snap.Reloaded)
	s.gauge(reloadAt, float64(snap.ReloadedAt.UnixMilli())/1000)
	s.disks(&snap)
	s.connections(&snap.NBD)
	if end := snap.CertificateNotAfter; !end.IsZero() {
		s.gauge(certificateEnd, float64(end.Unix()))
	}
	s.stages(&snap)
	s.port(&snap)
	s.device(&snap)
	s.memory(&snap)
	s.faults(&snap)
}

// noStats stands for an export that nobody has used yet: all its series exist
// from the start, so that a rate sees the first request.
var noStats nbd.ExportStats

func byName(e nbd.ExportStats, name string) int { return strings.Compare(e.Name, name) }

func (s sink) disks(snap *Snapshot) {
	secure := make(map[string]int)
	for i := range snap.NBD.Connections {
		if c := &snap.NBD.Connections[i]; c.TLS != "" && c.Transmitting {
			secure[c.Export]++
		}
	}
	for i := range snap.Disks {
		d := &snap.Disks[i]
		s.gauge(exportInfo, 1, d.Name, d.Backend, strconv.FormatBool(d.ReadOnly))
		s.gauge(exportSize, float64(d.SizeBytes), d.Name)
		e := &noStats
		if at, ok := slices.BinarySearchFunc(snap.NBD.Exports, d.Name, byName); ok {
			e = &snap.NBD.Exports[at]
		}
		s.gauge(connections, float64(e.Connections), d.Name)
		s.gauge(connectionsTLS, float64(secure[d.Name]), d.Name)
		var weighted time.Duration
		for op := range e.Ops {
			o, name := &e.Ops[op], nbd.Op(op).String()
			s.counter(requests, o.Requests-o.Errors, d.Name, name, "ok")
			s.counter(requests, o.Errors-o.Aborted-o.Injected, d.Name, name, "error")
			s.counter(requests, o.Aborted, d.Name, name, "aborted")
			s.counter(requests, o.Injected, d.Name, name, "injected")
			if op == int(nbd.OpCount) {
				continue // unknown commands transfer nothing and take no time
			}
			s.counter(bytesMoved, o.Bytes, d.Name, name)
			s.gauge(inFlight, float64(o.InFlight), d.Name, name)
			s.distribution(duration, requestHistogram(o), d.Name, name)
			weighted += o.LatencySum
		}
		s.seconds(ioWeighted, weighted, d.Name)
		u := &d.Unit
		s.gauge(oldest, u.OldestAge.Seconds(), d.Name)
		s.seconds(ioTime, u.BusyTime, d.Name)
		s.gauge(unitDepth, float64(u.Depth), d.Name)
		s.gauge(unitOutstanding, float64(u.Outstanding), d.Name)
		s.gauge(unitWaiting, float64(u.Waiting), d.Name)
		s.counter(unitStarted, u.Started, d.Name)
		s.counter(unitCompleted, u.Completed, d.Name)
		s.counter(unitBusy, u.QueueFull, d.Name, "queue_full")
		s.counter(unitBusy, u.Busy-u.QueueFull, d.Name, "busy")
		s.counter(unitParked, u.Parked, d.Name)
		for _, reason := range unitReasons {
			s.seconds(unitHeld, u.Held[reason], d.Name, reason.String())
		}
		s.counter(unitTimeouts, u.Timeouts, d.Name)
		s.counter(unitAbandoned, u.Abandoned, d.Name)
		if d.Cache != nil {
			s.cache(d.Name, d.Cache)
		}
		if d.Trace != nil {
			s.trace(d.Name, d.Trace)
		}
	}
}

// acts are what can make a disk hostile: the acts of its cache itself, those that rules
// report to the cache under their own names, and the other kinds of hostile rules.
var acts = func() []cache.Act {
	own := []cache.Act{cache.ActLyingFlush, cache.ActIgnoredFUA, cache.ActLostWrite, cache.ActMisdirected, cache.ActLostFlushed}
	for _, k := range fault.Kinds() {
		switch act := cache.Act(k.Kind); {
		case !k.Hostile, k.Kind == fault.KindIgnoreFUA, k.Kind == fault.KindLieAboutFlush, slices.Contains(own, act):
		default:
			own = append(own, act)
		}
	}
	return own
}()

// cache sends the metrics of a disk's write cache and of its power.
func (s sink) cache(name string, c *Cache) {
	s.gauge(cacheDirty, float64(c.PendingBytes), name)
	s.gauge(cachePending, float64(c.PendingWrites), name)
	if t := c.OldestPending; !t.IsZero() {
		s.gauge(cacheOldest, float64(t.UnixMicro())/1e6, name)
	}
	s.gauge(cacheBroken, float64(c.UnreadableSectors), name)
	s.counter(cacheFailed, c.FailedFlushes, name)
	s.counter(cacheBehind, c.FailedWriteOuts, name)
	for i, n := range c.Evictions {
		s.counter(cacheEvictions, n, name, cache.EvictionReason(i).String())
	}
	buckets, sum := make(map[float64]uint64, cache.CoveredBuckets), uint64(0)
	for i, n := range c.FlushCovered {
		sum += n
		if i < cache.CoveredBuckets-1 {
			buckets[float64(cache.CoveredBound(i))] = sum
		}
	}
	s <- prometheus.MustNewConstHistogram(cacheFlushes, sum, float64(c.CoveredWrites), buckets, name)
	for i := range len(c.CutsByCommand) {
		class := "failed"
		if i < cache.Classes {
			class = cache.Class(i).String()
		}
		s.counter(powerCuts, c.CutsByCommand[i], name, "command", class)
		s.counter(powerCuts, c.CutsByRule[i], name, "rule", class)
	}
	for class := range c.CutSectors {
		for outcome, n := range c.CutSectors[class] {
			s.counter(crashSectors, n, name, cache.Outcome(outcome).String(), cache.Class(class).String())
		}
	}
	for _, act := range acts {
		s.counter(hostileActs, c.Acts[act], name, string(act))
	}
	s.flag(hostileMode, c.Hostile, name)
}

// trace sends the metrics of a disk's trace.
func (s sink) trace(name string, t *trace.Stats) {
	s.counter(traceRecords, t.Records, name)
	s.gauge(traceBytes, float64(t.Bytes), name)
	s.counter(traceWaits, t.Waits, name)
	s.flag(traceFailed, t.Err != nil, name)
}

// Why a unit's queue, or all queues, are held back.
var (
	unitReasons    = []port.GateReason{port.GatePaused, port.GateBusy, port.GateFrozen, port.GateLocked, port.GateRecovering, port.GateGivenUp}
	adapterReasons = []port.GateReason{port.GatePaused, port.GateBusy, port.GateStopped, port.GateLinkDown, port.GateHold}
)

func (s sink) connections(n *nbd.Stats) {
	s.gauge(connectionsOpen, float64(n.ConnectionsOpen))
	s.counter(connectionsTotal, n.ConnectionsTotal)
	for i, v := range n.NegotiationFailures {
		s.counter(failures, v, nbd.NegotiationFailure(i).String())
	}
	for i, v := range n.Closes {
		s.counter(closes, v, nbd.CloseReason(i).String())
	}
	s.counter(networkBytes, n.ReceivedBytes, "receive")
	s.counter(networkBytes, n.SentBytes, "transmit")
	s.counter(lentBytes, n.LentBytes)
	s.flag(withoutPauses, n.WithoutPauses)
}

// stages sends where the time goes: the stages that the port measures, and the reply.
func (s sink) stages(snap *Snapshot) {
	for op := range port.Operations {
		for stage := port.StageQueue; stage < port.Stages; stage++ {
			if c := &snap.Stages[op][stage]; c.Count() > 0 {
				s.distribution(stages, countsHistogram(c, stageSpan), op.String(), stage.String())
			}
		}
	}
	for op := range nbd.OpCount {
		if c := &snap.NBD.ReplyTimes[op]; c.Count() > 0 {
			s.distribution(stages, countsHistogram(c, stageSpan), op.String(), "reply")
		}
	}
}

func (s sink) port(snap *Snapshot) {
	a := &snap.Adapter
	for i := range a.Interrupts {
		n := &a.Interrupts[i]
		message := strconv.Itoa(int(n.Message))
		s.counter(interruptEdges, n.Edges, message)
		s.counter(interruptRuns, n.Runs, message)
		s.counter(interruptOthers, n.Unhandled, message)
	}
	for i, v := range a.Resets {
		s.counter(resets, v, port.ResetLevel(i).String())
	}
	s.counter(aborts, a.Aborts)
	for _, reason := range adapterReasons {
		s.seconds(adapterHeld, a.Held[reason], reason.String())
	}
	s.counter(resetsDetected, a.ResetsDetected)
	s.counter(synchronized, a.SynchronizeAccess)
	s.distribution(syncHold, countsHistogram(&a.SyncTimes, lockSpan))
	for _, l := range []struct {
		name string
		s    *port.LockStats
	}{{"startio", &snap.Locks.StartIo}, {"channel", &snap.Locks.Channel}, {"interrupt", &snap.Locks.Interrupt}} {
		s.counter(lockCount, l.s.Acquired, l.name)
		s.distribution(lockWait, countsHistogram(&l.s.Wait, lockSpan), l.name)
		s.distribution(lockHold, countsHistogram(&l.s.Hold, lockSpan), l.name)
	}
	s.flag(verifierOn, snap.Verify)
	if snap.Verify {
		for c := port.CheckDoubleCompletion; int(c) < port.Checks; c++ {
			s.counter(violations, snap.Verifier.Count(c), c.String())
		}
	}
	for i := range snap.Driver {
		q, queue := &snap.Driver[i], strconv.Itoa(i)
		s.counter(driverFull, q.QueueFull, queue)
		s.counter(driverRefused, q.Refused, queue)
		s.counter(driverStale, q.StaleCompletions, queue)
	}
}

func (s sink) device(snap *Snapshot) {
	d := &snap.Device
	for i := range d.Queues {
		q, queue := &d.Queues[i], strconv.Itoa(i)
		s.counter(hbaCommands, q.Commands, queue)
		s.counter(hbaCompletions, q.Completions, queue)
		s.counter(hbaInterrupts, q.Interrupts, queue)
		s.counter(hbaDoorbells, q.SubmissionDoorbells, queue, "submission")
		s.counter(hbaDoorbells, q.CompletionDoorbells, queue, "completion")
		s.counter(hbaHanded, q.HandedToWorkers, queue)
		s.gauge(hbaRing, float64(q.Submitted), queue, "submitted")
		s.gauge(hbaRing, float64(q.InFlight), queue, "in_flight")
		s.gauge(hbaRing, float64(q.Unconsumed), queue, "unconsumed")
		s.counter(hbaDMA, q.BytesIn, queue, "in")
		s.counter(hbaDMA, q.BytesOut, queue, "out")
		s.counter(hbaFaults, q.DMAFaults, queue)
	}
	s.distribution(hbaBatches, batches(d.Queues))
	s.counter(hbaResets, d.Resets)
	s.gauge(hbaWorkers, float64(d.Workers))
	s.gauge(hbaWorkersBusy, float64(d.WorkersBusy))
	s.gauge(hbaWorkersWait, float64(d.WaitForWorkers))
	s.gauge(hbaHeld, float64(d.HeldByFaults))
}

func (s sink) faults(snap *Snapshot) {
	s.flag(hostileRules, snap.Hostile)
	type key struct{ state, class string }
	rules := make(map[key]int)
	for i := range snap.Rules {
		f := &snap.Rules[i]
		rules[key{f.State, f.Class}]++
		s.gauge(faultHeld, float64(f.Held), f.Rule)
	}
	for i := range snap.Injected {
		n := &snap.Injected[i]
		s.counter(faultInjections, n.Times, n.Disk, n.Rule, string(n.Kind), n.Class)
		if n.Class == "hostile" { // a correct drive answers once
			s.counter(faultLeftOut, n.LeftOut, n.Disk, n.Rule, string(n.Kind), n.Class)
		}
	}
	for _, state := range fault.States() {
		for _, class := range []string{"legal", "hostile"} {
			s.gauge(faultRules, float64(rules[key{string(state), class}]), string(state), class)
		}
	}
}

func (s sink) memory(snap *Snapshot) {
	a := &snap.Arena
	s.gauge(arenaSize, float64(a.SizeBytes))
	s.gauge(arenaInUse, float64(a.InUseBytes))
	s.gauge(arenaPeak, float64(a.PeakBytes))
	s.gauge(arenaWaiters, float64(a.Waiters))
	s.gauge(arenaPipes, float64(a.PipesInUse))
	s.gauge(iommuWindows, float64(snap.Windows))
	s.counter(iommuFaults, snap.Faults)
}
