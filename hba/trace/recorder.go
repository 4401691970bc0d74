package trace

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhbad/vhbad/hba/cache"
)

// DefaultBufferBytes is Config.BufferBytes unless said otherwise.
const DefaultBufferBytes = 8 << 20

// excessBytes is how much that was never admitted may wait for the file, and leaveBytes
// the record of a write that is chosen to become durable: a cache may choose all that it
// holds at once.
const (
	excessBytes = 4 << 20
	leaveBytes  = recordHeadBytes + 8 + sumBytes
)

// Config describes a Recorder.
type Config struct {
	Header
	// BufferBytes bounds what is admitted and not yet in the file; DefaultBufferBytes if
	// zero. See the package comment for steps that are not admitted.
	BufferBytes int
	// Now is the clock; time.Now if nil.
	Now func() time.Time
	// OnFail is called once when the recording fails, from a goroutine of the recorder;
	// it may be nil. Close waits for it.
	OnFail func(error)
}

// A File is what a trace is written to.
type File interface {
	io.WriterAt
	io.Closer
	Truncate(sizeBytes int64) error
	Sync() error
}

// Stats are a recorder's counters.
type Stats struct {
	// Records is how many there are, Bytes how long the file is.
	Records, Bytes uint64
	// Waits counts the calls that had to wait for the file.
	Waits uint64
	// Err is why nothing is recorded any more; nil while recording.
	Err error
}

// A Recorder writes a trace. See the package comment.
type Recorder struct {
	file   File
	limit  int64
	excess int64 // what may wait for the file beyond what is admitted
	start  time.Time
	now    func() time.Time
	onFail func(error)
	done   chan struct{} // closed when nothing more is written to the file
	tells  sync.WaitGroup

	// offset and kept are where the next batch goes, and the sum before it. They belong
	// to the writing goroutine.
	offset int64
	kept   uint32

	mu   sync.Mutex
	work sync.Cond // there is something to write
	room sync.Cond // something has been written
	// pending is the next batch; spare is the buffer for the one after it.
	// +checklocks:mu
	pending []byte
	// +checklocks:mu
	spare []byte
	// writing is the length of the batch that is being written.
	// +checklocks:mu
	writing int64
	// admitted is how much was admitted and not given back.
	// +checklocks:mu
	admitted int64
	// ceiling bounds what was admitted and is not in the file: the limit, or the length
	// of a longer write that was admitted alone.
	// +checklocks:mu
	ceiling int64
	// turn is the number of the caller that is admitted next, and turns the next number
	// to give out. Callers are admitted in order, so that long writes are not starved.
	// +checklocks:mu
	turn uint64
	// +checklocks:mu
	turns uint64
	// sum is the sum of the last record in pending.
	// +checklocks:mu
	sum uint32
	// recorded counts bytes, and so does written.
	// +checklocks:mu
	recorded uint64
	// +checklocks:mu
	written uint64
	// +checklocks:mu
	closing bool
	// +checklocks:mu
	stats Stats
}

var _ cache.Recorder = (*Recorder)(nil)

// Create begins a trace in the file at path. An existing file is overwritten if it is a
// trace, or empty.
//
// Errors: name the path, and what is wrong with it.
func Create(path string, c Config) (*Recorder, error) {
	f, err := create(path)
	if err != nil {
		return nil, fmt.Errorf("trace %s: %w", path, err)
	}
	r, err := New(f, c)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("trace %s: %w", path, err), f.Close())
	}
	return r, nil
}

func create(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NONBLOCK, 0o600)
	if err != nil {
		if bare, ok := errors.AsType[*os.PathError](err); ok {
			err = bare.Err
		}
		return nil, err
	}
	if err := mayWrite(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// mayWrite empties f and makes it private to its owner, if nothing but a trace is lost.
func mayWrite(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return errors.New("is no regular file")
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("somebody else records there: %w", err)
	}
	if info.Size() != 0 {
		begin := make([]byte, len(magic))
		if _, err := f.ReadAt(begin, 0); err != nil && !errors.Is(err, io.EOF) || string(begin) != magic {
			return errors.Join(errors.New("is there, and no trace: it is not written over"), err)
		}
	}
	if err := f.Chmod(0o600); err != nil { // it may have been there with another mode
		return fmt.Errorf("make it its owner's alone: %w", err)
	}
	return f.Truncate(0)
}

// New begins a trace in an empty file, which the recorder owns from now on.
//
// Errors: no cache has that header; the file's.
func New(file File, c Config) (*Recorder, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	c.Start = c.Now()
	if err := c.check(); err != nil {
		return nil, err
	}
	limit := int64(c.BufferBytes)
	if limit == 0 {
		limit = DefaultBufferBytes
	}
	r := &Recorder{
		file: file, limit: limit, excess: excessBytes + c.CacheBytes/int64(c.SectorBytes)*leaveBytes,
		start: c.Start, now: c.Now, onFail: c.OnFail, done: make(chan struct{}),
	}
	r.work.L, r.room.L = &r.mu, &r.mu
	b, sum := c.appendTo(nil)
	if _, err := file.WriteAt(b, 0); err != nil {
		return nil, err
	}
	r.offset, r.kept = int64(len(b)), sum
	r.mu.Lock()
	r.sum, r.stats.Bytes, r.ceiling = sum, uint64(len(b)), limit
	r.mu.Unlock()
	go r.write()
	return r, nil
}

// backlogLocked is how much is not in the file yet.
//
// +checklocks:r.mu
func (r *Recorder) backlogLocked() int64 { return int64(len(r.pending)) + r.writing }

// endedLocked reports whether nothing is recorded any more.
//
// +checklocks:r.mu
func (r *Recorder) endedLocked() bool { return r.stats.Err != nil || r.closing }

// Admit implements cache.Recorder. A write longer than the buffer is admitted alone.
func (r *Recorder) Admit(n int64, wait bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if turn := r.turns; !r.fitsLocked(turn, n) {
		if !wait {
			return false
		}
		r.stats.Waits++
		r.turns++
		for !r.fitsLocked(turn, n) {
			r.room.Wait()
		}
		r.turn = max(r.turn, turn+1)
		r.room.Broadcast()
	}
	r.admitted += n
	r.ceiling = max(r.limit, n)
	return true
}

// fitsLocked reports whether it is the given turn's turn and there is room for n bytes.
//
// +checklocks:r.mu
func (r *Recorder) fitsLocked(turn uint64, n int64) bool {
	if r.endedLocked() {
		return true
	}
	used := r.backlogLocked() + r.admitted
	return turn == r.turn && (used == 0 || used+n <= r.limit)
}

// Release implements cache.Recorder.
func (r *Recorder) Release(n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.admitted -= n
	r.room.Broadcast()
}

// Pace implements cache.Recorder.
func (r *Recorder) Pace() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.endedLocked() || r.backlogLocked() <= r.limit {
		return
	}
	r.stats.Waits++
	for !r.endedLocked() && r.backlogLocked() > r.limit {
		r.room.Wait()
	}
}

// Record implements cache.Recorder. It never waits: if too much is recorded without
// having been admitted, the trace ends.
func (r *Recorder) Record(s cache.Step) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.endedLocked() {
		return
	}
	switch waiting := r.backlogLocked(); {
	case len(s.Data) > MaxBodyBytes-rangeBytes:
		r.giveUpLocked(fmt.Sprintf("a write of %d bytes is longer than any record", len(s.Data)))
	case waiting > r.ceiling+r.excess:
		r.giveUpLocked(fmt.Sprintf("the file is too slow: %d bytes wait for it, and who records now cannot", waiting))
	default:
		r.recordLocked(&s)
	}
}

// giveUpLocked ends the trace after what is recorded.
//
// +checklocks:r.mu
func (r *Recorder) giveUpLocked(why string) {
	r.recordLocked(&cache.Step{Kind: kindEnd, Failed: true, Text: why})
	r.failLocked(errors.New(why))
}

// Mark records a mark.
func (r *Recorder) Mark(text string) { r.Record(cache.Step{Kind: cache.StepMark, Text: text}) }

// +checklocks:r.mu
func (r *Recorder) recordLocked(s *cache.Step) {
	if len(r.pending) == 0 {
		r.work.Signal()
	}
	before := len(r.pending)
	if need := before + recordBytes(s); need > cap(r.pending) {
		grown := make([]byte, before, max(need, 2*cap(r.pending)))
		copy(grown, r.pending)
		r.pending = grown
	}
	r.pending, r.sum = appendRecord(r.pending, s, r.now().Sub(r.start), r.sum)
	r.recorded += uint64(len(r.pending) - before)
	r.stats.Records++
}

// Flush waits until the file has everything recorded so far. That does not make it
// durable.
//
// Errors: why the file does not have it.
func (r *Recorder) Flush() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for want := r.recorded; r.stats.Err == nil && r.written < want; {
		r.room.Wait()
	}
	return r.stats.Err
}

// Stats returns the counters.
func (r *Recorder) Stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stats
}

// Close ends the trace. Nothing is recorded any more.
//
// Errors: why it is not complete.
func (r *Recorder) Close() error {
	r.mu.Lock()
	if !r.endedLocked() {
		r.recordLocked(&cache.Step{Kind: kindEnd})
	}
	r.closing = true
	r.work.Signal()
	r.room.Broadcast()
	r.mu.Unlock()
	<-r.done
	r.tells.Wait()
	err := r.Stats().Err
	if err == nil {
		err = r.file.Sync()
	}
	return errors.Join(err, r.file.Close())
}

// write writes batches until the trace ends.
func (r *Recorder) write() {
	defer close(r.done)
	for {
		batch := r.next()
		if batch == nil {
			return
		}
		if _, err := r.file.WriteAt(batch, r.offset); err != nil {
			r.curtail(batch, err)
			r.wrote(batch, err)
			return
		}
		r.offset += int64(len(batch))
		r.kept = binary.LittleEndian.Uint32(batch[len(batch)-sumBytes:])
		r.wrote(batch, nil)
	}
}

// next waits for a batch; nil is the end.
func (r *Recorder) next() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.pending) == 0 {
		if r.closing || r.stats.Err != nil {
			return nil
		}
		r.work.Wait()
	}
	batch := r.pending
	r.pending, r.spare = r.spare[:0], nil
	r.writing = int64(len(batch))
	return batch
}

// wrote notes that a batch was written, or could not be.
func (r *Recorder) wrote(batch []byte, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.writing = 0
	r.written += uint64(len(batch))
	if int64(cap(batch)) <= 2*r.limit {
		r.spare = batch[:0]
	}
	if err != nil {
		r.failLocked(err)
		r.pending = nil
	}
	r.stats.Bytes = uint64(r.offset)
	r.room.Broadcast()
}

// failLocked ends the recording.
//
// +checklocks:r.mu
func (r *Recorder) failLocked(err error) {
	if r.stats.Err == nil {
		r.stats.Err = err
		if r.onFail != nil {
			r.tells.Go(func() { r.onFail(err) })
		}
	}
	r.work.Signal()
	r.room.Broadcast()
}

// curtail writes as many records of a failed batch as it can, and after them the reason
// why there are no more, if there is room for it.
func (r *Recorder) curtail(batch []byte, why error) {
	// After a failed write a file does not say for sure how much of it was written, so
	// all of it is written again. An end in the batch is not: it is replaced by the one
	// below.
	for len(batch) > 0 && cache.StepKind(batch[4]) != kindEnd {
		n := recordHeadBytes + int(binary.LittleEndian.Uint32(batch)) + sumBytes
		if _, err := r.file.WriteAt(batch[:n], r.offset); err != nil {
			break
		}
		r.offset, r.kept = r.offset+int64(n), binary.LittleEndian.Uint32(batch[n-sumBytes:])
		batch = batch[n:]
	}
	_ = r.file.Truncate(r.offset) // else the reader finds a record that ends too soon
	end, _ := appendRecord(nil, &cache.Step{Kind: kindEnd, Failed: true, Text: why.Error()}, r.now().Sub(r.start), r.kept)
	if _, err := r.file.WriteAt(end, r.offset); err != nil {
		_ = r.file.Truncate(r.offset) // the same
		return
	}
	r.offset += int64(len(end))
}
