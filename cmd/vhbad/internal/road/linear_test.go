package road

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

const (
	sectorBytes = 512
	registers   = 64 // sectors that the connections fight over
	maxSectors  = 8  // of one command
	linearDepth = 8  // commands that each connection keeps in flight
)

// Each sector of the disk is a register that all connections share: whatever they
// do at once, every read of a sector gives the one value that some order of all
// of them explains, and no sector is ever seen half written.
func TestLinearizable(t *testing.T) {
	t.Parallel()
	rounds, commands := 4, 1000
	if os.Getenv("VHBAD_SOAK") != "" {
		rounds = 300 // 4 connections of 1000 commands each: more than a million
	}
	for _, name := range []string{"full duplex", "half duplex", "line", "rings of 16", "go-nbd backend"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := shapes[name]
			s.sizeBytes, s.fast = 1<<20, true
			h := newHistorian(t, newRoad(t, s))
			for round := range rounds {
				if err := h.run(commands); err != nil {
					t.Fatal(err)
				}
				if err := h.judge(); err != nil {
					t.Fatalf("seed %d, round %d, %v", h.seed, round, err)
				}
			}
		})
	}
}

// The same, judged by a search through all orders that knows nothing of values.
func TestLinearizable_BySearch(t *testing.T) {
	t.Parallel()
	s := shapes["go-nbd backend"]
	s.sizeBytes, s.fast = 1<<20, true
	h := newHistorian(t, newRoad(t, s))
	if err := h.run(300); err != nil {
		t.Fatal(err)
	}
	for sector, history := range h.takeHistories() {
		if !porcupine.CheckOperations(register, operations(history)) {
			t.Errorf("seed %d, sector %d: no order explains %+v", h.seed, sector, history)
		}
	}
}

// A medium that gives an old answer now and then is found out.
func TestLinearizable_CatchesStaleReads(t *testing.T) {
	t.Parallel()
	h := newHistorian(t, newRoad(t, shape{queues: 4, sizeBytes: 1 << 20, fast: true, medium: func(m *media.Memory) media.Media {
		return &forgetful{Memory: m, old: make([]byte, m.Size())}
	}}))
	for range 100 {
		if err := h.run(100); err != nil {
			t.Fatal(err)
		}
		if err := h.judge(); err != nil {
			t.Logf("found: %v", err)
			return
		}
	}
	t.Errorf("seed %d: no stale read was noticed", h.seed)
}

// A forgetful medium reads, every sixteenth time, what was there before the last
// write.
type forgetful struct {
	*media.Memory

	mu sync.Mutex
	// +checklocks:mu
	old []byte
	// +checklocks:mu
	reads int
}

func (f *forgetful) WriteAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n, err := f.Memory.ReadAt(f.old[off:off+int64(len(p))], off); err != nil {
		return n, err
	}
	return f.Memory.WriteAt(p, off)
}

func (f *forgetful) ReadAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.reads++; f.reads%16 == 0 {
		return copy(p, f.old[off:]), nil
	}
	return f.Memory.ReadAt(p, off)
}

// Supports implements media.Supporter: nothing may pass by ReadAt and WriteAt.
func (f *forgetful) Supports(media.Ability) bool { return false }

// A historian drives connections and writes down what they see.
type historian struct {
	t       *testing.T
	seed    uint64
	clients []*nbdtest.Client
	rngs    []*rand.Rand
	begin   time.Time
	stamps  uint64 // values given out; each connection has its own bits

	mu sync.Mutex
	// histories are the accesses of each sector in this round, last what the
	// sector had before it.
	// +checklocks:mu
	histories [registers][]access
	// +checklocks:mu
	last [registers]uint64
}

func newHistorian(t *testing.T, w *road) *historian {
	h := &historian{t: t, seed: rand.Uint64(), begin: time.Now()}
	t.Logf("seed %d", h.seed)
	for i := range 4 {
		h.clients = append(h.clients, w.client())
		h.rngs = append(h.rngs, rand.New(rand.NewPCG(h.seed, uint64(i))))
	}
	return h
}

// run has every connection carry out commands commands, and then reads what came
// of it.
func (h *historian) run(commands int) error {
	var wg sync.WaitGroup
	errs := make([]error, len(h.clients))
	h.stamps++
	for i := range h.clients {
		wg.Go(func() { errs[i] = h.client(i, commands) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	cmd := nbdtest.Command{Type: nbdtest.CmdRead, Length: registers * sectorBytes}
	call := int64(time.Since(h.begin))
	r := do(h.t, h.clients[0], cmd)
	return h.note(0, &cmd, r.Data, call, int64(time.Since(h.begin)))
}

// client keeps linearDepth commands in flight on connection i.
func (h *historian) client(i, commands int) error {
	type sent struct {
		cmd   nbdtest.Command
		first uint64 // the value of a write's first sector
		call  int64
	}
	c, rng := h.clients[i], h.rngs[i]
	inFlight := make(chan struct{}, linearDepth)
	table := make([]sent, commands)
	var tableMu sync.Mutex // orders what the two goroutines do with an entry
	failed := make(chan error, 1)
	go func() {
		for k := range commands {
			inFlight <- struct{}{}
			n := 1 + rng.IntN(maxSectors)
			at := rng.IntN(registers - n + 1)
			s := sent{cmd: nbdtest.Command{Type: nbdtest.CmdRead, Cookie: uint64(k), Offset: uint64(at * sectorBytes), Length: uint32(n * sectorBytes)}}
			if rng.IntN(2) == 0 {
				s.cmd.Type = nbdtest.CmdWrite
				s.cmd.Flags = uint16(rng.IntN(2)) * nbdtest.FlagFUA
				s.first = h.stamps<<32 | uint64(i)<<24 | uint64(k)<<4
				s.cmd.Payload = make([]byte, n*sectorBytes)
				for b := 0; b < len(s.cmd.Payload); b += 8 {
					binary.BigEndian.PutUint64(s.cmd.Payload[b:], s.first|uint64(b/sectorBytes))
				}
			}
			s.call = int64(time.Since(h.begin))
			tableMu.Lock()
			table[k] = s
			tableMu.Unlock()
			if err := c.Send(s.cmd); err != nil {
				failed <- err
				return
			}
		}
		failed <- nil
	}()
	for range commands {
		r, err := c.Receive()
		ret := int64(time.Since(h.begin))
		<-inFlight
		if err != nil || r.Errno != nbd.OK {
			return errors.Join(fmt.Errorf("connection %d: reply %s", i, r.Errno), err)
		}
		tableMu.Lock()
		s := table[r.Cookie]
		tableMu.Unlock()
		data := s.cmd.Payload
		if s.cmd.Type == nbdtest.CmdRead {
			data = r.Data
		}
		if err := h.note(i, &s.cmd, data, s.call, ret); err != nil {
			return err
		}
	}
	return <-failed
}

// note writes down one command's accesses.
func (h *historian) note(client int, cmd *nbdtest.Command, data []byte, call, ret int64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for b := 0; b < len(data); b += sectorBytes {
		value := binary.BigEndian.Uint64(data[b:])
		for w := b; w < b+sectorBytes; w += 8 {
			if got := binary.BigEndian.Uint64(data[w:]); got != value {
				return fmt.Errorf("%s: sector %d is torn: %#x at its start, %#x at byte %d", cmd, (int(cmd.Offset)+b)/sectorBytes, value, got, w-b)
			}
		}
		sector := (int(cmd.Offset) + b) / sectorBytes
		h.histories[sector] = append(h.histories[sector], access{write: cmd.Type == nbdtest.CmdWrite, value: value, call: call, ret: ret, client: client})
	}
	return nil
}

// judge checks the round and begins the next with what the sectors have now.
func (h *historian) judge() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for sector, history := range h.histories {
		if err := linearizable(h.last[sector], history); err != nil {
			return fmt.Errorf("sector %d: %w", sector, err)
		}
		h.last[sector] = history[len(history)-1].value // by the read at the end
		h.histories[sector] = history[:0]
	}
	return nil
}

// takeHistories ends the round without judging it.
func (h *historian) takeHistories() [registers][]access {
	h.mu.Lock()
	defer h.mu.Unlock()
	taken := h.histories
	h.histories = [registers][]access{}
	return taken
}
