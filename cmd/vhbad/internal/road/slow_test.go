package road

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"

	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// A hanging medium keeps every flush, discard and zeroing until it is told to let
// them go, and looks for holes too if they are what it is about.
type hanging struct {
	*media.Memory
	noTry  bool // reads and writes go to workers, too
	status bool // looks for holes hang, too

	mu      sync.Mutex
	changed sync.Cond
	free    bool
	calls   int // that have begun to hang, ever
}

func newHanging(m *media.Memory, noTry bool) *hanging {
	h := &hanging{Memory: m, noTry: noTry}
	h.changed.L = &h.mu
	return h
}

func (h *hanging) hang() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls++
	h.changed.Broadcast()
	for !h.free {
		h.changed.Wait()
	}
}

// awaitCalls waits until n calls have begun to hang.
func (h *hanging) awaitCalls(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for h.calls < n {
		h.changed.Wait()
	}
}

func (h *hanging) release() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.free = true
	h.changed.Broadcast()
}

func (h *hanging) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.calls
}

func (h *hanging) NeverBlocks() bool { return false }

func (h *hanging) Supports(a media.Ability) bool {
	return !h.noTry || a&(media.AbilityTryRead|media.AbilityTryWrite|media.AbilityRefer) == 0
}

func (h *hanging) Flush() error {
	h.hang()
	return h.Memory.Flush()
}

func (h *hanging) Discard(off, n int64) error {
	h.hang()
	return h.Memory.Discard(off, n)
}

// Zero does nothing else: to allocate would take the memory.
func (h *hanging) Zero(int64, int64, bool) error {
	h.hang()
	return nil
}

func (h *hanging) ExtentAt(off int64) (media.Extent, error) {
	if h.status {
		h.hang()
	}
	return h.Memory.ExtentAt(off)
}

// However many flushes, trims, zeroings and looks for holes hang, reads go on, and
// so do writes elsewhere: on the same connection and on others, of blocks and of
// parts of blocks.
func TestSlowCommands_OthersGoOn(t *testing.T) {
	t.Parallel()
	const size, slowCommands = 64 << 20, 6
	for name, slow := range map[string]nbdtest.Command{
		"flush":        {Type: nbdtest.CmdFlush},
		"trim":         {Type: nbdtest.CmdTrim, Offset: 700, Length: 16 << 20},
		"zero":         {Type: nbdtest.CmdWriteZeroes, Offset: 512, Length: 16 << 20},
		"allocate":     {Type: nbdtest.CmdWriteZeroes, Flags: nbdtest.FlagNoHole, Offset: 512, Length: 16 << 20},
		"block status": {Type: nbdtest.CmdBlockStatus, Length: size},
	} {
		for _, noTry := range []bool{false, true} {
			if noTry {
				name += ", all on workers"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				var h *hanging
				w := newRoad(t, shape{queues: 2, workers: 3, sizeBytes: size, medium: func(m *media.Memory) media.Media {
					h = newHanging(m, noTry)
					h.status = slow.Type == nbdtest.CmdBlockStatus
					return h
				}})
				o := nbdtest.Options{Structured: true, Meta: []string{allocation}}
				same, other := w.clientOf(o), w.client()
				for i := range slowCommands {
					cmd := slow // two subtests share it
					cmd.Cookie = 1000 + uint64(i)
					if err := same.Send(cmd); err != nil {
						t.Fatal(err)
					}
				}
				h.awaitCalls(1)
				const far = 32 << 20
				commands := []nbdtest.Command{
					{Type: nbdtest.CmdRead, Offset: far, Length: 4096},
					{Type: nbdtest.CmdRead, Length: 4096},              // where the slow ones are
					{Type: nbdtest.CmdRead, Offset: 100, Length: 1000}, // parts of blocks
					{Type: nbdtest.CmdRead, Flags: nbdtest.FlagDF, Offset: 5, Length: 1 << 20},
					{Type: nbdtest.CmdWrite, Offset: far, Length: 4096, Payload: make([]byte, 4096)},
					{Type: nbdtest.CmdWrite, Offset: far + 5, Length: 600, Payload: make([]byte, 600)},
				}
				if slow.Type != nbdtest.CmdBlockStatus {
					commands = append(commands, nbdtest.Command{Type: nbdtest.CmdRead, Length: 1 << 20}) // looks for holes
				}
				for i, cmd := range commands {
					for _, c := range []*nbdtest.Client{same, other} {
						cmd.Cookie = uint64(i)
						if c == other {
							cmd.Flags = 0
						}
						if r := do(t, c, cmd); r.Errno != nbd.OK {
							t.Errorf("%v: %s", cmd, r.Errno)
						}
					}
				}
				h.release()
				for range slowCommands {
					if r, err := same.Receive(); err != nil || r.Errno != nbd.OK || r.Cookie < 1000 {
						t.Errorf("reply to %d: %s, %v", r.Cookie, r.Errno, err)
					}
				}
			})
		}
	}
}

// A watched device tells of its connection.
type watched struct {
	nbd.Device
	opened chan *nbd.Conn
	closed chan struct{}
}

func (d *watched) Open(c *nbd.Conn) (nbd.Session, error) {
	s, err := d.Device.Open(c)
	if err == nil {
		d.opened <- c
		s = &watchedSession{s, d}
	}
	return s, err
}

type watchedSession struct {
	nbd.Session
	d *watched
}

func (s *watchedSession) Close() {
	s.Session.Close()
	s.d.closed <- struct{}{}
}

// A command that would take hours ends soon after its client has gone.
func TestLongCommand_EndsWithClient(t *testing.T) {
	const size = 8 << 40
	var h *hanging
	d := &watched{opened: make(chan *nbd.Conn, 1), closed: make(chan struct{}, 1)}
	w := newRoad(t, shape{
		queues: 2, sizeBytes: size,
		medium: func(m *media.Memory) media.Media {
			h = newHanging(m, false)
			return h
		},
		device: func(inner nbd.Device) nbd.Device {
			d.Device = inner
			return d
		},
	})
	c := w.clientOf(nbdtest.Options{Extended: true})
	conn := <-d.opened
	if err := c.Send(nbdtest.Command{Type: nbdtest.CmdWriteZeroes, Flags: nbdtest.FlagNoHole, Length64: size}); err != nil {
		t.Fatal(err)
	}
	h.awaitCalls(1)
	if err := c.Conn.Close(); err != nil {
		t.Fatal(err)
	}
	for conn.Alive() {
		runtime.Gosched()
	}
	h.release()
	<-d.closed
	if n := h.count(); n != 1 {
		t.Errorf("%d pieces were zeroed for nobody", n-1)
	}
}

// Commands with 64-bit lengths take all of a large disk at once.
func TestLongCommands(t *testing.T) {
	size := uint64(64 << 40)
	if raceEnabled {
		size = 1 << 40 // the race detector makes pieces slow, and there are many
	}
	w := newRoad(t, shape{queues: 2, fast: true, sizeBytes: int64(size)})
	c := w.clientOf(formats["extended"])
	write := nbdtest.Command{Type: nbdtest.CmdWrite, Flags: nbdtest.FlagPayloadLen, Length: 4096, Payload: bytes.Repeat([]byte{7}, 4096)}
	spots := []uint64{0, 1<<30 - 2048, size / 2, size - 4096}
	for _, long := range []nbdtest.Command{
		{Type: nbdtest.CmdTrim, Length64: size},
		{Type: nbdtest.CmdWriteZeroes, Length64: size},
		{Type: nbdtest.CmdWriteZeroes, Flags: nbdtest.FlagFastZero, Offset: 1, Length64: size - 2},
		{Type: nbdtest.CmdCache, Length64: size / 8},
	} {
		for _, write.Offset = range spots {
			do(t, c, write)
		}
		if r := do(t, c, long); r.Errno != nbd.OK {
			t.Fatalf("%v: %s", long, r.Errno)
		}
		for _, at := range spots {
			r := do(t, c, nbdtest.Command{Type: nbdtest.CmdRead, Offset: at + 1, Length: 4094})
			if kept := long.Type == nbdtest.CmdCache; allZero(r.Data) == kept {
				t.Errorf("%v: zeros at %d: %t", long, at, !kept)
			}
		}
	}
	do(t, c, nbdtest.Command{Type: nbdtest.CmdTrim, Length64: size})
	write.Offset = size / 2
	do(t, c, write)
	extents := blockStatus(t, c, 0, size, 0)
	if len(extents) != 3 || extents[0].Length != size/2 || extents[1] != (nbdtest.Extent{Length: 4096}) {
		t.Errorf("extents %v", extents)
	}
}

// A brokenSpot is a medium with a block that cannot be read.
type brokenSpot struct {
	*media.Memory
	at int64
}

// Supports implements media.Supporter: nothing is read that ReadAt does not see.
func (*brokenSpot) Supports(a media.Ability) bool { return a != media.AbilityRefer }

func (m *brokenSpot) ReadAt(p []byte, off int64) (int, error) {
	if off <= m.at && m.at < off+int64(len(p)) {
		return int(m.at - off), &media.Error{
			Op: "read", Name: "test", OffsetBytes: m.at, LengthBytes: off + int64(len(p)) - m.at, Kind: media.ErrMedium,
		}
	}
	return m.Memory.ReadAt(p, off)
}

func (m *brokenSpot) TryReadAt(p []byte, off int64) (bool, error) {
	_, err := m.ReadAt(p, off)
	return true, err
}

// A medium error is told with the place where it happened.
func TestErrorOffset(t *testing.T) {
	const size, spot = 4 << 40, 3<<40 + 20480
	w := newRoad(t, shape{queues: 2, sizeBytes: size, medium: func(m *media.Memory) media.Media { return &brokenSpot{m, spot} }})
	// What was never written is not even read.
	do(t, w.client(), nbdtest.Command{Type: nbdtest.CmdWrite, Offset: spot - 1<<20, Length: 2 << 20, Payload: make([]byte, 2<<20)})
	for name, o := range formats {
		c := w.clientOf(o)
		for _, tt := range []struct {
			offset uint64
			length uint32
			want   int64
		}{
			{spot, 512, spot},
			{spot - 20480, 1 << 20, spot},
			{spot - 1000, 1100, spot},  // the block's part at the end
			{spot + 0, 4, spot},        // a part of it
			{spot - 512, 513, spot},    // one byte of it
			{spot - 8192, 8192, -1},    // nothing of it
			{spot + 512, 64 << 10, -1}, // nor here
		} {
			cmd := nbdtest.Command{Type: nbdtest.CmdRead, Offset: tt.offset, Length: tt.length}
			r := do(t, c, cmd)
			if failed := tt.want >= 0; failed != (r.Errno == nbd.EIO) || !failed && r.Errno != nbd.OK || r.ErrorOffset != tt.want {
				t.Errorf("%s: %v: %s at %d, want it at %d", name, cmd, r.Errno, r.ErrorOffset, tt.want)
			}
		}
	}
}

// rescan asks the unit again, as the daemon does after a resize.
func (w *road) rescan() {
	w.t.Helper()
	p, err := w.system.NewProcessor("rescan")
	if err != nil {
		w.t.Fatal(err)
	}
	defer p.Close()
	if err := w.disk.Rescan(p); err != nil {
		w.t.Fatal(err)
	}
}

// A disk that grows is of use to those who are connected; one that shrinks gives
// errors.
func TestResize(t *testing.T) {
	const size = 1 << 20
	w := newRoad(t, shape{queues: 2, sizeBytes: size})
	c := w.clientOf(formats["structured"])
	payload := bytes.Repeat([]byte{9}, 4096)
	write := nbdtest.Command{Type: nbdtest.CmdWrite, Offset: 2*size - 4096, Length: 4096, Payload: payload}
	if r := do(t, c, write); r.Errno != nbd.ENOSPC {
		t.Errorf("beyond the end: %s", r.Errno)
	}
	if err := w.unit.Resize(2 * size); err != nil {
		t.Fatal(err)
	}
	w.rescan()
	if got := w.disk.SizeBytes(); got != 2*size {
		t.Fatalf("%d bytes after growth", got)
	}
	if r := do(t, c, write); r.Errno != nbd.OK {
		t.Errorf("within the new end: %s", r.Errno)
	}
	want := []nbdtest.Extent{{Length: 2*size - 4096, State: nbd.StateHole | nbd.StateZero}, {Length: 4096}}
	if got := blockStatus(t, c, 0, 2*size, 0); len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("extents %v, want %v", got, want)
	}
	if n := w.client().SizeBytes; n != 2*size {
		t.Errorf("a new client is told of %d bytes", n)
	}

	// Nobody asks again: the next command meets the unit attention.
	if err := w.unit.Resize(size); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		cmd  nbdtest.Command
		want nbd.Errno
	}{
		{nbdtest.Command{Type: nbdtest.CmdRead, Length: 4096}, nbd.OK},
		{nbdtest.Command{Type: nbdtest.CmdRead, Offset: size - 512, Length: 1024}, nbd.EINVAL},
		{write, nbd.ENOSPC},
		{nbdtest.Command{Type: nbdtest.CmdWriteZeroes, Offset: size, Length: 4096}, nbd.ENOSPC},
		{nbdtest.Command{Type: nbdtest.CmdBlockStatus, Offset: size, Length: 4096}, nbd.EINVAL},
	} {
		if r := do(t, c, tt.cmd); r.Errno != tt.want {
			t.Errorf("%v of a disk that has shrunk: %s, want %s", tt.cmd, r.Errno, tt.want)
		}
	}
	for w.disk.SizeBytes() != size {
		runtime.Gosched()
	}
	if n := w.client().SizeBytes; n != size {
		t.Errorf("a new client is told of %d bytes", n)
	}
}

// Commands of all kinds on a disk that changes its size all the time give what
// can be explained, and what was always there is never lost.
func TestResize_Meanwhile(t *testing.T) {
	const small, large, resizes = 1 << 20, 3 << 20, 60
	w := newRoad(t, shape{queues: 2, sizeBytes: large})
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 2 {
		c := w.clientOf(formats["extended"])
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(i)))
			own := bytes.Repeat([]byte{byte(i + 1)}, 4096)
			write := nbdtest.Command{Type: nbdtest.CmdWrite, Flags: nbdtest.FlagPayloadLen, Offset: uint64(i) << 12, Length: 4096, Payload: own}
			if r, err := c.Do(write); err != nil || r.Errno != nbd.OK {
				t.Error(r.Errno, err)
				return
			}
			types := []uint16{
				nbdtest.CmdRead, nbdtest.CmdTrim, nbdtest.CmdWriteZeroes, nbdtest.CmdBlockStatus, nbdtest.CmdCache, nbdtest.CmdFlush,
			}
			for {
				select {
				case <-stop:
					return
				default:
				}
				cmd := nbdtest.Command{
					Type: types[rng.IntN(len(types))], Offset: 8192 + rng.Uint64N(large-8192), Length: 1 + uint32(rng.IntN(200<<10)),
				}
				r, err := c.Do(cmd)
				if err != nil {
					t.Error(err)
					return
				}
				switch r.Errno {
				case nbd.OK, nbd.EINVAL, nbd.ENOSPC:
				default:
					t.Errorf("%v: %s", cmd, r.Errno)
				}
				r, err = c.Do(nbdtest.Command{Type: nbdtest.CmdRead, Offset: uint64(i) << 12, Length: 4096})
				if err != nil || r.Errno != nbd.OK || !bytes.Equal(r.Data, own) {
					t.Errorf("what nobody else touches: %s, %v", r.Errno, err)
					return
				}
			}
		})
	}
	for i := range resizes {
		if err := w.unit.Resize([]int64{small, large}[i%2]); err != nil {
			t.Error(err)
		}
		if i%3 == 0 {
			w.rescan()
		}
	}
	close(stop)
	wg.Wait()
	w.rescan()
	if got := w.disk.SizeBytes(); got != large {
		t.Errorf("%d bytes in the end, want %d", got, large)
	}
	if err := w.unit.Resize(large + 100); err == nil || errors.Is(err, media.ErrRange) {
		t.Errorf("to a size of no blocks: %v", err)
	}
}
