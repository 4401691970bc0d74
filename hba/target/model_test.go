package target_test

import (
	"bytes"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"

	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/hba/target"
	"github.com/vhbad/vhbad/internal/scsi"
)

// A sliceBackend has the methods of a go-nbd backend, and no abilities.
type sliceBackend []byte

func (b sliceBackend) ReadAt(p []byte, off int64) (int, error)  { return copy(p, b[off:]), nil }
func (b sliceBackend) WriteAt(p []byte, off int64) (int, error) { return copy(b[off:], p), nil }
func (b sliceBackend) Size() (int64, error)                     { return int64(len(b)), nil }
func (b sliceBackend) Sync() error                              { return nil }

// A model is what a unit should be: blocks in a slice.
type model struct {
	unit   *target.Unit
	blocks []byte
	bs     int
	found  []byte // room for check, which runs after every step
}

// TestUnit_Model runs random commands on a unit and on a slice of bytes. rapid
// prints the seed of a failure and shrinks it.
func TestUnit_Model(t *testing.T) {
	const sizeBytes = 136 << 10 // two chunks of memory and a bit
	for _, tt := range []struct {
		name string
		bs   uint32
		open func(t *rapid.T, dir string) media.Media
	}{
		{"memory", 512, func(t *rapid.T, _ string) media.Media {
			m, err := media.NewMemory(media.MemoryConfig{SizeBytes: sizeBytes})
			if err != nil {
				t.Fatal(err)
			}
			return m
		}},
		{"memory, long blocks", 4096, func(t *rapid.T, _ string) media.Media {
			m, err := media.NewMemory(media.MemoryConfig{SizeBytes: sizeBytes})
			if err != nil {
				t.Fatal(err)
			}
			return m
		}},
		{"file", 512, func(t *rapid.T, dir string) media.Media {
			f, err := media.OpenFile(media.FileConfig{Path: filepath.Join(dir, "disk"), SizeBytes: sizeBytes})
			if err != nil {
				t.Fatal(err)
			}
			if err := f.Zero(0, sizeBytes, false); err != nil {
				t.Fatal(err)
			}
			return f
		}},
		{"backend", 512, func(t *rapid.T, _ string) media.Media {
			b, err := media.NewBackend("slice", sliceBackend(make([]byte, sizeBytes)))
			if err != nil {
				t.Fatal(err)
			}
			return b
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			rapid.Check(t, func(t *rapid.T) {
				m := tt.open(t, dir)
				defer func() {
					if err := m.Close(); err != nil {
						t.Error(err)
					}
				}()
				u, err := target.NewUnit(m, target.Config{Serial: "M", BlockBytes: tt.bs, WriteCache: true})
				if err != nil {
					t.Fatal(err)
				}
				d := &model{unit: u, blocks: make([]byte, sizeBytes), bs: int(tt.bs), found: make([]byte, sizeBytes)}
				t.Repeat(map[string]func(*rapid.T){
					"":                d.check,
					"read":            d.read,
					"write":           d.write,
					"writeSame":       d.writeSame,
					"unmap":           d.unmap,
					"compareAndWrite": d.compareAndWrite,
					"verify":          d.verify,
					"outOfRange":      d.outOfRange,
				})
			})
		})
	}
}

// execute runs a command as the device does: first where it must not block.
func (d *model) execute(t *rapid.T, p put, direction target.Direction, segments ...[]byte) *target.Task {
	task := newTask(p, direction, segments...)
	if !d.unit.Execute(task, false) && !d.unit.Execute(task, true) {
		t.Fatalf("%v: not done though it may block", task)
	}
	return task
}

func (d *model) good(t *rapid.T, p put, direction target.Direction, segments ...[]byte) {
	if task := d.execute(t, p, direction, segments...); task.Status != scsi.StatusGood {
		t.Fatalf("%v, sense %+v; want GOOD", task, senseOf(task))
	}
}

// place draws a range of blocks, mostly short.
func (d *model) place(t *rapid.T, most int) (lba, blocks int) {
	total := len(d.blocks) / d.bs
	blocks = rapid.IntRange(1, min(most, total)).Draw(t, "blocks")
	return rapid.IntRange(0, total-blocks).Draw(t, "lba"), blocks
}

// segmented cuts b at random places.
func segmented(t *rapid.T, b []byte) [][]byte {
	cut := rapid.IntRange(0, len(b)).Draw(t, "cut")
	return [][]byte{b[:cut], b[cut:]}
}

func (d *model) pattern(t *rapid.T, n int) []byte {
	b := filled(n, rapid.Byte().Draw(t, "byte"))
	b[0], b[n-1] = rapid.Byte().Draw(t, "first"), rapid.Byte().Draw(t, "last")
	return b
}

func (d *model) read(t *rapid.T) {
	lba, blocks := d.place(t, 300)
	got := make([]byte, blocks*d.bs)
	d.good(t, read16(uint64(lba), uint32(blocks)), target.DataIn, segmented(t, got)...)
	if !bytes.Equal(got, d.blocks[lba*d.bs:][:len(got)]) {
		t.Fatalf("blocks %d to %d differ", lba, lba+blocks)
	}
}

func (d *model) write(t *rapid.T) {
	lba, blocks := d.place(t, 300)
	data := d.pattern(t, blocks*d.bs)
	fua := rapid.Bool().Draw(t, "fua")
	d.good(t, func(c *[16]byte) int { return scsi.PutWrite16(c, uint64(lba), uint32(blocks), fua, false) },
		target.DataOut, segmented(t, data)...)
	copy(d.blocks[lba*d.bs:], data)
}

func (d *model) writeSame(t *rapid.T) {
	lba, blocks := d.place(t, len(d.blocks))
	block := make([]byte, d.bs)
	unmap := rapid.Bool().Draw(t, "unmap") && d.thin()
	if rapid.Bool().Draw(t, "pattern") {
		block = d.pattern(t, d.bs)
	}
	d.good(t, func(c *[16]byte) int {
		return scsi.PutWriteSame16(c, uint64(lba), uint32(blocks), unmap, false, false)
	}, target.DataOut, block)
	copy(d.blocks[lba*d.bs:][:blocks*d.bs], bytes.Repeat(block, blocks))
}

func (d *model) thin() bool {
	a := media.Probe(d.unit.Medium())
	return a.Discard != nil
}

func (d *model) unmap(t *rapid.T) {
	if !d.thin() {
		return
	}
	var ranges []uint64
	for range rapid.IntRange(0, 3).Draw(t, "ranges") {
		lba, blocks := d.place(t, len(d.blocks))
		ranges = append(ranges, uint64(lba), uint64(blocks))
		clear(d.blocks[lba*d.bs:][:blocks*d.bs])
	}
	list := unmapList(ranges...)
	d.good(t, unmap(len(list), rapid.Bool().Draw(t, "anchor")), target.DataOut, list)
}

func (d *model) compareAndWrite(t *rapid.T) {
	lba, blocks := d.place(t, 8)
	n := blocks * d.bs
	data := d.pattern(t, n)
	both := append(bytes.Clone(d.blocks[lba*d.bs:][:n]), data...)
	wrong := -1
	if rapid.Bool().Draw(t, "differs") {
		wrong = rapid.IntRange(0, n-1).Draw(t, "where")
		both[wrong]++
	}
	task := d.execute(t, func(c *[16]byte) int {
		return scsi.PutCompareAndWrite(c, uint64(lba), uint8(blocks), false, false)
	}, target.DataOut, segmented(t, both)...)
	if wrong < 0 {
		if task.Status != scsi.StatusGood {
			t.Fatalf("%v, sense %+v; want GOOD", task, senseOf(task))
		}
		copy(d.blocks[lba*d.bs:], data)
		return
	}
	if s := senseOf(task); s.Key != scsi.KeyMiscompare || s.Information != uint64(wrong) {
		t.Fatalf("%v, sense %+v; want a miscompare at %d", task, s, wrong)
	}
}

func (d *model) verify(t *rapid.T) {
	lba, blocks := d.place(t, 300)
	data := bytes.Clone(d.blocks[lba*d.bs:][:blocks*d.bs])
	p := func(c *[16]byte) int { return scsi.PutVerify16(c, uint64(lba), uint32(blocks), scsi.BytchkAll) }
	d.good(t, p, target.DataOut, data)
	wrong := rapid.IntRange(0, len(data)-1).Draw(t, "where")
	data[wrong]++
	if s := senseOf(d.execute(t, p, target.DataOut, data)); s.Key != scsi.KeyMiscompare || s.Information != uint64(lba+wrong/d.bs) {
		t.Fatalf("sense %+v; want a miscompare in block %d", s, lba+wrong/d.bs)
	}
}

func (d *model) outOfRange(t *rapid.T) {
	total := len(d.blocks) / d.bs
	blocks := rapid.IntRange(1, 16).Draw(t, "blocks")
	lba := rapid.IntRange(total-blocks+1, total+100).Draw(t, "lba")
	task := d.execute(t, write16(uint64(lba), uint32(blocks)), target.DataOut, d.pattern(t, blocks*d.bs))
	if s := senseOf(task); s.Additional != scsi.LBAOutOfRange {
		t.Fatalf("%v, sense %+v; want out of range", task, s)
	}
}

// check compares everything, and what the unit says of holes.
func (d *model) check(t *rapid.T) {
	got := d.found
	d.good(t, read16(0, uint32(len(d.blocks)/d.bs)), target.DataIn, got)
	if !bytes.Equal(got, d.blocks) {
		for i := range got {
			if got[i] != d.blocks[i] {
				t.Fatalf("byte %d of block %d is %#x, want %#x", i%d.bs, i/d.bs, got[i], d.blocks[i])
			}
		}
	}
	b := d.found[:8+16*1024]
	task := d.execute(t, func(c *[16]byte) int { return scsi.PutGetLBAStatus(c, 0, uint32(len(b))) }, target.DataIn, b)
	n, _ := scsi.ParseLBAStatusHeader(b)
	next := uint64(0)
	for i := range n {
		s, ok := scsi.ParseLBAStatusDescriptor(b[8+16*i : task.TransferredBytes])
		if !ok || s.LBA != next || s.Blocks == 0 {
			t.Fatalf("descriptor %d: %+v, want one from %d", i, s, next)
		}
		next += uint64(s.Blocks)
		run := d.blocks[int(s.LBA)*d.bs : int(next)*d.bs]
		if s.Status == scsi.StatusDeallocated && !bytes.Equal(run, make([]byte, len(run))) {
			t.Fatalf("descriptor %d says hole where data are: %+v", i, s)
		}
	}
	if next != uint64(len(d.blocks)/d.bs) {
		t.Fatalf("LBA status ends at block %d", next)
	}
}
