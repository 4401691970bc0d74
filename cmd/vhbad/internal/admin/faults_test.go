package admin

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/hba/fault"
)

// faulty knows the rule "r" and the disk "a".
type faulty struct{}

// fullRule has a value in most fields.
func fullRule() client.FaultRule {
	return client.FaultRule{
		Name: "r", Disk: "a", Budget: 3, Seed: 7, Hostile: true,
		Match: fault.Match{
			Op: fault.Ops{"read", "write"}, FUA: new(true), Offset: new(fault.Size(1 << 20)), Length: 4096, MinSize: 512, MaxSize: 8192,
			Connection: 1, Skip: 1, Every: 2, Probability: new(0.5), Start: 1, For: 2, Period: 3, AfterRule: "q", AfterCount: 2, AtMark: "m",
		},
		Action: fault.Action{
			Kind: fault.KindStatus, Status: "check-condition", Sense: &fault.Sense{Key: "3", ASC: 0x11, LBA: true},
			Latency: &fault.Latency{Distribution: fault.Table, Table: []fault.Quantile{{At: 1, Latency: fault.Duration(time.Second)}}},
			Power:   &fault.PowerCut{Policy: "subset", DropConnections: new(false)},
		},
	}
}

func (faulty) Faults() (client.Faults, error) {
	return client.Faults{HostileAllowed: true, Faults: []client.Fault{{Rule: fullRule(), State: "armed", Fired: 1}}}, nil
}

func (faulty) Fault(name string) (client.Fault, error) {
	if name != "r" {
		return client.Fault{}, NotFound("no fault %q", name)
	}
	return client.Fault{Rule: fullRule(), State: "armed"}, nil
}

func (faulty) PutFault(r client.FaultRule) (client.Fault, error) {
	return client.Fault{Rule: r, State: "armed"}, nil
}

func (faulty) RemoveFault(name string) error {
	if name != "r" {
		return NotFound("no fault %q", name)
	}
	return nil
}

func (faulty) ReleaseFault(_ string, count int) (int, error) { return count, nil }

func (faulty) SetMark(text string) (int, error) { return len(text), nil }

func (faulty) ResetDisk(disk string, _ client.ResetLevel) error {
	if disk != "a" {
		return NotFound("no disk %q", disk)
	}
	return nil
}

func TestFaults_Bodies(t *testing.T) {
	h := Handler(sources(fixed{}))
	for _, tt := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{http.MethodPut, "/v1/faults/r", `{"action":{"kind":"busy"}}`, http.StatusOK, `"name":"r"`},
		{http.MethodPut, "/v1/faults/r", `{"name":"q","action":{"kind":"busy"}}`, http.StatusBadRequest, "the path says"},
		{http.MethodPut, "/v1/faults/r", `{"action":{"kind":"busy","times":3}}`, http.StatusBadRequest, `unknown field \"action.times\"`},
		{http.MethodPut, "/v1/faults/r", `{"action":{"kind":"latency","latency":{"mean":5}}}`, http.StatusBadRequest, "duration"},
		{http.MethodPut, "/v1/faults/r", `{"action":{"kind":"busy"},"match":{"op":"read","offset":"1MiB"}}`, http.StatusOK, `"offset":"1MiB"`},
		{http.MethodPut, "/v1/faults/r", `{}`, http.StatusBadRequest, "action"},
		{http.MethodGet, "/v1/faults/q", ``, http.StatusNotFound, "no fault"},
		{http.MethodDelete, "/v1/faults/q", ``, http.StatusNotFound, "no fault"},
		{http.MethodPost, "/v1/faults/r/release", `{"count":-1}`, http.StatusBadRequest, "count -1"},
		{http.MethodPost, "/v1/marks", `{"text":""}`, http.StatusBadRequest, "want 1 to 255"},
		{http.MethodPost, "/v1/disks/a/reset", `{"level":"house"}`, http.StatusBadRequest, "want lun, target or bus"},
		{http.MethodPost, "/v1/disks/b/reset", `{"level":"lun"}`, http.StatusNotFound, "no disk"},
		{http.MethodPost, "/v1/disks/a/reset", `{"level":"lun"}`, http.StatusNoContent, ""},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(tt.method, tt.path, strings.NewReader(tt.body)))
		if w.Code != tt.status || !strings.Contains(w.Body.String(), tt.want) {
			t.Errorf("%s %s %s: %d %s; want %d with %s", tt.method, tt.path, tt.body, w.Code, w.Body, tt.status, tt.want)
		}
	}
}
