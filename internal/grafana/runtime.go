package grafana

// runtime is for people who look into the process: Go, memory, descriptors.
func runtime() Dashboard {
	line := func(expr, legend string) query {
		return query{"sum by (instance) (" + expr + ")", "{{instance}}" + legend}
	}
	return build(
		Dashboard{UID: "vhbad-runtime", Title: "vhbad / Go runtime", Description: "The process of the daemon: processor time, memory, garbage collection, descriptors."}, false,
		row{"Process", []interface{ panel() Panel }{
			graph{
				title: "Processor time", description: "Processors used by the daemon; the line of GOMAXPROCS is what it may use.", unit: unitCount,
				queries: []query{
					line("rate(process_cpu_seconds_total{<instance>}[<rate>])", " used"),
					line("go_sched_gomaxprocs_threads{<instance>}", " GOMAXPROCS"),
				},
			},
			graph{
				title: "Resident memory", description: "Memory of the process that is in RAM: the arena as far as it was touched, memory disks, and the Go heap.", unit: unitBytes,
				queries: []query{line("process_resident_memory_bytes{<instance>}", "")},
			},
			graph{
				title: "File descriptors", description: "Open descriptors and their limit. One for each connection and image, and a few more.", unit: unitCount,
				queries: []query{line("process_open_fds{<instance>}", " open"), line("process_max_fds{<instance>}", " limit")},
			},
		}},
		row{"Go", []interface{ panel() Panel }{
			graph{
				title: "Goroutines", description: "Goroutines: a few for each connection, the device's workers, and the daemon's own. Steady growth is a leak.", unit: unitCount,
				queries: []query{line("go_goroutines{<instance>}", "")},
			},
			graph{
				title: "Threads", description: "Threads of the operating system. Media that block in system calls need more.", unit: unitCount,
				queries: []query{line("go_threads{<instance>}", "")},
			},
			graph{
				title: "Heap", description: "Bytes of live and not yet swept objects, what is reserved for the heap, and at what size the next collection begins.", unit: unitBytes,
				queries: []query{
					line("go_memstats_heap_alloc_bytes{<instance>}", " in use"),
					line("go_memstats_heap_sys_bytes{<instance>}", " reserved"),
					line("go_memstats_next_gc_bytes{<instance>}", " next collection"),
				},
			},
			graph{
				title: "Allocations", description: "Bytes allocated on the Go heap per second. Requests allocate nothing, so this stays flat under load.", unit: unitBytesPS,
				queries: []query{line("rate(go_memstats_alloc_bytes_total{<instance>}[<rate>])", "")},
			},
			graph{
				title: "Garbage collections", description: "Collections per second. At least one in two minutes is normal.", unit: unitEventsPS,
				queries: []query{line("rate(go_gc_duration_seconds_count{<instance>}[<rate>])", "")},
			},
			graph{
				title: "Pauses of the garbage collector", description: "The longest and the median pause of late.", unit: unitSeconds,
				queries: []query{
					// OpenMetrics writes 1.0, the older text format 1.
					{`max by (instance) (go_gc_duration_seconds{<instance>, quantile=~"1|1.0"})`, "{{instance}} longest"},
					{`max by (instance) (go_gc_duration_seconds{<instance>, quantile="0.5"})`, "{{instance}} median"},
				},
			},
		}},
	)
}
