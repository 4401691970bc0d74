package grafana

// overview is for people who run exports: whether it serves, how much, how fast, and what
// fails.
func overview() Dashboard {
	quantile := func(q, title, description string) graph {
		return graph{
			title: title, description: description, unit: unitSeconds,
			queries: []query{{
				"histogram_quantile(" + q + ", sum by (instance, export, op, le) (rate(vhbad_request_duration_seconds_bucket{<export>}[<rate>])))",
				"{{instance}} {{export}} {{op}}",
			}},
		}
	}
	return build(
		Dashboard{UID: "vhbad-overview", Title: "vhbad / Exports", Description: "Rate, errors, latency and load of each export."}, true,
		row{"State", []interface{ panel() Panel }{
			number{
				title: "Up", description: "Whether Prometheus could read the daemon's metrics at its last try.", unit: unitCount,
				queries: []query{{"min by (instance) (up{<instance>})", "{{instance}}"}},
				words:   map[string]Mapped{"0": {"down", "red", 0}, "1": {"up", "green", 1}},
			},
			number{
				title: "Running for", description: "Time since the daemon started.", unit: unitSeconds,
				queries: []query{{"time() - max by (instance) (process_start_time_seconds{<instance>})", "{{instance}}"}},
			},
			number{
				title: "Versions", description: "How many daemons run each version.", unit: unitCount,
				queries: []query{{"count by (version) (vhbad_build_info{<instance>})", "{{version}}"}},
			},
			number{
				title: "Size of exports", description: "Bytes that the chosen exports offer together.", unit: unitBytes,
				queries: []query{{"sum(vhbad_export_size_bytes{<export>})", "size"}},
			},
			number{
				title: "Clients", description: "Connections that have a chosen export open.", unit: unitCount,
				queries: []query{{"sum(vhbad_connections{<export>})", "clients"}},
			},
			number{
				title: "Errors", unit: unitShare, bad: new(0.01),
				description: "Share of requests in the last minutes that were answered with an error, whoever's fault it was, but for faults that were asked for.",
				queries: []query{{
					`sum(rate(vhbad_requests_total{<export>, result=~"error|aborted"}[<rate>])) / sum(rate(vhbad_requests_total{<export>}[<rate>]))`, "errors",
				}},
			},
			number{
				title: "Configuration", description: "Whether the daemon could use its configuration when it last read it. If not, the last good one is in force: vhbad status says why.", unit: unitCount,
				queries: []query{{"min by (instance) (vhbad_config_last_reload_successful{<instance>})", "{{instance}}"}},
				words:   map[string]Mapped{"0": {"not usable", "red", 0}, "1": {"in force", "green", 1}},
			},
			number{
				title: "Configuration read", description: "Time ago that the daemon last read a configuration that it could use.", unit: unitSeconds,
				queries: []query{{"time() - max by (instance) (vhbad_config_last_reload_success_timestamp_seconds{<instance>})", "{{instance}}"}},
			},
		}},
		row{"Requests", []interface{ panel() Panel }{
			graph{
				title: "Requests", description: "Requests answered per second, by export and command.", unit: unitOpsPS, stack: true,
				queries: []query{{"sum by (instance, export, op) (rate(vhbad_requests_total{<export>}[<rate>]))", "{{instance}} {{export}} {{op}}"}},
			},
			graph{
				title: "Errors", unit: unitOpsPS,
				description: "Requests answered with an error per second. Wrong requests of clients count too; op unknown is commands that NBD does not have. " +
					"aborted is what resets and lost devices ended, injected what fault rules did.",
				queries: []query{{
					`sum by (instance, export, op, result) (rate(vhbad_requests_total{<export>, result!="ok"}[<rate>]))`, "{{instance}} {{export}} {{op}} {{result}}",
				}},
			},
			graph{
				title: "Throughput", description: "Bytes per second that successful requests covered. Trims and zeroings cover bytes that never cross the wire.", unit: unitBytesPS,
				queries: []query{{"sum by (instance, export, op) (rate(vhbad_request_bytes_total{<export>}[<rate>]))", "{{instance}} {{export}} {{op}}"}},
			},
			quantile("0.5", "Latency, median", "Half of the requests took at most this, from reading the request to sending its reply."),
			quantile("0.99", "Latency, p99", "99 of 100 requests took at most this. Buckets are powers of two, so a step of this line may be a small change."),
			quantile("0.999", "Latency, p99.9", "999 of 1000 requests took at most this. Few requests make this line jump."),
			heat{
				"Latency, all", "How many requests per second took how long. Two bands are two kinds of request: cached and not, or waiting behind a flush.",
				unitSeconds, "sum by (le) (rate(vhbad_request_duration_seconds_bucket{<export>}[<rate>]))",
			},
			graph{
				title: "In flight", description: "Requests begun and not answered. A flat line above zero while nothing is answered means that they are stuck.", unit: unitCount,
				queries: []query{{"sum by (instance, export, op) (vhbad_requests_in_flight{<export>})", "{{instance}} {{export}} {{op}}"}},
			},
			graph{
				title: "Oldest command", description: "Age of the oldest command of each disk that has not ended. Normally zero: it counts from a tenth of a second on.", unit: unitSeconds,
				queries: []query{{"max by (instance, export) (vhbad_oldest_request_age_seconds{<export>})", "{{instance}} {{export}}"}},
			},
			graph{
				title: "Busy", unit: unitShare, max: new(1.0),
				description: "Share of the time in which the disk had commands, as %util of iostat. A disk that does many at once may be busy all the time and have room.",
				queries:     []query{{"sum by (instance, export) (rate(vhbad_io_time_seconds_total{<export>}[<rate>]))", "{{instance}} {{export}}"}},
			},
			graph{
				title: "Mean in flight", description: "Requests in flight on average, as aqu-sz of iostat: their durations added up, per second.", unit: unitCount,
				queries: []query{{"sum by (instance, export) (rate(vhbad_io_time_weighted_seconds_total{<export>}[<rate>]))", "{{instance}} {{export}}"}},
			},
			graph{
				title: "Request size", description: "Mean bytes of successful requests, by command.", unit: unitBytes,
				queries: []query{{
					`sum by (instance, export, op) (rate(vhbad_request_bytes_total{<export>}[<rate>]))` +
						` / sum by (instance, export, op) (rate(vhbad_requests_total{<export>, result="ok", op!="unknown"}[<rate>]))`,
					"{{instance}} {{export}} {{op}}",
				}},
			},
		}},
		row{"Connections", []interface{ panel() Panel }{
			graph{
				title: "Clients", unit: unitCount,
				description: "Connections that have each export open, those of them by TLS, and all of the daemon. What all has more than the exports together still negotiates.",
				queries: []query{
					{"sum by (instance, export) (vhbad_connections{<export>})", "{{instance}} {{export}}"},
					{"sum by (instance, export) (vhbad_connections_tls{<export>})", "{{instance}} {{export}} TLS"},
					{"sum by (instance) (vhbad_connections_open{<instance>})", "{{instance}} all"},
				},
			},
			graph{
				title: "Connections accepted", description: "New connections per second, and those that left transmission. Many of both is a client that cannot stay.", unit: unitEventsPS,
				queries: []query{
					{"sum by (instance) (rate(vhbad_connections_total{<instance>}[<rate>]))", "{{instance}} accepted"},
					{"sum by (instance) (rate(vhbad_connection_closes_total{<instance>}[<rate>]))", "{{instance}} closed"},
				},
			},
			graph{
				title: "Closes by reason", description: "Why connections ended per second. disconnect is a client that said goodbye.", unit: unitEventsPS, stack: true,
				queries: []query{{"sum by (instance, reason) (rate(vhbad_connection_closes_total{<instance>}[<rate>]))", "{{instance}} {{reason}}"}},
			},
			graph{
				title: "Negotiations that failed", description: "Connections per second that never reached transmission, by reason.", unit: unitEventsPS, stack: true,
				queries: []query{{"sum by (instance, reason) (rate(vhbad_negotiation_failures_total{<instance>}[<rate>]))", "{{instance}} {{reason}}"}},
			},
			graph{
				title: "Network", description: "Bytes per second on the wire in transmission, all exports together, and those of long reads that were sent without copying them.", unit: unitBytesPS,
				queries: []query{
					{"sum by (instance, direction) (rate(vhbad_network_bytes_total{<instance>}[<rate>]))", "{{instance}} {{direction}}"},
					{"sum by (instance) (rate(vhbad_network_lent_bytes_total{<instance>}[<rate>]))", "{{instance}} transmit, not copied"},
				},
			},
			graph{
				title: "Long reads not copied", description: "Long reads on their way that may be sent without copying them.", unit: unitCount,
				queries: []query{{"sum by (instance) (vhbad_memory_pipes_in_use{<instance>})", "{{instance}}"}},
			},
			graph{
				title: "Without pauses", unit: unitCount,
				description: "1 while connections read at once instead of pausing for more requests, as more gets done so.",
				queries:     []query{{"max by (instance) (vhbad_network_without_pauses{<instance>})", "{{instance}}"}},
			},
			graph{
				title: "Certificate ends in", description: "Time until the server's certificate is no longer valid. No line without TLS.", unit: unitSeconds,
				queries: []query{{"min by (instance) (vhbad_tls_certificate_expiry_timestamp_seconds{<instance>}) - time()", "{{instance}}"}},
			},
		}},
		row{"Load", []interface{ panel() Panel }{
			graph{
				title: "Commands of a disk", description: "Commands at the adapter and waiting in the disk's queue, against how many the disk takes at once.", unit: unitCount,
				queries: []query{
					{"sum by (instance, export) (vhbad_port_outstanding_srbs{<export>})", "{{instance}} {{export}} at the adapter"},
					{"sum by (instance, export) (vhbad_port_waiting_srbs{<export>})", "{{instance}} {{export}} waiting"},
					{"sum by (instance, export) (vhbad_port_queue_depth{<export>})", "{{instance}} {{export}} depth"},
				},
			},
			graph{
				title: "Memory for buffers", description: "Memory handed out of the arena, the most ever, and its size. When it is used up, requests wait.", unit: unitBytes,
				queries: []query{
					{"sum by (instance) (vhbad_memory_in_use_bytes{<instance>})", "{{instance}} in use"},
					{"sum by (instance) (vhbad_memory_peak_bytes{<instance>})", "{{instance}} peak"},
					{"sum by (instance) (vhbad_memory_size_bytes{<instance>})", "{{instance}} size"},
				},
			},
			graph{
				title: "Requests that wait for memory", description: "Requests that found the arena empty. Above zero for long: more memory, or fewer bytes in flight per client.", unit: unitCount,
				queries: []query{{"sum by (instance) (vhbad_memory_waiters{<instance>})", "{{instance}}"}},
			},
		}},
	)
}
