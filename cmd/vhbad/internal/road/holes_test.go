package road

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

const allocation = "base:allocation"

// formats are what clients can agree on.
var formats = map[string]nbdtest.Options{
	"structured": {Structured: true, Meta: []string{allocation}},
	"extended":   {Extended: true, Meta: []string{allocation}},
}

func (w *road) clientOf(o nbdtest.Options) *nbdtest.Client {
	w.t.Helper()
	c, err := nbdtest.Dial(w.dial(), "disk0", o)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// onFile has the road end in a sparse file, at path.
func onFile(t *testing.T, path string) func(*media.Memory) media.Media {
	return func(m *media.Memory) media.Media {
		f, err := media.OpenFile(media.FileConfig{Path: path, SizeBytes: m.Size()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		})
		return f
	}
}

// blockStatus asks for the extents of a range until all of it is told. Those of
// one state are joined.
func blockStatus(t *testing.T, c *nbdtest.Client, offset, length uint64, flags uint16) (all []nbdtest.Extent) {
	t.Helper()
	for length > 0 {
		cmd := nbdtest.Command{Type: nbdtest.CmdBlockStatus, Flags: flags, Offset: offset, Length: uint32(length), Length64: length}
		r := do(t, c, cmd)
		if r.Errno != nbd.OK {
			t.Fatalf("%v: %s", cmd, r.Errno)
		}
		for _, e := range r.Extents[c.Contexts[allocation]] {
			if e.Length > length {
				t.Fatalf("%v: extent of %d bytes at %d, %d are left", cmd, e.Length, offset, length)
			}
			if n := len(all); n > 0 && all[n-1].State == e.State {
				all[n-1].Length += e.Length
			} else {
				all = append(all, e)
			}
			offset += e.Length
			length -= e.Length
		}
	}
	return all
}

// Block status and reads with holes agree with what is on the disk, whatever was
// written, trimmed and zeroed, from any byte to any byte.
func TestModel_Holes(t *testing.T) {
	t.Parallel()
	for format, o := range formats {
		for _, medium := range []string{"memory", "file", "go-nbd backend", "strict segments"} {
			t.Run(format+", "+medium, func(t *testing.T) {
				t.Parallel()
				const size = 1 << 20
				s := shape{queues: 2, sizeBytes: size}
				switch medium {
				case "file":
					s.medium = onFile(t, filepath.Join(t.TempDir(), "disk"))
				case "go-nbd backend", "strict segments":
					s = shapes[medium]
					s.sizeBytes = size
				}
				seed := rand.Uint64()
				t.Logf("seed %d", seed)
				rng := rand.New(rand.NewPCG(seed, 0))
				w := newRoad(t, s)
				clients := []*nbdtest.Client{w.clientOf(o), w.clientOf(o)}
				model := make([]byte, size)
				for i := range modelSteps / 4 {
					off, n := rng.IntN(size), 0
					n = rng.IntN(min(size-off, 300<<10)>>rng.IntN(7) + 1)
					if rng.IntN(2) == 0 {
						off, n = off&^4095, min(n&^4095+4096, size-off&^4095)
					}
					if n == 0 {
						continue
					}
					cmd := nbdtest.Command{Offset: uint64(off), Length: uint32(n)}
					c := clients[rng.IntN(len(clients))]
					switch rng.IntN(10) {
					case 0, 1:
						cmd.Type, cmd.Payload = nbdtest.CmdWrite, make([]byte, n)
						if o.Extended {
							cmd.Flags |= nbdtest.FlagPayloadLen
						}
						for j := range cmd.Payload {
							cmd.Payload[j] = byte(rng.Uint32()) | 1
						}
						copy(model[off:], cmd.Payload)
					case 2:
						cmd.Type, cmd.Flags = nbdtest.CmdWriteZeroes, uint16(rng.IntN(2))*nbdtest.FlagNoHole
						clear(model[off : off+n])
					case 3:
						if c.Flags&canTrim == 0 {
							continue
						}
						cmd.Type = nbdtest.CmdTrim
						if from, to := (off+511)&^511, (off+n)&^511; from < to {
							clear(model[from:to])
						}
					case 4, 5:
						at := off
						for _, e := range blockStatus(t, c, uint64(off), uint64(n), 0) {
							end := at + int(e.Length)
							if e.State&nbd.StateZero != 0 && !allZero(model[at:end]) {
								t.Fatalf("step %d: %+v at %d has data", i, e, at)
							}
							at = end
						}
						continue
					default:
						cmd.Type = nbdtest.CmdRead
					}
					r := do(t, c, cmd)
					if r.Errno != nbd.OK {
						t.Fatalf("step %d: %v: %s", i, cmd, r.Errno)
					}
					if cmd.Type == nbdtest.CmdRead && !bytes.Equal(r.Data, model[off:off+n]) {
						t.Fatalf("step %d: %v: not what the model has; holes %v", i, cmd, r.Holes)
					}
				}
			})
		}
	}
}

func allZero(b []byte) bool {
	return len(b) == 0 || b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1])
}

// What clients are told of a sparse file is what lseek tells of it.
func TestBlockStatus_AgreesWithFile(t *testing.T) {
	const size = 64 << 20
	path := filepath.Join(t.TempDir(), "disk")
	w := newRoad(t, shape{queues: 2, sizeBytes: size, medium: onFile(t, path)})
	plain := w.client()
	for i := range 200 { // more runs than one answer of the unit holds
		do(t, plain, nbdtest.Command{Type: nbdtest.CmdWrite, Offset: uint64(i) * 300 << 10, Length: 64 << 10, Payload: bytes.Repeat([]byte{1}, 64<<10)})
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var want []nbdtest.Extent
	for at, data := int64(0), true; at < size; data = !data {
		whence, state := unix.SEEK_HOLE, nbd.ExtentState(0)
		if !data {
			whence, state = unix.SEEK_DATA, nbd.StateHole|nbd.StateZero
		}
		next, err := unix.Seek(int(f.Fd()), at, whence)
		if errors.Is(err, unix.ENXIO) {
			next, err = size, nil
		}
		if err != nil {
			t.Fatal(err)
		}
		if next > at {
			want = append(want, nbdtest.Extent{Length: uint64(next - at), State: state})
		}
		at = next
	}
	for name, o := range formats {
		c := w.clientOf(o)
		if got := blockStatus(t, c, 0, size, 0); !slices.Equal(got, want) {
			t.Errorf("%s: %d extents, want %d:\n%v\n%v", name, len(got), len(want), got, want)
		}
		if got := blockStatus(t, c, 0, size, nbdtest.FlagReqOne); !slices.Equal(got, want) {
			t.Errorf("%s, one by one: %d extents, want %d", name, len(got), len(want))
		}
		// From within a block of data to within a hole.
		got := blockStatus(t, c, 100, 100<<10, 0)
		if len(got) != 2 || got[0].State != 0 || got[1].State != nbd.StateHole|nbd.StateZero ||
			got[0].Length+got[1].Length != 100<<10 {
			t.Errorf("%s: extents %v of a part", name, got)
		}
	}
}

// A curious medium counts how often it is asked for holes.
type curious struct {
	*media.Memory
	asked *atomic.Int64
}

func (m curious) ExtentAt(off int64) (media.Extent, error) {
	m.asked.Add(1)
	return m.Memory.ExtentAt(off)
}

// A long read tells its holes to clients that take them; where there are none,
// the unit is hardly ever asked.
func TestSparseRead(t *testing.T) {
	const size, length = 4 << 20, 64 << 10
	var asked atomic.Int64
	w := newRoad(t, shape{queues: 2, sizeBytes: size, medium: func(m *media.Memory) media.Media { return curious{m, &asked} }})
	for name, o := range formats {
		c := w.clientOf(o)
		read := nbdtest.Command{Type: nbdtest.CmdRead, Offset: 1 << 20, Length: length}
		zeroes := nbdtest.Command{Type: nbdtest.CmdWriteZeroes, Length: size}
		do(t, c, zeroes)
		if r := do(t, c, read); !slices.Equal(r.Holes, []nbdtest.Range{{Offset: 1 << 20, Length: length}}) {
			t.Errorf("%s: holes %v of a read of nothing else", name, r.Holes)
		}
		// 4 KiB of data in the middle, and some that begins within a block.
		write := nbdtest.Command{Type: nbdtest.CmdWrite, Offset: 1<<20 + 16<<10, Length: 4096, Payload: bytes.Repeat([]byte{1}, 4096)}
		if o.Extended {
			write.Flags = nbdtest.FlagPayloadLen
		}
		do(t, c, write)
		read.Offset += 100
		want := []nbdtest.Range{
			{Offset: 1<<20 + 100, Length: 16<<10 - 100},
			{Offset: 1<<20 + 20<<10, Length: length - 20<<10 + 100},
		}
		if r := do(t, c, read); !slices.Equal(r.Holes, want) || !bytes.Equal(r.Data[16<<10-100:20<<10-100], write.Payload) {
			t.Errorf("%s: holes %v, want %v", name, r.Holes, want)
		}
		read.Flags = nbdtest.FlagDF
		if r := do(t, c, read); len(r.Holes) != 0 || r.Chunks != 1 {
			t.Errorf("%s, DF: holes %v in %d chunks", name, r.Holes, r.Chunks)
		}
		read.Flags, read.Offset = 0, 1<<20
		if r := do(t, w.client(), read); !bytes.Equal(r.Data[16<<10:20<<10], write.Payload) {
			t.Errorf("%s: a client without holes reads something else", name)
		}

		fill := nbdtest.Command{Type: nbdtest.CmdWrite, Flags: write.Flags, Length: 1 << 20, Payload: bytes.Repeat([]byte{2}, 1<<20)}
		for at := range uint64(size >> 20) {
			fill.Offset = at << 20
			do(t, c, fill)
		}
		before := asked.Load()
		for i := range 256 {
			read.Offset = uint64(i*29%60) << 16
			if r := do(t, c, read); len(r.Holes) != 0 || r.Data[5] != 2 {
				t.Fatalf("%s: holes %v in what was written", name, r.Holes)
			}
		}
		if n := asked.Load() - before; n > 8 {
			t.Errorf("%s: asked %d times in 256 reads for holes that were never there", name, n)
		}
		// What the session itself has made a hole is found at once.
		do(t, c, zeroes)
		if r := do(t, c, read); len(r.Holes) != 1 {
			t.Errorf("%s: holes %v of a disk without data", name, r.Holes)
		}
	}
}

// Many holes in one read: as many as fit are told, and the rest is zeros.
func TestSparseRead_Fragments(t *testing.T) {
	const length = 1 << 20
	w := newRoad(t, shape{queues: 2, sizeBytes: length})
	c := w.clientOf(formats["structured"])
	want := make([]byte, length)
	for at := 0; at < length; at += 12 << 10 {
		n := min(4096, length-at)
		copy(want[at:], bytes.Repeat([]byte{byte(at >> 12)}, n))
		do(t, c, nbdtest.Command{Type: nbdtest.CmdWrite, Offset: uint64(at), Length: uint32(n), Payload: want[at : at+n]})
	}
	r := do(t, c, nbdtest.Command{Type: nbdtest.CmdRead, Length: length})
	if !bytes.Equal(r.Data, want) || len(r.Holes) == 0 {
		t.Errorf("%d holes, data right: %t", len(r.Holes), bytes.Equal(r.Data, want))
	}
}

// FAST_ZERO is refused where zeros would be written, before any is.
func TestFastZero(t *testing.T) {
	const length = 1 << 20
	for _, tt := range []struct {
		medium       string
		hole, noHole nbd.Errno
	}{
		{"memory", nbd.OK, nbd.OK},
		{"go-nbd backend", nbd.ENOTSUP, nbd.ENOTSUP},
	} {
		t.Run(tt.medium, func(t *testing.T) {
			s := shapes[tt.medium]
			s.queues, s.sizeBytes = 2, length
			w := newRoad(t, s)
			c := w.clientOf(formats["structured"])
			fill := bytes.Repeat([]byte{3}, length)
			for _, z := range []struct {
				flags uint16
				want  nbd.Errno
			}{{0, tt.hole}, {nbdtest.FlagNoHole, tt.noHole}} {
				do(t, c, nbdtest.Command{Type: nbdtest.CmdWrite, Length: length, Payload: fill})
				cmd := nbdtest.Command{Type: nbdtest.CmdWriteZeroes, Flags: z.flags | nbdtest.FlagFastZero, Offset: 700, Length: 100 << 10}
				if r := do(t, c, cmd); r.Errno != z.want {
					t.Errorf("%v: %s, want %s", cmd, r.Errno, z.want)
				}
				want := slices.Clone(fill)
				if z.want == nbd.OK {
					clear(want[700 : 700+100<<10])
				}
				if r := do(t, c, nbdtest.Command{Type: nbdtest.CmdRead, Length: length}); !bytes.Equal(r.Data, want) {
					t.Errorf("%v: not what should be on the disk then", cmd)
				}
				state := blockStatus(t, c, 8192, 65536, 0)[0].State
				if hole := z.want == nbd.OK && z.flags == 0; hole != (state&nbd.StateHole != 0) {
					t.Errorf("%v: state %#x", cmd, state)
				}
			}
		})
	}
}

// Block status and reads with holes allocate nothing in the steady state.
func TestSteadyState_NoAllocsForHoles(t *testing.T) {
	if raceEnabled {
		return // the race detector allocates by itself; the plain run has this test
	}
	const depth, length = 32, 64 << 10
	w := newRoad(t, shape{queues: 2, fast: true, sizeBytes: depth * length})
	for _, kind := range []uint16{nbdtest.CmdBlockStatus, nbdtest.CmdRead} {
		c := w.clientOf(formats["structured"])
		p := &pump{conn: c.Conn, magic: 0x668e33ef}
		reply := 0
		for i := range depth {
			cmd := nbdtest.Command{Type: kind, Offset: uint64(i * length), Length: length}
			p.send = cmd.Append(p.send)
			reply += 20 + 12 // one extent and its context, or one hole
		}
		p.reply = make([]byte, reply)
		if n := p.allocations(t, 400); n > 400*depth/100 {
			t.Errorf("type %d: %d allocations in %d requests", kind, n, 400*depth)
		}
	}
}

// allocations counts what a number of batches allocate, after some to warm up.
func (p *pump) allocations(t *testing.T, batches int) uint64 {
	t.Helper()
	run := func(n int) {
		for range n {
			if err := p.run(); err != nil {
				t.Fatal(err)
			}
		}
	}
	run(50)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	run(batches)
	runtime.ReadMemStats(&after)
	return after.Mallocs - before.Mallocs
}

// BenchmarkSparseRead compares reads of what has no holes by clients that take
// holes and clients that do not.
func BenchmarkSparseRead(b *testing.B) {
	for _, length := range []int{32 << 10, 256 << 10} {
		for _, o := range []struct {
			name    string
			options nbdtest.Options
			flags   uint16
		}{{"holes", nbdtest.Options{Structured: true}, 0}, {"DF", nbdtest.Options{Structured: true}, nbdtest.FlagDF}} {
			b.Run(fmt.Sprintf("size=%dKiB/reads=%s", length>>10, o.name), func(b *testing.B) {
				const size = 64 << 20
				w := newRoad(b, shape{queues: 2, fast: true, sizeBytes: size})
				c := w.clientOf(o.options)
				fill := nbdtest.Command{Type: nbdtest.CmdWrite, Length: 1 << 20, Payload: bytes.Repeat([]byte{1}, 1<<20)}
				for ; fill.Offset < size; fill.Offset += 1 << 20 {
					if r, err := c.Do(fill); err != nil || r.Errno != nbd.OK {
						b.Fatal(r.Errno, err)
					}
				}
				p := &pump{conn: c.Conn, magic: 0x668e33ef, reply: make([]byte, 8*(20+8+length))}
				for i := range 8 {
					cmd := nbdtest.Command{Type: nbdtest.CmdRead, Flags: o.flags, Offset: uint64(i * 7 << 20), Length: uint32(length)}
					p.send = cmd.Append(p.send)
				}
				b.SetBytes(int64(8 * length))
				for b.Loop() {
					if err := p.run(); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
