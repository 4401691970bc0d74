package nbd

import (
	"encoding/binary"
	"testing"
)

// FuzzContextRequest: what is decoded is all of the data and nothing else, so
// that encoding it gives the data again.
func FuzzContextRequest(f *testing.F) {
	f.Add([]byte(nil))
	f.Add([]byte("\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Add([]byte("\x00\x00\x00\x01a\x00\x00\x00\x02\x00\x00\x00\x05base:\x00\x00\x00\x0fbase:allocation"))
	f.Add([]byte("\xff\xff\xff\xff\x00\x00\x00\x00"))
	f.Add([]byte("\x00\x00\x00\x00\xff\xff\xff\xff\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		q, tooMany, err := decodeContextRequest(data)
		if tooMany && err == nil {
			t.Fatal("too many, and no error")
		}
		if err != nil {
			return
		}
		b := binary.BigEndian.AppendUint32(nil, uint32(len(q.name)))
		b = append(b, q.name...)
		b = binary.BigEndian.AppendUint32(b, uint32(len(q.queries)))
		for _, s := range q.queries {
			b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
			b = append(b, s...)
		}
		if string(b) != string(data) {
			t.Fatalf("% x is decoded as %+v, which is % x", data, q, b)
		}
	})
}

// FuzzInfoRequest: the data is the name and whole information types, with
// nothing between or behind.
func FuzzInfoRequest(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x00\x00\x00"))
	f.Add([]byte("\x00\x00\x00\x01a\x00\x02\x00\x03\x00\x01"))
	f.Add([]byte("\x00\x00\x00\x01a\x00\x03\x00\x03\x00\x01"))
	f.Add([]byte("\xff\xff\xff\xff\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		q, err := decodeInfoRequest(data)
		if err != nil {
			return
		}
		if CheckName(q.name) != nil {
			t.Fatalf("name %q", q.name)
		}
		at := 4 + len(q.name)
		if at+2 > len(data) || string(data[4:at]) != q.name || len(data) != at+2+2*int(binary.BigEndian.Uint16(data[at:])) {
			t.Fatalf("% x is decoded as %+v", data, q)
		}
	})
}
