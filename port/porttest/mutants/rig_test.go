package mutants

import (
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/internal/lockorder"
	"github.com/vhbad/vhbad/internal/pci"
	"github.com/vhbad/vhbad/internal/scsi"
	"github.com/vhbad/vhbad/port"
)

// An oracle knows something that the driver under test does not.
type oracle uint8

const (
	oracleNone        oracle = iota
	oracleDuplicateID        // two requests have one id
	oracleOverlap            // a synchronized routine beside an interrupt handler
	oracleStartIo            // two calls of StartIo that must exclude each other
	oracleLost               // no completion until the unit's timer ran out
	oracleStatus             // a completion with another status than the device's
	oracleSense              // sense data of another request
	oracleData               // success without the data
	oracleRanTwice           // the device ran one request twice
	oracleTwice              // two completions of one request
	oracleExtension          // StartIo without the BuildIo that goes with it
	oracleDepth              // a unit's depth is not the adapter's
	oracleTorn               // half of what the handler was changing
)

var oracleNames = [...]string{
	"", "duplicate id", "overlap with the handler", "overlap of StartIo", "lost request", "wrong status", "foreign sense data",
	"wrong data", "ran twice", "completed twice", "extension not built", "wrong depth",
	"torn read",
}

func (o oracle) String() string { return oracleNames[o] }

// options say how the specimen is run.
type options struct {
	model      port.SynchronizationModel
	interrupts port.InterruptSynchronizationMode
	queues     int // more than one: a channel and a message for each
	suppress   bool
}

// The good specimen's lock may keep out the processor that another one waits for,
// which no test can see: then the wait ends after yields. A mutant lets the other
// one in, sooner or later: how soon is up to the host, and patience only keeps a
// broken test from hanging.
const (
	yields   = 3000
	patience = 50_000_000
)

// A rig is a machine with the specimen in it.
type rig struct {
	t     *testing.T
	arena *dma.Arena
	iommu *dma.IOMMU
	sys   *port.System
	dev   *device
	m     *specimen
	p     *port.Processor
	a     *port.Adapter
	units []*port.LogicalUnit

	windows [windows]window
	guilty  bool     // the specimen is a mutant
	undo    []func() // what a mutant left behind

	mu sync.Mutex
	// +checklocks:mu
	failures map[oracle][]string
	// +checklocks:mu
	requests []*request
}

// A request is a read with what is expected of it.
type request struct {
	r           *rig
	srb         *port.SRB
	buffer      []byte
	lba         uint64
	lu          *port.LogicalUnit
	want        []port.Status
	key         scsi.SenseKey // expected with StatusError
	completions atomic.Int32
	reset       bool // it may run again after a reset
}

// newRig brings the specimen up. A mutant that is one from the start is born
// early. The error is AddAdapter's.
func newRig(t *testing.T, o options, s *scenario, x *mutant) (*rig, error) {
	t.Helper()
	if o.queues == 0 {
		o.queues = 1
	}
	arena, err := dma.NewArena(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, arena: arena, iommu: dma.NewIOMMU(arena), guilty: x != nil, failures: map[oracle][]string{}}
	c := port.SystemConfig{IOMMU: r.iommu, Verify: true}
	if x == nil {
		c.HoldLimit = time.Hour // on a loaded host even a good one is off its thread for long
	}
	r.sys = port.NewSystem(c)
	if x == nil { // the order of a driver that is broken on purpose says nothing
		t.Cleanup(func() { lockorder.Record(t, r.sys.Verifier().LockOrder()) })
	}
	r.dev = newDevice(r, o.queues)
	r.m = newSpecimen(r, o)
	r.p = r.processor("test")
	var (
		mp port.Miniport = r.m
		fn pci.Function  = r.dev
	)
	if s.bringUp {
		r.m.hooks[0] = s.hooks
	}
	if x != nil {
		if x.early {
			r.m.gene.Store(uint32(x.gene))
			r.m.hooks[1] = x.hooks
		}
		if x.port != nil {
			mp = x.port(r.m)
		}
		if x.bus != nil {
			fn = x.bus(r.dev)
		}
	}
	r.a, err = r.sys.AddAdapter(r.p, fn, mp, port.AdapterOptions{DefaultTimeoutSecs: 5})
	if err != nil {
		r.p.Close()
		return r, err
	}
	if err := r.a.Enumerate(r.p); err != nil {
		t.Fatal(err)
	}
	r.units = r.a.LogicalUnits()
	if len(r.units) != unitCount {
		t.Fatalf("%d units, want %d", len(r.units), unitCount)
	}
	for _, lu := range r.units {
		if d := lu.Stats().Depth; d != r.a.Config().MaxIOsPerLun {
			r.fail(oracleDepth, "%s: depth %d, want %d", lu, d, r.a.Config().MaxIOsPerLun)
		}
	}
	r.m.hooks[0] = s.hooks
	if x != nil {
		r.m.gene.Store(uint32(x.gene))
		r.m.hooks[1] = x.hooks
		if x.synchronize != nil {
			r.m.synchronize = x.synchronize
		}
	}
	return r, nil
}

func (r *rig) processor(name string) *port.Processor {
	p, err := r.sys.NewProcessor(name)
	if err != nil {
		r.t.Fatal(err)
	}
	return p
}

// fail is called by an oracle.
func (r *rig) fail(o oracle, format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failures[o] = append(r.failures[o], fmt.Sprintf(format, args...))
}

func (r *rig) failed(o oracle) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.failures[o]) > 0
}

// read makes a read of one block that is expected to succeed.
func (r *rig) read(lun int, lba uint64) *request {
	srb, err := r.a.NewSRB(nil)
	if err != nil {
		r.t.Fatal(err)
	}
	q := &request{r: r, srb: srb, buffer: r.arena.Alloc(blockBytes), lba: lba, lu: r.units[lun], want: []port.Status{port.StatusSuccess}}
	if q.buffer == nil {
		r.t.Fatal("no memory left")
	}
	srb.Function = port.FunctionExecuteScsi
	srb.Flags = port.FlagDataIn | port.FlagQueueActionEnable | port.FlagNoQueueFreeze
	srb.QueueAction = port.SimpleTag
	srb.CDBBytes = uint8(scsi.PutRead16(&srb.CDB, lba, 1, false, false))
	srb.DataBuffer, srb.DataTransferBytes = q.buffer[:blockBytes], blockBytes
	srb.Completer = q
	r.mu.Lock()
	r.requests = append(r.requests, q)
	r.mu.Unlock()
	return q
}

// expect says which statuses are right.
func (q *request) expect(want ...port.Status) *request { q.want = want; return q }

// mayReset says that a reset can end the request.
func (q *request) mayReset() *request { q.reset = true; return q.expect(port.StatusBusReset) }

// CompleteSRB implements port.Completer.
func (q *request) CompleteSRB(_ *port.Processor, srb *port.SRB) {
	r := q.r
	runs := r.dev.runs(srb.Tag)
	if q.completions.Add(1) > 1 {
		r.fail(oracleTwice, "%s", srb)
	}
	if runs > 1 && !q.reset {
		r.fail(oracleRanTwice, "%s ran %d times", srb, runs)
	}
	code := srb.Status.Code()
	if !slices.Contains(q.want, code) {
		r.fail(oracleStatus, "%s, want %v", srb, q.want)
		return
	}
	switch code {
	case port.StatusSuccess:
		var want [blockBytes]byte
		stamp(want[:], srb.Lun, q.lba)
		if runs == 0 || srb.DataTransferBytes != blockBytes || [blockBytes]byte(q.buffer[:blockBytes]) != want {
			r.fail(oracleData, "%s ran %d times and has wrong data", srb, runs)
		}
	case port.StatusError:
		if s, ok := scsi.ParseSense(srb.Sense[:srb.SenseBytes]); !ok || s.Key != q.key {
			r.fail(oracleSense, "%s: sense key %s, want %s", srb, s.Key, q.key)
		}
	}
}

// submit hands requests of one unit to the port.
func (r *rig) submit(p *port.Processor, list ...*request) {
	srbs := make([]*port.SRB, len(list))
	for i, q := range list {
		srbs[i] = q.srb
	}
	list[0].lu.Submit(p, srbs)
}

// beside runs f on a goroutine and processor of its own; the result waits.
func (r *rig) beside(name string, f func(p *port.Processor)) (wait func()) {
	done := make(chan struct{})
	p := r.processor(name)
	if p.Number()%2 == r.p.Number()%2 { // it is to be on another channel
		same := p
		p = r.processor(name)
		same.Close()
	}
	go func() {
		defer close(done)
		f(p)
		p.Close()
	}()
	return func() { <-done }
}

func (r *rig) incomplete() (list []*request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, q := range r.requests {
		if q.completions.Load() == 0 {
			list = append(list, q)
		}
	}
	return list
}

// settle waits until all requests are complete, or for two minutes, and asks the
// units' timers whether one was lost.
func (r *rig) settle() {
	for range 120 {
		if len(r.incomplete()) == 0 {
			break
		}
		time.Sleep(time.Second)
		synctest.Wait()
	}
	for _, q := range r.incomplete() {
		r.fail(oracleLost, "never completed: tag %d", q.srb.Tag)
	}
	for _, lu := range r.units {
		if n := lu.Stats().Timeouts; n > 0 {
			r.fail(oracleLost, "%s: its timer ran out %d times", lu, n)
		}
	}
}

// teardown ends everything, whatever a mutant has left. The verdict is taken
// before.
func (r *rig) teardown() {
	p := r.p
	r.m.gene.Store(uint32(good))
	r.m.hooks = [2]hooks{}
	for _, f := range r.undo {
		f()
	}
	if len(r.undo) > 0 {
		p = r.processor("teardown") // the other one may be at any level
	}
	for range 100 {
		list := r.incomplete()
		if srb := r.m.kept.Swap(nil); srb != nil {
			srb.Status = port.StatusSuccess
			r.a.Complete(p, srb)
		}
		if len(list) == 0 {
			break
		}
		r.dev.release(p)
		for _, q := range list {
			if q.completions.Load() == 0 {
				q.srb.Status = port.StatusBusReset
				r.a.Complete(p, q.srb)
			}
		}
		time.Sleep(time.Second)
		synctest.Wait()
	}
	if n := len(r.incomplete()); n > 0 {
		r.t.Errorf("%d requests cannot be ended", n)
		return
	}
	r.a.Remove(p)
	r.mu.Lock()
	list := r.requests
	r.mu.Unlock()
	for _, q := range list {
		r.a.FreeSRB(q.srb)
		r.arena.Free(q.buffer)
	}
	p.Close()
}

// close gives the memory back; only the innocent leave none behind.
func (r *rig) close(innocent bool) {
	s := r.arena.Stats()
	if innocent && (s.InUseBytes != 0 || r.iommu.WindowsInUse() != 0) {
		r.t.Errorf("%d bytes and %d windows are left", s.InUseBytes, r.iommu.WindowsInUse())
	}
	if s.InUseBytes == 0 {
		if err := r.arena.Close(); err != nil {
			r.t.Error(err)
		}
	}
}

// Windows are places where two processors meet if nothing keeps them apart.
const (
	windowID      = iota // between looking for an id and taking it
	windowClaimed        // after that
	windowRing           // between looking for a ring entry and writing it
	windowStart          // in StartIo
	windows
)

// A window lets two visitors wait for each other.
type window struct {
	open  atomic.Bool
	count atomic.Uint32
}

// meet waits for a second visitor. Of a mutant the first two are sure to come;
// those who come later, such as a reset after that, may be alone.
func (r *rig) meet(where int) {
	w := &r.windows[where]
	if !w.open.Load() {
		return
	}
	if n := w.count.Add(1); n%2 == 1 {
		yieldUntil(r.guilty && n == 1, func() bool { return w.count.Load() > n })
	}
}

// yieldUntil lets other goroutines run until done; for a while, or if that is
// sure to come, as long as it takes.
func yieldUntil(sure bool, done func() bool) {
	n := yields
	if sure {
		n = patience
	}
	for range n {
		if done() {
			return
		}
		runtime.Gosched()
	}
}

// linger lets seconds pass on the fake clock.
func linger(seconds int) {
	time.Sleep(time.Duration(seconds) * time.Second)
	synctest.Wait()
}

// An occupancy counts who is inside.
type occupancy struct{ n atomic.Int32 }

// enter reports whether nobody else is inside.
func (o *occupancy) enter() bool { return o.n.Add(1) == 1 }
func (o *occupancy) leave()      { o.n.Add(-1) }
