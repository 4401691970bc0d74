package nbd_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// TestDrainDevice: the connections of one device answer what they have and end;
// those of another go on; and the device can be offered again.
func TestDrainDevice(t *testing.T) {
	gone, stays := nbdtest.NewManual(1<<20), nbdtest.NewManual(1<<20)
	exports := []nbd.Export{{Name: "disk0", Device: gone}, {Name: "stays", Device: stays}}
	s := newServerOf(t, nbd.Limits{MaxPayloadBytes: payloadBytes}, arenaBytes, exports...)
	set := s.Exports.(*nbd.ExportSet)
	c := s.client("unix")
	other, err := nbdtest.NewClient(s.dial("unix"), "stays")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Send(nbdtest.Command{Type: nbdtest.CmdRead, Cookie: 5, Length: 4096}); err != nil {
		t.Fatal(err)
	}
	r := <-gone.Requests
	hidden := false
	if n := s.Unused(gone, func() { hidden = true }); n != 1 || hidden || s.Users(gone) != 1 {
		t.Errorf("a device in use has %d users, hidden %v", n, hidden)
	}
	if err := set.Replace(exports[1]); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), deadline)
		defer cancel()
		_, err := s.DrainDevice(ctx, gone)
		done <- err
	}()
	nbdtest.Complete(r, nbd.OK)
	if rep, err := c.Receive(); err != nil || rep.Cookie != 5 {
		t.Fatalf("%+v, %v", rep, err)
	}
	expectEnd(t, c.Conn)
	if err := c.Conn.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	<-gone.Closed
	s.Forget("disk0")
	if x := s.Snapshot().Exports; len(x) != 1 || x[0].Name != "stays" {
		t.Errorf("the counters of %+v are left", x)
	}
	if n := s.Unused(gone, func() { hidden = true }); n != 0 || !hidden {
		t.Errorf("a device that nobody uses has %d users, hidden %v", n, hidden)
	}
	go func() { nbdtest.Complete(<-stays.Requests, nbd.OK) }()
	if rep, err := other.Do(nbdtest.Command{Type: nbdtest.CmdRead, Length: 512}); err != nil || rep.Errno != 0 {
		t.Errorf("the other device: %+v, %v", rep, err)
	}
	if err := set.Replace(exports...); err != nil {
		t.Fatal(err)
	}
	if _, err := nbdtest.NewClient(s.dial("unix"), "disk0"); err != nil {
		t.Errorf("a device that is offered again: %v", err)
	}
}

// TestDrainDevice_Deadline: connections whose requests do not end are cut off, and
// waited for by the next call.
func TestDrainDevice_Deadline(t *testing.T) {
	d := nbdtest.NewManual(1 << 20)
	s := newServer(t, d, nbd.Limits{})
	c := s.client("unix")
	if err := c.Send(nbdtest.Command{Type: nbdtest.CmdRead, Length: 4096}); err != nil {
		t.Fatal(err)
	}
	r := <-d.Requests
	if err := s.Exports.(*nbd.ExportSet).Replace(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if killed, err := s.DrainDevice(ctx, d); killed != 1 || !errors.Is(err, context.Canceled) {
		t.Errorf("%d killed, %v; want 1", killed, err)
	}
	expectEnd(t, c.Conn)
	if s.Users(d) != 1 {
		t.Error("the connection does not wait for its request")
	}
	nbdtest.Complete(r, nbd.OK)
	if killed, err := s.DrainDevice(t.Context(), d); killed != 0 || err != nil {
		t.Errorf("%d killed, %v; want none", killed, err)
	}
	<-d.Closed
}

// onceExports has its export for one look.
type onceExports struct {
	nbd.Export
	looked chan struct{}
}

func (o onceExports) List() []nbd.Export { return nil }

func (o onceExports) Lookup(string) (nbd.Export, bool) {
	select {
	case <-o.looked:
		return o.Export, true
	default:
		return nbd.Export{}, false
	}
}

// TestDrainDevice_Late: a client that has found an export does not get it if the export is
// removed before it is opened.
func TestDrainDevice_Late(t *testing.T) {
	d := nbdtest.NewManual(1 << 20)
	s := newServer(t, d, nbd.Limits{})
	looked := make(chan struct{}, 1)
	looked <- struct{}{}
	s.Exports = onceExports{nbd.Export{Name: "disk0", Device: d}, looked}
	_, err := nbdtest.NewClient(s.dial("unix"), "disk0")
	if err == nil || !strings.Contains(err.Error(), `no export "disk0" any more`) || s.Users(d) != 0 {
		t.Errorf("error %v, %d users", err, s.Users(d))
	}
}
