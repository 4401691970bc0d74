package media_test

import (
	"bytes"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pojntfx/go-nbd/pkg/backend"

	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/hba/media/mediatest"
)

func newMemory(tb testing.TB, c media.MemoryConfig) *media.Memory {
	tb.Helper()
	m, err := media.NewMemory(c)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := m.Close(); err != nil && !errors.Is(err, media.ErrClosed) {
			tb.Errorf("close: %v", err)
		}
	})
	return m
}

func newFile(tb testing.TB, c media.FileConfig) *media.File {
	tb.Helper()
	if c.Path == "" {
		c.Path = filepath.Join(tb.TempDir(), "disk")
	}
	f, err := media.OpenFile(c)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := f.Close(); err != nil && !errors.Is(err, media.ErrClosed) {
			tb.Errorf("close: %v", err)
		}
	})
	return f
}

func TestMemory_Conformance(t *testing.T) {
	mediatest.Run(t, mediatest.Options{WholeBlocks: true, Lends: media.SlabsLendable}, func(t *testing.T) media.Media {
		t.Helper()
		return newMemory(t, media.MemoryConfig{SizeBytes: mediatest.MinBytes + 3<<30 + 512})
	})
}

func TestFile_Conformance(t *testing.T) {
	mediatest.Run(t, mediatest.Options{Lends: true}, func(t *testing.T) media.Media {
		t.Helper()
		return newFile(t, media.FileConfig{SizeBytes: mediatest.MinBytes + 64<<10 + 512})
	})
}

func TestBackend_Conformance(t *testing.T) {
	mediatest.Run(t, mediatest.Options{WholeBlocks: true}, func(t *testing.T) media.Media {
		t.Helper()
		b, err := media.NewBackend("plain", backend.NewMemoryBackend(make([]byte, mediatest.MinBytes+512)))
		if err != nil {
			t.Fatal(err)
		}
		return b
	})
}

// An ableBackend is a go-nbd backend that can do what our interfaces ask for,
// because it is one of our media.
type ableBackend struct{ *media.Memory }

func (b ableBackend) Size() (int64, error) { return b.Memory.Size(), nil }
func (b ableBackend) Sync() error          { return b.Flush() }

func (b ableBackend) WriteAtFUA(p []byte, off int64) (int, error) { return b.WriteAt(p, off) }
func (b ableBackend) Prefetch(int64, int64) error                 { return nil }

func TestBackend_ConformanceWithAbilities(t *testing.T) {
	mediatest.Run(t, mediatest.Options{WholeBlocks: true}, func(t *testing.T) media.Media {
		t.Helper()
		inner, err := media.NewMemory(media.MemoryConfig{SizeBytes: mediatest.MinBytes})
		if err != nil {
			t.Fatal(err)
		}
		b, err := media.NewBackend("able", ableBackend{inner})
		if err != nil {
			t.Fatal(err)
		}
		a := media.Probe(b)
		if a.Discard == nil || a.Zero == nil || a.Extents == nil || a.Resize == nil || a.FUA == nil || a.Prefetch == nil {
			t.Fatalf("abilities are lost: %+v", a)
		}
		return b
	})
}

func TestProbe(t *testing.T) {
	a := media.Probe(newMemory(t, media.MemoryConfig{SizeBytes: 4096}))
	if !a.NeverBlocks || a.TryRead == nil || a.Discard == nil || a.FUA != nil || a.Prefetch != nil {
		t.Errorf("memory: %+v", a)
	}
	b, err := media.NewBackend("plain", backend.NewMemoryBackend(make([]byte, 4096)))
	if err != nil {
		t.Fatal(err)
	}
	a = media.Probe(b)
	if a.NeverBlocks || a.TryRead != nil || a.Discard != nil || a.FUA != nil || a.Resize != nil || a.CompareAndWrite == nil {
		t.Errorf("backend: %+v", a)
	}
	for bit := media.AbilityTryRead; bit <= media.AbilityRefer; bit <<= 1 {
		if got, want := a.Has(bit), bit == media.AbilityCompareAndWrite; got != want {
			t.Errorf("Has(%#x) = %v, want %v", bit, got, want)
		}
	}
	if a.Has(1 << 15) {
		t.Error("it has what does not exist")
	}
}

// A badBackend misbehaves as it is told.
type badBackend struct {
	size    int64
	sizeErr error
	short   int // bytes less than asked for
	err     error
	calls   int
	closed  bool
}

func (b *badBackend) Size() (int64, error) { return b.size, b.sizeErr }
func (b *badBackend) Sync() error          { return b.err }
func (b *badBackend) Close() error         { b.closed = true; return nil }

func (b *badBackend) ReadAt(p []byte, _ int64) (int, error) {
	b.calls++
	return len(p) - b.short, b.err
}

func (b *badBackend) WriteAt(p []byte, _ int64) (int, error) {
	b.calls++
	return len(p) - b.short, b.err
}

func (b *badBackend) Discard(int64, int64) error    { b.calls++; return b.err }
func (b *badBackend) Zero(int64, int64, bool) error { b.calls++; return b.err }
func (b *badBackend) Prefetch(int64, int64) error   { b.calls++; return b.err }

func (b *badBackend) WriteAtFUA(p []byte, off int64) (int, error) { return b.WriteAt(p, off) }

func TestBackend_Errors(t *testing.T) {
	for _, b := range []*badBackend{{size: 0}, {size: -1}, {size: 4096, sizeErr: io.ErrClosedPipe}} {
		if _, err := media.NewBackend("bad", b); err == nil || !strings.Contains(err.Error(), "bad") {
			t.Errorf("size %d, error %v: %v", b.size, b.sizeErr, err)
		}
	}
	b := &badBackend{size: 4096}
	m, err := media.NewBackend("bad", b)
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 512)
	for _, tt := range []struct {
		name   string
		short  int
		err    error
		read   error // kind
		write  error
		offset int64
	}{
		{"full read and end of file", 0, io.EOF, nil, media.ErrMedium, 1512},
		{"short without an error", 12, nil, media.ErrMedium, media.ErrMedium, 1500},
		{"short at the end of file", 12, io.EOF, media.ErrMedium, media.ErrMedium, 1500},
		{"an error", 512, io.ErrClosedPipe, media.ErrMedium, media.ErrMedium, 1000},
		{"more bytes missing than asked for", 513, io.ErrClosedPipe, media.ErrMedium, media.ErrMedium, 1000},
		{"no space, in our words", 512, media.ErrNoSpace, media.ErrNoSpace, media.ErrNoSpace, 1000},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b.short, b.err = tt.short, tt.err
			check := func(op string, got error, want error) {
				var where *media.Error
				switch {
				case want == nil && got != nil, want != nil && !errors.Is(got, want):
					t.Errorf("%s: %v, want %v", op, got, want)
				case want != nil && (!errors.As(got, &where) || where.OffsetBytes != tt.offset || where.Name != "bad"):
					t.Errorf("%s: %v, want it at %d", op, got, tt.offset)
				case want != nil && tt.err != nil && !errors.Is(tt.err, io.EOF) && !errors.Is(got, tt.err):
					t.Errorf("%s: %v hides its cause", op, got)
				}
			}
			_, err := m.ReadAt(p, 1000)
			check("read", err, tt.read)
			_, err = m.WriteAt(p, 1000)
			check("write", err, tt.write)
			_, err = m.WriteAtFUA(p, 1000)
			check("write through", err, tt.write)
		})
	}
	if err := m.Flush(); !errors.Is(err, media.ErrNoSpace) {
		t.Errorf("flush: %v", err)
	}
	before := b.calls
	for name, call := range map[string]func() error{
		"read":          func() error { _, err := m.ReadAt(nil, 0); return err },
		"write through": func() error { _, err := m.WriteAtFUA(nil, 4096); return err },
		"discard":       func() error { return m.Discard(4096, 0) },
		"zero":          func() error { return m.Zero(0, 0, true) },
		"prefetch":      func() error { return m.Prefetch(4096, 0) },
	} {
		if err := call(); err != nil {
			t.Errorf("%s of nothing: %v", name, err)
		}
	}
	for _, err := range []error{m.Discard(4097, 0), m.Prefetch(4097, 0)} {
		if !errors.Is(err, media.ErrRange) {
			t.Errorf("nothing beyond the end: %v", err)
		}
	}
	if b.calls != before {
		t.Errorf("the backend was asked %d times for nothing", b.calls-before)
	}
	if err := m.Close(); err != nil || !b.closed {
		t.Errorf("close: %v, reached the backend: %v", err, b.closed)
	}
}

// A fullBackend has room for some bytes that are not zeros; what has its place can be
// rewritten, unless it is stubborn.
type fullBackend struct {
	p        []byte
	room     int
	stubborn bool
}

func (b *fullBackend) Size() (int64, error) { return int64(len(b.p)), nil }
func (b *fullBackend) Sync() error          { return nil }

func (b *fullBackend) ReadAt(p []byte, off int64) (int, error) { return copy(p, b.p[off:]), nil }

func (b *fullBackend) WriteAt(p []byte, off int64) (int, error) {
	for i := range p {
		if off+int64(i) >= int64(b.room) {
			if b.stubborn {
				b.room = 0
			}
			return i, media.ErrNoSpace
		}
		b.p[off+int64(i)] = p[i]
	}
	return len(p), nil
}

// TestCompareAndWrite_WithoutSpace: if there is no space for all of it, what was there is
// there again, and the error says that nothing is done. If not even that can be written, it
// says how far it came.
func TestCompareAndWrite_WithoutSpace(t *testing.T) {
	for _, stubborn := range []bool{false, true} {
		b := &fullBackend{p: make([]byte, 8192), room: 3000, stubborn: stubborn}
		m, err := media.NewBackend("full", b)
		if err != nil {
			t.Fatal(err)
		}
		i, err := m.CompareAndWriteAt(make([]byte, 4096), bytes.Repeat([]byte{2}, 4096), 512)
		var where *media.Error
		if i != -1 || !errors.Is(err, media.ErrNoSpace) || !errors.As(err, &where) {
			t.Fatalf("%d, %v, want ErrNoSpace", i, err)
		}
		done := 0
		if stubborn {
			done = 3000 - 512
		}
		if where.OffsetBytes != int64(512+done) || where.LengthBytes != int64(4096-done) {
			t.Errorf("it stopped with %d bytes to go at %d", where.LengthBytes, where.OffsetBytes)
		}
		if n := bytes.Count(b.p, []byte{2}); n != done {
			t.Errorf("%d bytes are written, want %d", n, done)
		}
	}
}

func TestError(t *testing.T) {
	err := &media.Error{Op: "read", Name: "x", OffsetBytes: 512, LengthBytes: 10, Kind: media.ErrMedium, Err: io.ErrUnexpectedEOF}
	if got, want := err.Error(), "media: read x: 10 bytes at 512: unexpected EOF"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	err.Err = nil
	if got, want := err.Error(), "media: read x: 10 bytes at 512: medium error"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if !errors.Is(err, media.ErrMedium) || errors.Is(err, media.ErrRange) {
		t.Error("the kind is wrong")
	}
}

// An extentBackend tells of one extent wherever it is asked.
type extentBackend struct {
	badBackend
	extent media.Extent
}

func (b *extentBackend) ExtentAt(int64) (media.Extent, error) { return b.extent, nil }

// TestBackend_Extents: what a backend tells of extents is cut to what was asked, and
// refused if it has nothing to do with that, for callers go on from its end.
func TestBackend_Extents(t *testing.T) {
	const off, size = 1024, 4096
	b := &extentBackend{badBackend: badBackend{size: size}}
	m, err := media.NewBackend("bad", b)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		tells media.Extent
		want  int64 // end; 0 is an error
	}{
		{media.Extent{OffsetBytes: off, LengthBytes: 512}, off + 512},
		{media.Extent{OffsetBytes: 0, LengthBytes: 2048}, 2048},
		{media.Extent{OffsetBytes: off, LengthBytes: 1 << 40}, size},
		{media.Extent{OffsetBytes: off, LengthBytes: 0}, 0},
		{media.Extent{OffsetBytes: 0, LengthBytes: off}, 0},
		{media.Extent{OffsetBytes: off + 1, LengthBytes: 512}, 0},
		{media.Extent{OffsetBytes: off, LengthBytes: -512}, 0},
		{media.Extent{OffsetBytes: off, LengthBytes: 1<<63 - 1}, 0},
	} {
		b.extent = tt.tells
		e, err := m.ExtentAt(off)
		switch {
		case tt.want == 0 && !errors.Is(err, media.ErrMedium):
			t.Errorf("%+v: %+v, %v; want a medium error", tt.tells, e, err)
		case tt.want != 0 && (err != nil || e.OffsetBytes != off || e.End() != tt.want):
			t.Errorf("%+v: %+v, %v; want it from %d to %d", tt.tells, e, err, off, tt.want)
		}
	}
}
