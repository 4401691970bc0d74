package media

import (
	"errors"

	"github.com/vhbad/vhbad/internal/dma"
)

// A Media is a fixed number of bytes at rest. See the package comment for what
// all of them promise.
type Media interface {
	// ReadAt fills p with the bytes from off. It returns len(p), or an error and
	// how many bytes it has read before it.
	ReadAt(p []byte, off int64) (int, error)
	// WriteAt stores p at off. It returns len(p), or an error and how many bytes
	// it has written before it. It does not keep p.
	WriteAt(p []byte, off int64) (int, error)
	// Flush makes all writes durable that returned before it was called.
	Flush() error
	// Size is the number of bytes. It never blocks.
	Size() int64
	// Close waits for calls in progress and releases the medium. It does not
	// flush.
	Close() error
}

// A NonBlockingReader may be able to read without waiting.
type NonBlockingReader interface {
	// TryReadAt reads as ReadAt does if that needs no waiting. Otherwise it reports
	// false; p may then be overwritten in part.
	TryReadAt(p []byte, off int64) (done bool, err error)
}

// A NonBlockingWriter may be able to write without waiting.
type NonBlockingWriter interface {
	// TryWriteAt writes as WriteAt does if that needs no waiting. Otherwise it reports
	// false; a part of p may then be written already, and the caller writes all of p
	// again by WriteAt. Media that limit such writes limit each call, so a caller that
	// is to do one thing without waiting makes one call.
	TryWriteAt(p []byte, off int64) (done bool, err error)
}

// A Referrer can lend the pages that its bytes are on.
type Referrer interface {
	// ReferAt fills to, if it has not expired, with references to the n bytes from off,
	// and reports whether it has. If not, ReadAt has to be called, which also reports
	// errors. Unless mayBlock, it waits for next to nothing. Later writes to the range
	// may be seen through the references, but nothing else.
	ReferAt(to dma.Pages, n int, off int64, mayBlock bool) bool
}

// A NeverBlocker is a medium whose calls, those of its abilities included, may
// run where waiting is not allowed. They take time in proportion to their length.
type NeverBlocker interface {
	NeverBlocks() bool
}

// A FUAWriter writes through any volatile cache.
type FUAWriter interface {
	// WriteAtFUA is WriteAt, and p is durable when it returns. If it fails in a
	// way that may concern older writes too, the next Flush fails as well.
	WriteAtFUA(p []byte, off int64) (int, error)
}

// A VectorWriter preserves the bounds of writes, so that one write from several buffers
// differs from several writes.
type VectorWriter interface {
	// WriteVectorAt writes the first n bytes of the segments, taken together, as one
	// write: like WriteAtFUA if fua, which needs FUAWriter, else like WriteAt.
	WriteVectorAt(segments [][]byte, n int, off int64, fua bool) (int, error)
	// TryWriteVectorAt is to WriteVectorAt without fua as TryWriteAt is to WriteAt.
	TryWriteVectorAt(segments [][]byte, n int, off int64) (done bool, err error)
}

// A Discarder can release the space of bytes.
type Discarder interface {
	// Discard makes n bytes from off read as zeros and releases their space as far as it
	// can.
	Discard(off, n int64) error
}

// A Zeroer zeroes without being sent zeros.
type Zeroer interface {
	// Zero makes n bytes from off read as zeros. With allocate it also ensures that
	// later writes there do not run out of space; without, it may release their space.
	Zero(off, n int64, allocate bool) error
}

// A FastZeroer is a Zeroer that knows what Zero costs.
type FastZeroer interface {
	// ZeroIsFast reports whether Zero with allocate takes much less time than to
	// send and write as many zeros. The answer does not change.
	ZeroIsFast() bool
}

// An Extent is a run of bytes that are all data or all hole.
type Extent struct {
	OffsetBytes int64
	LengthBytes int64
	Data        bool // false: nothing is allocated, and it reads as zeros
}

// End is the offset of the first byte behind the extent.
func (e Extent) End() int64 { return e.OffsetBytes + e.LengthBytes }

// An ExtentLister knows which bytes are holes.
type ExtentLister interface {
	// ExtentAt returns the extent from off, which must be below Size, to the
	// next change between data and hole or the end. Neighbours may be of one
	// kind. The answer may be out of date when it arrives, if others write.
	ExtentAt(off int64) (Extent, error)
}

// A Resizer can change its size.
type Resizer interface {
	// Resize sets the size. Bytes that it adds read as zeros; bytes that it cuts
	// off are gone.
	Resize(sizeBytes int64) error
}

// A Prefetcher takes hints.
type Prefetcher interface {
	// Prefetch says that n bytes from off will be read soon. It does not wait
	// for them.
	Prefetch(off, n int64) error
}

// A ComparerWriter compares and writes in one step.
type ComparerWriter interface {
	// CompareAndWriteAt stores data at off if the bytes there equal compare,
	// which is as long as data. If not, it writes nothing and returns the index
	// of the first byte that differs, otherwise -1. No other write to the range
	// comes between.
	CompareAndWriteAt(compare, data []byte, off int64) (mismatch int, err error)
}

// A Promiser keeps account of what hosts were told is durable. Whoever tells them so
// without involving the medium reports it here, so that a check after a power cut can
// name the lie.
type Promiser interface {
	// PromisedAll: a flush was answered that covers all writes done so far.
	PromisedAll()
	// PromisedRange: a completed write of n bytes at off was answered as if with FUA:
	// the latest such write.
	PromisedRange(off, n int64)
	// LostWrite: a write of n bytes at off that never came is answered, as durable or
	// not. data are its bytes; nil means zeros. It does not keep them. Broke counts the
	// command, which may have consisted of several such writes.
	LostWrite(off, n int64, data [][]byte, durable bool)
	// Misdirected: the latest write of n bytes at off, which is done, was meant for
	// another place, and is answered as such. ignored: it is answered as durable, which
	// it is not.
	Misdirected(off, meant, n int64, ignored bool)
	// Broke: something happened to a command that no correct drive does. act is its name
	// in reports. PromisedAll counts its flush itself, and PromisedRange its write.
	Broke(act string)
}

// An Ability is one of the things that a medium may be able to do.
type Ability uint16

// The abilities, a bit each.
const (
	AbilityTryRead         Ability = 1 << iota // NonBlockingReader
	AbilityTryWrite                            // NonBlockingWriter
	AbilityFUA                                 // FUAWriter
	AbilityDiscard                             // Discarder
	AbilityZero                                // Zeroer
	AbilityExtents                             // ExtentLister
	AbilityResize                              // Resizer
	AbilityPrefetch                            // Prefetcher
	AbilityCompareAndWrite                     // ComparerWriter
	AbilityVector                              // VectorWriter
	AbilityRefer                               // Referrer
)

// A Supporter is a medium that does not support all that it has methods for: a file on a
// file system without holes, or a wrapper around some other medium.
type Supporter interface {
	// Supports reports whether the methods of the ability work. The answer does
	// not change.
	Supports(a Ability) bool
}

// Abilities are what a medium can do: its ability interfaces, nil where it lacks one.
type Abilities struct {
	TryRead         NonBlockingReader
	TryWrite        NonBlockingWriter
	FUA             FUAWriter
	Discard         Discarder
	Zero            Zeroer
	Extents         ExtentLister
	Resize          Resizer
	Prefetch        Prefetcher
	CompareAndWrite ComparerWriter
	Vector          VectorWriter
	Refer           Referrer
	NeverBlocks     bool
	// ZeroIsFast is that of the FastZeroer.
	ZeroIsFast bool
}

// Probe finds what m can do. It is meant for attaching, not for each request.
func Probe(m Media) Abilities {
	return Abilities{
		TryRead:         ability[NonBlockingReader](m, AbilityTryRead),
		TryWrite:        ability[NonBlockingWriter](m, AbilityTryWrite),
		FUA:             ability[FUAWriter](m, AbilityFUA),
		Discard:         ability[Discarder](m, AbilityDiscard),
		Zero:            ability[Zeroer](m, AbilityZero),
		Extents:         ability[ExtentLister](m, AbilityExtents),
		Resize:          ability[Resizer](m, AbilityResize),
		Prefetch:        ability[Prefetcher](m, AbilityPrefetch),
		CompareAndWrite: ability[ComparerWriter](m, AbilityCompareAndWrite),
		Vector:          ability[VectorWriter](m, AbilityVector),
		Refer:           ability[Referrer](m, AbilityRefer),
		NeverBlocks:     neverBlocks(m),
		ZeroIsFast:      zeroIsFast(m),
	}
}

func zeroIsFast(v any) bool {
	f, ok := v.(FastZeroer)
	return ok && f.ZeroIsFast()
}

func neverBlocks(m Media) bool {
	n, ok := m.(NeverBlocker)
	return ok && n.NeverBlocks()
}

// ability returns v as a T, or nil if it is none or does not support a.
func ability[T any](v any, a Ability) (t T) {
	got, ok := v.(T)
	if !ok {
		return t
	}
	if s, partial := v.(Supporter); partial && !s.Supports(a) {
		return t
	}
	return got
}

// Has reports whether the ability is present. A wrapper's Supports answers from it.
func (a *Abilities) Has(want Ability) bool {
	switch want {
	case AbilityTryRead:
		return a.TryRead != nil
	case AbilityTryWrite:
		return a.TryWrite != nil
	case AbilityFUA:
		return a.FUA != nil
	case AbilityDiscard:
		return a.Discard != nil
	case AbilityZero:
		return a.Zero != nil
	case AbilityExtents:
		return a.Extents != nil
	case AbilityResize:
		return a.Resize != nil
	case AbilityPrefetch:
		return a.Prefetch != nil
	case AbilityCompareAndWrite:
		return a.CompareAndWrite != nil
	case AbilityVector:
		return a.Vector != nil
	case AbilityRefer:
		return a.Refer != nil
	}
	return false
}

// Kinds of failure, for errors.Is.
var (
	// ErrRange: the range is not inside the medium.
	ErrRange = errors.New("range beyond the end of the medium")
	// ErrNoSpace: there is nothing left to store the write in.
	ErrNoSpace = errors.New("no space left for the medium")
	// ErrReadOnly: the medium takes no writes.
	ErrReadOnly = errors.New("medium is read-only")
	// ErrMedium: the bytes could not be read or written.
	ErrMedium = errors.New("medium error")
	// ErrPowerLost: the power was cut while the call was in progress. A write may
	// have been done, in whole sectors.
	ErrPowerLost = errors.New("power was lost")
	// ErrClosed: the medium was closed.
	ErrClosed = errors.New("medium is closed")
)

// An Error is a failure of a medium.
type Error struct {
	Op          string // "read", "write", …
	Name        string // which medium
	OffsetBytes int64  // where it stopped: bytes before are done
	LengthBytes int64  // what was left to do from there
	Kind        error  // one of the sentinels of this package
	Err         error  // the cause, or nil
}

// Error is the operation, the medium, the range and the cause.
func (e *Error) Error() string {
	s := "media: " + e.Op + " " + e.Name + ": " + formatRange(e.OffsetBytes, e.LengthBytes)
	if e.Err != nil {
		return s + ": " + e.Err.Error()
	}
	return s + ": " + e.Kind.Error()
}

// Unwrap lets errors.Is find both kind and cause.
func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Err}
}
