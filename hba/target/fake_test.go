package target_test

import (
	"errors"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/internal/dma"
)

var errBroken = errors.New("broken by the test")

// A fakeMedium is memory whose calls fail or are counted as the test says. Its
// calls may block, by its own word.
type fakeMedium struct {
	*media.Memory

	mu sync.Mutex
	// fail has the error of the next calls by name: "read", "write", "flush"; of "refer"
	// it says that nothing is lent.
	fail map[string]error
	// calls counts calls by name.
	calls map[string]int
	// ready is how many TryReadAt and TryWriteAt succeed before one would block.
	ready int
	// hidden are abilities that it pretends not to have.
	hidden media.Ability
	// quick: it never blocks.
	quick bool
	// mayBlock is what the last ReferAt was told, after "flush" as often as flushed says.
	mayBlock bool
	flushed  int
}

func (f *fakeMedium) enter(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.calls == nil {
		f.calls = map[string]int{}
	}
	f.calls[name]++
	return f.fail[name]
}

func (f *fakeMedium) count(name string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[name]
}

func (f *fakeMedium) setFail(name string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = map[string]error{name: err}
}

func (f *fakeMedium) NeverBlocks() bool { return f.quick }

func (f *fakeMedium) Supports(a media.Ability) bool { return f.hidden&a == 0 }

func (f *fakeMedium) ReadAt(p []byte, off int64) (int, error) {
	if err := f.enter("read"); err != nil {
		return 0, err
	}
	return f.Memory.ReadAt(p, off)
}

func (f *fakeMedium) WriteAt(p []byte, off int64) (int, error) {
	if err := f.enter("write"); err != nil {
		return 0, err
	}
	return f.Memory.WriteAt(p, off)
}

func (f *fakeMedium) WriteAtFUA(p []byte, off int64) (int, error) {
	if err := f.enter("fua"); err != nil {
		return 0, err
	}
	return f.Memory.WriteAt(p, off)
}

func (f *fakeMedium) TryReadAt(p []byte, off int64) (bool, error) {
	if !f.isReady() {
		return false, nil
	}
	_, err := f.ReadAt(p, off)
	return true, err
}

func (f *fakeMedium) TryWriteAt(p []byte, off int64) (bool, error) {
	if !f.isReady() {
		return false, nil
	}
	_, err := f.WriteAt(p, off)
	return true, err
}

func (f *fakeMedium) isReady() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ready == 0 {
		return false
	}
	f.ready--
	return true
}

// ReferAt lends copies, with the race detector as without.
func (f *fakeMedium) ReferAt(to dma.Pages, n int, off int64, mayBlock bool) bool {
	err := f.enter("refer")
	f.mu.Lock()
	f.mayBlock, f.flushed = mayBlock, f.calls["flush"]
	f.mu.Unlock()
	p := make([]byte, n)
	if err != nil {
		return false
	}
	if _, err := f.Memory.ReadAt(p, off); err != nil {
		return false
	}
	fd, ok := to.Begin()
	if !ok {
		return false
	}
	k, err := unix.Write(fd, p)
	return to.End(k == n && err == nil)
}

func (f *fakeMedium) Flush() error {
	if err := f.enter("flush"); err != nil {
		return err
	}
	return f.Memory.Flush()
}

func (f *fakeMedium) Discard(off, n int64) error {
	if err := f.enter("discard"); err != nil {
		return err
	}
	return f.Memory.Discard(off, n)
}

func (f *fakeMedium) Zero(off, n int64, allocate bool) error {
	if err := f.enter("zero"); err != nil {
		return err
	}
	return f.Memory.Zero(off, n, allocate)
}

func (f *fakeMedium) Prefetch(int64, int64) error { return f.enter("prefetch") }
