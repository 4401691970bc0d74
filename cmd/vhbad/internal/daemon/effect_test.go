package daemon

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"testing"

	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// An effect is a range of a disk of effectDisk bytes that one command is about.
type effect struct {
	name           string
	format         format
	offset, length uint64
}

const (
	effectDisk = 12 << 30
	// compactMost is the longest range of a compact request.
	compactMost = 1<<32 - 1
)

// effects are the longest that each format can express, including some beyond 32 bits that
// only extended headers can. None begins or ends on a block boundary.
var effects = []effect{
	{"compact", formats[1], 1<<30 + 100, compactMost},
	{"compact length, beyond 4 GiB", formats[1], 5<<30 + 4095, compactMost},
	{"compact length in extended headers", formats[2], 3<<30 + 1, compactMost},
	{"2^32", formats[2], 1<<30 + 511, 1 << 32},
	{"beyond 2^32", formats[2], 1<<29 + 513, 9<<30 + 12345},
}

func (e *effect) command(typ, flags uint16) nbdtest.Command {
	cmd := nbdtest.Command{Type: typ, Flags: flags, Offset: e.offset, Length: uint32(e.length)}
	if e.format.Extended {
		cmd.Length64 = e.length
	}
	return cmd
}

// places are where there is data before a command comes: at its ends, across them,
// in its middle and, if it is that long, where 32 bits overflow.
func (e *effect) places() []uint64 {
	end := e.offset + e.length
	p := []uint64{e.offset, e.offset + e.length/2, end}
	for _, far := range []uint64{1 << 32, 2 << 32} {
		if far < e.length {
			p = append(p, e.offset+far)
		}
	}
	return p
}

// TestEffect_Long: trims and zeroes of 2^32-1 bytes and more do what they should from their
// first byte to their last, and nothing to the bytes beside them.
func TestEffect_Long(t *testing.T) {
	const around = 8192 // bytes of data on each side of a place
	s := newSettings(t, fmt.Sprintf("m=memory:%d", effectDisk), fmt.Sprintf("f=file:$DIR/f.img,size=%d", effectDisk))
	d, _ := s.mustStart(t)
	data := bytes.Repeat([]byte{0xa5}, 2*around)
	for _, e := range effects {
		for _, export := range []string{"m", "f"} {
			for _, z := range []struct {
				name       string
				typ, flags uint16
			}{
				{"trim", nbdtest.CmdTrim, 0},
				{"zeroes", nbdtest.CmdWriteZeroes, 0},
				{"fast zeroes", nbdtest.CmdWriteZeroes, nbdtest.FlagFastZero},
				{"FUA", nbdtest.CmdWriteZeroes, nbdtest.FlagFUA},
			} {
				t.Run(e.name+", "+z.name+", "+export, func(t *testing.T) {
					c := s.speak(t, export, e.format)
					for _, at := range e.places() {
						ask(t, c, nbdtest.Command{Type: nbdtest.CmdWrite, Offset: at - around, Length: 2 * around, Payload: data}, nbd.OK)
					}
					ask(t, c, e.command(z.typ, z.flags), nbd.OK)
					from, to := e.offset, e.offset+e.length
					if z.typ == nbdtest.CmdTrim { // a part of a block need not be
						from, to = (from+511)&^511, to&^511
					}
					for _, at := range e.places() {
						r := ask(t, c, nbdtest.Command{Type: nbdtest.CmdRead, Offset: at - around, Length: 2 * around}, nbd.OK)
						want := bytes.Clone(data)
						for i := range want {
							if o := at - around + uint64(i); o >= from && o < to {
								want[i] = 0
							}
						}
						if !bytes.Equal(r.Data, want) {
							t.Errorf("the %d bytes around %d are not what they should be", 2*around, at)
						}
					}
					wantHole(t, c, &e, (from+4095)&^4095, to&^4095)
					// Nothing is left for the next.
					for _, at := range e.places() {
						ask(t, c, nbdtest.Command{Type: nbdtest.CmdWriteZeroes, Offset: at - around, Length: 2 * around}, nbd.OK)
					}
				})
			}
		}
	}
	noViolations(t, machineOf(d))
}

// wantHole wants BLOCK_STATUS of the whole effect to say that all between from and to
// is a hole.
func wantHole(t *testing.T, c *nbdtest.Client, e *effect, from, to uint64) {
	t.Helper()
	r := ask(t, c, e.command(nbdtest.CmdBlockStatus, 0), nbd.OK)
	at := e.offset
	for _, x := range r.Extents[c.Contexts[allocation]] {
		next := at + x.Length
		if x.State != nbd.StateHole|nbd.StateZero && next > from && at < to {
			t.Errorf("from %d to %d the state is %#x, want a hole", at, next, x.State)
		}
		at = next
	}
	if at != e.offset+e.length {
		t.Errorf("block status tells of %d bytes, want %d", at-e.offset, e.length)
	}
}

// TestEffect_LongCache: a prefetch of 2^32-1 bytes and more reaches the medium whole,
// each block of it once.
func TestEffect_LongCache(t *testing.T) {
	for _, e := range effects {
		t.Run(e.name, func(t *testing.T) {
			md := &stripedMedium{sizeBytes: effectDisk, stripeBytes: 1 << 20}
			s := newSettings(t, "d=memory:1MiB")
			s.startOn(t, md)
			c := s.speak(t, "d", e.format)
			ask(t, c, e.command(nbdtest.CmdCache, 0), nbd.OK)
			md.mu.Lock()
			defer md.mu.Unlock()
			slices.SortFunc(md.prefetched, func(a, b media.Extent) int { return cmp.Compare(a.OffsetBytes, b.OffsetBytes) })
			at := int64(e.offset) &^ 511
			for _, x := range md.prefetched {
				if x.OffsetBytes != at {
					t.Errorf("a prefetch from %d, want %d", x.OffsetBytes, at)
				}
				at = x.End()
			}
			if want := (int64(e.offset+e.length) + 511) &^ 511; at != want {
				t.Errorf("prefetched up to %d, want %d", at, want)
			}
		})
	}
}

// TestEffect_TooLong: a command that would go one byte beyond the end has no effect at all.
func TestEffect_TooLong(t *testing.T) {
	s := newSettings(t, fmt.Sprintf("m=memory:%d", effectDisk))
	s.mustStart(t)
	data := []byte("still there")
	for _, f := range formats[1:] {
		c := s.speak(t, "m", f)
		at := uint64(effectDisk - compactMost)
		for _, o := range []uint64{at + 1, effectDisk - uint64(len(data))} {
			ask(t, c, nbdtest.Command{Type: nbdtest.CmdWrite, Offset: o, Length: uint32(len(data)), Payload: data}, nbd.OK)
		}
		e := effect{format: f, offset: at + 1, length: compactMost}
		for typ, want := range map[uint16]nbd.Errno{
			nbdtest.CmdTrim: nbd.EINVAL, nbdtest.CmdWriteZeroes: nbd.ENOSPC, nbdtest.CmdCache: nbd.EINVAL, nbdtest.CmdBlockStatus: nbd.EINVAL,
		} {
			ask(t, c, e.command(typ, 0), want)
			if f.Extended { // offset and length together exceed 64 bits
				huge := effect{format: f, offset: at + 1, length: 1<<64 - 1}
				ask(t, c, huge.command(typ, 0), want)
			}
		}
		for _, o := range []uint64{at + 1, effectDisk - uint64(len(data))} {
			r := ask(t, c, nbdtest.Command{Type: nbdtest.CmdRead, Offset: o, Length: uint32(len(data))}, nbd.OK)
			if !bytes.Equal(r.Data, data) {
				t.Errorf("%s: %q at %d", f.name, r.Data, o)
			}
		}
	}
}
