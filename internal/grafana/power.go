package grafana

// power is for people who make disks misbehave on purpose: write caches, power cuts and
// what they cost.
func power() Dashboard {
	return build(
		Dashboard{
			UID: "vhbad-power", Title: "vhbad / Faults and power",
			Description: "Disks that misbehave because somebody asked them to: what their write caches hold, power cuts, and what they lost.",
		}, true,
		row{"State", []interface{ panel() Panel }{
			number{
				title: "Hostile mode", description: "Whether a disk may do what no honest disk does at a power cut. Never for data that anybody wants.", unit: unitCount,
				queries: []query{{"max by (instance, export) (vhbad_hostile_mode{<export>})", "{{instance}} {{export}}"}},
				words:   map[string]Mapped{"0": {"off", "green", 0}, "1": {"on", "red", 1}},
			},
			number{
				title: "Hostile rules", description: "Whether fault rules may break what a correct drive promises.", unit: unitCount,
				queries: []query{{"max by (instance) (vhbad_hostile_rules_allowed{<instance>})", "{{instance}}"}},
				words:   map[string]Mapped{"0": {"refused", "green", 0}, "1": {"allowed", "red", 1}},
			},
			number{
				title: "Power cuts", description: "Power cuts in the time shown.", unit: unitCount,
				queries: []query{{"sum by (instance, export) (increase(vhbad_power_cuts_total{<export>}[$__range]))", "{{instance}} {{export}}"}},
			},
			number{
				title: "Bytes at risk", description: "Bytes that a power cut now would leave to chance.", unit: unitBytes,
				queries: []query{{"sum by (instance, export) (vhbad_cache_dirty_bytes{<export>})", "{{instance}} {{export}}"}},
			},
		}},
		row{"Faults", []interface{ panel() Panel }{
			graph{
				title: "Faults injected", unit: unitOpsPS, stack: true,
				description: "Commands per second that met a fault, by rule. No export: the fault is of the adapter. hostile is what no correct drive does.",
				queries: []query{{
					`sum by (instance, export, rule, kind, class) (rate(vhbad_fault_injections_total{<instance>, export=~"$export|"}[<rate>]))`,
					"{{instance}} {{export}} {{rule}}: {{kind}}, {{class}}",
				}},
			},
			graph{
				title: "Rules", description: "Fault rules in force, by their state.", unit: unitCount,
				queries: []query{{"sum by (instance, state, class) (vhbad_fault_rules{<instance>})", "{{instance}} {{class}} {{state}}"}},
			},
			graph{
				title: "Commands held", description: "Commands that a rule holds back: hangs, latencies and barriers.", unit: unitCount,
				queries: []query{
					{"sum by (instance, rule) (vhbad_fault_held_commands{<instance>})", "{{instance}} {{rule}}"},
					{"sum by (instance) (vhbad_hba_held_commands{<instance>})", "{{instance}} all"},
				},
			},
		}},
		row{"Write cache", []interface{ panel() Panel }{
			graph{
				title: "Dirty bytes", description: "Bytes written and not yet durable, by disk.", unit: unitBytes,
				queries: []query{{"sum by (instance, export) (vhbad_cache_dirty_bytes{<export>})", "{{instance}} {{export}}"}},
			},
			graph{
				title: "Pending writes", description: "Writes that are not yet durable, by disk.", unit: unitCount,
				queries: []query{{"sum by (instance, export) (vhbad_cache_pending_writes{<export>})", "{{instance}} {{export}}"}},
			},
			graph{
				title: "Oldest pending write", description: "How long the oldest write has not been durable. No line while nothing is pending.", unit: unitSeconds,
				queries: []query{{"time() - min by (instance, export) (vhbad_cache_oldest_pending_timestamp_seconds{<export>})", "{{instance}} {{export}}"}},
			},
			graph{
				title: "Evictions", description: "Writes per second that became durable without a flush, by reason.", unit: unitOpsPS,
				queries: []query{{"sum by (instance, export, reason) (rate(vhbad_cache_evictions_total{<export>}[<rate>]))", "{{instance}} {{export}} {{reason}}"}},
			},
			graph{
				title: "Failures of the medium", unit: unitEventsPS,
				description: "Flushes per second that could not make everything durable, and times that the medium did not take what was written out in the background. It stays in the cache.",
				queries: []query{
					{"sum by (instance, export) (rate(vhbad_cache_failed_flushes_total{<export>}[<rate>]))", "{{instance}} {{export}} flushes"},
					{"sum by (instance, export) (rate(vhbad_cache_failed_write_outs_total{<export>}[<rate>]))", "{{instance}} {{export}} background"},
				},
			},
			graph{
				title: "Writes covered by a flush", description: "Writes that a flush made durable, on average. One: the client flushes after each write.", unit: unitCount,
				queries: []query{{
					"sum by (instance, export) (rate(vhbad_flush_covered_writes_sum{<export>}[<rate>]))" +
						" / sum by (instance, export) (rate(vhbad_flush_covered_writes_count{<export>}[<rate>]))",
					"{{instance}} {{export}}",
				}},
			},
			heat{
				"Writes covered by a flush, all", "How many flushes per second made how many writes durable.",
				unitCount, "sum by (le) (rate(vhbad_flush_covered_writes_bucket{<export>}[<rate>]))",
			},
		}},
		row{"Power cuts", []interface{ panel() Panel }{
			graph{
				title: "Power cuts", description: "Power cuts per second, by what asked for them, and by what kind of drive the disk had been: legal is a correct one.", unit: unitEventsPS,
				queries: []query{{"sum by (instance, export, trigger, class) (rate(vhbad_power_cuts_total{<export>}[<rate>]))", "{{instance}} {{export}} {{trigger}}, {{class}}"}},
			},
			graph{
				title: "Fate of sectors", description: "Sectors that were not durable at a power cut, per second, by what became of them and the class of the cut.", unit: unitOpsPS, stack: true,
				queries: []query{{"sum by (instance, export, outcome, class) (rate(vhbad_crash_sectors_total{<export>}[<rate>]))", "{{instance}} {{export}} {{outcome}}, {{class}}"}},
			},
			graph{
				title: "Unreadable sectors", description: "Sectors that a power cut left unreadable, until they are written.", unit: unitCount,
				queries: []query{{"sum by (instance, export) (vhbad_cache_unreadable_sectors{<export>})", "{{instance}} {{export}}"}},
			},
			graph{
				title: "Hostile acts", description: "Commands per second to which a disk with a write cache did what no correct drive does, by what that was.", unit: unitOpsPS,
				queries: []query{{"sum by (instance, export, act) (rate(vhbad_hostile_acts_total{<export>}[<rate>]))", "{{instance}} {{export}} {{act}}"}},
			},
			graph{
				title: "Errors", description: "Requests answered with an error per second, by what is behind it: injected is what was asked for.", unit: unitOpsPS,
				queries: []query{{
					`sum by (instance, export, result) (rate(vhbad_requests_total{<export>, result!="ok"}[<rate>]))`, "{{instance}} {{export}} {{result}}",
				}},
			},
		}},
		row{"Trace", []interface{ panel() Panel }{
			number{
				title: "Trace", description: "Whether a disk's trace goes on. It ends early when its file fails, is full or too slow; the disk goes on.", unit: unitCount,
				queries: []query{{"max by (instance, export) (vhbad_trace_failed{<export>})", "{{instance}} {{export}}"}},
				words:   map[string]Mapped{"0": {"recording", "green", 0}, "1": {"ended early", "red", 1}},
			},
			graph{
				title: "Records", description: "Records of a disk's trace per second: writes, flushes, answers, what becomes durable.", unit: unitEventsPS,
				queries: []query{{"sum by (instance, export) (rate(vhbad_trace_records_total{<export>}[<rate>]))", "{{instance}} {{export}}"}},
			},
			graph{
				title: "File", description: "Length of the file of a disk's trace.", unit: unitBytes,
				queries: []query{{"sum by (instance, export) (vhbad_trace_file_bytes{<export>})", "{{instance}} {{export}}"}},
			},
			graph{
				title: "Waits for the file", description: "Commands per second that had to wait for the file of their disk's trace. If there are many, it is the file that is measured.", unit: unitOpsPS,
				queries: []query{{"sum by (instance, export) (rate(vhbad_trace_waits_total{<export>}[<rate>]))", "{{instance}} {{export}}"}},
			},
		}},
	)
}
