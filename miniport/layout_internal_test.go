package miniport

import (
	"reflect"
	"testing"
)

// TestLayout_Magazines: processors write into their magazines side by side.
func TestLayout_Magazines(t *testing.T) {
	const lineBytes = 64
	if size := reflect.TypeFor[magazine]().Size(); size%lineBytes != 0 {
		t.Errorf("a magazine has %d bytes: pad it to whole cache lines of %d", size, lineBytes)
	}
}
