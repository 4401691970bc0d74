package trace_test

import (
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/vhbad/vhbad/hba/cache"
	"github.com/vhbad/vhbad/hba/trace"
)

// TestRecorder_BackPressure: who records faster than the file writes waits, in order,
// and what waits has a bound.
func TestRecorder_BackPressure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &sheet{}
		w := record(t, f, trace.Config{BufferBytes: 10_000})
		f.slow = make(chan struct{})
		var done atomic.Int32
		write := func(n int64) {
			if !w.Admit(n, true) {
				t.Error("not admitted")
			}
			w.Record(cache.Step{Kind: cache.StepWrite, Write: 1, LengthBytes: n, Data: make([]byte, n)})
			w.Release(n)
			done.Add(1)
		}
		write(4000)
		synctest.Wait() // the file has it in hand
		write(4000)
		go write(50_000) // longer than the buffer: alone
		synctest.Wait()
		go write(100) // there is room, but it is not its turn
		synctest.Wait()
		if n := done.Load(); n != 2 {
			t.Errorf("%d are done, want 2", n)
		}
		if w.Admit(100, false) {
			t.Error("admitted before those who wait")
		}
		paced := make(chan struct{})
		go func() {
			w.Pace()
			close(paced)
		}()
		synctest.Wait()
		select {
		case <-paced:
		default:
			t.Error("who is not to be held up by others' admissions waits for them")
		}
		f.slow <- struct{}{}
		synctest.Wait()
		if n := done.Load(); n != 2 {
			t.Errorf("%d are done with a batch still to be written, want 2", n)
		}
		f.slow <- struct{}{}
		synctest.Wait() // all is written: the long one has its turn, and then there is no room
		if n := done.Load(); n != 3 {
			t.Errorf("%d are done, want 3", n)
		}
		if s := w.Stats(); s.Waits != 2 {
			t.Errorf("%d waits, want 2", s.Waits)
		}
		held := make(chan struct{})
		go func() {
			w.Pace()
			close(held)
		}()
		synctest.Wait()
		select {
		case <-held:
			t.Error("who records more than there is room for does not wait")
		default:
		}
		close(f.slow)
		synctest.Wait()
		<-held
		if n := done.Load(); n != 4 {
			t.Errorf("%d are done, want 4", n)
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		if steps, _, err := read(f.bytes()); err != nil || len(steps) != 4 {
			t.Errorf("%d steps, %v", len(steps), err)
		}
	})
}

// TestRecorder_CloseLetsGo: nobody waits for a trace that has ended.
func TestRecorder_CloseLetsGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &sheet{}
		w := record(t, f, trace.Config{BufferBytes: 1000})
		f.slow = make(chan struct{})
		w.Admit(1000, true)
		through := make(chan struct{})
		go func() {
			w.Admit(1000, true)
			close(through)
		}()
		synctest.Wait()
		go func() {
			synctest.Wait()
			close(f.slow)
		}()
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		<-through
	})
}
