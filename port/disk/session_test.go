package disk

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/internal/scsi"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
	"github.com/vhbad/vhbad/port"
	"github.com/vhbad/vhbad/port/porttest"
)

// serve serves the first unit of a fake adapter on a unix socket and returns a
// client of it.
func serve(t *testing.T, m *porttest.Machine) *nbdtest.Client {
	t.Helper()
	fake := porttest.New(m, porttest.Options{})
	c, err := nbdtest.NewClient(serveOn(t, m, porttest.Subject{Function: fake.Function(), Miniport: fake}, &geometry{
		blocks: 64, blockBytes: 512, maxTransfer: 64, preferredBytes: 4096,
	}), "disk")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// serveOn is serve for any adapter and geometry. It returns a connection.
func serveOn(t *testing.T, m *porttest.Machine, subject porttest.Subject, g *geometry) net.Conn {
	t.Helper()
	_, _, conn := serveDisk(t, m, subject, g, 0)
	return conn
}

// newDisk is a disk on the first unit of an adapter, which has not been asked what it is.
func newDisk(t *testing.T, m *porttest.Machine, p *port.Processor, subject porttest.Subject) *Disk {
	t.Helper()
	a := m.Adapter(t, p, subject)
	return &Disk{lu: a.LogicalUnits()[0], adapter: a, options: Options{Arena: m.Arena, RetryCount: 1, Log: slog.New(slog.DiscardHandler)}}
}

// serveDisk is serveOn that returns the server and the disk as well. Its clients have so many
// requests in flight at most, or as many as usual if that is zero.
func serveDisk(t *testing.T, m *porttest.Machine, subject porttest.Subject, g *geometry, maxRequests int) (*nbd.Server, *Disk, net.Conn) {
	t.Helper()
	p := m.Processor(t, "test")
	d := newDisk(t, m, p, subject)
	d.geometry.Store(g)
	exports, err := nbd.NewExportSet(nbd.Export{Name: "disk", Device: d})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "nbd"))
	if err != nil {
		t.Fatal(err)
	}
	server := &nbd.Server{Exports: exports, Arena: m.Arena, Limits: nbd.Limits{MaxPayloadBytes: 1 << 20, MaxRequests: maxRequests}}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		if err := server.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		if err := <-served; !errors.Is(err, nbd.ErrServerClosed) {
			t.Error(err)
		}
	})
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return server, d, conn
}

// exhaust takes all memory of m, but for so many blocks of the smallest size,
// until the test ends.
func exhaust(t *testing.T, m *porttest.Machine, leave int) {
	t.Helper()
	var taken [][]byte
	for n := m.Arena.SizeBytes(); n >= dma.MinBlockBytes; n /= 2 {
		for b := m.Arena.Alloc(n); b != nil; b = m.Arena.Alloc(n) {
			taken = append(taken, b)
		}
	}
	if len(taken) == 0 {
		t.Fatal("there was no memory to take")
	}
	last := len(taken) - 1
	m.Arena.Free(taken[last]) // the smallest there was
	taken = taken[:last]
	var small [][]byte
	for b := m.Arena.Alloc(dma.MinBlockBytes); b != nil; b = m.Arena.Alloc(dma.MinBlockBytes) {
		small = append(small, b)
	}
	for _, b := range small[:leave] {
		m.Arena.Free(b)
	}
	for _, b := range append(taken, small[leave:]...) {
		t.Cleanup(func() { m.Arena.Free(b) })
	}
}

// Without memory for SRBs, requests wait for one another; none fails.
func TestSession_NoMemory(t *testing.T) {
	const n = 100
	m := porttest.NewMachine(t, porttest.ArenaBytes)
	c := serve(t, m)
	exhaust(t, m, 0)
	var batch []nbdtest.Command
	for i := range n {
		cmd := nbdtest.Command{Type: nbdtest.CmdFlush, Cookie: uint64(i)}
		if i%2 == 1 { // a write whose payload needs no memory of its own
			cmd.Type, cmd.Offset, cmd.Length, cmd.Payload = nbdtest.CmdWrite, uint64(i), 3, []byte{1, 2, 3}
		}
		batch = append(batch, cmd)
	}
	if err := c.Send(batch...); err != nil {
		t.Fatal(err)
	}
	answered := make(map[uint64]bool)
	for range batch {
		r, err := c.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if r.Errno != nbd.OK || answered[r.Cookie] {
			t.Errorf("request %d: %s, answered before: %t", r.Cookie, r.Errno, answered[r.Cookie])
		}
		answered[r.Cookie] = true
	}
}

// A connection for which there is not even one SRB is refused.
func TestOpen_NoMemory(t *testing.T) {
	m := porttest.NewMachine(t, porttest.ArenaBytes)
	p := m.Processor(t, "test")
	fake := porttest.New(m, porttest.Options{})
	a := m.Adapter(t, p, porttest.Subject{Function: fake.Function(), Miniport: fake})
	d := &Disk{lu: a.LogicalUnits()[0], adapter: a, options: Options{Arena: m.Arena}}
	exhaust(t, m, 2) // for the block buffers
	if _, err := d.Open(new(nbd.Conn)); err == nil {
		t.Error("a session without an SRB was opened")
	}
}

// A request that takes more than one command, each of which wants another cookie,
// gets another one.
func TestSession_BadCookie(t *testing.T) {
	m := porttest.NewMachine(t, porttest.ArenaBytes)
	var commands atomic.Int32
	fake := porttest.New(m, porttest.Options{Script: func(stage porttest.Stage, s *port.SRB) porttest.Action {
		if op := scsi.Opcode(s.CDB[0]); stage == porttest.StageStartIo && (op == scsi.OpRead16 || op == scsi.OpWrite16) {
			commands.Add(1)
			s.BadCookie = true
		}
		return porttest.Continue
	}})
	c, err := nbdtest.NewClient(serveOn(t, m, porttest.Subject{Function: fake.Function(), Miniport: fake}, &geometry{
		blocks: 64, blockBytes: 512, maxTransfer: 64, preferredBytes: 4096,
	}), "disk")
	if err != nil {
		t.Fatal(err)
	}
	const cookie = 5
	r, err := c.Do(nbdtest.Command{Type: nbdtest.CmdWrite, Cookie: cookie, Offset: 77, Length: 3, Payload: []byte{1, 2, 3}})
	if err == nil || r.Cookie != ^uint64(cookie) {
		t.Errorf("reply %+v, %v, want one to %#x", r, err, ^uint64(cookie))
	}
	if n := commands.Load(); n != 2 {
		t.Errorf("%d commands, want one that reads the block and one that writes it", n)
	}
}

// Requests of a client that has gone are not continued: no next piece of a long write, no
// writing back of a block that was read for a part of it, no request that waited for
// another write, and no second try.
func TestSession_ClientGone(t *testing.T) {
	write := func(cookie, offset uint64, length uint32) nbdtest.Command {
		return nbdtest.Command{Type: nbdtest.CmdWrite, Cookie: cookie, Offset: offset, Length: length, Payload: make([]byte, length)}
	}
	for name, tt := range map[string]struct {
		batch  []nbdtest.Command
		answer porttest.Action
	}{
		"long":            {batch: []nbdtest.Command{write(1, 0, 3*512)}},
		"part of a block": {batch: []nbdtest.Command{write(1, 77, 3)}},
		"waits":           {batch: []nbdtest.Command{write(1, 77, 3), write(2, 0, 512)}},
		"again":           {batch: []nbdtest.Command{write(1, 0, 512)}, answer: porttest.AnswerError},
	} {
		t.Run(name, func(t *testing.T) {
			m := porttest.NewMachine(t, porttest.ArenaBytes)
			var commands atomic.Int32
			begun := make(chan struct{}, 8)
			fake := porttest.New(m, porttest.Options{Script: func(stage porttest.Stage, s *port.SRB) porttest.Action {
				if op := scsi.Opcode(s.CDB[0]); stage != porttest.StageStartIo || op != scsi.OpRead16 && op != scsi.OpWrite16 {
					return porttest.Continue
				}
				commands.Add(1)
				begun <- struct{}{}
				return tt.answer
			}})
			server, d, conn := serveDisk(t, m, porttest.Subject{Function: fake.Function(), Miniport: fake}, &geometry{
				blocks: 64, blockBytes: 512, maxTransfer: 1, preferredBytes: 4096,
			}, 0)
			c, err := nbdtest.NewClient(conn, "disk")
			if err != nil {
				t.Fatal(err)
			}
			release := fake.Hold()
			// The answer to a request that never reaches the disk shows that all before it
			// have.
			if err := c.Send(append(tt.batch, nbdtest.Command{Type: nbdtest.CmdRead, Cookie: 99, Offset: 1 << 40, Length: 512})...); err != nil {
				t.Fatal(err)
			}
			<-begun
			if r, err := c.Receive(); err != nil || r.Cookie != 99 {
				t.Fatalf("%+v, %v", r, err)
			}
			if n := server.Drop("disk").Count(); n != 1 {
				t.Errorf("%d connections closed, want 1", n)
			}
			release(m.Processor(t, "release"))
			if _, err := server.DrainDevice(t.Context(), d); err != nil { // until nothing is in flight
				t.Error(err)
			}
			if n := commands.Load(); n != 1 {
				t.Errorf("%d commands, want no more than the one that was begun", n)
			}
		})
	}
}

// fillBlock is a command that fills a block of 512 bytes.
func fillBlock(cookie, block uint64, fill byte) nbdtest.Command {
	return nbdtest.Command{Type: nbdtest.CmdWrite, Cookie: cookie, Offset: block * 512, Length: 512, Payload: bytes.Repeat([]byte{fill}, 512)}
}

// slots are how many requests a client of serveWrites has in flight at most: fewer than the
// adapter can take.
const slots = 8

// serveWrites serves a disk of 64 blocks whose adapter calls begun with the block of each
// write that it starts. It returns the fake, the server, and a maker of clients.
func serveWrites(t *testing.T, m *porttest.Machine, begun func(block uint8)) (*porttest.Miniport, *nbd.Server, func() *nbdtest.Client) {
	t.Helper()
	fake := porttest.New(m, porttest.Options{Script: func(stage porttest.Stage, s *port.SRB) porttest.Action {
		if stage == porttest.StageStartIo && scsi.Opcode(s.CDB[0]) == scsi.OpWrite16 {
			begun(s.CDB[9]) // the last byte of the LBA
		}
		return porttest.Continue
	}})
	server, _, conn := serveDisk(t, m, porttest.Subject{Function: fake.Function(), Miniport: fake}, &geometry{
		blocks: 64, blockBytes: 512, maxTransfer: 64, preferredBytes: 4096,
	}, slots)
	return fake, server, func() *nbdtest.Client {
		t.Helper()
		again, err := net.Dial("unix", conn.RemoteAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = again.Close() })
		c, err := nbdtest.NewClient(again, "disk")
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
}

// What a client left under way is over before a later write to the same place begins; one
// to another place does not wait for it.
func TestSession_GoneClientsWrite(t *testing.T) {
	m := porttest.NewMachine(t, porttest.ArenaBytes)
	begun := make(chan uint8, 8)
	fake, server, client := serveWrites(t, m, func(block uint8) { begun <- block })
	release := fake.Hold()
	if err := client().Send(fillBlock(1, 3, 'a')); err != nil {
		t.Fatal(err)
	}
	if b := <-begun; b != 3 {
		t.Fatalf("block %d written first, want 3", b)
	}
	server.Drop("disk")
	c := client()
	if err := c.Send(fillBlock(1, 3, 'b'), fillBlock(2, 7, 'c')); err != nil {
		t.Fatal(err)
	}
	if b := <-begun; b != 7 {
		t.Errorf("block %d written while an earlier write of block 3 was under way, want 7", b)
	}
	release(m.Processor(t, "release"))
	wantLastWrite(t, c)
}

// So it is if the client closes the connection itself while the reader waits for a slot, and does
// not read. What it has sent and is not yet begun stays undone if no slot comes.
func TestSession_GoneClientsWaitingReader(t *testing.T) {
	m := porttest.NewMachine(t, porttest.ArenaBytes)
	begun := make(chan uint8, 32)
	fake, server, client := serveWrites(t, m, func(block uint8) { begun <- block })
	release := fake.Hold()
	gone, c := client(), client()
	commands := []nbdtest.Command{fillBlock(0, 3, 'a')}
	for i := range slots { // one too many
		commands = append(commands, fillBlock(uint64(i+1), 5, 'a'))
	}
	if err := gone.Send(commands...); err != nil {
		t.Fatal(err)
	}
	if b := <-begun; b != 3 {
		t.Fatalf("block %d written first, want 3", b)
	}
	if err := gone.Conn.Close(); err != nil {
		t.Fatal(err)
	}
	gate := &server.Exports.(*nbd.ExportSet).List()[0].Device.(*Disk).gate
	for end := time.Now().Add(time.Minute); gate.exclusive.Load() == 0; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatal("no fence, and a client that is long gone")
		}
	}
	if err := c.Send(fillBlock(1, 3, 'b'), fillBlock(2, 7, 'c')); err != nil {
		t.Fatal(err)
	}
	for b := range begun {
		if b == 3 {
			t.Error("block 3 is written again while the first write is under way")
		}
		if b == 7 {
			break
		}
	}
	release(m.Processor(t, "release"))
	wantLastWrite(t, c)
}

// While the reader of a client that has gone may still submit, nobody writes anywhere; what
// waited for that goes as soon as the reader has stopped.
func TestSession_GoneClientsReader(t *testing.T) {
	m := porttest.NewMachine(t, porttest.ArenaBytes)
	begun, goOn := make(chan uint8, 8), make(chan struct{})
	fake, server, client := serveWrites(t, m, func(block uint8) {
		begun <- block
		if block == 3 {
			<-goOn // on the reader's goroutine
		}
	})
	release := fake.Hold()
	if err := client().Send(fillBlock(1, 3, 'a')); err != nil {
		t.Fatal(err)
	}
	<-begun
	server.Drop("disk")
	c := client()
	// The answer to a request that never reaches the disk shows that all before it have.
	if err := c.Send(fillBlock(1, 7, 'c'), nbdtest.Command{Type: nbdtest.CmdRead, Cookie: 99, Offset: 1 << 40, Length: 512}); err != nil {
		t.Fatal(err)
	}
	if r, err := c.Receive(); err != nil || r.Cookie != 99 {
		t.Fatalf("%+v, %v", r, err)
	}
	select {
	case b := <-begun:
		t.Errorf("block %d written while more might come from the client that had gone", b)
	default:
	}
	close(goOn)
	if b := <-begun; b != 7 {
		t.Errorf("block %d written, want 7", b)
	}
	release(m.Processor(t, "release"))
	if r, err := c.Receive(); err != nil || r.Errno != nbd.OK {
		t.Errorf("%+v, %v", r, err)
	}
}

// wantLastWrite takes the replies to two writes, and checks that block 3 has what c wrote
// there.
func wantLastWrite(t *testing.T, c *nbdtest.Client) {
	t.Helper()
	for range 2 {
		if r, err := c.Receive(); err != nil || r.Errno != nbd.OK {
			t.Fatalf("%+v, %v", r, err)
		}
	}
	r, err := c.Do(nbdtest.Command{Type: nbdtest.CmdRead, Offset: 3 * 512, Length: 512})
	if err != nil || !bytes.Equal(r.Data, bytes.Repeat([]byte{'b'}, 512)) {
		t.Errorf("block 3 is %q, %v; want what was written last", r.Data, err)
	}
}
