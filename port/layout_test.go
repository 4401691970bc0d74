package port

import (
	"reflect"
	"testing"
)

// TestLayout_CacheLines: what lies side by side and is written by different
// processors does not share cache lines.
func TestLayout_CacheLines(t *testing.T) {
	const lineBytes = 64
	for _, v := range []any{SRB{}, spinLock{}, interrupt{}, [heldAtFirst]*spinLock{}} {
		if size := reflect.TypeOf(v).Size(); size%lineBytes != 0 {
			t.Errorf("%T has %d bytes: pad it to whole cache lines of %d, or another one begins in its last", v, size, lineBytes)
		}
	}
}
