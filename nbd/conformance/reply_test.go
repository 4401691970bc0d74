package conformance

import (
	"encoding/binary"
	"slices"
	"testing"
)

// TestReply_Problems has replies that no device of ours gives, and wants each
// rule to see its own.
func TestReply_Problems(t *testing.T) {
	be := binary.BigEndian
	data := func(at, n uint64) chunk {
		return chunk{typ: typeData, data: append(be.AppendUint64(nil, at), make([]byte, n)...)}
	}
	hole := func(at uint64, n uint32) chunk {
		return chunk{typ: typeHole, data: be.AppendUint32(be.AppendUint64(nil, at), n)}
	}
	general := chunk{typ: typeError, data: []byte{0, 0, 0, errIO, 0, 0}}
	failure := func(at uint64) chunk {
		return chunk{typ: typeErrorOffset, data: be.AppendUint64([]byte{0, 0, 0, errIO, 0, 0}, at)}
	}
	last := chunk{typ: typeNone, flags: chunkDone}
	const at, length = 8192, 4096
	for _, tt := range []struct {
		name   string
		chunks []chunk
		want   []string
	}{
		{"good", []chunk{data(at, 2048), hole(at+2048, 2048), last}, nil},
		{"an error within data", []chunk{data(at, 4096), failure(at + 512), last}, nil},
		{"errors in two chunks", []chunk{data(at, 512), data(at+512, 512), failure(at), failure(at + 512), last}, nil},
		{"not aligned", []chunk{data(at, 100), data(at+100, 3996), last}, []string{ruleAligned, ruleAligned}},
		{"too much in a chunk", []chunk{data(at, 4097), last}, []string{ruleBounds, rulePayload, ruleCoverage}},
		{"two errors", []chunk{general, general, last}, []string{ruleErrors}},
		{"with and without offset", []chunk{general, failure(at), last}, []string{ruleErrors}},
		{"one offset twice", []chunk{failure(at), failure(at), last}, []string{ruleErrors}},
		{"two in a chunk", []chunk{data(at, 4096), failure(at), failure(at + 512), last}, []string{ruleErrors}},
		{"data behind its error", []chunk{failure(at + 512), data(at, 4096), last}, []string{ruleOverlap}},
		{"a hole behind its error", []chunk{failure(at), hole(at, 4096), last}, []string{ruleOverlap}},
		{"error of elsewhere", []chunk{failure(at + 4096), last}, []string{ruleErrOffset}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := &wire{x: &probe{f: &features{minBlock: 1, hasBlockSize: true, most: 4096}}, structured: true}
			r := &reply{request: request{typ: cmdRead, offset: at, length: length}, chunks: tt.chunks}
			r.finish(w)
			var got []string
			for _, p := range r.problems {
				got = append(got, p.rule)
			}
			slices.Sort(got)
			slices.Sort(tt.want)
			if !slices.Equal(got, tt.want) {
				t.Errorf("problems %q, want %q: %v", got, tt.want, r.problems)
			}
		})
	}
	t.Run("too many extents", func(t *testing.T) {
		w := &wire{x: &probe{f: &features{minBlock: 1}}, structured: true, allocationID: 7}
		c := chunk{typ: typeStatus, flags: chunkDone, data: be.AppendUint32(nil, 7)}
		for i := range uint32(maxExtents + 1) {
			c.data = be.AppendUint32(be.AppendUint32(c.data, 512), i&1)
		}
		r := &reply{request: request{typ: cmdBlockStatus, length: 1 << 31}, chunks: []chunk{c}}
		if r.finish(w); len(r.problems) != 1 || r.problems[0].rule != ruleExtents {
			t.Errorf("problems %v, want one of the number of extents", r.problems)
		}
	})
}
