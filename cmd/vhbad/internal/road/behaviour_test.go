package road

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/pojntfx/go-nbd/pkg/backend"

	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/miniport"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// shapes are the ways to run the adapter.
var shapes = map[string]shape{
	"full duplex":        {queues: 4},
	"half duplex":        {queues: 2, options: miniport.Options{HalfDuplex: true}},
	"one lock":           {queues: 4, options: miniport.Options{Interrupts: miniport.AllMessages}},
	"single message":     {queues: 4, options: miniport.Options{SingleMessage: true}},
	"line":               {queues: 2, options: miniport.Options{Interrupts: miniport.Line}},
	"line, half duplex":  {queues: 2, options: miniport.Options{Interrupts: miniport.Line, HalfDuplex: true}},
	"strict segments":    {queues: 2, strict: true},
	"rings of 16":        {queues: 2, ringEntries: 16},
	"without a verifier": {queues: 4, fast: true},
	"go-nbd backend": {queues: 2, medium: func(m *media.Memory) media.Media {
		b, err := media.NewBackend("go-nbd", backend.NewMemoryBackend(make([]byte, m.Size())))
		if err != nil {
			panic(err) // no test at hand, and it cannot be
		}
		return b
	}},
}

// canTrim is NBD_FLAG_SEND_TRIM.
const canTrim = 1 << 5

func (w *road) client() *nbdtest.Client {
	w.t.Helper()
	c, err := nbdtest.NewClient(w.dial(), "disk0")
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

func do(t *testing.T, c *nbdtest.Client, cmd nbdtest.Command) nbdtest.Reply {
	t.Helper()
	r, err := c.Do(cmd)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Random commands have the same effect as the same commands on a byte slice, to the byte,
// in every shape.
func TestModel(t *testing.T) {
	t.Parallel()
	for name, s := range shapes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const size = 1 << 16
			s.sizeBytes = size
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			rng := rand.New(rand.NewPCG(seed, 0))
			w := newRoad(t, s)
			clients := []*nbdtest.Client{w.client(), w.client()}
			model := make([]byte, size)
			for i := range modelSteps {
				off := rng.IntN(size)
				n := rng.IntN(min(size-off, 5000) + 1)
				if rng.IntN(2) == 0 { // whole blocks as often as not
					off, n = off&^511, min(n&^511+512, size-off&^511)
				}
				cmd := nbdtest.Command{Offset: uint64(off), Length: uint32(n)}
				if rng.IntN(4) == 0 {
					cmd.Flags = nbdtest.FlagFUA
				}
				c := clients[rng.IntN(len(clients))]
				switch rng.IntN(12) {
				case 0, 1, 2, 3:
					cmd.Type = nbdtest.CmdWrite
					cmd.Payload = make([]byte, n)
					for j := range cmd.Payload {
						cmd.Payload[j] = byte(rng.Uint32())
					}
					copy(model[off:], cmd.Payload)
				case 4:
					cmd.Type = nbdtest.CmdWriteZeroes
					cmd.Flags |= uint16(rng.IntN(2)) * nbdtest.FlagNoHole
					clear(model[off : off+n])
				case 5:
					if c.Flags&canTrim == 0 {
						continue
					}
					cmd.Type = nbdtest.CmdTrim
					// Whole blocks inside the range read as zeros: the unit says so.
					if from, to := (off+511)&^511, (off+n)&^511; from < to {
						clear(model[from:to])
					}
				case 6:
					cmd.Type, cmd.Offset, cmd.Length = nbdtest.CmdFlush, 0, 0
				case 7:
					cmd.Type = nbdtest.CmdCache
				default:
					cmd.Type = nbdtest.CmdRead
				}
				r := do(t, c, cmd)
				if r.Errno != nbd.OK {
					t.Fatalf("step %d: type %d at %d, %d bytes: %s", i, cmd.Type, off, n, r.Errno)
				}
				if cmd.Type == nbdtest.CmdRead && !bytes.Equal(r.Data, model[off:off+n]) {
					t.Fatalf("step %d: read at %d, %d bytes: not what the model has", i, off, n)
				}
			}
		})
	}
}

// Connections that write parts of the same blocks undo nothing of each other's.
func TestPartialBlocks_NothingLost(t *testing.T) {
	const connections, stripe, rounds, size = 4, 100, 40, 1 << 14
	w := newRoad(t, shape{queues: 4, sizeBytes: size})
	var wg sync.WaitGroup
	for i := range connections {
		c := w.client()
		wg.Go(func() {
			for round := range rounds {
				cookies := 0
				var batch []nbdtest.Command
				for off := i * stripe; off+stripe <= size; off += connections * stripe {
					cookies++
					batch = append(batch, nbdtest.Command{
						Type: nbdtest.CmdWrite, Cookie: uint64(cookies), Offset: uint64(off), Length: stripe,
						Payload: bytes.Repeat([]byte{byte(i*rounds + round)}, stripe),
					})
				}
				if err := c.Send(batch...); err != nil {
					t.Error(err)
					return
				}
				for range batch {
					if r, err := c.Receive(); err != nil || r.Errno != nbd.OK {
						t.Errorf("connection %d: %v, %v", i, r.Errno, err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	got := do(t, w.client(), nbdtest.Command{Type: nbdtest.CmdRead, Length: size}).Data
	for off := 0; off+stripe <= size; off += stripe {
		i := off / stripe % connections
		if want := bytes.Repeat([]byte{byte(i*rounds + rounds - 1)}, stripe); !bytes.Equal(got[off:off+stripe], want) {
			t.Errorf("stripe at %d of connection %d lost its last write", off, i)
		}
	}
}

// pump sends the same batch of prepared commands again and again, and reads the
// replies into the same buffer: a client that allocates nothing.
type pump struct {
	send, reply []byte
	conn        io.ReadWriter
	magic       uint32 // of the first reply
}

func newPump(w *road, kind uint16, depth, length int) *pump {
	c := w.client()
	p := &pump{conn: c.Conn, magic: 0x67446698}
	for i := range depth {
		cmd := nbdtest.Command{Type: kind, Cookie: uint64(i), Offset: uint64(i * length), Length: uint32(length)}
		if kind == nbdtest.CmdWrite {
			cmd.Payload = make([]byte, length)
		}
		p.send = cmd.Append(p.send)
	}
	n := 16
	if kind == nbdtest.CmdRead {
		n += length
	}
	p.reply = make([]byte, n*depth)
	return p
}

func (p *pump) run() error {
	if _, err := p.conn.Write(p.send); err != nil {
		return err
	}
	if _, err := io.ReadFull(p.conn, p.reply); err != nil {
		return err
	}
	if magic := binary.BigEndian.Uint32(p.reply); magic != p.magic {
		return fmt.Errorf("reply magic %#x", magic)
	}
	return nil
}

// The steady state allocates nothing for a request, anywhere on the road.
func TestSteadyState_NoAllocs(t *testing.T) {
	if raceEnabled {
		return // the race detector allocates by itself; the plain run has this test
	}
	w := newRoad(t, shape{queues: 2, fast: true, sizeBytes: 1 << 20})
	for name, kind := range map[string]uint16{"read": nbdtest.CmdRead, "write": nbdtest.CmdWrite, "zero": nbdtest.CmdWriteZeroes, "flush": nbdtest.CmdFlush, "trim": nbdtest.CmdTrim} {
		length := 4096
		if kind == nbdtest.CmdFlush {
			length = 0
		}
		p := newPump(w, kind, 32, length)
		const batches = 400
		// The runtime itself allocates now and then.
		if n := p.allocations(t, batches); n > batches*32/100 {
			t.Errorf("%s: %d allocations in %d requests", name, n, batches*32)
		}
	}
}

// 100,000 requests over many connections leave no goroutine, buffer or mapping
// behind.
func TestManyRequests_LeaveNothing(t *testing.T) {
	goroutines := runtime.NumGoroutine()
	t.Run("load", func(t *testing.T) {
		w := newRoad(t, shape{queues: 4, sizeBytes: 1 << 20})
		var wg sync.WaitGroup
		for i := range 8 {
			kind := uint16(nbdtest.CmdRead)
			if i%2 == 1 {
				kind = nbdtest.CmdWrite
			}
			p := newPump(w, kind, 32, 4096)
			wg.Go(func() {
				for range manyRequests / 8 / 32 {
					if err := p.run(); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
	})
	// newRoad's clean-up has checked windows, processors and the arena.
	// The subtest's own goroutine takes a moment to end.
	for end := time.Now().Add(time.Minute); time.Now().Before(end); runtime.Gosched() {
		if runtime.NumGoroutine() <= goroutines {
			return
		}
	}
	buf := make([]byte, 1<<16)
	t.Errorf("%d goroutines, were %d:\n%s", runtime.NumGoroutine(), goroutines, buf[:runtime.Stack(buf, true)])
}
