package port

import (
	"reflect"
	"testing"
)

// TestLayout_CacheLines: what lies side by side and is written by different
// processors does not share cache lines. Go's allocator puts a header of 8 bytes before
// an array of more than 512 bytes with pointers in it, so that each element begins that
// far into a line: the last 8 bytes of those in arrays are not written in the common
// case.
func TestLayout_CacheLines(t *testing.T) {
	const lineBytes, headerBytes = 64, 8
	for _, v := range []any{SRB{}, spinLock{}, interrupt{}, [heldAtFirst]*spinLock{}} {
		if size := reflect.TypeOf(v).Size(); size%lineBytes != 0 {
			t.Errorf("%T has %d bytes: pad it to whole cache lines of %d, or another one begins in its last", v, size, lineBytes)
		}
	}
	for _, v := range []struct {
		of   any
		last string // of the fields that are written again and again
	}{{spinLock{}, "served"}, {interrupt{}, "runs"}} {
		typ := reflect.TypeOf(v.of)
		f, ok := typ.FieldByName(v.last)
		if !ok {
			t.Fatalf("%s has no field %s", typ, v.last)
		}
		for x := range typ.Fields() {
			if x.Offset > f.Offset && x.Name != "_" && x.Name != "unhandled" {
				t.Errorf("%s.%s lies behind %s", typ, x.Name, v.last)
			}
		}
		if end := f.Offset + f.Type.Size(); end > typ.Size()-headerBytes {
			t.Errorf("%s.%s ends at byte %d of %d: want %d bytes behind it that are hardly written", typ, v.last, end, typ.Size(), headerBytes)
		}
	}
}
