package media

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/pojntfx/go-nbd/pkg/backend"
)

// A Backend makes any backend.Backend of go-nbd a medium. Discard, Zero, ExtentAt,
// WriteAtFUA, Prefetch and Resize reach the backend if it has methods of these names and
// types; see Discarder and so on.
//
// The backend is never asked for a range beyond its end, nor for an empty one:
// some backends hang on those.
type Backend struct {
	name    string
	backend backend.Backend
	inner   Abilities    // of backend
	size    atomic.Int64 // bytes; negative once closed
	ranges  rangeLock    // as in File
	lifeMu  sync.RWMutex // as in File
	flushes flushGroup   // of Sync, which may report a lost write only once, as fsync does
}

var (
	_ Media          = (*Backend)(nil)
	_ FUAWriter      = (*Backend)(nil)
	_ Discarder      = (*Backend)(nil)
	_ Zeroer         = (*Backend)(nil)
	_ FastZeroer     = (*Backend)(nil)
	_ ExtentLister   = (*Backend)(nil)
	_ Resizer        = (*Backend)(nil)
	_ Prefetcher     = (*Backend)(nil)
	_ ComparerWriter = (*Backend)(nil)
	_ Supporter      = (*Backend)(nil)
)

// NewBackend makes b a medium; name is used in errors. The medium owns b: Close
// closes it too if it is an io.Closer.
func NewBackend(name string, b backend.Backend) (*Backend, error) {
	size, err := b.Size()
	if err != nil {
		return nil, fmt.Errorf("media: size of backend %s: %w", name, err)
	}
	if size < 1 {
		return nil, fmt.Errorf("media: backend %s has %d bytes: want at least 1", name, size)
	}
	m := &Backend{name: name, backend: b, inner: Abilities{
		FUA:      ability[FUAWriter](b, AbilityFUA),
		Discard:  ability[Discarder](b, AbilityDiscard),
		Zero:     ability[Zeroer](b, AbilityZero),
		Extents:  ability[ExtentLister](b, AbilityExtents),
		Resize:   ability[Resizer](b, AbilityResize),
		Prefetch: ability[Prefetcher](b, AbilityPrefetch),

		ZeroIsFast: zeroIsFast(b),
	}}
	m.size.Store(size)
	m.flushes.sync = b.Sync
	return m, nil
}

// Supports implements Supporter.
func (m *Backend) Supports(a Ability) bool { return a == AbilityCompareAndWrite || m.inner.Has(a) }

// ZeroIsFast implements FastZeroer: the backend's answer is trusted.
func (m *Backend) ZeroIsFast() bool { return m.inner.ZeroIsFast }

// Size is the number of bytes.
func (m *Backend) Size() int64 { return max(m.size.Load(), 0) }

func (m *Backend) enter(op string, off, n int64, s stripeSet) error {
	m.ranges.share(s)
	if !inside(off, n, m.size.Load()) {
		m.ranges.unshare(s)
		return m.refuse(op, off, n)
	}
	return nil
}

func (m *Backend) refuse(op string, off, n int64) error {
	kind := ErrRange
	if m.size.Load() < 0 {
		kind = ErrClosed
	}
	return &Error{Op: op, Name: m.name, OffsetBytes: off, LengthBytes: n, Kind: kind}
}

// fail keeps the kind of err if the backend returns errors of this package.
func (m *Backend) fail(op string, off, n int64, err error) error {
	for _, kind := range []error{ErrNoSpace, ErrReadOnly} {
		if errors.Is(err, kind) {
			return &Error{Op: op, Name: m.name, OffsetBytes: off, LengthBytes: n, Kind: kind, Err: err}
		}
	}
	return &Error{Op: op, Name: m.name, OffsetBytes: off, LengthBytes: n, Kind: kindOfErrno(err), Err: err}
}

// ReadAt implements Media.
func (m *Backend) ReadAt(p []byte, off int64) (int, error) {
	s := stripesOf(off, 1)
	if err := m.enter("read", off, int64(len(p)), s); err != nil {
		return 0, err
	}
	defer m.ranges.unshare(s)
	return m.readShared(p, off)
}

func (m *Backend) readShared(p []byte, off int64) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, err := m.backend.ReadAt(p, off)
	if n == len(p) { // io.ReaderAt may report the end along with the last bytes
		return n, nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	n = max(n, 0)
	return n, m.fail("read", off+int64(n), int64(len(p)-n), err)
}

// WriteAt implements Media.
func (m *Backend) WriteAt(p []byte, off int64) (int, error) {
	s := stripesOf(off, int64(len(p)))
	if err := m.enter("write", off, int64(len(p)), s); err != nil {
		return 0, err
	}
	defer m.ranges.unshare(s)
	return m.writeShared(p, off)
}

func (m *Backend) writeShared(p []byte, off int64) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, err := m.backend.WriteAt(p, off)
	return m.wrote(p, off, n, err)
}

// wrote returns the outcome of a write of p for which the backend returned n and err.
// The backend may write less without an error.
func (m *Backend) wrote(p []byte, off int64, n int, err error) (int, error) {
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	if err != nil {
		n = max(n, 0)
		return n, m.fail("write", off+int64(n), int64(len(p)-n), err)
	}
	return n, nil
}

// WriteAtFUA implements FUAWriter.
func (m *Backend) WriteAtFUA(p []byte, off int64) (int, error) {
	s := stripesOf(off, int64(len(p)))
	if err := m.enter("write", off, int64(len(p)), s); err != nil {
		return 0, err
	}
	defer m.ranges.unshare(s)
	if len(p) == 0 {
		return 0, nil
	}
	n, err := m.inner.FUA.WriteAtFUA(p, off)
	return m.wrote(p, off, n, err)
}

// Flush implements Media. Calls at the same time share one Sync, as those of a File do.
func (m *Backend) Flush() error {
	return m.callLong("flush", 0, 0, m.flushes.do)
}

// callLong runs fn, which may take long and writes nothing, with lifeMu shared.
func (m *Backend) callLong(op string, off, n int64, fn func() error) error {
	m.lifeMu.RLock()
	defer m.lifeMu.RUnlock()
	if !inside(off, n, m.size.Load()) {
		return m.refuse(op, off, n)
	}
	if err := fn(); err != nil {
		return m.fail(op, off, n, err)
	}
	return nil
}

// call runs fn, which changes a range, with the range's stripes shared.
func (m *Backend) call(op string, off, n int64, fn func() error) error {
	s := stripesOf(off, n)
	if err := m.enter(op, off, n, s); err != nil {
		return err
	}
	defer m.ranges.unshare(s)
	if n == 0 {
		return nil
	}
	if err := fn(); err != nil {
		return m.fail(op, off, n, err)
	}
	return nil
}

// Discard implements Discarder.
func (m *Backend) Discard(off, n int64) error {
	return m.call("discard", off, n, func() error { return m.inner.Discard.Discard(off, n) })
}

// Zero implements Zeroer.
func (m *Backend) Zero(off, n int64, allocate bool) error {
	return m.call("zero", off, n, func() error { return m.inner.Zero.Zero(off, n, allocate) })
}

// Prefetch implements Prefetcher.
func (m *Backend) Prefetch(off, n int64) error {
	return m.callLong("prefetch", off, n, func() error {
		if n == 0 {
			return nil
		}
		return m.inner.Prefetch.Prefetch(off, n)
	})
}

// ExtentAt implements ExtentLister. It returns the part of the backend's extent from off
// on; an extent that ends before off, or begins after it, would make callers go
// backwards or jump.
func (m *Backend) ExtentAt(off int64) (e Extent, err error) {
	err = m.callLong("extent", off, 1, func() error {
		e, err = m.inner.Extents.ExtentAt(off)
		if err != nil {
			return err
		}
		end := min(e.End(), m.size.Load())
		if e.OffsetBytes > off || end <= off {
			return fmt.Errorf("the backend tells of an extent of %d bytes at %d instead", e.LengthBytes, e.OffsetBytes)
		}
		e.OffsetBytes, e.LengthBytes = off, end-off
		return nil
	})
	if err != nil {
		return Extent{}, err
	}
	return e, nil
}

// CompareAndWriteAt implements ComparerWriter.
func (m *Backend) CompareAndWriteAt(compare, data []byte, off int64) (int, error) {
	s := stripesOf(off, int64(len(data)))
	m.ranges.lock(s)
	defer m.ranges.unlock(s)
	if !inside(off, int64(len(data)), m.size.Load()) {
		return -1, m.refuse("compare and write", off, int64(len(data)))
	}
	return compareAndWrite(compare, data, off, m.readShared, m.writeShared)
}

// Resize implements Resizer.
func (m *Backend) Resize(sizeBytes int64) error {
	m.ranges.lock(allStripes)
	defer m.ranges.unlock(allStripes)
	if m.size.Load() < 0 {
		return m.refuse("resize", 0, sizeBytes)
	}
	if err := m.inner.Resize.Resize(sizeBytes); err != nil {
		return m.fail("resize", 0, sizeBytes, err)
	}
	m.size.Store(sizeBytes)
	return nil
}

// Close implements Media.
func (m *Backend) Close() error {
	m.lifeMu.Lock()
	defer m.lifeMu.Unlock()
	m.ranges.lock(allStripes)
	defer m.ranges.unlock(allStripes)
	if m.size.Load() < 0 {
		return m.refuse("close", 0, 0)
	}
	m.size.Store(-1)
	if c, ok := m.backend.(io.Closer); ok {
		if err := c.Close(); err != nil {
			return m.fail("close", 0, 0, err)
		}
	}
	return nil
}
