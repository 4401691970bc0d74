package admin

import (
	"net/http"

	"github.com/vhbad/vhbad/client"
)

// Faults has disks misbehave, by rules.
type Faults interface {
	Faults() (client.Faults, error)
	Fault(name string) (client.Fault, error)
	PutFault(r client.FaultRule) (client.Fault, error)
	RemoveFault(name string) error
	ReleaseFault(name string, count int) (released int, err error)
	SetMark(text string) (rules int, err error)
	ResetDisk(disk string, level client.ResetLevel) error
}

func faultRoutes(f Faults) []Route {
	return []Route{{
		Method: http.MethodGet, Path: "/v1/faults", ID: "faults",
		Summary:  "The fault rules in force, in the order in which they decide",
		Endpoint: call(func(*http.Request, None) (client.Faults, error) { return f.Faults() }),
	}, {
		Method: http.MethodGet, Path: "/v1/faults/{fault}", ID: "fault",
		Summary: "One fault rule, and what has become of it", Problems: []int{http.StatusNotFound},
		Endpoint: call(func(r *http.Request, _ None) (client.Fault, error) { return f.Fault(r.PathValue("fault")) }),
	}, {
		Method: http.MethodPut, Path: "/v1/faults/{fault}", ID: "putFault",
		Summary: "Put a fault rule into force, in place of the one of its name",
		Detail: "The same rule again changes nothing: its counters and its budget go on. Another rule of the same name begins anew, in the " +
			"place of the old one; new names go last. What the old one held goes on.",
		Problems: []int{http.StatusBadRequest, http.StatusConflict},
		Endpoint: call(func(r *http.Request, rule client.FaultRule) (client.Fault, error) {
			name := r.PathValue("fault")
			if rule.Name != "" && rule.Name != name {
				return client.Fault{}, Invalid("name %q: the path says %q: want the same, or no name in the body", rule.Name, name)
			}
			rule.Name = name
			return f.PutFault(rule)
		}),
	}, {
		Method: http.MethodDelete, Path: "/v1/faults/{fault}", ID: "removeFault",
		Summary: "End a fault rule", Detail: "What it holds goes on, and what it has lost is answered.",
		Problems: []int{http.StatusNotFound, http.StatusConflict},
		Endpoint: call(func(r *http.Request, _ None) (None, error) { return None{}, f.RemoveFault(r.PathValue("fault")) }),
	}, {
		Method: http.MethodPost, Path: "/v1/faults/{fault}/release", ID: "releaseFault",
		Summary: "Let commands go that a fault rule holds", Detail: "What it holds from then on stays held.",
		Problems: []int{http.StatusNotFound},
		Endpoint: call(func(r *http.Request, in client.FaultRelease) (client.FaultReleased, error) {
			if in.Count < 0 {
				return client.FaultReleased{}, Invalid("count %d: want how many, or 0 for all", in.Count)
			}
			n, err := f.ReleaseFault(r.PathValue("fault"), in.Count)
			return client.FaultReleased{Released: n}, err
		}),
	}, {
		Method: http.MethodPost, Path: "/v1/marks", ID: "setMark",
		Summary: "Set a mark, which rules may wait for",
		Endpoint: call(func(_ *http.Request, in client.Mark) (client.MarkSet, error) {
			if n := len(in.Text); n == 0 || n > 255 {
				return client.MarkSet{}, Invalid("text of %d bytes: want 1 to 255", n)
			}
			n, err := f.SetMark(in.Text)
			return client.MarkSet{Rules: n}, err
		}),
	}, {
		Method: http.MethodPost, Path: "/v1/disks/{name}/reset", ID: "resetDisk",
		Summary: "Reset a disk's logical unit, its target or the bus", Detail: "The answer comes when it is done.",
		Problems: []int{http.StatusNotFound, http.StatusConflict},
		Endpoint: call(func(r *http.Request, in client.DiskReset) (None, error) {
			switch in.Level {
			case client.ResetLun, client.ResetTarget, client.ResetBus:
			default:
				return None{}, Invalid("level %q: want lun, target or bus", in.Level)
			}
			return None{}, f.ResetDisk(r.PathValue("name"), in.Level)
		}),
	}}
}
