package disk

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/vhbad/vhbad/internal/scsi"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/port"
)

// stepRange is the range in bytes of the blocks that c's CDB names.
func stepRange(t *testing.T, c *command, blockBytes uint64) (from, to uint64) {
	t.Helper()
	lba, blocks, ok := scsi.BlockRange(&c.srb.CDB)
	if scsi.Opcode(c.srb.CDB[0]) == scsi.OpUnmap {
		lba, blocks, ok = scsi.ParseUnmapDescriptor(c.param[scsi.UnmapHeaderBytes:])
	}
	if !ok || blocks == 0 {
		t.Fatalf("cdb % x has no blocks", c.srb.CDB)
	}
	return lba * blockBytes, (lba + uint64(blocks)) * blockBytes
}

// The steps of a request cover its range from start to end, each byte once, with
// nothing outside but the rest of blocks that are read for their part, and no
// command is longer than its limit.
func TestCommand_Steps(t *testing.T) {
	const maxTransfer = 1 << 20
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	buffer := make([]byte, 16<<20)
	for range 3000 {
		blockBytes := uint64(512) << rng.IntN(4)
		size := uint64(64<<40) >> rng.IntN(20)
		g := &geometry{blocks: size / blockBytes, blockBytes: blockBytes, fua: true, maxTransfer: maxTransfer / blockBytes}
		g.maxUnmap, g.maxWriteSame, g.maxPrefetch = maxReleaseBytes/blockBytes, maxRangeBytes/blockBytes, maxRangeBytes/blockBytes
		g.maxRelease, g.unmapZeros = maxReleaseBytes/blockBytes, rng.IntN(2) == 0
		r := &nbd.Request{Op: nbd.Op(rng.IntN(int(nbd.OpCount)))}
		if r.Op == nbd.OpFlush || r.Op == nbd.OpBlockStatus {
			continue
		}
		moves := r.Op == nbd.OpRead || r.Op == nbd.OpWrite
		most := uint64(math.MaxUint32)
		if moves {
			most = uint64(len(buffer))
		}
		r.LengthBytes = min(1+rng.Uint64N(most)>>rng.IntN(24), size)
		r.OffsetBytes = rng.Uint64N(size - r.LengthBytes + 1)
		switch rng.IntN(4) {
		case 0:
			r.OffsetBytes &^= blockBytes - 1
		case 1: // up to the very end
			r.OffsetBytes = size - r.LengthBytes
		}
		if moves {
			r.Data = buffer[:r.LengthBytes]
		}
		d := &Disk{}
		d.geometry.Store(g)
		s := &session{d: d}
		s.bounces[0].mem, s.bounces[1].mem = make([]byte, 4096), make([]byte, 4096)
		c := &command{s: s, srb: &port.SRB{}, param: make([]byte, unmapParameterBytes)}
		c.req, c.pos, c.end = r, r.OffsetBytes, r.OffsetBytes+r.LengthBytes
		c.until = c.end
		if r.Op == nbd.OpTrim {
			from, to := wholeBlocksOf(c.pos, c.end, blockBytes-1)
			if from >= to {
				continue // no whole block in it
			}
			c.pos, c.end, c.until = from, to, to
		}
		at, end := c.pos, c.end
		for c.prepare(g) == ready {
			from, to := stepRange(t, c, blockBytes)
			limit := uint64(maxRangeBytes)
			switch {
			case moves:
				limit = maxTransfer
			case r.Op == nbd.OpTrim, r.Op == nbd.OpWriteZeroes && g.unmapZeros:
				limit = maxReleaseBytes
			}
			switch {
			case to > size || to-from > limit:
				t.Fatalf("%+v: command from %d to %d of a disk of %d bytes", r, from, to, size)
			case c.step == stepReadPart:
				if at < from || at+c.stepBytes > to || at+c.stepBytes > end || c.stepBytes == 0 {
					t.Fatalf("%+v: part from %d, %d bytes, of the block from %d to %d", r, at, c.stepBytes, from, to)
				}
				s.releaseBounce(c)
			case r.Op == nbd.OpCache:
				if from > at || from+blockBytes <= at {
					t.Fatalf("%+v: cached from %d, want the block of %d", r, from, at)
				}
				at = from
			case from != at || to != at+c.stepBytes || to > end:
				t.Fatalf("%+v: command from %d to %d, want it from %d on", r, from, to, at)
			case moves && &c.srb.DataBuffer[0] != &buffer[at-r.OffsetBytes]:
				t.Fatalf("%+v: wrong part of the buffer at %d", r, at)
			}
			at += c.stepBytes
			c.pos += c.stepBytes
			releases := r.Op == nbd.OpTrim || r.Op == nbd.OpWriteZeroes && g.unmapZeros
			if releases && c.step == stepBlocks && c.pos < end&^(blockBytes-1) && c.pos%pieceAlignBytes != 0 {
				t.Fatalf("%+v: a command that releases ends at %d, within a unit of the medium", r, c.pos)
			}
		}
		if at < end {
			t.Fatalf("%+v: ended at %d of %d", r, at, end)
		}
	}
}

// A flush may take longer than other commands.
func TestCommand_FlushTimeout(t *testing.T) {
	for _, tt := range []struct{ option, read, flush uint32 }{{0, 0, 240}, {5, 5, 20}} {
		s := &session{d: &Disk{options: Options{TimeoutSecs: tt.option}}}
		g := &geometry{blocks: 8, blockBytes: 512, maxTransfer: 8}
		c := &command{s: s, srb: &port.SRB{}}
		c.req = &nbd.Request{Op: nbd.OpFlush}
		if c.prepare(g); c.srb.TimeoutSecs != tt.flush {
			t.Errorf("time-out of a flush: %d s, want %d", c.srb.TimeoutSecs, tt.flush)
		}
		c.req = &nbd.Request{Op: nbd.OpRead, LengthBytes: 512, Data: make([]byte, 512)}
		c.step, c.end, c.until = stepNone, 512, 512
		if c.prepare(g); c.srb.TimeoutSecs != tt.read {
			t.Errorf("time-out of a read: %d s, want %d", c.srb.TimeoutSecs, tt.read)
		}
	}
}
