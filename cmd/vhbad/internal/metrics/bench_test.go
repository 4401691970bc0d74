package metrics

import (
	"fmt"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/vhbad/vhbad/nbd"
)

// many has so many exports, all of which were used.
func many(exports int) *source {
	s := full()
	used := s.s.NBD.Exports[0]
	for op := range used.Ops {
		o := &used.Ops[op]
		o.Requests, o.LatencySum = 40_000, time.Minute
		for i := range 40 {
			o.Latency[10+i] = 1000 + uint64(i)
		}
	}
	s.s.Disks, s.s.NBD.Exports = nil, nil
	for i := range exports {
		used.Name = fmt.Sprintf("disk%03d", i)
		s.s.Disks = append(s.s.Disks, Disk{Name: used.Name, Backend: "file", SizeBytes: 1 << 40})
		s.s.NBD.Exports = append(s.s.NBD.Exports, used)
	}
	return s
}

// TestManyExports: every export has its own numbers, however many there are.
func TestManyExports(t *testing.T) {
	s := many(256)
	for i := range s.s.NBD.Exports {
		s.s.NBD.Exports[i].Ops[nbd.OpRead].Bytes = uint64(i)
	}
	families, err := NewRegistry(s, "v1").Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		if f.GetName() != "vhbad_request_bytes_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			if m.GetLabel()[1].GetValue() == "read" {
				got[m.GetLabel()[0].GetValue()] = m.GetCounter().GetValue()
			}
		}
	}
	for i := range 256 {
		if name := fmt.Sprintf("disk%03d", i); got[name] != float64(i) {
			t.Errorf("%s: %v bytes, want %d", name, got[name], i)
		}
	}
}

// BenchmarkScrape is one answer to Prometheus, in text and as it asks for native
// histograms, with so many exports in use. bytes/op is what goes over the wire.
func BenchmarkScrape(b *testing.B) {
	for _, exports := range []int{1, 16, 256} {
		for name, accept := range map[string]string{
			"text":     "text/plain;version=0.0.4",
			"protobuf": "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited",
		} {
			b.Run(fmt.Sprintf("exports=%d/format=%s", exports, name), func(b *testing.B) {
				h := Handler(NewRegistry(many(exports), "v1"), health(true))
				r := httptest.NewRequest("GET", "/metrics", nil)
				r.Header.Set("Accept", accept)
				b.ReportAllocs()
				size := 0
				for b.Loop() {
					w := httptest.NewRecorder()
					h.ServeHTTP(w, r)
					size = w.Body.Len()
				}
				b.ReportMetric(float64(size), "bytes/op")
			})
		}
	}
}
