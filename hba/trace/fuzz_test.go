package trace_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/vhbad/vhbad/hba/trace"
)

// FuzzReader: no file makes a reader or a replay panic or take memory for what a
// length says. What is read is written as the same bytes.
func FuzzReader(f *testing.F) {
	s := &sheet{}
	w := record(f, s, trace.Config{})
	for _, step := range every {
		w.Record(step)
	}
	if err := w.Close(); err != nil {
		f.Fatal(err)
	}
	all := s.bytes()
	f.Add(all, false)
	for _, end := range boundaries(all) {
		f.Add(all[:end], true)
		f.Add(all[:end-3], false)
	}
	long := bytes.Clone(all)
	copy(long[boundaries(all)[0]:], []byte{0xff, 0xff, 0xff, 0x07})
	f.Add(long, true)
	f.Add(golden(f)[:4096], true)
	f.Fuzz(func(t *testing.T, b []byte, mended bool) {
		if mended { // else the sums keep everything out that the machine makes up
			b = mend(bytes.Clone(b))
		}
		r, err := trace.NewReader(bytes.NewReader(b))
		if err != nil {
			return
		}
		var records []trace.Record
		for err == nil {
			var rec *trace.Record
			if rec, err = r.Next(); err == nil {
				again := *rec
				again.Data = bytes.Clone(rec.Data)
				records = append(records, again)
			}
		}
		if _, ok := errors.AsType[*trace.FormatError](err); !ok && !errors.Is(err, io.EOF) {
			t.Errorf("%v: want a *FormatError", err)
		}
		if again := trace.Encode(r.Header(), records); !bytes.HasPrefix(b, again) {
			t.Errorf("%d records were read, and are written as other bytes: %+v", len(records), records)
		}
		if r.Header().DiskBytes > 1<<22 {
			return
		}
		if r, err = trace.NewReader(bytes.NewReader(b)); err != nil {
			t.Fatal(err)
		}
		seed := uint64(1)
		result, err := trace.Replay(r, memory(t, r.Header().DiskBytes), trace.Options{Choice: trace.Choice{Seed: &seed}})
		if err == nil && result.Report == nil {
			t.Error("the power was cut, and there is no report")
		}
	})
}
