package miniport_test

import (
	"runtime"
	"testing"

	"github.com/vhbad/vhbad/miniport"
	"github.com/vhbad/vhbad/port"
	"github.com/vhbad/vhbad/port/porttest"
)

// TestInterrupt_StaleCompletion: completions of finished commands, and ones with
// tags that make no sense, complete nothing and are counted.
func TestInterrupt_StaleCompletion(t *testing.T) {
	m, r, p, a := bring(t, miniport.Options{})
	lu := a.LogicalUnits()[0]
	batch := m.NewBatch(t, a, 1, 4096)
	batch.Requests[0].Read(0, 1, 512)
	batch.Run(p, lu, 1)
	old := miniport.TagOf(batch.Requests[0].SRB)
	if old == 0 {
		t.Fatal("the request had no tag")
	}
	for i, tag := range []uint32{old, 0, 0xffff_ffff, old + 1<<16, 5} {
		if r.driver.Forge(p, tag) {
			t.Errorf("a completion with tag %#x reaped an SRB", tag)
		}
		if got := r.driver.Stats()[0].StaleCompletions; got != uint64(i+1) {
			t.Errorf("%d stale completions counted, want %d", got, i+1)
		}
	}
	if err := a.ResetNow(p, lu, port.ResetBus); err != nil {
		t.Fatal(err)
	}
	if r.driver.Resets() != 1 {
		t.Errorf("%d resets counted, want 1", r.driver.Resets())
	}
	for range 4 { // a unit attention or two may come first
		batch.Requests[0].Read(0, 1, 512)
		batch.Run(p, lu, 1)
		if batch.Requests[0].SRB.Status == port.StatusSuccess {
			break
		}
	}
	if s := batch.Requests[0].SRB.Status; s != port.StatusSuccess {
		t.Errorf("after the reset: %s", s)
	}
}

// TestResetBus_Blocked: while the device cannot stop its DMA, ResetBus fails and
// keeps every SRB; the next one, when it can, hands them back.
func TestResetBus_Blocked(t *testing.T) {
	const n = 30
	m, r, p, a := bring(t, miniport.Options{ResetTimeout: 1})
	lu := a.LogicalUnits()[0]
	batch := m.NewBatch(t, a, n, 4096)
	release := r.hold()
	defer release()
	for _, x := range batch.Requests {
		x.Read(0, 1, 512)
	}
	batch.Expect(n)
	batch.Submit(p, lu, 0, n)
	for r.device.Stats().WorkersBusy == 0 {
		runtime.Gosched() // a worker is on its way to the gate
	}
	if err := a.ResetNow(p, lu, port.ResetBus); err == nil {
		t.Error("ResetBus succeeded while a worker may touch memory")
	}
	for _, x := range batch.Requests {
		if c := x.Completions.Load(); c != 0 {
			t.Fatalf("%s completed while its memory may be written", x.SRB)
		}
	}
	release()
	for range 1000 {
		if a.ResetNow(p, lu, port.ResetBus) == nil {
			break
		}
	}
	batch.Wait()
	for _, x := range batch.Requests {
		if s := x.SRB.Status.Code(); x.Completions.Load() != 1 || s != port.StatusBusReset {
			t.Errorf("%s, %d completions; want BUS_RESET once", x.SRB, x.Completions.Load())
		}
	}
}

// TestBuildIo_Refusals: what cannot be sent is completed with a status that says
// so, and takes no tag.
func TestBuildIo_Refusals(t *testing.T) {
	m, r, p, a := bring(t, miniport.Options{Queues: 1})
	lu := a.LogicalUnits()[0]
	batch := m.NewBatch(t, a, 2, 4096)
	x, other := batch.Requests[0], batch.Requests[1]
	for _, tt := range []struct {
		name  string
		setUp func()
		want  port.Status
	}{
		{"CDB too long", func() { x.Read(0, 1, 512); x.SRB.CDBBytes = 17 }, port.StatusInvalidRequest},
		{"RESET_BUS", func() { x.Reset(port.FunctionResetBus) }, port.StatusInvalidRequest},
		{"unknown function", func() { x.Reset(0x7f) }, port.StatusInvalidRequest},
		{"FLUSH", func() { x.Reset(port.FunctionFlush) }, port.StatusSuccess},
		{"abort of nothing", func() { x.Reset(port.FunctionAbortCommand) }, port.StatusAbortFailed},
		{"abort of what was never sent", func() { x.Abort(other) }, port.StatusAbortFailed},
	} {
		tt.setUp()
		batch.Run(p, lu, 1)
		if x.SRB.Status.Code() != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, x.SRB, tt.want)
		}
	}
	if s := r.driver.Stats()[0]; s.Outstanding != 0 || s.QueueFull != 0 {
		t.Errorf("%d outstanding, %d turned away; want none", s.Outstanding, s.QueueFull)
	}
}

// TestFindAdapter_NotOurs: another device is left alone.
func TestFindAdapter_NotOurs(t *testing.T) {
	m := porttest.NewMachine(t, porttest.ArenaBytes)
	p := m.Processor(t, "test")
	foreign := porttest.New(m, porttest.Options{})
	if a, err := m.System.AddAdapter(p, foreign.Function(), miniport.New(miniport.Options{}), port.AdapterOptions{}); err == nil {
		a.Remove(p)
		t.Error("a device with other ids was claimed")
	}
}

// TestQueueFull_Recovers: one processor fills the small ring of one queue over
// and over; BUSY and QUEUE FULL bring every request through.
func TestQueueFull_Recovers(t *testing.T) {
	const n = 64
	m, r, p, a := bring(t, miniport.Options{RingEntries: 8})
	lu := a.LogicalUnits()[0]
	batch := m.NewBatch(t, a, n, 4096)
	release := r.hold()
	defer release()
	for _, x := range batch.Requests {
		x.Read(0, 1, 512)
	}
	batch.Expect(n)
	batch.Submit(p, lu, 0, n)
	release()
	batch.Wait()
	full := uint64(0)
	for _, s := range r.driver.Stats() {
		full += s.QueueFull
	}
	if full == 0 {
		t.Error("no request met a full ring")
	}
	for _, x := range batch.Requests {
		if x.SRB.Status != port.StatusSuccess || x.Completions.Load() != 1 {
			t.Errorf("%s, %d completions", x.SRB, x.Completions.Load())
		}
	}
}
