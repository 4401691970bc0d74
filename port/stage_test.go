package port

import (
	"testing"
	"time"

	"github.com/vhbad/vhbad/internal/scsi"
)

// TestStages: what an SRB that is followed spends where, by a clock that stands
// still but for what each stage takes.
func TestStages(t *testing.T) {
	const requests = 100 * SampleEvery
	clock := &testClock{}
	takes := map[Stage]time.Duration{
		StageQueue: 1 * time.Microsecond, StageBuild: 2 * time.Microsecond, StageStart: 3 * time.Microsecond,
		StageDevice: 5 * time.Microsecond, StageInterrupt: 7 * time.Microsecond, StageComplete: 11 * time.Microsecond,
	}
	d := &driver{model: FullDuplex}
	d.buildIo = func(*Processor, *SRB) bool { clock.advance(takes[StageBuild]); return true }
	var atDevice *SRB
	d.startIo = func(p *Processor, s *SRB) bool {
		clock.advance(takes[StageStart])
		s.SentToDevice(p)
		clock.advance(takes[StageDevice])
		atDevice = s
		return true
	}
	d.handler = func(p *Processor, _ SyncToken, _ uint16) bool {
		s := atDevice
		atDevice = nil
		s.TakenFromDevice(p)
		clock.advance(takes[StageInterrupt])
		d.complete(p, s)
		clock.advance(takes[StageComplete])
		return true
	}
	b := newBenchIn(t, d, AdapterOptions{}, SystemConfig{Clock: clock.now})
	samples := 0
	srb := b.srb(&finished{each: func(_ *Processor, s *SRB) {
		if s.TakeSample() {
			samples++
		}
		if s.TakeSample() {
			t.Error("a sample was taken twice")
		}
	}})
	srb.CDBBytes = uint8(scsi.PutRead16(&srb.CDB, 0, 0, false, false))
	for range requests {
		b.a.PauseDevice(b.p, 0, 0, 0, 3600)
		b.lu.Submit(b.p, []*SRB{srb})
		clock.advance(takes[StageQueue])
		b.a.ResumeDevice(b.p, 0, 0, 0)
		b.w.raise(b.p, 0)
	}
	times := b.a.StageTimes()
	if samples < 80 || samples > 120 {
		t.Errorf("%d of %d SRBs were followed, want about one in %d", samples, requests, SampleEvery)
	}
	for op := range Operations {
		for stage := StageQueue; stage < Stages; stage++ {
			h, want := &times[op][stage], uint64(0)
			if op == OperationRead {
				want = uint64(samples)
			}
			if h.Count() != want || h.Sum != time.Duration(want)*takes[stage] {
				t.Errorf("%s, %s: %d times, %v in all; want %d times %v", op, stage, h.Count(), h.Sum, want, takes[stage])
			}
		}
	}
	b.wantNoViolations()
}

// An SRB that is turned away waits in the queue again; one that never gets to the
// miniport is not followed.
func TestStages_OtherWays(t *testing.T) {
	clock := &testClock{}
	d := &driver{model: FullDuplex}
	turnedAway := false
	d.buildIo = func(p *Processor, s *SRB) bool {
		clock.advance(2 * time.Microsecond)
		if turnedAway {
			return true
		}
		turnedAway = true
		s.Status = StatusBusy
		d.a.Complete(p, s)
		return false
	}
	d.startIo = func(p *Processor, s *SRB) bool {
		d.complete(p, s)
		return true
	}
	b := newBenchIn(t, d, AdapterOptions{BusyPauseTime: time.Hour}, SystemConfig{Clock: clock.now})
	done := &finished{}
	srb := b.srb(done)
	srb.CDBBytes = uint8(scsi.PutSynchronizeCache16(&srb.CDB, 0, 0, false))
	b.p.samples.left = 1
	b.lu.Submit(b.p, []*SRB{srb})
	clock.advance(9 * time.Microsecond)
	b.a.DeviceReady(b.p, 0, 0, 0)
	if len(done.list()) != 1 {
		t.Fatal("the SRB did not complete")
	}
	times := b.a.StageTimes()[OperationFlush]
	for stage, want := range map[Stage]struct {
		count uint64
		sum   time.Duration
	}{StageQueue: {2, 9 * time.Microsecond}, StageBuild: {2, 4 * time.Microsecond}, StageStart: {1, 0}, StageDevice: {}, StageInterrupt: {}, StageComplete: {2, 0}} {
		if h := &times[stage]; h.Count() != want.count || h.Sum != want.sum {
			t.Errorf("%s: %d times, %v in all; want %d, %v", stage, h.Count(), h.Sum, want.count, want.sum)
		}
	}

	p := b.processor("another")
	defer p.Close()
	other := b.srb(done)
	other.CDBBytes = srb.CDBBytes
	other.CDB = srb.CDB
	b.a.PauseDevice(p, 0, 0, 0, 3600)
	p.samples.left = 1
	b.lu.Submit(p, []*SRB{other})
	if other.stage != StageQueue {
		t.Error("the SRB is not followed")
	}
	b.lu.mu.Lock()
	b.lu.failWaitingLocked(p, StatusRequestFlushed)
	b.lu.mu.Unlock()
	p.drain()
	if len(done.list()) != 2 || other.TakeSample() {
		t.Error("an SRB that the port completed was followed to its end, or did not complete")
	}
	b.wantNoViolations()
}

func TestOperation(t *testing.T) {
	for _, tt := range []struct {
		put  func(cdb *[16]byte) int
		want string
	}{
		{func(cdb *[16]byte) int { return scsi.PutRead16(cdb, 1, 1, false, false) }, "read"},
		{func(cdb *[16]byte) int { return scsi.PutWrite16(cdb, 1, 1, true, false) }, "write"},
		{func(cdb *[16]byte) int { return scsi.PutSynchronizeCache16(cdb, 0, 0, false) }, "flush"},
		{func(cdb *[16]byte) int { return scsi.PutUnmap(cdb, false, 24) }, "trim"},
		{func(cdb *[16]byte) int { return scsi.PutWriteSame16(cdb, 1, 1, true, false, true) }, "write_zeroes"},
		{func(cdb *[16]byte) int { return scsi.PutPreFetch16(cdb, 1, 1, false) }, "cache"},
		{func(cdb *[16]byte) int { return scsi.PutGetLBAStatus(cdb, 1, 24) }, "block_status"},
		{func(cdb *[16]byte) int { return scsi.PutReadCapacity16(cdb, 32) }, "none"},
		{func(*[16]byte) int { return 6 }, "none"}, // TEST UNIT READY
	} {
		s := &SRB{}
		s.CDBBytes = uint8(tt.put(&s.CDB))
		op, ok := s.operation()
		if !ok {
			op = Operations
		}
		if op.String() != tt.want {
			t.Errorf("CDB % x is %s, want %s", s.CDB[:s.CDBBytes], op, tt.want)
		}
	}
	reset := &SRB{Function: FunctionResetBus}
	scsi.PutRead16(&reset.CDB, 1, 1, false, false) // left over from another use
	if _, ok := reset.operation(); ok {
		t.Error("a reset is followed")
	}
}

// TestLocks: acquisitions are exact, waits too, and hold times a sample.
func TestLocks(t *testing.T) {
	const acquisitions = 100 * SampleEvery
	clock := &testClock{}
	asked := make(chan struct{}, 1)
	now := func() time.Time {
		select {
		case asked <- struct{}{}:
		default:
		}
		return clock.now()
	}
	b := newUncheckedBench(t, &driver{model: FullDuplex}, AdapterOptions{}, SystemConfig{Clock: now})
	defer b.remove()
	b.a.service.stop() // it looks at the clock, too
	before := b.a.Locks().StartIo
	for range acquisitions {
		b.a.startIoLock.acquire(b.p)
		clock.advance(4 * time.Microsecond)
		b.a.startIoLock.release(b.p)
	}
	after := b.a.Locks().StartIo
	if n := after.Acquired - before.Acquired; n != acquisitions {
		t.Errorf("%d acquisitions, want %d", n, acquisitions)
	}
	n, sum := after.Hold.Count()-before.Hold.Count(), after.Hold.Sum-before.Hold.Sum
	if n < 80 || n > 120 || sum != time.Duration(n)*4*time.Microsecond {
		t.Errorf("hold time: %d times, %v in all; want about 100 times 4 µs", n, sum)
	}
	if n := after.Wait.Count(); n != 0 {
		t.Errorf("%d waits with nobody to wait for", n)
	}

	// One waits for another, in each of the two ways to wait.
	for i, acquire := range []func(*Processor){
		func(p *Processor) { b.a.interruptLocks[0].acquire(p) },
		func(p *Processor) { b.a.interruptLocks[0].acquireForHandler(p) },
	} {
		l := &b.a.interruptLocks[0]
		l.acquire(b.p)
		select {
		case <-asked: // by the acquisition, if its hold time is taken
		default:
		}
		p, got := b.processor("waiter"), make(chan struct{})
		go func() {
			defer close(got)
			acquire(p)
			l.release(p)
			p.Close()
		}()
		<-asked
		held := b.a.Locks().Interrupt.Acquired
		clock.advance(9 * time.Microsecond)
		l.release(b.p)
		<-got
		s := b.a.Locks().Interrupt
		if s.Wait.Count() != uint64(i+1) || s.Wait.Sum != time.Duration(i+1)*9*time.Microsecond {
			t.Errorf("%d waits of %v in all; want %d of 9 µs each", s.Wait.Count(), s.Wait.Sum, i+1)
		}
		if s.Acquired < held+2 {
			t.Errorf("%d acquisitions, and %d while the lock was held; want 2 more", s.Acquired, held)
		}
	}
}

// Processors that need not share do not: the followed SRBs of different processors go to
// different histograms.
func TestStageShards(t *testing.T) {
	for threads, want := range map[int]int{1: 1, 2: 2, 3: 4, 16: 16, 1000: maxStageShards} {
		if n := len(newStageShards(threads)); n != want {
			t.Errorf("%d shards for %d threads, want %d", n, threads, want)
		}
	}
}
