package metrics

import (
	"flag"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/vhbad/vhbad/hba"
	"github.com/vhbad/vhbad/hba/cache"
	"github.com/vhbad/vhbad/hba/fault"
	"github.com/vhbad/vhbad/hba/trace"
	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/miniport"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/port"
)

var rewrite = flag.Bool("rewrite", false, "write testdata/names.txt anew")

type source struct {
	s  Snapshot
	ok bool
}

func (s *source) Snapshot() (Snapshot, bool) { return s.s, s.ok }

type health bool

func (h health) NotReady() string {
	if h {
		return ""
	}
	return "draining"
}

// full has every metric.
func full() *source {
	e := nbd.ExportStats{Name: "disk0", Connections: 2}
	read := &e.Ops[nbd.OpRead]
	read.Requests, read.Errors, read.Bytes, read.InFlight = 7, 2, 4096, 1
	read.LatencySum = 3 * time.Second
	// 3 at most 2^-10 s, 4 in the octave above.
	read.Latency[-10*4-nbd.LatencyMinIndex] = 3
	read.Latency[-10*4-nbd.LatencyMinIndex+2] = 4
	cached := &Cache{CutsByCommand: PowerCuts{2}, Hostile: true}
	cached.PendingBytes, cached.OldestPending = 512, time.Unix(1_800_000_000, 0)
	cached.FlushCovered = [cache.CoveredBuckets]uint64{1, 0, 2}
	cached.CoveredWrites = 4
	read.Aborted, read.Injected = 0, 1
	stages := new(port.StageTimes)
	stages[port.OperationRead][port.StageDevice].Buckets[10] = 3
	n := nbd.Stats{Exports: []nbd.ExportStats{e}, ConnectionsTotal: 9}
	n.ReplyTimes[nbd.OpRead].Buckets[20] = 2
	return &source{ok: true, s: Snapshot{
		Stages: stages, Locks: new(port.Locks),
		Disks:  []Disk{{Name: "disk0", Backend: "memory", SizeBytes: 1 << 30, Unit: port.LUStats{Depth: 64, Busy: 5, QueueFull: 3}, Cache: cached, Trace: &trace.Stats{Records: 3}}, {Name: "idle"}},
		NBD:    n,
		Driver: make([]miniport.QueueStats, 2),
		Device: hba.Stats{Queues: []hba.QueueStats{{Commands: 11, InFlight: 4}, {}}},
		Adapter: port.AdapterStats{
			Interrupts: []port.InterruptStats{{Message: 0, Edges: 6, Runs: 5}, {Message: 1}},
			Resets:     [port.ResetLevels]uint64{0, 0, 1},
		},
		Arena:  dma.Stats{SizeBytes: 1 << 20},
		Verify: true,
		Rules:  []Fault{{Rule: "slow", Class: "legal", State: "armed", Held: 2}},
		Injected: []fault.Injection{
			{Disk: "disk0", Rule: "slow", Kind: fault.KindLatency, Class: "legal", Times: 9},
			{Disk: "idle", Rule: "slow", Kind: fault.KindLatency, Class: "legal"},
			{Disk: "disk0", Rule: "twice", Kind: fault.KindDuplicate, Class: "hostile", Times: 8, LeftOut: 7},
		},
		Hostile: true,

		CertificateNotAfter: time.Unix(1_800_000_000, 0),
	}}
}

func TestLint(t *testing.T) {
	problems, err := testutil.GatherAndLint(NewRegistry(full(), "v1"))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// Dashboards and alerts depend on names and labels.
func TestNames(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(&Collector{source: full(), version: "v1"})
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, f := range families {
		var labels []string
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if !slices.Contains(labels, l.GetName()) {
					labels = append(labels, l.GetName())
				}
			}
		}
		slices.Sort(labels)
		lines = append(lines, f.GetName()+"{"+strings.Join(labels, ",")+"} "+strings.ToLower(f.GetType().String())+"\n")
	}
	got := strings.Join(lines, "")
	const path = "testdata/names.txt"
	if *rewrite {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); diff != "" {
		t.Errorf("names changed; if on purpose, run with -rewrite and tell operators: -want +got\n%s", diff)
	}
	if len(families) != len(all) {
		t.Errorf("%d metrics described, %d collected", len(all), len(families))
	}
}

func TestValues(t *testing.T) {
	const want = `
# HELP vhbad_requests_total NBD requests answered: ok, error, aborted by a reset or a lost device, or with an injected fault.
# TYPE vhbad_requests_total counter
vhbad_requests_total{export="disk0",op="block_status",result="aborted"} 0
vhbad_requests_total{export="disk0",op="block_status",result="error"} 0
vhbad_requests_total{export="disk0",op="block_status",result="injected"} 0
vhbad_requests_total{export="disk0",op="block_status",result="ok"} 0
vhbad_requests_total{export="disk0",op="cache",result="aborted"} 0
vhbad_requests_total{export="disk0",op="cache",result="error"} 0
vhbad_requests_total{export="disk0",op="cache",result="injected"} 0
vhbad_requests_total{export="disk0",op="cache",result="ok"} 0
vhbad_requests_total{export="disk0",op="flush",result="aborted"} 0
vhbad_requests_total{export="disk0",op="flush",result="error"} 0
vhbad_requests_total{export="disk0",op="flush",result="injected"} 0
vhbad_requests_total{export="disk0",op="flush",result="ok"} 0
vhbad_requests_total{export="disk0",op="read",result="aborted"} 0
vhbad_requests_total{export="disk0",op="read",result="error"} 1
vhbad_requests_total{export="disk0",op="read",result="injected"} 1
vhbad_requests_total{export="disk0",op="read",result="ok"} 5
vhbad_requests_total{export="disk0",op="trim",result="aborted"} 0
vhbad_requests_total{export="disk0",op="trim",result="error"} 0
vhbad_requests_total{export="disk0",op="trim",result="injected"} 0
vhbad_requests_total{export="disk0",op="trim",result="ok"} 0
vhbad_requests_total{export="disk0",op="unknown",result="aborted"} 0
vhbad_requests_total{export="disk0",op="unknown",result="error"} 0
vhbad_requests_total{export="disk0",op="unknown",result="injected"} 0
vhbad_requests_total{export="disk0",op="unknown",result="ok"} 0
vhbad_requests_total{export="disk0",op="write",result="aborted"} 0
vhbad_requests_total{export="disk0",op="write",result="error"} 0
vhbad_requests_total{export="disk0",op="write",result="injected"} 0
vhbad_requests_total{export="disk0",op="write",result="ok"} 0
vhbad_requests_total{export="disk0",op="write_zeroes",result="aborted"} 0
vhbad_requests_total{export="disk0",op="write_zeroes",result="error"} 0
vhbad_requests_total{export="disk0",op="write_zeroes",result="injected"} 0
vhbad_requests_total{export="disk0",op="write_zeroes",result="ok"} 0
# HELP vhbad_fault_left_out_total Completions and transfers that a hostile rule was to make, and the device had no room for.
# TYPE vhbad_fault_left_out_total counter
vhbad_fault_left_out_total{class="hostile",export="disk0",kind="duplicate",rule="twice"} 7
# HELP vhbad_port_busy_total Commands that the adapter turned away, to be sent again.
# TYPE vhbad_port_busy_total counter
vhbad_port_busy_total{export="disk0",reason="busy"} 2
vhbad_port_busy_total{export="disk0",reason="queue_full"} 3
# HELP vhbad_port_resets_total Resets that the port driver asked for.
# TYPE vhbad_port_resets_total counter
vhbad_port_resets_total{level="bus"} 1
vhbad_port_resets_total{level="target"} 0
vhbad_port_resets_total{level="unit"} 0
`
	src := full()
	src.s.Disks = src.s.Disks[:1]
	err := testutil.CollectAndCompare(&Collector{source: src}, strings.NewReader(want),
		"vhbad_requests_total", "vhbad_fault_left_out_total", "vhbad_port_busy_total", "vhbad_port_resets_total")
	if err != nil {
		t.Error(err)
	}
}

func TestLatencyHistogram(t *testing.T) {
	s := full().s.NBD.Exports[0].Ops[nbd.OpRead]
	s.Latency[nbd.LatencyBuckets] = 1 // beyond 64 s
	s.Latency[0] = 2                  // up to 1 µs
	h := requestHistogram(&s)
	if h.GetSampleCount() != 10 || h.GetSampleSum() != 3 {
		t.Errorf("count %d, sum %v; want 10, 3", h.GetSampleCount(), h.GetSampleSum())
	}
	if n := len(h.Bucket); n != requestSpan.last-requestSpan.first+1 {
		t.Errorf("%d classic buckets", n)
	}
	for i, b := range h.Bucket {
		bound := math.Exp2(float64(requestSpan.first + i))
		want := uint64(2)
		if bound >= 1.0/1024 {
			want = 5
		}
		if bound >= 1.0/512 {
			want = 9
		}
		if b.GetUpperBound() != bound || b.GetCumulativeCount() != want {
			t.Errorf("bucket %d: bound %v, count %d; want %v, %d", i, b.GetUpperBound(), b.GetCumulativeCount(), bound, want)
		}
	}
	// Native: decode the spans and compare with what went in.
	got := map[int]uint64{}
	index, at, n := 0, 0, int64(0)
	for _, span := range h.PositiveSpan {
		index += int(span.GetOffset())
		for range span.GetLength() {
			n += h.PositiveDelta[at]
			got[index] = uint64(n)
			index++
			at++
		}
	}
	want := map[int]uint64{nbd.LatencyMinIndex: 2, -40: 3, -38: 4, nbd.LatencyMinIndex + nbd.LatencyBuckets: 1}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("native buckets: -want +got\n%s", diff)
	}
}

func TestNoSnapshot(t *testing.T) {
	n, err := testutil.GatherAndCount(func() *prometheus.Registry {
		r := prometheus.NewPedanticRegistry()
		r.MustRegister(&Collector{source: &source{}})
		return r
	}())
	if err != nil || n != 1 {
		t.Errorf("%d series, %v; want build_info alone", n, err)
	}
}

func TestHandler(t *testing.T) {
	get := func(h http.Handler, method, path string) (int, string) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(method, path, nil))
		return w.Code, w.Body.String()
	}
	ready := Handler(NewRegistry(full(), "v1"), health(true))
	draining := Handler(NewRegistry(full(), "v1"), health(false))
	for _, tt := range []struct {
		h            http.Handler
		method, path string
		code         int
		want         string
	}{
		{ready, "GET", "/", 200, "/metrics "},
		{ready, "GET", "/healthz", 200, "ok"},
		{draining, "GET", "/healthz", 200, "ok"},
		{ready, "GET", "/readyz", 200, "ready"},
		{draining, "GET", "/readyz", 503, "not ready: draining\n"},
		{ready, "GET", "/metrics", 200, `vhbad_hba_ring_entries{queue="0",state="in_flight"} 4`},
		{ready, "GET", "/metrics", 200, "go_goroutines"},
		{ready, "POST", "/metrics", 405, ""},
		{ready, "GET", "/v1/status", 404, ""},
	} {
		if code, body := get(tt.h, tt.method, tt.path); code != tt.code || !strings.Contains(body, tt.want) {
			t.Errorf("%s %s: %d %.200s; want %d with %q", tt.method, tt.path, code, body, tt.code, tt.want)
		}
	}
}

// TestStageOps: a stage of the port and the reply of the same command have one op.
func TestStageOps(t *testing.T) {
	if int(port.Operations) != int(nbd.OpCount) {
		t.Fatalf("%d operations of the port, %d of NBD", port.Operations, nbd.OpCount)
	}
	for op := range nbd.OpCount {
		if port.Operation(op).String() != op.String() {
			t.Errorf("%s is %s to the port", op, port.Operation(op))
		}
	}
}

// TestCompletionsPerInterrupt: buckets of all queues, and the sum of completions.
func TestCompletionsPerInterrupt(t *testing.T) {
	h := batches([]hba.QueueStats{
		{Completions: 9, Batches: [hba.BatchBuckets]uint64{0: 1, 3: 1}},
		{Completions: 1001, Batches: [hba.BatchBuckets]uint64{0: 1, hba.BatchBuckets - 1: 1}},
	})
	if h.GetSampleCount() != 4 || h.GetSampleSum() != 1010 {
		t.Errorf("%d interrupts, %v completions; want 4, 1010", h.GetSampleCount(), h.GetSampleSum())
	}
	for _, b := range h.Bucket {
		want := uint64(2)
		if b.GetUpperBound() >= 8 {
			want = 3
		}
		if b.GetCumulativeCount() != want {
			t.Errorf("up to %v completions: %d interrupts, want %d", b.GetUpperBound(), b.GetCumulativeCount(), want)
		}
	}
	if last := h.Bucket[len(h.Bucket)-1].GetUpperBound(); last != 512 {
		t.Errorf("the last bound is %v, want 512", last)
	}
}
