package metrics

import (
	"fmt"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vhbad/vhbad/internal/latency"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/port"
)

// scrape returns what Prometheus gets from a snapshot, line by line.
func scrape(t *testing.T, s *source) []string {
	t.Helper()
	w := httptest.NewRecorder()
	r := httptest.NewRequest("GET", "/metrics", nil)
	Handler(NewRegistry(s, "v1"), health(true)).ServeHTTP(w, r)
	if w.Code != 200 {
		t.Fatalf("GET /metrics: %d\n%s", w.Code, w.Body)
	}
	return slices.DeleteFunc(strings.Split(w.Body.String(), "\n"), func(line string) bool { return !strings.HasPrefix(line, "vhbad_") })
}

// TestShown_Values: each counter of a layer is in the series that is named after it.
func TestShown_Values(t *testing.T) {
	count := func(c *latency.Counts) { c.Buckets[40], c.Sum = 17, 2*time.Second }
	tests := []struct {
		set  func(s *Snapshot)
		want []string
	}{
		{func(s *Snapshot) {
			s.Locks = new(port.Locks)
			s.Locks.StartIo.Acquired = 41
			count(&s.Locks.StartIo.Wait)
		}, []string{
			`vhbad_port_lock_acquisitions_total{lock="startio"} 41`,
			`vhbad_port_lock_wait_seconds_count{lock="startio"} 17`, `vhbad_port_lock_wait_seconds_sum{lock="startio"} 2`,
			`vhbad_port_lock_wait_seconds_count{lock="interrupt"} 0`, `vhbad_port_lock_hold_seconds_count{lock="startio"} 0`,
		}},
		{func(s *Snapshot) { s.Locks = new(port.Locks); count(&s.Locks.Interrupt.Hold) }, []string{
			`vhbad_port_lock_hold_seconds_count{lock="interrupt"} 17`, `vhbad_port_lock_hold_seconds_sum{lock="interrupt"} 2`,
		}},
		{func(s *Snapshot) { s.Adapter.SynchronizeAccess = 43; count(&s.Adapter.SyncTimes) }, []string{
			`vhbad_port_synchronize_access_total 43`,
			`vhbad_port_synchronize_access_hold_seconds_count 17`, `vhbad_port_synchronize_access_hold_seconds_sum 2`,
		}},
		{func(s *Snapshot) { s.Device.Queues[1].BytesIn, s.Device.Queues[1].BytesOut = 44, 45 }, []string{
			`vhbad_hba_dma_bytes_total{direction="in",queue="1"} 44`, `vhbad_hba_dma_bytes_total{direction="out",queue="1"} 45`,
		}},
		{func(s *Snapshot) { s.Device.Queues[1].DMAFaults, s.Faults = 46, 47 }, []string{
			`vhbad_hba_dma_fault_completions_total{queue="1"} 46`, `vhbad_iommu_faults_total 47`,
		}},
		{func(s *Snapshot) { s.Disks[1].Unit.Timeouts, s.Disks[1].Unit.Abandoned = 48, 49 }, []string{
			`vhbad_port_timeouts_total{export="idle"} 48`, `vhbad_port_abandoned_total{export="idle"} 49`,
		}},
		{func(s *Snapshot) { s.Adapter.Aborts, s.Adapter.ResetsDetected = 50, 51 }, []string{
			`vhbad_port_aborts_total 50`, `vhbad_port_resets_detected_total 51`,
		}},
		{func(s *Snapshot) { s.Adapter.Resets = [port.ResetLevels]uint64{52, 53, 54} }, []string{
			`vhbad_port_resets_total{level="unit"} 52`, `vhbad_port_resets_total{level="target"} 53`, `vhbad_port_resets_total{level="bus"} 54`,
		}},
		{func(s *Snapshot) {
			s.Adapter.Interrupts[1] = port.InterruptStats{Message: 1, Edges: 57, Runs: 56, Unhandled: 55}
		}, []string{
			`vhbad_port_interrupts_unhandled_total{message="1"} 55`, `vhbad_port_interrupts_total{message="1"} 56`, `vhbad_port_interrupt_edges_total{message="1"} 57`,
		}},
		{func(s *Snapshot) {
			s.Driver[1].StaleCompletions, s.Driver[1].QueueFull, s.Driver[1].Refused = 58, 59, 60
		}, []string{
			`vhbad_miniport_stale_completions_total{queue="1"} 58`, `vhbad_miniport_queue_full_total{queue="1"} 59`, `vhbad_miniport_refused_total{queue="1"} 60`,
		}},
		{func(s *Snapshot) {
			s.Device.Queues[0].Submitted, s.Device.Queues[0].InFlight, s.Device.Queues[0].Unconsumed = 61, 62, 63
		}, []string{
			`vhbad_hba_ring_entries{queue="0",state="submitted"} 61`, `vhbad_hba_ring_entries{queue="0",state="in_flight"} 62`, `vhbad_hba_ring_entries{queue="0",state="unconsumed"} 63`,
		}},
		{func(s *Snapshot) {
			s.Disks[1].Unit.OldestAge, s.Disks[1].Unit.BusyTime = 64*time.Second, 65*time.Second
		}, []string{
			`vhbad_oldest_request_age_seconds{export="idle"} 64`, `vhbad_io_time_seconds_total{export="idle"} 65`,
		}},
		{func(s *Snapshot) {
			s.Disks[1].Unit.Held[port.GateBusy], s.Disks[1].Unit.Held[port.GatePaused] = 66*time.Second, 67*time.Second
		}, []string{
			`vhbad_port_held_seconds_total{export="idle",reason="busy"} 66`, `vhbad_port_held_seconds_total{export="idle",reason="paused"} 67`,
		}},
	}
	for stage := port.StageQueue; stage < port.Stages; stage++ {
		tests = append(tests, struct {
			set  func(s *Snapshot)
			want []string
		}{func(s *Snapshot) {
			s.Stages = new(port.StageTimes)
			count(&s.Stages[port.OperationWrite][stage])
		}, []string{fmt.Sprintf(`vhbad_stage_duration_seconds_count{op="write",stage=%q} 17`, stage)}})
	}
	tests = append(tests, struct {
		set  func(s *Snapshot)
		want []string
	}{func(s *Snapshot) { count(&s.NBD.ReplyTimes[nbd.OpTrim]) }, []string{`vhbad_stage_duration_seconds_count{op="trim",stage="reply"} 17`}})
	for _, tt := range tests {
		before := scrape(t, full())
		src := full()
		tt.set(&src.s)
		after := scrape(t, src)
		for _, line := range tt.want {
			if !slices.Contains(after, line) {
				name, _, _ := strings.Cut(line, " ")
				t.Errorf("no line %s; there is %q", line, slices.DeleteFunc(slices.Clone(after), func(l string) bool { return !strings.HasPrefix(l, name+" ") }))
			}
			if !strings.HasSuffix(line, " 0") && slices.Contains(before, line) {
				t.Errorf("%s is there without being set", line)
			}
		}
	}
}

// TestShown_Stages: the stages that operators know, in order.
func TestShown_Stages(t *testing.T) {
	var got []string
	for stage := port.StageQueue; stage < port.Stages; stage++ {
		got = append(got, stage.String())
	}
	if got := strings.Join(append(got, "reply"), " "); got != "queue build start device interrupt complete reply" {
		t.Errorf("stages are %s", got)
	}
}

// hidden are the fields of a snapshot that no metric shows, and why.
var hidden = map[string]string{
	"Adapter.Outstanding":    "the sum of port_outstanding_srbs",
	"Adapter.Timeouts":       "the sum of port_timeouts_total",
	"Adapter.SyncHold.Count": "in port_synchronize_access_hold_seconds, as are the next four",
	"Adapter.SyncHold.P50":   "quantiles are for who looks",
	"Adapter.SyncHold.P99":   "quantiles are for who looks",
	"Adapter.SyncHold.Max":   "the highest bucket",
	"Adapter.SyncHold.Over":  "in the buckets",
	"Adapter.PoolBytes":      "does not change after start",
	"Adapter.PoolInStartIo":  "for who writes a miniport; ours makes no such call",
	"Driver.Outstanding":     "the sum of hba_ring_entries",
	"Driver.RingEntries":     "does not change after start",
	"Driver.Doorbells":       "hba_doorbells_total",
	"Device.UnitsChanged":    "an event, and in reloads",
	"Disks.Cache.Flushes":    "the count of flush_covered_writes",
	"Disks.Cache.Cuts":       "the sum of power_cuts_total",
}

// TestShown_All: every number that a layer keeps changes what is scraped, or is in hidden.
// In a list it is enough if one of the first elements does.
func TestShown_All(t *testing.T) {
	numbers := map[string][]func(*source) reflect.Value{}
	var walk func(path string, of func(*source) reflect.Value)
	walk = func(path string, of func(*source) reflect.Value) {
		switch v := of(full()); v.Kind() {
		case reflect.Pointer:
			if !v.IsNil() {
				walk(path, func(s *source) reflect.Value { return of(s).Elem() })
			}
		case reflect.Struct:
			for i := range v.NumField() {
				f := v.Type().Field(i)
				if !f.IsExported() {
					continue
				}
				p := strings.TrimPrefix(path+"."+f.Name, ".")
				if f.Anonymous {
					p = path
				}
				walk(p, func(s *source) reflect.Value { return of(s).Field(i) })
			}
		case reflect.Slice, reflect.Array:
			for i := range min(v.Len(), 8) {
				walk(path, func(s *source) reflect.Value { return of(s).Index(i) })
			}
		case reflect.Int, reflect.Int64, reflect.Int32, reflect.Uint64, reflect.Uint32:
			numbers[path] = append(numbers[path], of)
		}
	}
	walk("", func(s *source) reflect.Value { return reflect.ValueOf(&s.s).Elem() })
	base := scrape(t, full())
	for path, all := range numbers {
		shown := slices.ContainsFunc(all, func(of func(*source) reflect.Value) bool {
			src := full()
			if n := of(src); n.CanInt() {
				n.SetInt(n.Int() + 1_000_000_007)
			} else {
				n.SetUint(n.Uint() + 1_000_007)
			}
			return !slices.Equal(base, scrape(t, src))
		})
		if why, ok := hidden[path]; ok == shown {
			t.Errorf("%s: shown is %t, but hidden says %q", path, shown, why)
		}
	}
	for path := range hidden {
		if numbers[path] == nil {
			t.Errorf("hidden names %s, which does not exist", path)
		}
	}
	if len(numbers) < 60 {
		t.Errorf("only %d numbers were looked at", len(numbers))
	}
}
