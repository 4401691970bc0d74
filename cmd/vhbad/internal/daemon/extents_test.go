package daemon

import (
	"sync"
	"testing"

	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// A stripedMedium is data and holes in turn, of stripeBytes each, and holds none of
// it. It notes what it was asked to prefetch.
type stripedMedium struct {
	sizeBytes   int64
	stripeBytes int64

	mu sync.Mutex
	// +checklocks:mu
	prefetched []media.Extent
}

func (m *stripedMedium) ReadAt(p []byte, _ int64) (int, error)  { clear(p); return len(p), nil }
func (m *stripedMedium) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
func (m *stripedMedium) Flush() error                           { return nil }
func (m *stripedMedium) Size() int64                            { return m.sizeBytes }
func (m *stripedMedium) Close() error                           { return nil }
func (m *stripedMedium) Discard(int64, int64) error             { return nil }
func (m *stripedMedium) Zero(int64, int64, bool) error          { return nil }

func (m *stripedMedium) ExtentAt(off int64) (media.Extent, error) {
	n := m.stripeBytes - off%m.stripeBytes
	return media.Extent{OffsetBytes: off, LengthBytes: min(n, m.sizeBytes-off), Data: m.state(off) == 0}, nil
}

func (m *stripedMedium) Prefetch(off, n int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.prefetched = append(m.prefetched, media.Extent{OffsetBytes: off, LengthBytes: n})
	return nil
}

// state is what clients must be told of the stripe at off.
func (m *stripedMedium) state(off int64) nbd.ExtentState {
	if off/m.stripeBytes%2 == 0 {
		return 0
	}
	return nbd.StateHole | nbd.StateZero
}

// startOn starts a daemon whose disk "d" is on md.
func (s *settings) startOn(t *testing.T, md media.Media) *Daemon {
	t.Helper()
	o := s.options(t)
	o.OpenMedium = func(c *config.Disk) (media.Media, error) {
		if c.Name == "d" {
			return md, nil
		}
		return openMedium(c, nil)
	}
	d, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stopper(t, d))
	return d
}

// maxExtents is the most of one reply.
// Source: proto.md, "NBD_REPLY_TYPE_BLOCK_STATUS".
const maxExtents = 1 << 20

// TestBlockStatus_MostExtents: of a disk in more than two million pieces each reply
// tells exactly, from its beginning, and never more than the protocol allows; and a
// client that asks for many at once gets no more memory than any other.
func TestBlockStatus_MostExtents(t *testing.T) {
	const stripe, pieces = 512, 2*maxExtents + 1
	md := &stripedMedium{sizeBytes: stripe * pieces, stripeBytes: stripe}
	s := newSettings(t, "d=memory:1MiB")
	s.Limits.Memory = 64 * config.MiB // a quarter is 2^20 extents of 16 bytes
	d := s.startOn(t, md)
	for _, f := range formats[1:] {
		t.Run(f.name, func(t *testing.T) {
			c := s.speak(t, "d", f)
			// check wants r to tell the truth from offset on, and returns how far it goes.
			check := func(r nbdtest.Reply, offset int64) (next int64, n int) {
				t.Helper()
				told := r.Extents[c.Contexts[allocation]]
				for i, e := range told {
					if e.Length != stripe || e.State != md.state(offset) {
						t.Fatalf("extent %d of %d, at %d, is %+v", i, len(told), offset, e)
					}
					offset += stripe
				}
				return offset, len(told)
			}
			all := nbdtest.Command{Type: nbdtest.CmdBlockStatus, Length: uint32(md.sizeBytes)}
			for want := 512; ; want = min(4*want, maxExtents) { // room grows as it is wanted
				_, n := check(ask(t, c, all, nbd.OK), 0)
				if n != want {
					t.Fatalf("%d extents, want %d", n, want)
				}
				if n == maxExtents {
					break
				}
			}
			replies := 0
			for at := int64(0); at < md.sizeBytes; replies++ {
				rest := nbdtest.Command{Type: nbdtest.CmdBlockStatus, Offset: uint64(at), Length: uint32(md.sizeBytes - at)}
				at, _ = check(ask(t, c, rest, nbd.OK), at)
			}
			if replies != 3 {
				t.Errorf("%d replies tell of %d extents, want 3", replies, pieces)
			}

			const atOnce = 16
			many := make([]nbdtest.Command, atOnce)
			for i := range many {
				many[i] = all
				many[i].Cookie = uint64(i)
			}
			if err := c.Send(many...); err != nil {
				t.Fatal(err)
			}
			most := 0
			for range atOnce {
				r, err := c.Receive()
				if err != nil || r.Errno != nbd.OK {
					t.Fatalf("%v, %s", err, r.Errno)
				}
				check(r, 0)
				snap, _ := d.Snapshot()
				most = max(most, snap.Arena.InUseBytes)
			}
			// Beyond what is in flight: the blocks of a connection, the adapter's rings.
			const besides = 2 << 20
			if limit := int(16*config.MiB) + besides; most > limit {
				t.Errorf("%d bytes of memory in use, want at most %d", most, limit)
			}
		})
	}
	noViolations(t, machineOf(d))
}
