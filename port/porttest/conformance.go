package porttest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/vhbad/vhbad/internal/pci"
	"github.com/vhbad/vhbad/internal/scsi"
	"github.com/vhbad/vhbad/port"
)

// A Subject is what TestMiniport tests: a miniport and the device it drives.
// The device has at least two logical units on target 0, each of at least
// MinBlocks blocks.
type Subject struct {
	Function pci.Function
	Miniport port.Miniport
	Options  port.AdapterOptions
	// Hold makes the device keep reads and writes until release is called.
	Hold func() (release func())
}

// A NewSubject makes a subject on a machine. Its device is closed by t.Cleanup.
type NewSubject func(t *testing.T, m *Machine) Subject

// Sizes that the suite needs.
const (
	// MinBlocks is how many blocks each unit must have.
	MinBlocks = 8192
	// ArenaBytes is the memory of the suite's machines.
	ArenaBytes = 64 << 20
)

// TestMiniport runs the conformance suite. Each test gets a subject of its own,
// with the verifier on and strict: any breach of the contract is a panic.
func TestMiniport(t *testing.T, newSubject NewSubject) {
	t.Helper()
	for _, c := range []struct {
		name string
		run  func(*testing.T, *bench)
	}{
		{"Inquiry", testInquiry},
		{"RoundTrip", testRoundTrip},
		{"Errors", testErrors},
		{"Parallel", testParallel},
		{"Overload", testOverload},
		{"QueueDepth", testQueueDepth},
		{"Abort", testAbort},
		{"ResetUnit", func(t *testing.T, b *bench) { testReset(t, b, port.ResetUnit) }},
		{"ResetTarget", func(t *testing.T, b *bench) { testReset(t, b, port.ResetTarget) }},
		{"ResetBus", func(t *testing.T, b *bench) { testReset(t, b, port.ResetBus) }},
		{"ResetUnderLoad", testResetUnderLoad},
		{"StopRestart", testStopRestart},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := NewMachine(t, ArenaBytes)
			b := &bench{m: m, subject: newSubject(t, m)}
			b.p = m.Processor(t, "test")
			b.a = m.Adapter(t, b.p, b.subject)
			b.units = b.a.LogicalUnits()
			if len(b.units) < 2 {
				t.Fatalf("%d units found, want at least 2", len(b.units))
			}
			b.measure(t)
			c.run(t, b)
		})
	}
}

// A bench is an adapter that is up, with its units.
type bench struct {
	m          *Machine
	subject    Subject
	p          *port.Processor
	a          *port.Adapter
	units      []*port.LogicalUnit
	blockBytes int
	blocks     uint64
}

// measure learns block size and number of blocks from READ CAPACITY.
func (b *bench) measure(t *testing.T) {
	t.Helper()
	batch := b.m.NewBatch(t, b.a, 1, 4096)
	r := batch.Requests[0]
	for _, lu := range b.units[:2] {
		r.Data(port.FlagDataIn, scsi.ReadCapacity16Bytes, func(cdb *[scsi.CDBMaxBytes]byte) int {
			return scsi.PutReadCapacity16(cdb, scsi.ReadCapacity16Bytes)
		})
		batch.Run(b.p, lu, 1)
		c, ok := scsi.ParseReadCapacity16Data(r.Buffer[:r.SRB.DataTransferBytes])
		if !ok || r.SRB.Status != port.StatusSuccess {
			t.Fatalf("READ CAPACITY(16): %s", r.SRB)
		}
		b.blockBytes, b.blocks = int(c.BlockBytes), c.Blocks
		if b.blocks < MinBlocks {
			t.Fatalf("%s has %d blocks, the suite needs %d", lu, b.blocks, MinBlocks)
		}
	}
}

// stamp fills p with a pattern that names its place and version.
func stamp(p []byte, lba, version uint64) {
	for i := 0; i+16 <= len(p); i += 16 {
		binary.LittleEndian.PutUint64(p[i:], lba<<20|uint64(i))
		binary.LittleEndian.PutUint64(p[i+8:], version)
	}
}

func requireStatus(t testing.TB, r *Request, want port.Status) {
	t.Helper()
	if r.SRB.Status != want {
		t.Fatalf("%s, want %s", r.SRB, want)
	}
}

// testInquiry: every unit says what it is, and knows it stays the same object.
func testInquiry(t *testing.T, b *bench) {
	for _, lu := range b.units {
		q, ok := scsi.ParseInquiryData(lu.Inquiry())
		if !ok || !q.Present() || !q.Disk() {
			t.Errorf("%s: INQUIRY data % x are not a disk's", lu, lu.Inquiry())
		}
	}
	if err := b.a.Enumerate(b.p); err != nil {
		t.Fatal(err)
	}
	for i, lu := range b.a.LogicalUnits() {
		if lu != b.units[i] {
			t.Errorf("%s was replaced by the second enumeration", lu)
		}
	}
	for _, s := range b.a.Stats(b.p).Interrupts {
		if s.Runs > 0 {
			return
		}
	}
	t.Error("no interrupt handler ran")
}

// testRoundTrip: data of all lengths come back, from the right unit.
func testRoundTrip(t *testing.T, b *bench) {
	config := b.a.Config()
	most := int(min(config.MaximumTransferLength, uint32(b.blocks)*uint32(b.blockBytes)))
	if b.subject.Options.StrictSegments {
		most = min(most, int(config.NumberOfPhysicalBreaks)*4096)
	}
	batch := b.m.NewBatch(t, b.a, 1, most)
	r := batch.Requests[0]
	for _, n := range []int{b.blockBytes, 3 * b.blockBytes, 4096, 3 * 4096, 64 << 10, most &^ 4095} {
		n = max(n&^(b.blockBytes-1), b.blockBytes)
		for i, lu := range b.units[:2] {
			stamp(r.Buffer[:n], uint64(n), uint64(i))
			r.Write(7, n/b.blockBytes, b.blockBytes)
			if n == most {
				r.Write(0, n/b.blockBytes, b.blockBytes)
			}
			batch.Run(b.p, lu, 1)
			requireStatus(t, r, port.StatusSuccess)
		}
		for i, lu := range b.units[:2] {
			want := make([]byte, n)
			stamp(want, uint64(n), uint64(i))
			clear(r.Buffer)
			r.Read(7, n/b.blockBytes, b.blockBytes)
			if n == most {
				r.Read(0, n/b.blockBytes, b.blockBytes)
			}
			batch.Run(b.p, lu, 1)
			requireStatus(t, r, port.StatusSuccess)
			if int(r.SRB.DataTransferBytes) != n || !bytes.Equal(r.Buffer[:n], want) {
				t.Fatalf("%d bytes of %s read back differ (%d transferred)", n, lu, r.SRB.DataTransferBytes)
			}
		}
	}
	r.Data(0, 0, func(cdb *[scsi.CDBMaxBytes]byte) int { return scsi.PutSynchronizeCache16(cdb, 0, 0, false) })
	batch.Run(b.p, b.units[0], 1)
	requireStatus(t, r, port.StatusSuccess)
}

// testErrors: a check condition comes with its sense data, and the unit goes on.
func testErrors(t *testing.T, b *bench) {
	batch := b.m.NewBatch(t, b.a, 1, 4096)
	r := batch.Requests[0]
	r.Read(b.blocks, 1, b.blockBytes)
	batch.Run(b.p, b.units[0], 1)
	requireStatus(t, r, port.StatusError|port.StatusAutosenseValid)
	sense, ok := scsi.ParseSense(r.SRB.Sense[:r.SRB.SenseBytes])
	if !ok || r.SRB.ScsiStatus != scsi.StatusCheckCondition || sense.Key != scsi.KeyIllegalRequest || sense.Additional != scsi.LBAOutOfRange {
		t.Errorf("read beyond the end: sense % x", r.SRB.Sense[:r.SRB.SenseBytes])
	}
	r.Read(b.blocks, 1, b.blockBytes)
	r.SRB.Flags |= port.FlagDisableAutosense
	batch.Run(b.p, b.units[0], 1)
	requireStatus(t, r, port.StatusError)
	r.Read(0, 1, b.blockBytes)
	batch.Run(b.p, b.units[0], 1)
	requireStatus(t, r, port.StatusSuccess)
	if got := r.Completions.Load(); got != 3 {
		t.Errorf("%d completions, want 3", got)
	}
}

// testParallel: processors that work side by side on ranges of their own find
// what they wrote, whatever the interleaving.
func testParallel(t *testing.T, b *bench) {
	const workers, depth, rounds = 6, 24, 40
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var wg sync.WaitGroup
	span := b.blocks / workers
	for w := range workers {
		p := b.m.Processor(t, fmt.Sprintf("worker %d", w))
		batch := b.m.NewBatch(t, b.a, depth, 8*b.blockBytes)
		rng := rand.New(rand.NewPCG(seed, uint64(w)))
		l := load{p, b.units[w%2], batch, uint64(w) * span, b.blockBytes}
		wg.Go(func() {
			for round := range rounds {
				if err := l.shuffledRound(rng, span/depth); err != nil {
					t.Errorf("worker %d, round %d: %v", w, round, err)
					break
				}
			}
			for _, r := range batch.Requests {
				if n := r.Completions.Load(); n != 2*rounds {
					t.Errorf("worker %d: a request completed %d times, want %d", w, n, 2*rounds)
				}
			}
		})
	}
	wg.Wait()
	for _, lu := range b.units {
		if s := lu.Stats(); s.Outstanding != 0 || s.Waiting != 0 {
			t.Errorf("%s: %d outstanding and %d waiting at the end", lu, s.Outstanding, s.Waiting)
		}
	}
}

// A load is the work that one processor keeps a unit busy with: the requests of its
// batch, on blocks from first on.
type load struct {
	p          *port.Processor
	lu         *port.LogicalUnit
	batch      *Batch
	first      uint64
	blockBytes int
}

// shuffledRound writes a piece of up to 8 blocks with each request, a number of blocks
// apart, and reads them back in another order.
func (l *load) shuffledRound(rng *rand.Rand, apart uint64) error {
	n := len(l.batch.Requests)
	sizes, order := make([]int, n), rng.Perm(n)
	version := rng.Uint64()
	for i, r := range l.batch.Requests {
		sizes[i] = 1 + rng.IntN(8)
		lba := l.first + uint64(i)*apart
		stamp(r.Buffer[:sizes[i]*l.blockBytes], lba, version)
		r.Write(lba, sizes[i], l.blockBytes)
	}
	l.batch.Run(l.p, l.lu, n)
	for i, r := range l.batch.Requests {
		if r.SRB.Status != port.StatusSuccess {
			return errors.New(r.SRB.String())
		}
		clear(r.Buffer)
		r.Read(l.first+uint64(order[i])*apart, sizes[order[i]], l.blockBytes)
	}
	l.batch.Run(l.p, l.lu, n)
	want := make([]byte, 8*l.blockBytes)
	for i, r := range l.batch.Requests {
		lba, bytesRead := l.first+uint64(order[i])*apart, sizes[order[i]]*l.blockBytes
		stamp(want[:bytesRead], lba, version)
		if r.SRB.Status != port.StatusSuccess || !bytes.Equal(r.Buffer[:bytesRead], want[:bytesRead]) {
			return fmt.Errorf("wrong data at block %d: %s", lba, r.SRB)
		}
	}
	return nil
}

// testOverload: with more requests than unit, adapter and rings can take, none is lost
// or fails.
func testOverload(t *testing.T, b *bench) {
	const workers = 3
	n := min(2*b.a.Config().MaxNumberOfIO, 1500)
	var wg sync.WaitGroup
	for w := range workers {
		p := b.m.Processor(t, fmt.Sprintf("worker %d", w))
		batch := b.m.NewBatch(t, b.a, n, 4096)
		wg.Go(func() {
			for i, r := range batch.Requests {
				r.Read(uint64(i%int(b.blocks)), 1, b.blockBytes)
			}
			batch.Run(p, b.units[w%2], n)
			for _, r := range batch.Requests {
				if r.SRB.Status != port.StatusSuccess || r.Completions.Load() != 1 {
					t.Errorf("worker %d: %s, %d completions", w, r.SRB, r.Completions.Load())
					return
				}
			}
		})
	}
	wg.Wait()
}

// testQueueDepth: the device never has more requests than the unit's depth.
func testQueueDepth(t *testing.T, b *bench) {
	lu := b.units[0]
	config := b.a.Config()
	if d := lu.Stats().Depth; d < 1 || d > config.MaxIOsPerLun {
		t.Fatalf("depth %d, want 1 to %d", d, config.MaxIOsPerLun)
	}
	const depth, n = 2, 10
	if !b.a.SetDeviceQueueDepth(b.p, lu.Path(), lu.Target(), lu.Lun(), depth) {
		t.Fatalf("SetDeviceQueueDepth(%d) refused", depth)
	}
	release := b.subject.Hold()
	defer release()
	batch := b.m.NewBatch(t, b.a, n, 4096)
	for _, r := range batch.Requests {
		r.Read(0, 1, b.blockBytes)
	}
	batch.Expect(n)
	batch.Submit(b.p, lu, 0, n)
	if s := lu.Stats(); s.Outstanding != depth || s.Waiting != n-depth {
		t.Errorf("%d outstanding and %d waiting, want %d and %d", s.Outstanding, s.Waiting, depth, n-depth)
	}
	release()
	batch.Wait()
	for _, r := range batch.Requests {
		requireStatus(t, r, port.StatusSuccess)
	}
}

// testAbort: victim and abort both complete once, the victim first.
func testAbort(t *testing.T, b *bench) {
	if b.a.Config().Features&port.FeatureAbortCommand == 0 {
		t.Log("the miniport takes no FunctionAbortCommand; aborting must be refused")
	}
	lu := b.units[0]
	const n = 8
	other := b.m.Processor(t, "aborter")
	batch := b.m.NewBatch(t, b.a, 2*n, 4096)
	release := b.subject.Hold()
	defer release()
	for _, r := range batch.Requests[:n] {
		r.Read(0, 1, b.blockBytes)
	}
	batch.Expect(2 * n)
	batch.Submit(b.p, lu, 0, n)
	for i, r := range batch.Requests[n:] {
		r.Abort(batch.Requests[i])
	}
	batch.Submit(other, lu, n, n)
	release()
	batch.Wait()
	for i, r := range batch.Requests[n:] {
		victim := batch.Requests[i]
		switch {
		case r.Completions.Load() != 1 || victim.Completions.Load() != 1:
			t.Errorf("%d completions of the abort and %d of its victim, want one each", r.Completions.Load(), victim.Completions.Load())
		case b.a.Config().Features&port.FeatureAbortCommand == 0:
			if r.SRB.Status == port.StatusSuccess {
				t.Errorf("abort without the feature: %s", r.SRB)
			}
		case r.SRB.Status != port.StatusSuccess && r.SRB.Status != port.StatusAbortFailed:
			t.Errorf("abort: %s", r.SRB)
		case victim.SRB.Status != port.StatusAborted && victim.SRB.Status != port.StatusSuccess:
			t.Errorf("victim: %s", victim.SRB)
		case r.SRB.Status == port.StatusSuccess && victim.Order > r.Order:
			t.Errorf("abort %d completed before its victim", i)
		}
	}
	aborted := batch.Requests[n]
	aborted.Abort(batch.Requests[0]) // which finished long ago
	batch.Expect(1)
	batch.Submit(b.p, lu, n, 1)
	batch.Wait()
	if s := aborted.SRB.Status; s != port.StatusAbortFailed && s != port.StatusSuccess && s != port.StatusInvalidRequest {
		t.Errorf("abort of a finished request: %s", aborted.SRB)
	}
}

// testReset: a reset ends what the device holds, exactly once, and afterwards
// all units work.
func testReset(t *testing.T, b *bench, level port.ResetLevel) {
	const n = 40
	batch := b.m.NewBatch(t, b.a, 2*n, 4096)
	second := b.m.Processor(t, "second")
	release := b.subject.Hold()
	defer release()
	for _, r := range batch.Requests {
		r.Read(0, 1, b.blockBytes)
	}
	batch.Expect(2 * n)
	batch.Submit(b.p, b.units[0], 0, n)
	batch.Submit(second, b.units[1], n, n)
	done := make(chan error, 1)
	go func() { done <- b.a.ResetNow(second, b.units[0], level) }()
	release()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	batch.Wait()
	for _, r := range batch.Requests {
		switch s := r.SRB.Status; {
		case r.Completions.Load() != 1:
			t.Fatalf("%s completed %d times", r.SRB, r.Completions.Load())
		case s != port.StatusSuccess && !worthRetrying(r.SRB):
			t.Fatalf("after %s reset: %s", level, r.SRB)
		}
	}
	for i, lu := range b.units[:2] {
		b.works(t, batch, lu, uint64(i))
	}
}

// works writes and reads one block, taking unit attentions as they come.
func (b *bench) works(t *testing.T, batch *Batch, lu *port.LogicalUnit, version uint64) {
	t.Helper()
	r := batch.Requests[0]
	want := make([]byte, b.blockBytes)
	stamp(want, 1, version)
	copy(r.Buffer, want)
	for range 4 {
		r.Write(1, 1, b.blockBytes)
		batch.Run(b.p, lu, 1)
		if r.SRB.Status == port.StatusSuccess {
			break
		}
	}
	requireStatus(t, r, port.StatusSuccess)
	clear(r.Buffer)
	r.Read(1, 1, b.blockBytes)
	batch.Run(b.p, lu, 1)
	requireStatus(t, r, port.StatusSuccess)
	if !bytes.Equal(r.Buffer[:b.blockBytes], want) {
		t.Fatalf("%s: wrong data after a reset", lu)
	}
}

// testResetUnderLoad: resets of all levels while processors keep submitting. No
// request is lost, completed twice or answered with somebody else's data.
func testResetUnderLoad(t *testing.T, b *bench) {
	const workers, depth, resets = 4, 16, 12
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for w := range workers {
		p := b.m.Processor(t, fmt.Sprintf("worker %d", w))
		batch := b.m.NewBatch(t, b.a, depth, b.blockBytes)
		l := load{p, b.units[w%2], batch, uint64(w * depth), b.blockBytes}
		wg.Go(func() {
			for version := uint64(1); ; version++ {
				if err := l.roundUnderReset(version); err != nil {
					t.Errorf("worker %d, round %d: %v", w, version, err)
					return
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	for i := range resets {
		level := port.ResetLevel(i % int(port.ResetLevels))
		if err := b.a.ResetNow(b.p, b.units[i%2], level); err != nil {
			t.Errorf("reset %d: %v", i, err)
		}
	}
	close(stop)
	wg.Wait()
	batch := b.m.NewBatch(t, b.a, 1, b.blockBytes)
	for i, lu := range b.units[:2] {
		b.works(t, batch, lu, uint64(i))
	}
}

// roundUnderReset writes a block with each request, then reads them back, and repeats the
// requests that a reset ended.
func (l *load) roundUnderReset(version uint64) error {
	for _, write := range []bool{true, false} {
		todo := l.batch.Requests
		for try := 0; len(todo) > 0; try++ {
			l.submit(todo, version, write)
			again, err := l.check(todo, version)
			if err == nil && len(again) > 0 && try == 1000 {
				err = fmt.Errorf("still %s", again[0].SRB)
			}
			if err != nil {
				return fmt.Errorf("try %d: %w", try, err)
			}
			todo = again
		}
	}
	return nil
}

// submit submits requests and waits for all of them.
func (l *load) submit(todo []*Request, version uint64, write bool) {
	srbs := make([]*port.SRB, len(todo))
	for i, r := range todo {
		lba := l.first + r.index()
		if write {
			stamp(r.Buffer[:l.blockBytes], lba, version)
			r.Write(lba, 1, l.blockBytes)
		} else {
			clear(r.Buffer)
			r.Read(lba, 1, l.blockBytes)
		}
		r.Completions.Store(0)
		srbs[i] = r.SRB
	}
	l.batch.Expect(len(todo))
	l.lu.Submit(l.p, srbs)
	l.batch.Wait()
}

// check looks at requests that have ended. It returns those that a reset ended.
func (l *load) check(done []*Request, version uint64) (again []*Request, err error) {
	want := make([]byte, l.blockBytes)
	for _, r := range done {
		if n := r.Completions.Load(); n != 1 {
			return nil, fmt.Errorf("%s completed %d times", r.SRB, n)
		}
		switch {
		case r.SRB.Status == port.StatusSuccess:
			stamp(want, l.first+r.index(), version)
			if !bytes.Equal(r.Buffer[:l.blockBytes], want) {
				return nil, fmt.Errorf("wrong data: %s", r.SRB)
			}
		case worthRetrying(r.SRB):
			again = append(again, r)
		default:
			return nil, errors.New(r.SRB.String())
		}
	}
	return again, nil
}

// index is the request's place in its batch.
func (r *Request) index() uint64 {
	for i, x := range r.batch.Requests {
		if x == r {
			return uint64(i)
		}
	}
	panic("porttest: a request outside its batch")
}

// worthRetrying reports whether an SRB failed because of a reset.
func worthRetrying(srb *port.SRB) bool {
	switch srb.Status.Code() {
	case port.StatusBusReset, port.StatusAborted, port.StatusBusy:
		return true
	case port.StatusError:
		sense, ok := scsi.ParseSense(srb.Sense[:srb.SenseBytes])
		return ok && sense.Key == scsi.KeyUnitAttention || srb.ScsiStatus == scsi.StatusBusy || srb.ScsiStatus == scsi.StatusTaskSetFull
	default:
		return false
	}
}

// testStopRestart: requests submitted to a stopped adapter wait, and data written
// before are there afterwards.
func testStopRestart(t *testing.T, b *bench) {
	batch := b.m.NewBatch(t, b.a, 2, b.blockBytes)
	write, read := batch.Requests[0], batch.Requests[1]
	for version := range uint64(3) {
		stamp(write.Buffer, 5, version)
		write.Write(5, 1, b.blockBytes)
		batch.Run(b.p, b.units[0], 1)
		requireStatus(t, write, port.StatusSuccess)
		if err := b.a.Stop(b.p); err != nil {
			t.Fatal(err)
		}
		if err := b.a.Stop(b.p); err == nil || !strings.Contains(err.Error(), "not running") {
			t.Errorf("second stop: %v, want an error that says why", err)
		}
		clear(read.Buffer)
		read.Read(5, 1, b.blockBytes)
		batch.Expect(1)
		batch.Submit(b.p, b.units[0], 1, 1)
		if n := read.Completions.Load(); n != int32(version) {
			t.Fatalf("a request completed on a stopped adapter")
		}
		if err := b.a.Restart(b.p); err != nil {
			t.Fatal(err)
		}
		batch.Wait()
		requireStatus(t, read, port.StatusSuccess)
		if !bytes.Equal(read.Buffer, write.Buffer) {
			t.Fatalf("version %d: wrong data after restart", version)
		}
	}
}
