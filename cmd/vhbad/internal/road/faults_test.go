package road

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/vhbad/vhbad/hba/fault"
	"github.com/vhbad/vhbad/miniport"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
	"github.com/vhbad/vhbad/port"
)

// faults puts rules into force on the road's disk.
func (w *road) faults(rules ...fault.Rule) *fault.Set {
	w.t.Helper()
	for i := range rules {
		if rules[i].Name == "" {
			rules[i].Name = fmt.Sprintf("%s-%d", rules[i].Action.Kind, i)
		}
	}
	s, err := fault.NewSet(fault.Config{
		Rules: rules, Hostile: true, Now: w.hba.Now(), Old: w.hba.Faults(),
		Units: []fault.Unit{{Disk: "disk0", BlockBytes: 512, Blocks: w.unit.Blocks()}},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.hba.SetFaults(s)
	return s
}

// resets are those that the port has asked for, by level.
func (w *road) resets() [port.ResetLevels]uint64 {
	w.t.Helper()
	p, err := w.system.NewProcessor("resets")
	if err != nil {
		w.t.Fatal(err)
	}
	defer p.Close()
	return w.adapter.Stats(p).Resets
}

// A completion that is lost has the request run out of time; the unit is reset, or
// if that fails its target, or if that fails the bus, and the request is sent
// again. If nothing helps, every client gets an error, and the disk works again once
// a reset does. Whether a reset says that it failed, or does not answer, makes no
// difference but time.
func TestFaults_ResetRoad(t *testing.T) {
	t.Parallel()
	ops := []string{"reset-lun", "reset-target", "reset-bus"}
	for failing := range len(ops) + 1 {
		for _, silent := range []bool{false, true} {
			if silent && (failing == 0 || failing == len(ops)) {
				continue // nothing to be silent about, or a matter of the registers
			}
			t.Run(fmt.Sprintf("%d levels fail, silent=%v", failing, silent), func(t *testing.T) {
				t.Parallel()
				w := newRoad(t, shape{
					queues: 2, sizeBytes: 1 << 20, options: miniport.Options{ResetTimeout: 200 * time.Millisecond},
					patience: port.AdapterOptions{DefaultTimeoutSecs: 1, ResetTimeout: time.Second},
				})
				c := w.client()
				data := bytes.Repeat([]byte{0x5a}, 4096)
				if r := do(t, c, nbdtest.Command{Type: nbdtest.CmdWrite, Offset: 4096, Length: 4096, Payload: data}); r.Errno != nbd.OK {
					t.Fatal(r.Errno)
				}
				rules := []fault.Rule{{Name: "lost", Hostile: true, Budget: 1, Match: fault.Match{Op: fault.Ops{"read"}}, Action: fault.Action{Kind: fault.KindLostCompletion}}}
				for _, op := range ops[:failing] {
					rules = append(rules, fault.Rule{Name: op, Match: fault.Match{Op: fault.Ops{op}}, Action: fault.Action{Kind: fault.KindResetFails, Silent: silent}})
				}
				s := w.faults(rules...)
				read := nbdtest.Command{Type: nbdtest.CmdRead, Offset: 4096, Length: 4096, Cookie: 77}
				if err := c.Send(read); err != nil {
					t.Fatal(err)
				}
				if failing == len(ops) {
					for s.Faults()[0].Stats().Fired == 0 {
						runtime.Gosched() // it is this read that is to be lost
					}
					other := w.client()
					for errno := nbd.OK; errno != nbd.ESHUTDOWN; {
						errno = do(t, other, nbdtest.Command{Type: nbdtest.CmdRead, Length: 512}).Errno
					}
				}
				r, err := c.Receive()
				if err != nil {
					t.Fatal(err)
				}
				got := w.resets()
				if failing < len(ops) {
					if r.Errno != nbd.OK || !bytes.Equal(r.Data, data) {
						t.Errorf("the read ends with %v", r.Errno)
					}
					for level := range len(ops) {
						if want := level <= failing; (got[level] != 0) != want {
							t.Errorf("resets by level: %v, want those up to %s", got, port.ResetLevel(failing))
						}
					}
				} else if r.Errno != nbd.ESHUTDOWN {
					t.Errorf("the read that was lost ends with %v, want ESHUTDOWN", r.Errno)
				}
				for _, f := range s.Faults() {
					if f.Stats().Fired == 0 {
						t.Errorf("rule %s has not fired", f.Rule().Name)
					}
				}
				w.faults()
				for tries := 0; ; tries++ {
					r := do(t, c, nbdtest.Command{Type: nbdtest.CmdRead, Offset: 4096, Length: 4096})
					if r.Errno == nbd.OK && bytes.Equal(r.Data, data) {
						break
					}
					if tries == 1<<20 {
						t.Fatalf("the disk does not come back: %v", r.Errno)
					}
				}
			})
		}
	}
}

// A bus reset that fails once stops the whole adapter until the port tries again. That is
// soon: commands that come meanwhile wait, and are done without an error, long before a
// request could time out.
func TestFaults_BusResetFailsOnce(t *testing.T) {
	t.Parallel()
	w := newRoad(t, shape{queues: 2, sizeBytes: 1 << 20, options: miniport.Options{ResetTimeout: 20 * time.Millisecond}})
	c := w.client()
	s := w.faults(fault.Rule{Budget: 1, Match: fault.Match{Op: fault.Ops{"reset-bus"}}, Action: fault.Action{Kind: fault.KindResetFails}})
	p, err := w.system.NewProcessor("reset")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := w.adapter.ResetNow(p, w.adapter.LogicalUnits()[0], port.ResetBus); err == nil {
		t.Error("the reset of the bus succeeds")
	}
	for _, cmd := range []nbdtest.Command{{Type: nbdtest.CmdWrite, Length: 512, Payload: make([]byte, 512)}, {Type: nbdtest.CmdRead, Length: 512}} {
		if r := do(t, c, cmd); r.Errno != nbd.OK {
			t.Errorf("command %d after a reset of the bus that failed: %v, want it done", cmd.Type, r.Errno)
		}
	}
	if got := s.Faults()[0].Stats().Fired; got != 1 {
		t.Errorf("the rule has fired %d times, want once", got)
	}
	// One that failed, and one that worked.
	if got := w.resets(); got != [port.ResetLevels]uint64{port.ResetBus: 2} {
		t.Errorf("resets by level: %v, want two of the bus", got)
	}
}

// Whatever completions a broken device makes, the driver takes each request's
// answer once, from its own tag, and the data are right.
func TestFaults_BrokenCompletions(t *testing.T) {
	t.Parallel()
	every := func(n uint64, kind fault.Kind) fault.Rule {
		return fault.Rule{Name: string(kind), Hostile: true, Match: fault.Match{Op: fault.Ops{"read"}, Every: n}, Budget: 3, Action: fault.Action{Kind: kind}}
	}
	soon := fault.Duration(time.Millisecond)
	late := every(20, fault.KindLateCompletion)
	late.Action.For = soon
	dma := every(20, fault.KindDMAAfterReset)
	dma.Action.For = fault.Duration(100 * time.Millisecond) // by then its memory is unmapped
	again := every(20, fault.KindDMAAfterCompletion)
	again.Action.For = dma.Action.For
	duplicates := every(3, fault.KindDuplicate)
	duplicates.Budget = 0
	for _, rule := range []fault.Rule{duplicates, every(20, fault.KindMistagged), late, dma, again, every(20, fault.KindLostInterrupt), every(20, fault.KindLostCompletion)} {
		t.Run(rule.Name, func(t *testing.T) {
			t.Parallel()
			const size, block = 1 << 20, 4096
			w := newRoad(t, shape{queues: 2, sizeBytes: size, patience: port.AdapterOptions{DefaultTimeoutSecs: 1, ResetTimeout: time.Second}})
			w.faultsAllowed = rule.Action.Kind == fault.KindDMAAfterReset || rule.Action.Kind == fault.KindDMAAfterCompletion
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			rng := rand.New(rand.NewPCG(seed, 0))
			c := w.client()
			model := make([]byte, size)
			s := w.faults(rule)
			for range 200 {
				off := rng.IntN(size/block) * block
				if rng.IntN(2) == 0 {
					b := bytes.Repeat([]byte{byte(rng.Uint32())}, block)
					if r := do(t, c, nbdtest.Command{Type: nbdtest.CmdWrite, Offset: uint64(off), Length: block, Payload: b}); r.Errno != nbd.OK {
						t.Fatalf("seed %d: write: %v", seed, r.Errno)
					}
					copy(model[off:], b)
					continue
				}
				r := do(t, c, nbdtest.Command{Type: nbdtest.CmdRead, Offset: uint64(off), Length: block})
				if r.Errno != nbd.OK || !bytes.Equal(r.Data, model[off:off+block]) {
					t.Fatalf("seed %d: read at %d: %v, or other data", seed, off, r.Errno)
				}
			}
			fired := s.Faults()[0].Stats().Fired
			if fired == 0 {
				t.Error("the rule has not fired")
			}
			stale := uint64(0)
			for _, q := range w.driver.Stats() {
				stale += q.StaleCompletions
			}
			resets := w.resets()[port.ResetUnit]
			// Only the last late one may not have come yet.
			switch rule.Action.Kind {
			case fault.KindDuplicate, fault.KindMistagged:
				if stale != fired {
					t.Errorf("%d stale completions seen, want one for each of %d firings", stale, fired)
				}
			case fault.KindLateCompletion:
				if stale+1 < fired {
					t.Errorf("%d stale completions seen of %d late ones", stale, fired)
				}
			case fault.KindDMAAfterReset:
				if n := w.iommu.Faults(); n == 0 {
					t.Errorf("%d DMA faults after %d firings", n, fired)
				}
			case fault.KindDMAAfterCompletion:
				for w.iommu.Faults() == 0 {
					runtime.Gosched() // the requests were answered long ago
				}
			default:
			}
			answered := rule.Action.Kind == fault.KindDuplicate || rule.Action.Kind == fault.KindDMAAfterCompletion
			if answered && resets != 0 || !answered && resets != fired {
				t.Errorf("%d resets of the unit after %d firings, want one for each that was not answered", resets, fired)
			}
		})
	}
}

// Under a mixture of all that a correct drive may do, no read gives wrong data, and
// no write that was acknowledged is lost.
func TestFaults_LegalOnesLoseNothing(t *testing.T) {
	t.Parallel()
	const size, block = 1 << 20, 4096
	w := newRoad(t, shape{queues: 4, sizeBytes: size})
	ms := func(n int) fault.Duration { return fault.Duration(time.Duration(n) * time.Millisecond) }
	p := 0.05
	some := fault.Match{Probability: &p}
	few := fault.Match{Every: 100} // the port waits a while before it tries again
	w.faults(
		fault.Rule{Match: few, Action: fault.Action{Kind: fault.KindBusy}},
		fault.Rule{Match: few, Action: fault.Action{Kind: fault.KindTaskSetFull}},
		fault.Rule{Match: few, Action: fault.Action{Kind: fault.KindRingFull, For: ms(2)}},
		fault.Rule{Match: some, Action: fault.Action{Kind: fault.KindUnitAttention}},
		fault.Rule{Match: some, Action: fault.Action{Kind: fault.KindNotReady}},
		fault.Rule{Match: some, Action: fault.Action{Kind: fault.KindErrno, Errno: "EIO"}},
		fault.Rule{Match: some, Action: fault.Action{Kind: fault.KindShortTransfer}},
		fault.Rule{Match: some, Action: fault.Action{Kind: fault.KindHang, For: ms(2)}},
		fault.Rule{Match: some, Action: fault.Action{Kind: fault.KindGate, At: fault.PlaceAfter, For: ms(2)}},
		fault.Rule{Match: some, Action: fault.Action{Kind: fault.KindReorder, For: ms(2)}},
		fault.Rule{Match: some, Action: fault.Action{Kind: fault.KindLatency, Latency: &fault.Latency{Distribution: fault.LogNormal, Median: ms(1), Sigma: 1, Max: ms(5)}}},
	)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	for i := range 3 {
		t.Run(fmt.Sprintf("client %d", i), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(seed, uint64(i)))
			c := w.client()
			// Each client has its own part. A write that failed may have been done in part:
			// the content there is then unknown until the next write.
			const part = size / 4
			known := map[int]byte{}
			for b := range part / block {
				known[b] = 0
			}
			failed := 0
			for range 400 {
				b := rng.IntN(part / block)
				at := uint64(i*part + b*block)
				if rng.IntN(2) == 0 {
					v := byte(rng.Uint32())
					r := do(t, c, nbdtest.Command{Type: nbdtest.CmdWrite, Offset: at, Length: block, Payload: bytes.Repeat([]byte{v}, block)})
					if r.Errno == nbd.OK {
						known[b] = v
					} else {
						delete(known, b)
						failed++
					}
					continue
				}
				r := do(t, c, nbdtest.Command{Type: nbdtest.CmdRead, Offset: at, Length: block})
				v, ok := known[b]
				if r.Errno == nbd.OK && ok && !bytes.Equal(r.Data, bytes.Repeat([]byte{v}, block)) {
					t.Fatalf("seed %d: block %d is %#x, want %#x", seed, b, r.Data[0], v)
				}
				if r.Errno != nbd.OK {
					failed++
				}
			}
			if failed == 0 || failed > 200 {
				t.Errorf("%d of 400 requests failed", failed)
			}
		})
	}
}

// While the device takes nothing from a ring, the ring fills up, the driver turns away
// what has no room, and the port sends it again when there is some: the client gets
// each answer once, and without an error, however many requests it has under way.
func TestFaults_RingFull(t *testing.T) {
	t.Parallel()
	const entries, requests = 64, 200
	w := newRoad(t, shape{queues: 4, ringEntries: entries, sizeBytes: 1 << 20})
	c := w.client()
	s := w.faults(fault.Rule{Budget: 1, Match: fault.Match{Op: fault.Ops{"flush"}}, Action: fault.Action{Kind: fault.KindRingFull, For: fault.Duration(time.Hour)}})
	if r := do(t, c, nbdtest.Command{Type: nbdtest.CmdFlush}); r.Errno != nbd.OK {
		t.Fatal(r.Errno)
	}
	turnedAway := func() (n uint64) {
		for _, q := range w.driver.Stats() {
			n += q.QueueFull
		}
		return n
	}
	for i := range uint64(requests) {
		cmd := nbdtest.Command{Type: nbdtest.CmdWrite, Cookie: i, Offset: i * 512, Length: 512, Payload: bytes.Repeat([]byte{byte(i)}, 512)}
		if err := c.Send(cmd); err != nil {
			t.Fatal(err)
		}
	}
	for turnedAway() == 0 {
		runtime.Gosched()
	}
	if e, err := w.memory.ExtentAt(0); err != nil || e.Data {
		t.Errorf("%+v, %v: the device has executed what it was not to look at", e, err)
	}
	w.faults()
	answered := make(map[uint64]bool)
	for range requests {
		r, err := c.Receive()
		if err != nil || r.Errno != nbd.OK || answered[r.Cookie] {
			t.Fatalf("%+v, %v: want each write answered once, and done", r, err)
		}
		answered[r.Cookie] = true
	}
	for i := range uint64(requests) {
		r := do(t, c, nbdtest.Command{Type: nbdtest.CmdRead, Offset: i * 512, Length: 512})
		if r.Errno != nbd.OK || !bytes.Equal(r.Data, bytes.Repeat([]byte{byte(i)}, 512)) {
			t.Fatalf("write %d: %v, or other data", i, r.Errno)
		}
	}
	if got := s.Faults()[0].Stats().Fired; got != 1 {
		t.Errorf("fired %d times, want once", got)
	}
	if got := w.resets(); got != [port.ResetLevels]uint64{} {
		t.Errorf("resets %v, want none", got)
	}
}

// A ring that the device does not look at again has its commands run out of time. The
// resets of the unit and of its target, which come by rings, do not help; that of the
// bus makes new rings, and the command is sent again.
func TestFaults_RingFull_Reset(t *testing.T) {
	t.Parallel()
	w := newRoad(t, shape{queues: 2, sizeBytes: 1 << 20, patience: port.AdapterOptions{DefaultTimeoutSecs: 1, ResetTimeout: time.Second}})
	c := w.client()
	w.faults(fault.Rule{Budget: 1, Match: fault.Match{Op: fault.Ops{"flush"}}, Action: fault.Action{Kind: fault.KindRingFull, For: fault.Duration(time.Hour)}})
	for _, typ := range []uint16{nbdtest.CmdFlush, nbdtest.CmdRead} {
		cmd := nbdtest.Command{Type: typ}
		if typ == nbdtest.CmdRead {
			cmd.Length = 4096
		}
		if r := do(t, c, cmd); r.Errno != nbd.OK {
			t.Errorf("command %d: %v", typ, r.Errno)
		}
	}
	if got := w.resets(); got[port.ResetUnit] == 0 || got[port.ResetTarget] == 0 || got[port.ResetBus] != 1 {
		t.Errorf("resets by level: %v, want all levels, and the bus once", got)
	}
}
