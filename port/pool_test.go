package port

import (
	"testing"

	"github.com/vhbad/vhbad/internal/dma"
)

// TestExtensionPool_Steps: extensions that are handed out one after the other are not the
// same distance apart, and all of a block are handed out.
func TestExtensionPool_Steps(t *testing.T) {
	for _, bytes := range []int{1, 64, 1000, 4256, 5000, 7000, 9000, 20000} {
		arena, err := dma.NewArena(1 << 20)
		if err != nil {
			t.Fatal(err)
		}
		x := extensionPool{arena: arena}
		first := x.alloc(bytes)
		x.mu.Lock()
		block := x.blocks[&first[0]]
		x.mu.Unlock()
		all := [][]byte{first}
		at, step := 0, 0
		for i := 1; i < block.pieces; i++ {
			b := x.alloc(bytes)
			all = append(all, b)
			next, ok := offsetIn(block.memory, b)
			if !ok {
				t.Fatalf("%d bytes: extension %d of %d is in another block", bytes, i, block.pieces)
			}
			if i > 1 && next-at == step {
				t.Errorf("%d bytes: extensions %d to %d are %d bytes apart", bytes, i-2, i, step)
			}
			at, step = next, next-at
		}
		for _, b := range all {
			x.release(b)
		}
		if n := arena.Stats().InUseBytes; n != 0 {
			t.Errorf("%d bytes: %d bytes of the arena are left", bytes, n)
		}
	}
}
