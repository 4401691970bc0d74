package nbd

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/vhbad/vhbad/internal/dma"
)

// TestSweep_Rests: connections that do nothing are looked at each 8 s in the end, or as
// often as a limit needs, and each second after a look that finds that one did something.
func TestSweep_Rests(t *testing.T) {
	for _, tt := range []struct {
		name   string
		limits Limits
		owed   bool          // a reply that the client does not take
		want   time.Duration // when a read after 57 s is seen
	}{
		{"by itself", Limits{}, false, 64 * time.Second},
		{"a short reply-timeout", Limits{ReplyTimeout: 16 * time.Second}, false, 60 * time.Second},
		{"a short idle-timeout", Limits{IdleTimeout: 16 * time.Second}, false, 60 * time.Second},
		{"a stalled client", Limits{}, true, 58 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				arena, err := dma.NewArena(256 << 20)
				if err != nil {
					t.Fatal(err)
				}
				s := &Server{Arena: arena, Limits: tt.limits, Exports: &ExportSet{}}
				if err := s.setup(); err != nil {
					t.Fatal(err)
				}
				c := newBareConn(arena)
				c.transmitting = true
				c.ops[OpRead].started.Store(1) // it waits for a reply that no client holds up
				if tt.owed {
					c.replySince.Store(now())
				}
				s.mu.Lock()
				s.conns[c], s.sweeping = struct{}{}, true
				s.mu.Unlock()
				s.wg.Go(s.sweep)

				start := time.Now()
				visited := func() uint64 { // of the past: the sweeper's next look takes mu first
					s.mu.Lock()
					defer s.mu.Unlock()
					return c.visits.reads
				}
				until := func(d time.Duration) {
					<-time.After(time.Until(start.Add(d)))
					synctest.Wait()
				}
				// seen checks that a read of now is seen at the time want, and no earlier.
				seen := func(want time.Duration) {
					t.Helper()
					n := c.reads.Add(1)
					until(want - time.Millisecond)
					if visited() == n {
						t.Errorf("the connection was looked at before %v", want)
					}
					until(want + time.Millisecond)
					if visited() != n {
						t.Errorf("the connection was not looked at by %v", want)
					}
				}
				seen(1 * time.Second)
				until(57 * time.Second)
				seen(tt.want)
				seen(tt.want + time.Second)

				s.mu.Lock()
				delete(s.conns, c)
				s.mu.Unlock()
				s.alone <- struct{}{}
				s.wg.Wait()
			})
		})
	}
}
