package main

import "slices"

// A metric is what two servers are compared by.
type metric string

// The metrics.
const (
	iops    metric = "IOPS"
	cpu     metric = "CPU per I/O"
	p50     metric = "p50"
	p99     metric = "p99"
	seconds metric = "time"
	calls   metric = "system calls per I/O"
	scale   metric = "two processors ÷ one"
	more    metric = "ns more per I/O"
	allocs  metric = "allocations per I/O"
	kibEach metric = "KiB of memory each"
	// busyPercent is of one processor.
	busyPercent metric = "processor time, %"
)

func (m metric) of(r result) float64 {
	switch m {
	case iops:
		return r.IOPS
	case cpu:
		return r.CPUMicros
	case p50:
		return r.P50
	case p99:
		return r.P99
	case seconds:
		return r.Seconds
	case calls:
		return r.Calls
	case scale, more, allocs, kibEach, busyPercent: // of no run of a client
	}
	panic("bench: no metric " + string(m))
}

// better reports whether more is better.
func (m metric) better() bool { return m == iops || m == scale }

// A target is what a row is to reach: our value divided by the peer's, or our value alone
// if there is no peer.
type target struct {
	peer   kind
	metric metric
	limit  float64 // at least this if more is better, otherwise at most
}

func (t target) met(ratio float64) bool {
	if t.metric.better() {
		return ratio >= t.limit
	}
	return ratio <= t.limit
}

// A row is one line of the table: one load against several servers.
type row struct {
	name    string
	ours    kind
	peers   []kind
	load    load
	onFile  bool
	targets []target
}

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
)

// diskBytes is the size of the disks that fio loads: larger than the processor's caches,
// but small enough to fill quickly.
const diskBytes = 512 * mib

// allRows are the rows that have targets, in the order of the document.
func allRows() []row {
	return slices.Concat(fioRows(), simpleRows(), copyRows(), callRows(), guestRows())
}

// simpleRows are reads where no server sends structured replies, for a fair comparison with
// servers that have none. Replies to writes are simple either way.
func simpleRows() []row {
	return []row{
		{
			name: "read-4k-d32-simple", ours: vhbadSimple, peers: []kind{nbdkitSimple, bareSimple, goNBD},
			load:    load{rw: "randread", blockBytes: 4 * kib, depth: 32, connections: 1},
			targets: []target{{nbdkitSimple, iops, 1.3}, {nbdkitSimple, cpu, 0.75}, {bareSimple, iops, 0.95}, {goNBD, iops, 2.2}},
		},
		{
			name: "read-4k-4x16-simple", ours: vhbadSimple, peers: []kind{nbdkitSimple, bareSimple},
			load:    load{rw: "randread", blockBytes: 4 * kib, depth: 16, connections: 4},
			targets: []target{{nbdkitSimple, iops, 1.8}, {nbdkitSimple, cpu, 0.45}, {bareSimple, iops, 0.95}},
		},
		{
			name: "read-4k-d1-simple", ours: vhbadSimple, peers: []kind{nbdkitSimple, bareSimple},
			load:    load{rw: "randread", blockBytes: 4 * kib, depth: 1, connections: 1},
			targets: []target{{nbdkitSimple, p50, 1.05}, {nbdkitSimple, p99, 1.5}, {nbdkitSimple, cpu, 1.3}, {bareSimple, iops, 0.95}},
		},
	}
}

// fioRows are the rows that are fio jobs.
func fioRows() []row {
	return []row{
		{
			name: "read-4k-d32", ours: vhbadMemory, peers: []kind{nbdkitMemory, bareLoop, bareSimple, goNBD},
			load: load{rw: "randread", blockBytes: 4 * kib, depth: 32, connections: 1},
			targets: []target{
				{nbdkitMemory, iops, 1.3},
				{nbdkitMemory, cpu, 0.75},
				{bareLoop, iops, 0.95},
				{bareSimple, iops, 0.95},
				{goNBD, iops, 2.2},
			},
		},
		{
			name: "write-4k-d32", ours: vhbadMemory, peers: []kind{nbdkitMemory, bareLoop, goNBD},
			load: load{rw: "randwrite", blockBytes: 4 * kib, depth: 32, connections: 1},
			targets: []target{
				{nbdkitMemory, iops, 3.5},
				{nbdkitMemory, cpu, 0.25},
				{bareLoop, iops, 0.95},
				{goNBD, iops, 1.7},
			},
		},
		{
			name: "read-4k-4x16", ours: vhbadMemory, peers: []kind{nbdkitMemory, bareLoop, bareSimple},
			load: load{rw: "randread", blockBytes: 4 * kib, depth: 16, connections: 4},
			targets: []target{
				{nbdkitMemory, iops, 1.8},
				{nbdkitMemory, cpu, 0.45},
				{bareLoop, iops, 0.95},
				{bareSimple, iops, 0.95},
			},
		},
		{
			name: "read-4k-d1", ours: vhbadMemory, peers: []kind{nbdkitMemory, bareLoop, bareSimple},
			load: load{rw: "randread", blockBytes: 4 * kib, depth: 1, connections: 1},
			targets: []target{
				{nbdkitMemory, p50, 1.05},
				{nbdkitMemory, p99, 1.5},
				{nbdkitMemory, cpu, 1.3},
				{bareLoop, iops, 0.95},
				{bareSimple, iops, 0.95},
			},
		},
		{
			name: "read-256k-d16", ours: vhbadMemory, peers: []kind{nbdkitMemory, bareLoop, bareSimple},
			load: load{rw: "read", blockBytes: 256 * kib, depth: 16, connections: 1},
			targets: []target{
				{nbdkitMemory, iops, 1.05},
				{nbdkitMemory, cpu, 0.85},
				{bareLoop, iops, 0.95},
				{bareSimple, iops, 0.95},
			},
		},
		{
			name: "write-256k-d16", ours: vhbadMemory, peers: []kind{nbdkitMemory, bareLoop},
			load: load{rw: "write", blockBytes: 256 * kib, depth: 16, connections: 1},
			targets: []target{
				{nbdkitMemory, iops, 1.15},
				{nbdkitMemory, cpu, 0.85},
				{bareLoop, iops, 0.95},
			},
		},
		{
			name: "file-read-4k-d32", ours: vhbadFile, peers: []kind{nbdkitFile, qemuFile}, onFile: true,
			load:    load{rw: "randread", blockBytes: 4 * kib, depth: 32, connections: 1},
			targets: []target{{nbdkitFile, iops, 1.5}, {qemuFile, iops, 2.2}},
		},
		{
			name: "file-write-4k-d32", ours: vhbadFile, peers: []kind{nbdkitFile, qemuFile}, onFile: true,
			load:    load{rw: "randwrite", blockBytes: 4 * kib, depth: 32, connections: 1},
			targets: []target{{nbdkitFile, iops, 1.3}, {qemuFile, iops, 2.5}},
		},
		{
			name: "verify-read-4k-d32", ours: vhbadVerify, peers: []kind{vhbadMemory},
			load:    load{rw: "randread", blockBytes: 4 * kib, depth: 32, connections: 1},
			targets: []target{{vhbadMemory, cpu, 1.5}},
		},
	}
}
