package daemon

import (
	"bytes"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
	"github.com/vhbad/vhbad/hba/fault"
	"github.com/vhbad/vhbad/hba/hbatest"
	"github.com/vhbad/vhbad/hba/media"
)

// impatient settings give a command a second, and a reset less.
func impatient(t *testing.T, specs ...string) *settings {
	t.Helper()
	s := newSettings(t, specs...)
	s.HBA.SRBTimeout = config.Duration(time.Second)
	s.HBA.ResetTimeout = config.Duration(time.Second)
	return s
}

// putFaults puts rules into force.
func putFaults(t *testing.T, d *Daemon, rules ...client.FaultRule) {
	t.Helper()
	for _, r := range rules {
		if _, err := d.PutFault(r); err != nil {
			t.Fatal(err)
		}
	}
}

func neverReset(disk string) client.FaultRule {
	return client.FaultRule{Name: "no-reset", Disk: disk, Match: fault.Match{Op: fault.Ops{"reset-lun", "reset-target"}}, Action: fault.Action{Kind: fault.KindResetFails}}
}

func neverResetBus() client.FaultRule {
	return client.FaultRule{Name: "no-reset-bus", Match: fault.Match{Op: fault.Ops{"reset-bus"}}, Action: fault.Action{Kind: fault.KindResetFails}}
}

// A disk that hangs and that nothing resets: its client hears so, others cannot wait
// for it, the reset that an operator asks for fails while the rules are in force and
// brings the disk back afterwards, also if disks came meanwhile.
func TestGivenUp_ComesBackByReset(t *testing.T) {
	s := impatient(t, "db=memory:1MiB")
	d, _ := s.mustStart(t)
	c := open(t, s.socket(), "db")
	data := bytes.Repeat([]byte{1}, 512)
	if err := c.tryWrite(0, data); err != nil {
		t.Fatal(err)
	}
	putFaults(t, d, client.FaultRule{Name: "hang", Disk: "db", Action: fault.Action{Kind: fault.KindHang}}, neverReset("db"), neverResetBus())
	if _, err := c.do(cmdRead, 0, 512, nil); err == nil || err.Error() != "errno 108" {
		t.Fatalf("a read that hangs: %v, want ESHUTDOWN", err)
	}
	if err := d.ResetDisk("db", client.ResetBus); err == nil {
		t.Error("the reset worked in spite of its rule")
	}
	// The lesser reset would do nothing for an adapter whose own has failed.
	if err := d.RemoveFault("no-reset-bus"); err != nil {
		t.Fatal(err)
	}
	// With the rule the device has ended its reset; the driver learns by the next, which
	// may be one of the port's own that is under way.
	for err := d.ResetDisk("db", client.ResetBus); err != nil; {
		err = d.ResetDisk("db", client.ResetBus)
	}
	if err := d.RemoveFault("hang"); err != nil {
		t.Fatal(err)
	}
	if got, err := c.do(cmdRead, 0, 512, nil); err != nil || !bytes.Equal(got, data) {
		t.Errorf("read after the reset: %v, or other data", err)
	}
	noViolations(t, machineOf(d))
}

// TestGivenUp_Ready: a daemon none of whose disks can be used is not ready, and says why;
// it is again as soon as one can.
func TestGivenUp_Ready(t *testing.T) {
	for _, tt := range []struct {
		name  string
		specs []string
		want  int
	}{
		{"alone", []string{"db=memory:1MiB"}, http.StatusServiceUnavailable},
		{"another works", []string{"db=memory:1MiB", "other=memory:1MiB"}, http.StatusOK},
		{"another is pulled out", []string{"db=memory:1MiB", "away=memory:1MiB"}, http.StatusServiceUnavailable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := impatient(t, tt.specs...)
			s.HTTP = "127.0.0.1:0"
			d, _ := s.mustStart(t)
			if tt.specs[len(tt.specs)-1] == "away=memory:1MiB" {
				c := open(t, s.socket(), "away")
				putFaults(t, d, client.FaultRule{Name: "out", Disk: "away", Action: fault.Action{Kind: fault.KindUnplug}})
				if _, err := c.do(cmdRead, 0, 512, nil); err == nil {
					t.Error("a disk that is pulled out can be read")
				}
			}
			if code, body := get(t, d, "/readyz"); code != http.StatusOK {
				t.Errorf("before: %d %q", code, body)
			}
			c := open(t, s.socket(), "db")
			putFaults(t, d, client.FaultRule{Name: "hang", Disk: "db", Action: fault.Action{Kind: fault.KindHang}}, neverReset("db"), neverResetBus())
			if _, err := c.do(cmdRead, 0, 512, nil); err == nil || err.Error() != "errno 108" {
				t.Fatalf("a read that hangs: %v, want ESHUTDOWN", err)
			}
			code, body := get(t, d, "/readyz")
			if code != tt.want || code != http.StatusOK && !strings.Contains(body, "no reset") {
				t.Errorf("given up: %d %q, want %d and why", code, body, tt.want)
			}
			if err := d.RemoveFault("no-reset-bus"); err != nil {
				t.Fatal(err)
			}
			for err := d.ResetDisk("db", client.ResetBus); err != nil; { // see ComesBackByReset
				err = d.ResetDisk("db", client.ResetBus)
			}
			if code, body := get(t, d, "/readyz"); code != http.StatusOK {
				t.Errorf("after a reset: %d %q", code, body)
			}
		})
	}
}

// The daemon stops, and says nothing went wrong, although commands hang that no reset
// ends: with the daemon the rules end.
func TestGivenUp_Stop(t *testing.T) {
	s := impatient(t, "db=memory:1MiB")
	d, stop := s.mustStart(t)
	c := open(t, s.socket(), "db")
	putFaults(t, d, client.FaultRule{Name: "hang", Disk: "db", Action: fault.Action{Kind: fault.KindHang}}, neverReset("db"), neverResetBus())
	if _, err := c.do(cmdWrite, 0, 512, make([]byte, 512)); err == nil {
		t.Error("a write that hangs works")
	}
	stop()
}

// A medium that really hangs: no reset can end what its device has begun. The client gets
// its answer all the same, and the memory that the medium will fill when it goes on is
// given to nobody else. Then the disk works again.
func TestGivenUp_MediumHangs(t *testing.T) {
	s := impatient(t, "db=memory:1MiB")
	o := s.options(t)
	var slow *hbatest.Media
	o.OpenMedium = func(*config.Disk) (media.Media, error) {
		memory, err := media.NewMemory(media.MemoryConfig{SizeBytes: 1 << 20})
		if err != nil {
			return nil, err
		}
		slow = hbatest.NewMedia(memory, hbatest.MediaConfig{})
		return slow, nil
	}
	d, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	stop := stopper(t, d)
	t.Cleanup(stop)
	c := open(t, s.socket(), "db")
	data := bytes.Repeat([]byte{1}, 4096)
	if err := c.tryWrite(0, data); err != nil {
		t.Fatal(err)
	}
	slow.Hold()
	t.Cleanup(slow.Release)
	if _, err := c.do(cmdRead, 0, 4096, nil); err == nil || err.Error() != "errno 108" {
		t.Fatalf("a read that hangs: %v, want ESHUTDOWN", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	newcomer := open(t, s.socket(), "db")
	if _, err := newcomer.do(cmdRead, 0, 512, nil); err == nil {
		t.Error("a new client reads from a medium that hangs")
	}
	slow.Release()
	// The driver may find the device not yet ready.
	for err := d.ResetDisk("db", client.ResetBus); err != nil; {
		err = d.ResetDisk("db", client.ResetBus)
	}
	if got, err := newcomer.do(cmdRead, 0, 4096, nil); err != nil || !bytes.Equal(got, data) {
		t.Errorf("read after the reset: %v, or other data", err)
	}
	noViolations(t, machineOf(d))
}
