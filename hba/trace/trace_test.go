package trace_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vhbad/vhbad/hba/cache"
	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/hba/trace"
)

// header is that of most traces here.
var header = trace.Header{Disk: "db", SectorBytes: 512, DiskBytes: 1 << 20, CacheBytes: cache.MinSizeBytes, Eviction: cache.EvictRandom, CacheSeed: 7}

// A sheet is a file in memory that can be full, or take its time.
type sheet struct {
	mu sync.Mutex
	// +checklocks:mu
	b []byte
	// room is how long it can become; no limit if zero.
	room int
	// slow, unless nil, lets each write wait for a word.
	slow   chan struct{}
	closed bool
}

func (s *sheet) WriteAt(p []byte, off int64) (int, error) {
	if s.slow != nil {
		<-s.slow
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(p)
	if s.room != 0 {
		n = max(min(n, s.room-int(off)), 0)
	}
	if end := int(off) + n; end > len(s.b) {
		s.b = append(s.b, make([]byte, end-len(s.b))...)
	}
	copy(s.b[off:], p[:n])
	if n < len(p) {
		return n, unix.ENOSPC
	}
	return n, nil
}

func (s *sheet) Truncate(n int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.b = s.b[:n]
	return nil
}

func (s *sheet) Sync() error { return nil }

func (s *sheet) Close() error {
	s.closed = true
	return nil
}

func (s *sheet) bytes() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes.Clone(s.b)
}

// clock ticks by a millisecond each time that somebody looks.
func clock() func() time.Time {
	var mu sync.Mutex
	now := time.Unix(1_700_000_000, 0)
	return func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		now = now.Add(time.Millisecond)
		return now
	}
}

// record starts a trace in a file.
func record(tb testing.TB, f trace.File, c trace.Config) *trace.Recorder {
	tb.Helper()
	if c.Header == (trace.Header{}) {
		c.Header = header
	}
	if c.Now == nil {
		c.Now = clock()
	}
	r, err := trace.New(f, c)
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

// read reads all of a trace.
func read(b []byte) (steps []cache.Step, r *trace.Reader, err error) {
	if r, err = trace.NewReader(bytes.NewReader(b)); err != nil {
		return nil, nil, err
	}
	for {
		rec, err := r.Next()
		if errors.Is(err, io.EOF) {
			return steps, r, nil
		}
		if err != nil {
			return steps, r, err
		}
		s := rec.Step
		s.Data = bytes.Clone(s.Data)
		steps = append(steps, s)
	}
}

func memory(tb testing.TB, sizeBytes int64) media.Media {
	tb.Helper()
	m, err := media.NewMemory(media.MemoryConfig{SizeBytes: sizeBytes})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := m.Close(); err != nil {
			tb.Error(err)
		}
	})
	return m
}

// contents are all bytes of a medium.
func contents(tb testing.TB, m media.Media) []byte {
	tb.Helper()
	p := make([]byte, m.Size())
	if _, err := m.ReadAt(p, 0); err != nil {
		tb.Fatal(err)
	}
	return p
}

// every has a step of each kind and all that it can have.
var every = []cache.Step{
	{Kind: cache.StepWrite, Write: 1, OffsetBytes: 512, LengthBytes: 1024, FUA: true, Data: bytes.Repeat([]byte{1, 2}, 512)},
	{Kind: cache.StepWrite, Op: cache.KindTrim, Write: 2, OffsetBytes: 1 << 40, LengthBytes: 1 << 41},
	{Kind: cache.StepDurable, Write: 1, OffsetBytes: 512, LengthBytes: 512},
	{Kind: cache.StepThrough, Write: 3, LengthBytes: 512, FUA: true, Lie: true, Data: make([]byte, 512)},
	{Kind: cache.StepThrough, Op: cache.KindAllocate, Write: 4, LengthBytes: 512},
	{Kind: cache.StepUnsure, OffsetBytes: 4096, LengthBytes: 512},
	{Kind: cache.StepAnswer, Op: cache.KindZero, Write: 4, Failed: true},
	{Kind: cache.StepFlush, Write: 5, Lie: true},
	{Kind: cache.StepFlushed, Write: 5, Covered: 4, Lie: true},
	{Kind: cache.StepLie, OffsetBytes: 512, LengthBytes: 512},
	{Kind: cache.StepCut, Cut: cache.CutOptions{Seed: 1 << 63, Policy: cache.PolicyOneMissing, TearBytes: 4096, Damage: cache.DamageUnreadable}},
	{Kind: cache.StepCut, Cut: cache.CutOptions{LoseFlushed: 7}},
	{Kind: cache.StepImage, Text: strings.Repeat("0f", 32)},
	{Kind: cache.StepImage, Failed: true, Text: "medium error"},
	{Kind: cache.StepResize, LengthBytes: 1 << 21},
	{Kind: cache.StepMark, Text: "grün"},
	{Kind: cache.StepBroke, Text: "lost-write"},
	{Kind: cache.StepLeave, Write: 6},
}

// TestRecorder_RoundTrip: what is recorded is what is read.
func TestRecorder_RoundTrip(t *testing.T) {
	f := &sheet{}
	w := record(t, f, trace.Config{})
	for _, s := range every {
		w.Record(s)
	}
	if err := w.Close(); err != nil || !f.closed {
		t.Fatalf("closed %v, %v", f.closed, err)
	}
	got, r, err := read(f.bytes())
	if err != nil {
		t.Fatal(err)
	}
	if complete, reason := r.End(); !complete {
		t.Errorf("not complete: %s", reason)
	}
	if d := cmp.Diff(every, got); d != "" {
		t.Error(d)
	}
	h := r.Header()
	if want := clock()(); !h.Start.Equal(want) {
		t.Errorf("began at %v, want %v", h.Start, want)
	}
	h.Start = time.Time{}
	if h != header {
		t.Errorf("header %+v, want %+v", h, header)
	}
	if kinds := len(every); kinds < cache.StepKinds-1 {
		t.Errorf("%d steps cannot be of all kinds", kinds)
	}
	if s := w.Stats(); s.Bytes != uint64(len(f.bytes())) || s.Records != uint64(len(every))+1 || s.Err != nil {
		t.Errorf("stats %+v, the file has %d bytes", s, len(f.bytes()))
	}
	w.Record(every[0])
	if s := w.Stats(); s.Records != uint64(len(every))+1 {
		t.Error("something was recorded after the end")
	}
}

// TestReader_Prefix: what is cut off anywhere is good up to there, and says so.
func TestReader_Prefix(t *testing.T) {
	f := &sheet{}
	w := record(t, f, trace.Config{})
	var ends []int // of the header, and of each record
	for _, s := range every {
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		ends = append(ends, len(f.bytes()))
		w.Record(s)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	ends = append(ends, len(f.bytes()))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	all := f.bytes()
	for n := range len(all) {
		steps, r, err := read(all[:n])
		records, boundary := -1, false
		for i, end := range ends {
			if n >= end {
				records, boundary = i, n == end
			}
		}
		if boundary != (err == nil) {
			t.Fatalf("%d bytes of %d: %v", n, len(all), err)
		}
		if err != nil {
			if broken, ok := errors.AsType[*trace.FormatError](err); !ok || !errors.Is(err, io.ErrUnexpectedEOF) || broken.Record != uint64(records+1) {
				t.Fatalf("%d bytes: %v, want the end of the file in record %d", n, err, records+1)
			}
		} else if complete, reason := r.End(); complete || !strings.Contains(reason, "killed") {
			t.Fatalf("%d bytes: complete %v, %q", n, complete, reason)
		}
		if len(steps) != max(records, 0) {
			t.Fatalf("%d bytes: %d steps, want %d", n, len(steps), records)
		}
	}
}

// TestReader_Flipped: no byte can be other than it was.
func TestReader_Flipped(t *testing.T) {
	f := &sheet{}
	w := record(t, f, trace.Config{})
	for _, s := range every {
		w.Record(s)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	all := f.bytes()
	for i := range all {
		b := bytes.Clone(all)
		b[i] ^= 0x10
		if _, _, err := read(b); err == nil {
			t.Fatalf("byte %d is another, and nobody has seen it", i)
		} else if _, ok := errors.AsType[*trace.FormatError](err); !ok {
			t.Fatalf("byte %d: %v, want a *FormatError", i, err)
		}
	}
	// Nor can a record be missing, or come twice.
	ends := boundaries(all)
	first, second := all[ends[0]:ends[1]], all[ends[1]:ends[2]]
	for name, b := range map[string][]byte{
		"missing":  append(bytes.Clone(all[:ends[0]]), all[ends[1]:]...),
		"twice":    append(append(bytes.Clone(all[:ends[1]]), first...), all[ends[1]:]...),
		"swapped":  append(append(append(bytes.Clone(all[:ends[0]]), second...), first...), all[ends[2]:]...),
		"trailing": append(bytes.Clone(all), first...),
	} {
		if _, _, err := read(b); err == nil {
			t.Errorf("a record is %s, and nobody has seen it", name)
		}
	}
}

// TestReader_Refused: what is no trace says why.
func TestReader_Refused(t *testing.T) {
	f := &sheet{}
	w := record(t, f, trace.Config{})
	w.Record(every[0])
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	good := f.bytes()
	first := boundaries(good)[0]
	change := func(at int, to ...byte) []byte {
		b := bytes.Clone(good)
		copy(b[at:], to)
		return mend(b)
	}
	for _, tt := range []struct {
		name string
		b    []byte
		want string
	}{
		{"empty", nil, "header: the file ends in the middle of it"},
		{"an image", make([]byte, 4096), "not a trace of vhbad"},
		{"another version", change(8, 2, 0), "version 2: want version 1"},
		{"a header without end", change(10, 0xff, 0xff), "a length of 65535 bytes"},
		{"a short header", change(10, 12, 0), "a length of 12 bytes"},
		{"sectors", change(12, 1, 2, 3, 4), "sectors of 67305985 bytes"},
		{"no disk", change(16, 0, 0, 0, 0, 0, 0, 0, 0), "a disk of 0 bytes: want a positive multiple of"},
		{"an endless disk", change(16, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), "a disk of -1 bytes"},
		{"an endless cache", change(24, 0, 0, 0, 0, 0, 0, 0, 1), "a cache of 72057594037927936 bytes"},
		{"eviction", change(48, 9), "cache-eviction 9"},
		{"the name's length", change(49, 200), "the disk's name"},
		{"a name of no characters", change(52, 0xff), "the disk's name"},
		{"a record without end", change(first, 0xff, 0xff, 0xff, 0x7f), "a body of 2147483647 bytes: want at most"},
		{"a longer record", change(first, 0, 0, 0x10), "the file ends in the middle"},
		{"a kind", change(first+4, 99), "kind 99 is not known"},
		{"no kind", change(first+4, 0), "kind 0 is not known"},
		{"a flag", change(first+5, 0x80), "flags 0x80"},
		{"an op", change(first+6, 7), "op 7"},
		{"a time", change(first+15, 0xff), "nanoseconds after the start"},
		{"a length of data", change(first+16+16, 1), "a body of 1048 bytes is not that of kind 1"},
		{"an offset", change(first+16+15, 0xff), "a body of 1048 bytes is not that of kind 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := read(tt.b)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

// TestRecorder_Full: a file that is full ends the trace at a whole record and says why,
// once; who writes to the disk does not wait for ever, and goes on.
func TestRecorder_Full(t *testing.T) {
	for room := 3000; room < 4200; room += 61 {
		f := &sheet{room: room}
		failed := make(chan error, 2)
		w := record(t, f, trace.Config{BufferBytes: 4096, OnFail: func(err error) { failed <- err }})
		for i := range uint64(10) {
			w.Admit(1100, true)
			w.Record(cache.Step{Kind: cache.StepWrite, Write: i + 1, LengthBytes: 1024, Data: make([]byte, 1024)})
			w.Release(1100)
			w.Pace()
		}
		if err := w.Flush(); !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("flush: %v", err)
		}
		if err := <-failed; !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("told of %v", err)
		}
		if !w.Admit(1<<40, false) {
			t.Error("somebody waits for a file that has failed")
		}
		if err := w.Close(); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("close: %v", err)
		}
		if len(failed) != 0 {
			t.Error("told twice")
		}
		steps, r, err := read(f.bytes())
		if err != nil || len(steps) < 2 || len(steps) > 3 {
			t.Fatalf("room %d: %d steps, %v", room, len(steps), err)
		}
		complete, reason := r.End()
		if complete || !strings.Contains(reason, "no space left") && !strings.Contains(reason, "no end") {
			t.Errorf("room %d: complete %v, %q", room, complete, reason)
		}
		if s := w.Stats(); s.Bytes != uint64(len(f.bytes())) {
			t.Errorf("room %d: %d bytes, the file has %d", room, s.Bytes, len(f.bytes()))
		}
	}
}

// A hiccup is a sheet one of whose writes of records fails, and none after that.
type hiccup struct {
	sheet
	failed bool
}

func (h *hiccup) WriteAt(p []byte, off int64) (int, error) {
	if off != 0 && !h.failed {
		h.failed = true
		return 0, unix.EIO
	}
	return h.sheet.WriteAt(p, off)
}

// TestRecorder_OneEnd: a file that fails when the end comes, and takes it after all, has
// one end, which says so.
func TestRecorder_OneEnd(t *testing.T) {
	f := &hiccup{}
	w := record(t, f, trace.Config{})
	if err := w.Close(); !errors.Is(err, unix.EIO) {
		t.Errorf("close: %v", err)
	}
	steps, r, err := read(f.bytes())
	if err != nil || len(steps) != 0 {
		t.Fatalf("%d steps, %v", len(steps), err)
	}
	if complete, reason := r.End(); complete || !strings.Contains(reason, "input/output error") {
		t.Errorf("complete %v, %q", complete, reason)
	}
}

// TestRecorder_AnyText: what somebody says is read again, whatever bytes they are.
func TestRecorder_AnyText(t *testing.T) {
	for _, tt := range []struct{ said, want string }{
		{"a\xffb", "a\ufffdb"},
		{strings.Repeat("\xff", trace.MaxTextBytes), "\ufffd"},
		{strings.Repeat("a", trace.MaxTextBytes-1) + "\xff", strings.Repeat("a", trace.MaxTextBytes-1)},
	} {
		f := &sheet{}
		w := record(t, f, trace.Config{})
		w.Mark(tt.said)
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if steps, _, err := read(f.bytes()); err != nil || len(steps) != 1 || steps[0].Text != tt.want {
			t.Errorf("%.20q: %d steps, %v", tt.said, len(steps), err)
		}
	}
}

// TestRecorder_TooLong: a write that no record can hold ends the trace, and says so.
func TestRecorder_TooLong(t *testing.T) {
	f := &sheet{}
	failed := make(chan error, 1)
	w := record(t, f, trace.Config{OnFail: func(err error) { failed <- err }})
	w.Record(every[0])
	w.Record(cache.Step{Kind: cache.StepWrite, Write: 2, LengthBytes: trace.MaxBodyBytes, Data: make([]byte, trace.MaxBodyBytes)})
	if err := <-failed; !strings.Contains(err.Error(), "longer than any record") {
		t.Error(err)
	}
	if err := w.Close(); err == nil {
		t.Error("close says that the trace is complete")
	}
	steps, r, err := read(f.bytes())
	if err != nil || len(steps) != 1 {
		t.Fatalf("%d steps, %v", len(steps), err)
	}
	if complete, reason := r.End(); complete || !strings.Contains(reason, "longer than any record") {
		t.Errorf("complete %v, %q", complete, reason)
	}
}

// TestCreate: what is no trace is not written over.
func TestCreate(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "db.trace")
	c := trace.Config{Header: header}
	w, err := trace.Create(path, c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := trace.Create(path, c); err == nil || !strings.Contains(err.Error(), "somebody else records there") {
		t.Errorf("a second recorder: %v", err)
	}
	w.Record(every[0])
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v; want mode 0600: it has the disk's bytes", info.Mode(), err)
	}
	empty := filepath.Join(dir, "empty.trace")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, there := range []string{empty, path} {
		if err := os.Chmod(there, 0o644); err != nil {
			t.Fatal(err)
		}
		if w, err = trace.Create(there, c); err != nil {
			t.Fatalf("over a trace: %v", err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(there); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v; want mode 0600 whatever it was", there, info.Mode(), err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if steps, _, err := read(b); err != nil || len(steps) != 0 {
		t.Errorf("%d steps of the trace before, %v", len(steps), err)
	}
	for name, content := range map[string]string{"image": "bytes of somebody", "short": "V"} {
		other := filepath.Join(dir, name)
		if err := os.WriteFile(other, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(other, 0o640); err != nil {
			t.Fatal(err)
		}
		if _, err := trace.Create(other, c); err == nil || !strings.Contains(err.Error(), "not written over") {
			t.Errorf("%s: %v", name, err)
		}
		if info, err := os.Stat(other); err != nil || info.Mode().Perm() != 0o640 {
			t.Errorf("%s has mode %v now, %v", name, info.Mode(), err)
		}
		if b, err := os.ReadFile(other); err != nil || string(b) != content {
			t.Errorf("%s is %q now, %v", name, b, err)
		}
	}
	if _, err := trace.Create(dir, c); err == nil {
		t.Error("a folder is a trace")
	}
	if _, err := trace.Create("/dev/zero", c); err == nil || !strings.Contains(err.Error(), "no regular file") {
		t.Errorf("a device: %v", err)
	}
	c.SectorBytes = 1000
	if _, err := trace.Create(path, c); err == nil || !strings.Contains(err.Error(), "sectors of 1000 bytes") {
		t.Errorf("no such disk: %v", err)
	}
}
