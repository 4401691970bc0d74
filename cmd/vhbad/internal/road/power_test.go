package road

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vhbad/vhbad/hba/cache"
	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// TestPowerCut_EachConnectionIsToldOnce: after a power cut, a flush that works
// would say that writes from before are durable. Every connection that was open
// gets an error for its next flush, and no other.
func TestPowerCut_EachConnectionIsToldOnce(t *testing.T) {
	var c *cache.Cache
	w := newRoad(t, shape{queues: 2, sizeBytes: 1 << 20, medium: func(m *media.Memory) media.Media {
		var err error
		if c, err = cache.New(m, cache.Config{}); err != nil {
			t.Fatal(err)
		}
		return c
	}})
	flush := nbdtest.Command{Type: nbdtest.CmdFlush}
	write := nbdtest.Command{Type: nbdtest.CmdWrite, Length: 512, Payload: make([]byte, 512)}
	write.Payload[0] = 1
	a, b := w.client(), w.client()
	for _, x := range []nbdtest.Command{write, flush, write} {
		if errno := do(t, a, x).Errno; errno != nbd.OK {
			t.Fatalf("command %d: %v", x.Type, errno)
		}
	}
	w.unit.PowerOff()
	if errno := do(t, b, write).Errno; errno != nbd.EIO {
		t.Errorf("write without power: %v, want EIO", errno)
	}
	if _, err := c.Cut(cache.CutOptions{Policy: cache.PolicyNone}); err != nil {
		t.Fatal(err)
	}
	w.disk.LostWrites()
	w.unit.PowerOn()
	late := w.client()
	for name, client := range map[string]*nbdtest.Client{"who wrote": a, "who did not": b} {
		if errno := do(t, client, flush).Errno; errno != nbd.EIO {
			t.Errorf("%s: flush after the cut: %v, want EIO", name, errno)
		}
		if errno := do(t, client, flush).Errno; errno != nbd.OK {
			t.Errorf("%s: second flush after the cut: %v", name, errno)
		}
	}
	if errno := do(t, late, flush).Errno; errno != nbd.OK {
		t.Errorf("who came after the cut: %v", errno)
	}
	if s := w.disk.Stats(); s.UnitAttentions != 1 {
		t.Errorf("%d unit attentions, want that of the power", s.UnitAttentions)
	}
}

// TestPowerCut_FlushOfAnother: a flush makes durable what was answered before it on
// any connection, of another queue, too, and FUA what carries it; a cut that loses
// all it may leaves both, and nothing else.
func TestPowerCut_FlushOfAnother(t *testing.T) {
	var c *cache.Cache
	w := newRoad(t, shape{queues: 2, sizeBytes: 1 << 20, medium: func(m *media.Memory) media.Media {
		var err error
		if c, err = cache.New(m, cache.Config{}); err != nil {
			t.Fatal(err)
		}
		return c
	}})
	a, b := w.client(), w.client()
	write := func(client *nbdtest.Client, sector uint64, flags uint16) {
		t.Helper()
		x := nbdtest.Command{Type: nbdtest.CmdWrite, Flags: flags, Offset: sector * 512, Length: 512, Payload: make([]byte, 512)}
		x.Payload[0] = byte(sector)
		if errno := do(t, client, x).Errno; errno != nbd.OK {
			t.Fatalf("write of sector %d: %v", sector, errno)
		}
	}
	write(a, 1, 0)
	if errno := do(t, b, nbdtest.Command{Type: nbdtest.CmdFlush}).Errno; errno != nbd.OK {
		t.Fatalf("flush: %v", errno)
	}
	write(a, 2, 0)
	write(b, 3, 0)
	write(b, 4, nbdtest.FlagFUA)
	w.unit.PowerOff()
	if _, err := c.Cut(cache.CutOptions{Policy: cache.PolicyNone}); err != nil {
		t.Fatal(err)
	}
	w.disk.LostWrites()
	w.unit.PowerOn()
	for sector, want := range map[uint64]byte{1: 1, 2: 0, 3: 0, 4: 4} {
		r := do(t, w.client(), nbdtest.Command{Type: nbdtest.CmdRead, Offset: sector * 512, Length: 512})
		if r.Errno != nbd.OK || r.Data[0] != want {
			t.Errorf("sector %d after the cut: %v and %d, want %d", sector, r.Errno, r.Data[0], want)
		}
	}
}

// A forgetsOnce medium tells of lost writes once, when its next flush is told to.
type forgetsOnce struct {
	*media.Memory
	lost atomic.Bool
	// leave, if it is not nil, is what it waits for before it tells.
	leave chan struct{}
}

// NeverBlocks implements media.NeverBlocker.
func (*forgetsOnce) NeverBlocks() bool { return false }

// Flush implements media.Media.
func (f *forgetsOnce) Flush() error {
	if f.lost.Swap(false) {
		if f.leave != nil {
			<-f.leave
		}
		return &media.Error{Op: "flush", Name: "forgetful", Kind: media.ErrMedium}
	}
	return f.Memory.Flush()
}

// TestFlush_LossIsToldOnceToEach: a flush that the medium failed is told to each of two
// clients once, with a write cache before the medium and without, and to whoever comes
// later not at all.
func TestFlush_LossIsToldOnceToEach(t *testing.T) {
	flush := nbdtest.Command{Type: nbdtest.CmdFlush}
	for _, cached := range []bool{true, false} {
		t.Run(fmt.Sprintf("cached=%v", cached), func(t *testing.T) {
			var m *forgetsOnce
			w := newRoad(t, shape{queues: 2, sizeBytes: 1 << 20, medium: func(memory *media.Memory) media.Media {
				m = &forgetsOnce{Memory: memory}
				if !cached {
					return m
				}
				c, err := cache.New(m, cache.Config{})
				if err != nil {
					t.Fatal(err)
				}
				return c
			}})
			a, b := w.client(), w.client()
			write := nbdtest.Command{Type: nbdtest.CmdWrite, Length: 512, Payload: make([]byte, 512)}
			if errno := do(t, a, write).Errno; errno != nbd.OK {
				t.Fatal(errno)
			}
			m.lost.Store(true)
			for name, client := range map[string]*nbdtest.Client{"one": a, "another": b} {
				if errno := do(t, client, flush).Errno; errno != nbd.EIO {
					t.Errorf("%s: flush after the loss: %v, want EIO", name, errno)
				}
			}
			for name, client := range map[string]*nbdtest.Client{"one": a, "another": b, "who came later": w.client()} {
				if errno := do(t, client, flush).Errno; errno != nbd.OK {
					t.Errorf("%s: second flush: %v", name, errno)
				}
			}
		})
	}
}

// A flushesComing counts the flushes that reach a cache.
type flushesComing chan<- struct{}

func (flushesComing) Admit(int64, bool) bool { return true }
func (flushesComing) Release(int64)          {}
func (flushesComing) Pace()                  {}

func (f flushesComing) Record(s cache.Step) {
	if s.Kind == cache.StepFlush {
		f <- struct{}{}
	}
}

// TestFlush_LossIsToldOnceAtOnce: two clients whose flushes are under way when the
// medium tells of lost writes both hear of it, and not again.
func TestFlush_LossIsToldOnceAtOnce(t *testing.T) {
	var m *forgetsOnce
	coming := make(chan struct{}, 8)
	w := newRoad(t, shape{queues: 2, workers: 16, sizeBytes: 1 << 20, medium: func(memory *media.Memory) media.Media {
		m = &forgetsOnce{Memory: memory, leave: make(chan struct{})}
		c, err := cache.New(m, cache.Config{Recorder: flushesComing(coming)})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}})
	clients := []*nbdtest.Client{w.client(), w.client()}
	m.lost.Store(true)
	var group sync.WaitGroup
	for i, client := range clients {
		group.Go(func() {
			if errno := do(t, client, nbdtest.Command{Type: nbdtest.CmdFlush}).Errno; errno != nbd.EIO {
				t.Errorf("client %d: flush during the loss: %v, want EIO", i, errno)
			}
		})
	}
	<-coming
	<-coming
	close(m.leave)
	group.Wait()
	for i, client := range clients {
		if errno := do(t, client, nbdtest.Command{Type: nbdtest.CmdFlush}).Errno; errno != nbd.OK {
			t.Errorf("client %d: second flush: %v", i, errno)
		}
	}
}
