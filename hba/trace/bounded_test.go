package trace_test

import (
	"errors"
	"strings"
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

// still is a recorder whose file does not come on, and has a batch in hand.
func still(t *testing.T, c trace.Config) (w *trace.Recorder, f *sheet) {
	t.Helper()
	f = &sheet{}
	w = record(t, f, c)
	f.slow = make(chan struct{})
	w.Record(cache.Step{Kind: cache.StepMark})
	synctest.Wait()
	return w, f
}

// TestRecorder_WithoutAdmission: who cannot wait for a file that stands still ends the
// trace before it fills memory, and the trace says why.
func TestRecorder_WithoutAdmission(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		told := make(chan error, 2)
		w, f := still(t, trace.Config{BufferBytes: 10_000, OnFail: func(err error) { told <- err }})
		const each = 16 + 4 + 4
		bound := uint64(10_000+4<<20+cache.MinSizeBytes/512*28)/each + 10
		for range 2 * bound {
			w.Record(cache.Step{Kind: cache.StepBroke, Text: "flip"})
		}
		s := w.Stats()
		if s.Records > bound || s.Records < bound/2 {
			t.Errorf("%d records, want at most %d", s.Records, bound)
		}
		if s.Err == nil || !strings.Contains(s.Err.Error(), "the file is too slow: ") {
			t.Fatalf("error %v", s.Err)
		}
		synctest.Wait() // the file still stands
		select {
		case err := <-told:
			if !errors.Is(err, s.Err) {
				t.Errorf("told of %v", err)
			}
		default:
			t.Error("nobody is told while the file stands still")
		}
		if !w.Admit(1<<40, false) {
			t.Error("somebody waits for a trace that has ended")
		}
		close(f.slow)
		if err := w.Close(); !errors.Is(err, s.Err) {
			t.Errorf("close: %v", err)
		}
		if len(told) != 0 {
			t.Error("told twice")
		}
		steps, r, err := read(f.bytes())
		if err != nil || uint64(len(steps)) != s.Records-1 {
			t.Fatalf("%d steps, %v; want %d", len(steps), err, s.Records-1)
		}
		if complete, reason := r.End(); complete || reason != s.Err.Error() {
			t.Errorf("complete %v, %q", complete, reason)
		}
	})
}

// TestRecorder_Excess: what a cache does within its bounds does not end the trace,
// though the file stands still: a write longer than the buffer, and all that the cache
// holds is chosen to become durable.
func TestRecorder_Excess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := header
		h.CacheBytes = 256 << 20
		w, f := still(t, trace.Config{Header: h, BufferBytes: 1000})
		f.slow <- struct{}{}
		synctest.Wait() // all is written
		const n = 20 << 20
		w.Admit(n, true)
		w.Record(cache.Step{Kind: cache.StepWrite, Write: 1, LengthBytes: n, Data: make([]byte, n)})
		w.Record(cache.Step{Kind: cache.StepAnswer, Write: 1})
		w.Release(n)
		for i := range uint64(256 << 20 / 512) {
			w.Record(cache.Step{Kind: cache.StepLeave, Write: i})
		}
		w.Record(cache.Step{Kind: cache.StepBroke, Text: "flip"})
		if err := w.Stats().Err; err != nil {
			t.Error(err)
		}
		close(f.slow)
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
}
