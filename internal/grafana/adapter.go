package grafana

// adapter is for people who study the stack: port, driver and device.
func adapter() Dashboard {
	perQueue := func(metric, legend string) query {
		return query{"sum by (instance, queue) (rate(" + metric + "{<instance>}[<rate>]))", "{{instance}} queue {{queue}}" + legend}
	}
	perMessage := func(metric, legend string) query {
		return query{"sum by (instance, message) (rate(" + metric + "{<instance>}[<rate>]))", "{{instance}} message {{message}}" + legend}
	}
	return build(
		Dashboard{
			UID: "vhbad-adapter", Title: "vhbad / Adapter and port",
			Description: "The road of a command: port driver, miniport, rings, device and back by interrupt.",
		}, true,
		row{"Health", []interface{ panel() Panel }{
			number{
				title: "Verifier", description: "Whether the verifier checks the port's contract (serve --verify).", unit: unitCount,
				queries: []query{{"max by (instance) (vhbad_verifier_enabled{<instance>})", "{{instance}}"}},
				words:   map[string]Mapped{"0": {"off", "text", 0}, "1": {"on", "green", 1}},
			},
			number{
				title: "Violations", description: "Breaches of the port's contract in the time shown. Anything but zero is a bug: please report it.", unit: unitCount, bad: new(0.5),
				queries: []query{{"sum by (instance) (increase(vhbad_verifier_violations_total{<instance>}[$__range]))", "{{instance}}"}},
			},
			number{
				title: "Resets", description: "Resets in the time shown, of any level.", unit: unitCount, bad: new(0.5),
				queries: []query{{"sum by (instance) (increase(vhbad_port_resets_total{<instance>}[$__range]))", "{{instance}}"}},
			},
			number{
				title: "Timeouts", description: "Commands that ran out of time in the time shown.", unit: unitCount, bad: new(0.5),
				queries: []query{{"sum by (instance) (increase(vhbad_port_timeouts_total{<export>}[$__range]))", "{{instance}}"}},
			},
			number{
				title: "DMA faults", description: "Accesses of the device outside a live mapping in the time shown.", unit: unitCount, bad: new(0.5),
				queries: []query{{"sum by (instance) (increase(vhbad_iommu_faults_total{<instance>}[$__range]))", "{{instance}}"}},
			},
			number{
				title: "Outstanding", description: "Commands at the adapter now.", unit: unitCount,
				queries: []query{{"sum by (instance) (vhbad_port_outstanding_srbs{<export>})", "{{instance}}"}},
			},
		}},
		row{"Stages", []interface{ panel() Panel }{
			graph{
				title: "Where the time goes", unit: unitSeconds, stack: true,
				description: "Mean time of a command in each stage, on top of each other: the unit's queue, BuildIo, the way to StartIo, the device, " +
					"the interrupt handler, the DPC, the reply. From a sample of one command in 512.",
				queries: []query{{
					"sum by (instance, stage) (rate(vhbad_stage_duration_seconds_sum{<instance>}[<rate>]))" +
						" / sum by (instance, stage) (rate(vhbad_stage_duration_seconds_count{<instance>}[<rate>]))",
					"{{instance}} {{stage}}",
				}},
			},
			graph{
				title: "Stages, p99", description: "99 of 100 sampled commands took at most this in the stage. Few commands make few samples: look at a longer time then.", unit: unitSeconds,
				queries: []query{{
					"histogram_quantile(0.99, sum by (instance, stage, le) (rate(vhbad_stage_duration_seconds_bucket{<instance>}[<rate>])))",
					"{{instance}} {{stage}}",
				}},
			},
			graph{
				title: "Device by command", description: "Mean time that the device took, by command, from its place in the ring to the interrupt.", unit: unitSeconds,
				queries: []query{{
					`sum by (instance, op) (rate(vhbad_stage_duration_seconds_sum{<instance>, stage="device"}[<rate>]))` +
						` / sum by (instance, op) (rate(vhbad_stage_duration_seconds_count{<instance>, stage="device"}[<rate>]))`,
					"{{instance}} {{op}}",
				}},
			},
			heat{
				"Device, all", "How many sampled commands per second took how long in the device.",
				unitSeconds, `sum by (le) (rate(vhbad_stage_duration_seconds_bucket{<instance>, stage="device"}[<rate>]))`,
			},
			graph{
				title: "Queues held back", unit: unitShare, stack: true,
				description: "Share of the time in which a disk's queue was held back, by reason: paused, busy after the device turned something away, frozen after an error, recovering during a reset.",
				queries: []query{{
					"sum by (instance, export, reason) (rate(vhbad_port_held_seconds_total{<export>}[<rate>]))", "{{instance}} {{export}} {{reason}}",
				}},
			},
			graph{
				title: "Adapter held back", description: "Share of the time in which the queues of all disks were held back, by reason.", unit: unitShare, stack: true,
				queries: []query{{"sum by (instance, reason) (rate(vhbad_port_adapter_held_seconds_total{<instance>}[<rate>]))", "{{instance}} {{reason}}"}},
			},
		}},
		row{"Port", []interface{ panel() Panel }{
			graph{
				title: "Commands started and completed", description: "SRBs given to the adapter and finished per second. The lines lie on each other unless commands get stuck.", unit: unitOpsPS,
				queries: []query{
					{"sum by (instance, export) (rate(vhbad_port_srbs_started_total{<export>}[<rate>]))", "{{instance}} {{export}} started"},
					{"sum by (instance, export) (rate(vhbad_port_srbs_completed_total{<export>}[<rate>]))", "{{instance}} {{export}} completed"},
				},
			},
			graph{
				title: "Use of the queue depth", description: "Commands at the adapter, as a share of what the disk's unit takes at once.", unit: unitShare, max: new(1.0),
				queries: []query{{
					"sum by (instance, export) (vhbad_port_outstanding_srbs{<export>}) / sum by (instance, export) (vhbad_port_queue_depth{<export>})",
					"{{instance}} {{export}}",
				}},
			},
			graph{
				title: "Turned away", description: "Commands per second that the adapter or the unit did not take, and that are sent again. parked: built, and the unit was not ready.", unit: unitOpsPS,
				queries: []query{
					{"sum by (instance, export, reason) (rate(vhbad_port_busy_total{<export>}[<rate>]))", "{{instance}} {{export}} {{reason}}"},
					{"sum by (instance, export) (rate(vhbad_port_parked_total{<export>}[<rate>]))", "{{instance}} {{export}} parked"},
				},
			},
			graph{
				title: "Waiting in the unit's queue", description: "Commands that wait for the adapter, by export.", unit: unitCount,
				queries: []query{{"sum by (instance, export) (vhbad_port_waiting_srbs{<export>})", "{{instance}} {{export}}"}},
			},
			graph{
				title: "Timeouts", unit: unitOpsPS,
				description: "Commands per second that ran out of time. Each one starts the ladder of resets. Given up: no reset helped, and the client got an error for what the device still holds.",
				queries: []query{
					{"sum by (instance, export) (rate(vhbad_port_timeouts_total{<export>}[<rate>]))", "{{instance}} {{export}}"},
					{"sum by (instance, export) (rate(vhbad_port_abandoned_total{<export>}[<rate>]))", "{{instance}} {{export}} given up"},
				},
			},
			graph{
				title: "Resets and aborts", unit: unitEventsPS,
				description: "Resets per second by level, those that the adapter reported by itself, those of the controller, and aborts of single commands.",
				queries: []query{
					{"sum by (instance) (rate(vhbad_port_aborts_total{<instance>}[<rate>]))", "{{instance}} aborts"},
					{"sum by (instance, level) (rate(vhbad_port_resets_total{<instance>}[<rate>]))", "{{instance}} {{level}}"},
					{"sum by (instance) (rate(vhbad_port_resets_detected_total{<instance>}[<rate>]))", "{{instance}} reported"},
					{"sum by (instance) (rate(vhbad_hba_resets_total{<instance>}[<rate>]))", "{{instance}} controller"},
				},
			},
		}},
		row{"Interrupts and synchronization", []interface{ panel() Panel }{
			graph{
				title: "Interrupts raised and handled", description: "Interrupts of the device and calls of the handler per second, by message. Fewer calls than interrupts: they coalesced.", unit: unitEventsPS,
				queries: []query{
					perMessage("vhbad_port_interrupt_edges_total", " raised"),
					perMessage("vhbad_port_interrupts_total", " handled"),
				},
			},
			graph{
				title: "Completions per interrupt", description: "Commands finished by one interrupt of the device. More under load: less work for each command.", unit: unitCount,
				queries: []query{{
					"sum by (instance, queue) (rate(vhbad_hba_completions_total{<instance>}[<rate>]))" +
						" / sum by (instance, queue) (rate(vhbad_hba_interrupts_total{<instance>}[<rate>]))",
					"{{instance}} queue {{queue}}",
				}},
			},
			heat{
				"Completions per interrupt, all", "How many interrupts per second announced how many completions.",
				unitCount, "sum by (le) (rate(vhbad_hba_completions_per_interrupt_bucket{<instance>}[<rate>]))",
			},
			graph{
				title: "Lock acquisitions", description: "Acquisitions per second of the locks around callbacks, and those that had to wait.", unit: unitOpsPS,
				queries: []query{
					{"sum by (instance, lock) (rate(vhbad_port_lock_acquisitions_total{<instance>}[<rate>]))", "{{instance}} {{lock}}"},
					{"sum by (instance, lock) (rate(vhbad_port_lock_wait_seconds_count{<instance>}[<rate>]))", "{{instance}} {{lock}} waited"},
				},
			},
			graph{
				title: "Waiting for locks", unit: unitShare,
				description: "Time that processors spend waiting for a lock: 1 is one processor all the time.",
				queries:     []query{{"sum by (instance, lock) (rate(vhbad_port_lock_wait_seconds_sum{<instance>}[<rate>]))", "{{instance}} {{lock}}"}},
			},
			graph{
				title: "Locks held", description: "Mean time that a lock is held, from a sample of one acquisition in 512, or all with the verifier on.", unit: unitSeconds,
				queries: []query{{
					"sum by (instance, lock) (rate(vhbad_port_lock_hold_seconds_sum{<instance>}[<rate>]))" +
						" / sum by (instance, lock) (rate(vhbad_port_lock_hold_seconds_count{<instance>}[<rate>]))",
					"{{instance}} {{lock}}",
				}},
			},
			graph{
				title: "Locks held, p99", description: "99 of 100 sampled acquisitions held the lock no longer than this.", unit: unitSeconds,
				queries: []query{{
					"histogram_quantile(0.99, sum by (instance, lock, le) (rate(vhbad_port_lock_hold_seconds_bucket{<instance>}[<rate>])))",
					"{{instance}} {{lock}}",
				}},
			},
			heat{
				"SynchronizeAccess, all", "How many sampled calls per second kept interrupts off for how long.",
				unitSeconds, "sum by (le) (rate(vhbad_port_synchronize_access_hold_seconds_bucket{<instance>}[<rate>]))",
			},
			graph{
				title: "Interrupts disowned", description: "Calls per second of which the handler said that they were not for it.", unit: unitEventsPS,
				queries: []query{perMessage("vhbad_port_interrupts_unhandled_total", "")},
			},
			graph{
				title: "SynchronizeAccess", description: "Calls of SynchronizeAccess per second: each takes the interrupt locks.", unit: unitOpsPS,
				queries: []query{{"sum by (instance) (rate(vhbad_port_synchronize_access_total{<instance>}[<rate>]))", "{{instance}}"}},
			},
			graph{
				title: "Violations", description: "Breaches of the port's contract per second, by check. No line while the verifier is off.", unit: unitEventsPS,
				queries: []query{{"sum by (instance, check) (rate(vhbad_verifier_violations_total{<instance>}[<rate>]))", "{{instance}} {{check}}"}},
			},
			graph{
				title: "Turned away by the driver", description: "Commands per second that the miniport gave back: no tag or no room in the ring, or a reset.", unit: unitOpsPS,
				queries: []query{perQueue("vhbad_miniport_queue_full_total", " full"), perQueue("vhbad_miniport_refused_total", " reset")},
			},
		}},
		row{"Rings and device", []interface{ panel() Panel }{
			graph{
				title: "Ring entries", description: "Commands by where they are: submitted and not fetched, in flight, completed and not consumed.", unit: unitCount, stack: true,
				queries: []query{{"sum by (instance, queue, state) (vhbad_hba_ring_entries{<instance>})", "{{instance}} queue {{queue}} {{state}}"}},
			},
			graph{
				title: "Commands fetched and completed", description: "Commands that the device took from its submission rings and completions that it posted, per second.", unit: unitOpsPS,
				queries: []query{perQueue("vhbad_hba_commands_total", " fetched"), perQueue("vhbad_hba_completions_total", " completed")},
			},
			graph{
				title: "Commands per doorbell", description: "Commands that one write of the submission doorbell brought: the size of a batch.", unit: unitCount,
				queries: []query{{
					"sum by (instance, queue) (rate(vhbad_hba_commands_total{<instance>}[<rate>]))" +
						` / sum by (instance, queue) (rate(vhbad_hba_doorbells_total{<instance>, ring="submission"}[<rate>]))`,
					"{{instance}} queue {{queue}}",
				}},
			},
			graph{
				title: "DMA", description: "Bytes per second that the device moved; in is towards host memory, which is reads of a disk.", unit: unitBytesPS,
				queries: []query{{"sum by (instance, direction) (rate(vhbad_hba_dma_bytes_total{<instance>}[<rate>]))", "{{instance}} {{direction}}"}},
			},
			graph{
				title: "DMA faults", description: "Accesses outside a live mapping per second, and commands that such a fault ended.", unit: unitEventsPS,
				queries: []query{
					{"sum by (instance) (rate(vhbad_iommu_faults_total{<instance>}[<rate>]))", "{{instance}} accesses"},
					{"sum by (instance) (rate(vhbad_hba_dma_fault_completions_total{<instance>}[<rate>]))", "{{instance}} commands"},
				},
			},
			graph{
				title: "IOMMU windows", description: "Mappings reserved. They grow with the clients' depth and stay.", unit: unitCount,
				queries: []query{{"sum by (instance) (vhbad_iommu_windows_in_use{<instance>})", "{{instance}}"}},
			},
			graph{
				title: "Workers", description: "Goroutines for commands that block, those busy, and commands in line for one.", unit: unitCount,
				queries: []query{
					{"sum by (instance) (vhbad_hba_workers{<instance>})", "{{instance}} workers"},
					{"sum by (instance) (vhbad_hba_workers_busy{<instance>})", "{{instance}} busy"},
					{"sum by (instance) (vhbad_hba_workers_waiting_commands{<instance>})", "{{instance}} in line"},
				},
			},
			graph{
				title: "Commands that block", description: "Share of the commands that were handed to a worker: zero for memory and for what the page cache has.", unit: unitShare, max: new(1.0),
				queries: []query{{
					"sum by (instance, queue) (rate(vhbad_hba_handed_to_workers_total{<instance>}[<rate>]))" +
						" / sum by (instance, queue) (rate(vhbad_hba_commands_total{<instance>}[<rate>]))",
					"{{instance}} queue {{queue}}",
				}},
			},
			graph{
				title: "Stale completions", description: "Completions per second of commands from before a reset, which the miniport ignored.", unit: unitEventsPS,
				queries: []query{perQueue("vhbad_miniport_stale_completions_total", "")},
			},
		}},
	)
}
