package port

import (
	"runtime"
	"testing"
	"unsafe"
	"weak"

	"github.com/vhbad/vhbad/internal/dma"
)

// TestLayout_Pages: SRBs that different processors have made, in turns, are in no page and
// their IOMMU windows in no kilobyte together.
func TestLayout_Pages(t *testing.T) {
	const (
		pageBytes   = 4096
		windowBytes = 16
		blockBytes  = 1024
		each        = 40
	)
	arena, err := dma.NewArena(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	sys := NewSystem(SystemConfig{IOMMU: dma.NewIOMMU(arena)})
	a := &Adapter{sys: sys}
	var all []*SRB // alive, all of them
	pages, blocks := make(map[uintptr]int), make(map[int]int)
	var processors [3]*Processor
	for i := range processors {
		if processors[i], err = sys.NewProcessor("layout"); err != nil {
			t.Fatal(err)
		}
	}
	for n := range each {
		for i, p := range processors {
			s, err := a.NewSRB(p)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, s)
			first := uintptr(unsafe.Pointer(s))
			for page := first / pageBytes; page <= (first+unsafe.Sizeof(*s)-1)/pageBytes; page++ {
				if other, ok := pages[page]; ok && other != i {
					t.Fatalf("SRB %d of processor %d is in a page of processor %d's", n, i, other)
				}
				pages[page] = i
			}
			block := int(s.window) * windowBytes / blockBytes
			if other, ok := blocks[block]; ok && other != i {
				t.Fatalf("window %d of processor %d is in a kilobyte of processor %d's", s.window, i, other)
			}
			blocks[block] = i
		}
	}
	if want := len(processors) * ((each + srbsAtOnce - 1) / srbsAtOnce); len(pages) != want {
		t.Errorf("%d SRBs take %d pages, want %d: does a page still hold %d?", len(all), len(pages), want, srbsAtOnce)
	}
	for _, s := range all {
		a.FreeSRB(s)
	}
	for _, p := range processors {
		p.Close()
	}
	runtime.KeepAlive(all)
}

// TestFreeSRB_KeepsNothing: a freed SRB, whose memory stays as long as another of its page
// is used, holds on to nothing else.
func TestFreeSRB_KeepsNothing(t *testing.T) {
	b := newBench(t, &driver{model: FullDuplex}, AdapterOptions{})
	freed := b.srb(nil)
	completer := &finished{}
	freed.Completer, freed.DataBuffer = completer, make([]byte, 1<<10)
	owner, buffer := weak.Make(completer), weak.Make(&freed.DataBuffer[0])
	b.a.FreeSRB(freed)
	runtime.GC()
	if owner.Value() != nil || buffer.Value() != nil {
		t.Error("the completer or a buffer of a freed SRB is alive")
	}
	runtime.KeepAlive(freed)
}
