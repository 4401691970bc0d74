package disk

import (
	"bytes"
	"encoding/binary"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/vhbad/vhbad/internal/scsi"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
	"github.com/vhbad/vhbad/port"
	"github.com/vhbad/vhbad/port/porttest"
)

const testBlockBytes = 512

// lbaStatusData is an answer of GET LBA STATUS.
func lbaStatusData(list ...scsi.LBAStatus) []byte {
	b := make([]byte, scsi.LBAStatusHeaderBytes+len(list)*scsi.LBAStatusDescriptorBytes)
	n := scsi.PutLBAStatusHeader(b, len(list))
	for _, s := range list {
		n += scsi.PutLBAStatusDescriptor(b[n:], s)
	}
	return b
}

func deallocated(lba uint64, blocks uint32) scsi.LBAStatus {
	return scsi.LBAStatus{LBA: lba, Blocks: blocks, Status: scsi.StatusDeallocated}
}

func mapped(lba uint64, blocks uint32) scsi.LBAStatus {
	return scsi.LBAStatus{LBA: lba, Blocks: blocks}
}

// answered returns a command of r for which answer has come.
func answered(r *nbd.Request, g *geometry, answer []byte) *command {
	d := &Disk{}
	d.geometry.Store(g)
	if r.Op == nbd.OpRead {
		r.Data = make([]byte, r.LengthBytes)
	}
	c := &command{s: &session{d: d}, srb: &port.SRB{}, req: r, pos: r.OffsetBytes, end: r.OffsetBytes + r.LengthBytes}
	c.until = c.pos
	c.status.wanted = true
	c.status.data = append([]byte(nil), answer...)
	c.srb.DataTransferBytes = uint32(len(answer))
	c.statusDone()
	return c
}

// holesOf goes through a read as its command does and returns the holes told, as
// pairs of offsets.
func holesOf(t *testing.T, c *command, g *geometry) (holes []uint64) {
	t.Helper()
	for c.pos < c.end {
		before := c.pos
		c.skipHoles(g)
		if c.pos > before {
			holes = append(holes, before, c.pos)
		}
		if c.pos < before || c.until < c.pos || c.until > c.end || c.pos == before && c.until == c.pos {
			t.Fatalf("from %d to %d, data to %d of %d", before, c.pos, c.until, c.end)
		}
		c.pos = c.until
	}
	return holes
}

func TestSkipHoles(t *testing.T) {
	const offset, length = 100<<10 + 100, 64 << 10
	block := func(offset uint64) uint64 { return offset / testBlockBytes }
	for _, tt := range []struct {
		name   string
		answer []byte
		want   []uint64
	}{
		{"nothing", nil, nil},
		{"half a header", make([]byte, 7), nil},
		{"no descriptors", lbaStatusData(), nil},
		{"half a descriptor", lbaStatusData(deallocated(200, 1000))[:20], nil},
		{"all hole", lbaStatusData(deallocated(200, 1000)), []uint64{offset, offset + length}},
		{"from before", lbaStatusData(deallocated(0, 1000)), []uint64{offset, offset + length}},
		{"from too late", lbaStatusData(deallocated(201, 1000)), nil},
		{"empty first", lbaStatusData(mapped(200, 0), deallocated(200, 1000)), []uint64{offset, offset + length}},
		{"a gap", lbaStatusData(mapped(200, 10), deallocated(211, 1000)), nil},
		{"too short a hole", lbaStatusData(mapped(200, 10), deallocated(210, 7), mapped(217, 1000)), nil},
		{
			"two holes", lbaStatusData(deallocated(200, 16), mapped(216, 1), deallocated(217, 9), mapped(226, 500)),
			[]uint64{offset, 216 * 512, 217 * 512, 226 * 512},
		},
		{"the end not told", lbaStatusData(mapped(200, 1), deallocated(201, 8)), []uint64{201 * 512, 209 * 512}},
		{"anchored", lbaStatusData(scsi.LBAStatus{LBA: 200, Blocks: 1000, Status: scsi.StatusAnchored}), []uint64{offset, offset + length}},
		{"unknown status", lbaStatusData(scsi.LBAStatus{LBA: 200, Blocks: 1000, Status: 9}), nil},
		{"beyond everything", lbaStatusData(deallocated(1<<62, 1000)), nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if block(offset) != 200 {
				t.Fatal("the table is about another block")
			}
			g := &geometry{blocks: 1 << 20, blockBytes: testBlockBytes, readZeros: true}
			r := &nbd.Request{Op: nbd.OpRead, Sparse: true, OffsetBytes: offset, LengthBytes: length}
			if got := holesOf(t, answered(r, g, tt.answer), g); !slices.Equal(got, tt.want) {
				t.Errorf("holes %v, want %v", got, tt.want)
			}
			g.readZeros = false
			if got := holesOf(t, answered(&nbd.Request{
				Op: nbd.OpRead, Sparse: true, OffsetBytes: offset, LengthBytes: length,
			}, g, tt.answer), g); got != nil {
				t.Errorf("holes %v of a unit that does not promise zeros", got)
			}
		})
	}
}

// FuzzStatusAnswer gives a command whatever a unit may answer: it ends, and calls
// no block a hole that the unit has not called one.
func FuzzStatusAnswer(f *testing.F) {
	f.Add(lbaStatusData(deallocated(0, 100), mapped(100, 28)), uint32(0), uint32(65536))
	f.Add(lbaStatusData(mapped(3, 9), deallocated(12, 1<<32-1)), uint32(1600), uint32(99999))
	f.Add(lbaStatusData(deallocated(1<<64-1, 1<<32-1), deallocated(0, 0)), uint32(511), uint32(70000))
	f.Fuzz(func(t *testing.T, answer []byte, offset, length uint32) {
		length = max(length%(1<<20), 1)
		g := &geometry{blocks: 1 << 30, blockBytes: testBlockBytes, readZeros: true, provisioned: true}
		told := func(at uint64) bool { // by any descriptor
			for b := answer[min(8, len(answer)):]; len(b) >= 16; b = b[16:] {
				d, _ := scsi.ParseLBAStatusDescriptor(b)
				block := at / testBlockBytes
				if s := d.Status; (s == scsi.StatusDeallocated || s == scsi.StatusAnchored) && d.LBA <= block && block-d.LBA < uint64(d.Blocks) {
					return true
				}
			}
			return false
		}
		checkHole := func(from, to uint64) {
			for at := from; at < to; at = at&^(testBlockBytes-1) + testBlockBytes {
				if !told(at) {
					t.Fatalf("%d is called a hole", at)
				}
			}
		}
		r := &nbd.Request{Op: nbd.OpRead, Sparse: true, OffsetBytes: uint64(offset), LengthBytes: uint64(length)}
		holes := holesOf(t, answered(r, g, answer), g)
		for i := 0; i < len(holes); i += 2 {
			checkHole(holes[i], holes[i+1])
		}

		q := &nbd.Request{Op: nbd.OpBlockStatus, OffsetBytes: uint64(offset), LengthBytes: uint64(length), Data: make([]byte, 64)}
		c := answered(q, g, answer)
		if c.pos <= q.OffsetBytes || c.pos > c.end {
			t.Fatalf("told up to %d of %d to %d", c.pos, q.OffsetBytes, c.end)
		}
		at := q.OffsetBytes
		for b := q.Data; len(b) > 0; b = b[8:] {
			n := uint64(binary.BigEndian.Uint32(b))
			if nbd.ExtentState(binary.BigEndian.Uint32(b[4:]))&nbd.StateZero != 0 {
				checkHole(at, at+n)
			}
			at += n
		}
		if at == q.OffsetBytes || at > c.end {
			t.Fatalf("extents to %d of %d to %d", at, q.OffsetBytes, c.end)
		}
	})
}

func TestKnownData(t *testing.T) {
	var k knownData
	if !k.worthAsking(0, 100) {
		t.Error("not worth asking although nothing is known")
	}
	k.learn(50, 150, true)
	for _, tt := range []struct {
		from, to uint64
		want     bool
	}{{50, 150, false}, {60, 100, false}, {49, 60, true}, {140, 151, true}, {200, 300, true}} {
		if got := k.worthAsking(tt.from, tt.to); got != tt.want {
			t.Errorf("from %d to %d: worth asking: %t", tt.from, tt.to, got)
		}
	}
	k.forget()
	if !k.worthAsking(60, 100) {
		t.Error("known after a trim")
	}
	// It does not know for ever.
	k.learn(0, 100, true)
	asked := 0
	for range 2 * knownVouches {
		if k.worthAsking(0, 100) {
			asked++
		}
	}
	if asked != knownVouches {
		t.Errorf("asked %d times in %d reads, want %d", asked, 2*knownVouches, knownVouches)
	}
	// Where there is no hole anywhere, questions get rare, until one is found.
	k.forget()
	asked = 0
	for i := range uint64(10000) {
		if at := 1000 * (i + 1); k.worthAsking(at, at+100) {
			asked++
			k.learn(at, at+100, true)
		}
	}
	if asked > 10000/maxPass+50 {
		t.Errorf("asked %d times in 10000 reads", asked)
	}
	k.learn(0, 0, false)
	for range uint64(patience) {
		if !k.worthAsking(5000, 5100) {
			t.Error("not worth asking after a hole was found")
		}
		k.learn(0, 0, true)
	}
}

// A stubborn miniport answers GET LBA STATUS by itself.
type stubborn struct {
	*porttest.Miniport
	a      *port.Adapter
	sense  scsi.Sense
	answer []byte
	asked  atomic.Int32
}

func (m *stubborn) FindAdapter(p *port.Processor, a *port.Adapter, c *port.Config) port.FindResult {
	m.a = a
	return m.Miniport.FindAdapter(p, a, c)
}

func (m *stubborn) StartIo(p *port.Processor, srb *port.SRB) bool {
	if scsi.Opcode(srb.CDB[0]) != scsi.OpServiceActionIn16 {
		return m.Miniport.StartIo(p, srb)
	}
	m.asked.Add(1)
	if m.sense.Key == 0 {
		n := copy(srb.DataBuffer, m.answer)
		srb.Status, srb.DataTransferBytes = port.StatusDataOverrun, uint32(n)
	} else {
		srb.Status, srb.ScsiStatus = port.StatusError|port.StatusAutosenseValid, scsi.StatusCheckCondition
		srb.SenseBytes = uint8(scsi.PutFixedSense(srb.Sense[:], &m.sense))
		srb.DataTransferBytes = 0
	}
	m.a.Complete(p, srb)
	return false
}

// A unit that does not say which blocks are mapped, or not in a way that makes sense, has
// nothing but data; only blocks that it cannot read are an error, and not to a read.
func TestBlockStatus_Stubborn(t *testing.T) {
	const blocks = 256
	for _, tt := range []struct {
		name   string
		sense  scsi.Sense
		answer []byte
		errno  nbd.Errno
		asked  int32 // by the block status
	}{
		{name: "no such command", sense: scsi.Sense{Key: scsi.KeyIllegalRequest, Additional: scsi.InvalidCommandOperationCode}, asked: 1},
		{name: "no such service action", sense: scsi.Sense{Key: scsi.KeyIllegalRequest, Additional: scsi.InvalidFieldInCDB}, asked: 1},
		{name: "out of range", sense: scsi.Sense{Key: scsi.KeyIllegalRequest, Additional: scsi.LBAOutOfRange}, errno: nbd.EINVAL, asked: 1},
		{name: "medium error", sense: scsi.Sense{Key: scsi.KeyMediumError, Additional: scsi.UnrecoveredReadError}, errno: nbd.EIO, asked: 1},
		{name: "unit attention", sense: scsi.Sense{Key: scsi.KeyUnitAttention, Additional: scsi.PowerOnResetOccurred}, errno: nbd.EIO, asked: 2},
		{name: "no answer", asked: 1},
		{name: "nonsense", answer: bytes.Repeat([]byte{0xff}, 4096), asked: 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := porttest.NewMachine(t, porttest.ArenaBytes)
			fake := porttest.New(m, porttest.Options{})
			mp := &stubborn{Miniport: fake, sense: tt.sense, answer: tt.answer}
			nc := serveOn(t, m, porttest.Subject{Function: fake.Function(), Miniport: mp}, &geometry{
				blocks: blocks, blockBytes: testBlockBytes, maxTransfer: blocks, preferredBytes: 4096, provisioned: true, readZeros: true,
			})
			c, err := nbdtest.Dial(nc, "disk", nbdtest.Options{Structured: true, Meta: []string{"base:allocation"}})
			if err != nil {
				t.Fatal(err)
			}
			r, err := c.Do(nbdtest.Command{Type: nbdtest.CmdBlockStatus, Length: blocks * testBlockBytes})
			if err != nil {
				t.Fatal(err)
			}
			want := []nbdtest.Extent{{Length: blocks * testBlockBytes}}
			if got := r.Extents[c.Contexts["base:allocation"]]; r.Errno != tt.errno || tt.errno == nbd.OK && !slices.Equal(got, want) {
				t.Errorf("block status: %s, extents %v", r.Errno, got)
			}
			if n := mp.asked.Load(); n != tt.asked {
				t.Errorf("asked %d times, want %d", n, tt.asked)
			}
			r, err = c.Do(nbdtest.Command{Type: nbdtest.CmdRead, Length: blocks * testBlockBytes})
			if err != nil || r.Errno != nbd.OK || len(r.Holes) != 0 || mp.asked.Load() == tt.asked {
				t.Errorf("read: %s, holes %v, %v", r.Errno, r.Holes, err)
			}
		})
	}
}
