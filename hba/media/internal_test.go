package media

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"golang.org/x/sys/unix"
)

func TestStripesOf(t *testing.T) {
	const stripeBytes = 1 << lockStripeShift
	for _, tt := range []struct {
		off, n int64
		want   stripeSet
	}{
		{0, 0, 1},
		{0, 1, 1},
		{0, stripeBytes, 1},
		{0, stripeBytes + 1, 3},
		{stripeBytes - 1, 2, 3},
		{63 * stripeBytes, 2 * stripeBytes, 1<<63 | 1},
		{64 * stripeBytes, 1, 1},
		{0, 63 * stripeBytes, allStripes >> 1},
		{0, 64 * stripeBytes, allStripes},
		{0, 1 << 62, allStripes},
		{5, 64 * stripeBytes, allStripes},
		{-1, 1, 1 << 63},
	} {
		if got := stripesOf(tt.off, tt.n); got != tt.want {
			t.Errorf("%d bytes at %d: stripes %064b, want %064b", tt.n, tt.off, got, tt.want)
		}
	}
	r := rand.New(rand.NewPCG(5, 6))
	for range 1000 { // against the plain way
		off, n := r.Int64N(1<<40), 1+r.Int64N(80*stripeBytes)
		want := stripeSet(0)
		for i := off / stripeBytes; i <= (off+n-1)/stripeBytes; i++ {
			want |= 1 << (i % lockStripes)
		}
		if got := stripesOf(off, n); got != want {
			t.Fatalf("%d bytes at %d (seed 5, 6): stripes %064b, want %064b", n, off, got, want)
		}
	}
}

func TestRangeLock_TryShare(t *testing.T) {
	var l rangeLock
	l.lock(1 << 7)
	if l.tryShare(1<<3 | 1<<7 | 1<<9) {
		t.Fatal("shared what is held alone")
	}
	if !l.tryShare(1<<3 | 1<<9) {
		t.Fatal("could not share what is free")
	}
	l.unshare(1<<3 | 1<<9)
	l.unlock(1 << 7)
	// Nothing is left held.
	l.lock(allStripes)
	l.unlock(allStripes)
}

func TestInside(t *testing.T) {
	for _, tt := range []struct {
		off, n, size int64
		want         bool
	}{
		{0, 0, 0, true},
		{0, 1, 1, true},
		{1, 0, 1, true},
		{1, 1, 1, false},
		{2, 0, 1, false},
		{-1, 1, 1, false},
		{0, -1, 1, false},
		{1, 1<<63 - 1, 1<<63 - 1, false},
		{0, 1, -1, false},
		{0, 0, -1, false},
	} {
		if got := inside(tt.off, tt.n, tt.size); got != tt.want {
			t.Errorf("%d bytes at %d of %d: %v, want %v", tt.n, tt.off, tt.size, got, tt.want)
		}
	}
}

func TestPagesTouched(t *testing.T) {
	for _, tt := range []struct {
		at, n int
		want  uint32
	}{
		{0, 1, 1}, {0, 4096, 1}, {4095, 2, 3}, {65535, 1, 1 << 15}, {0, 65536, 1<<16 - 1}, {8192, 8192, 12},
	} {
		if got := pagesTouched(tt.at, tt.n); got != tt.want {
			t.Errorf("%d bytes at %d: pages %016b, want %016b", tt.n, tt.at, got, tt.want)
		}
	}
}

func TestKindOfErrno(t *testing.T) {
	for err, want := range map[error]error{
		unix.ENOSPC: ErrNoSpace, unix.EDQUOT: ErrNoSpace, unix.EFBIG: ErrNoSpace,
		unix.EROFS: ErrReadOnly, unix.EPERM: ErrReadOnly, unix.EBADF: ErrReadOnly,
		unix.EIO: ErrMedium, unix.ENXIO: ErrMedium, io.ErrUnexpectedEOF: ErrMedium,
	} {
		if got := kindOfErrno(err); !errors.Is(got, want) {
			t.Errorf("%v is %v, want %v", err, got, want)
		}
	}
}

// TestFlushGroup_Shares: flushes that arrive during a sync share the next one,
// and nobody is served by a sync that began before it arrived.
func TestFlushGroup_Shares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began, finish := 0, make(chan error)
		g := flushGroup{sync: func() error {
			began++
			return <-finish
		}}
		results := make([]error, 5)
		var group sync.WaitGroup
		flush := func(i int) { group.Go(func() { results[i] = g.do() }) }
		flush(0)
		synctest.Wait()
		for i := 1; i < 5; i++ {
			flush(i)
		}
		synctest.Wait()
		if began != 1 {
			t.Fatalf("%d syncs, want one in progress", began)
		}
		finish <- nil
		synctest.Wait()
		if began != 2 {
			t.Fatalf("%d syncs, want a second one for those who came late", began)
		}
		finish <- io.ErrClosedPipe
		group.Wait()
		if began != 2 {
			t.Errorf("%d syncs for 5 flushes, want 2", began)
		}
		if results[0] != nil {
			t.Errorf("the first flush: %v", results[0])
		}
		for i := 1; i < 5; i++ {
			if !errors.Is(results[i], io.ErrClosedPipe) {
				t.Errorf("flush %d: %v, want the error of its sync", i, results[i])
			}
		}
	})
}

// TestFlushGroup_ArrivesInALoss: the write that a sync tells of as lost may be one that
// was done before a flush which came while it ran; no later sync tells that flush.
func TestFlushGroup_ArrivesInALoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		finish := make(chan error)
		g := flushGroup{sync: func() error { return <-finish }}
		results := make([]error, 3)
		var group sync.WaitGroup
		for i := range results {
			group.Go(func() { results[i] = g.do() })
			synctest.Wait()
		}
		finish <- io.ErrClosedPipe
		finish <- nil
		group.Wait()
		for i, err := range results {
			if !errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("flush %d: %v, but a write that it covers may be lost", i, err)
			}
		}
		go func() { finish <- nil }()
		if err := g.do(); err != nil {
			t.Errorf("%v, want it told no more", err)
		}
	})
}

// A losingBackend tells of a lost write once, to the Sync that ends first.
type losingBackend struct{ finish chan error }

func (losingBackend) Size() (int64, error)                   { return 4096, nil }
func (losingBackend) ReadAt(p []byte, _ int64) (int, error)  { return len(p), nil }
func (losingBackend) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
func (b losingBackend) Sync() error                          { return <-b.finish }

// TestBackend_FlushesShareALoss: flushes at the same time all learn of a lost write,
// which their backend tells one of them.
func TestBackend_FlushesShareALoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := losingBackend{make(chan error, 2)}
		m, err := NewBackend("losing", b)
		if err != nil {
			t.Fatal(err)
		}
		results := make([]error, 2)
		var group sync.WaitGroup
		for i := range results {
			group.Go(func() { results[i] = m.Flush() })
			synctest.Wait()
		}
		b.finish <- io.ErrClosedPipe
		b.finish <- nil
		group.Wait()
		for i, err := range results {
			if !errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("flush %d: %v, but a write that it covers may be lost", i, err)
			}
		}
	})
}

func TestFlushGroup_Taint(t *testing.T) {
	g := flushGroup{sync: func() error { return nil }}
	_ = g.endAlone(g.begin(), io.ErrClosedPipe)
	if err := g.do(); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("%v, want the error that was left for it", err)
	}
	if err := g.do(); err != nil {
		t.Errorf("%v, want it told once", err)
	}
}

// TestFlushGroup_TaintDuringASync: whoever was told of a lost write in place of a sync
// that runs leaves the error to that sync too, which the kernel does not tell any more.
func TestFlushGroup_TaintDuringASync(t *testing.T) {
	var g flushGroup
	g.sync = func() error {
		g.sync = func() error { return nil }
		_ = g.endAlone(g.begin(), io.ErrClosedPipe)
		return nil
	}
	for _, which := range []string{"the flush that runs", "the next one, whose writes may be meant as well"} {
		if err := g.do(); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("%s: %v, want the error", which, err)
		}
	}
	if err := g.do(); err != nil {
		t.Errorf("%v, want it told no more", err)
	}
}

// TestLock_NetworkFileSystems: which those are where flock locks all bytes. That there are
// no other locks then, no file system here can show.
func TestLock_NetworkFileSystems(t *testing.T) {
	for fileSystem, want := range map[uint32]bool{
		unix.NFS_SUPER_MAGIC: true, unix.SMB_SUPER_MAGIC: true, unix.CIFS_SUPER_MAGIC: true, unix.SMB2_SUPER_MAGIC: true,
		unix.EXT4_SUPER_MAGIC: false, unix.TMPFS_MAGIC: false, unix.FUSE_SUPER_MAGIC: false,
	} {
		if got := locksBytes(fileSystem); got != want {
			t.Errorf("file system %#x: %t, want %t", fileSystem, got, want)
		}
	}
}

// TestFlushGroup_Parts: what one write with FUA was told, the next flush is, once, and no
// later write with FUA.
func TestFlushGroup_Parts(t *testing.T) {
	var g flushGroup
	g.sync = func() error {
		g.sync = func() error { return nil }
		return io.ErrClosedPipe
	}
	for _, step := range []struct {
		who  string
		do   func() error
		want error
	}{
		{"the write that was told", g.doAsPart, io.ErrClosedPipe},
		{"the next write", g.doAsPart, nil},
		{"the next flush", g.do, io.ErrClosedPipe},
		{"a write after it", g.doAsPart, nil},
		{"a flush after it", g.do, nil},
	} {
		if err := step.do(); !errors.Is(err, step.want) {
			t.Errorf("%s: %v, want %v", step.who, err, step.want)
		}
	}
}

// TestFlushGroup_ArrivesInAPart: a flush that comes while a write with FUA is made durable is
// told what is left for it, and that write is not.
func TestFlushGroup_ArrivesInAPart(t *testing.T) {
	var g flushGroup
	told := make(chan error)
	g.sync = func() error {
		g.sync = func() error { return nil }
		go func() { told <- g.do() }()
		for come := false; !come; runtime.Gosched() {
			g.mu.Lock()
			come = g.wanted == 2
			g.mu.Unlock()
		}
		return nil
	}
	_ = g.endAlone(g.begin(), io.ErrClosedPipe)
	if err := g.doAsPart(); err != nil {
		t.Errorf("the write: %v", err)
	}
	if err := <-told; !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("the flush: %v, want what is left for it", err)
	}
}

// TestFile_ResizeHidesNoLoss: the kernel tells of lost writes once, and if it tells
// Resize, the next flush fails all the same.
func TestFile_ResizeHidesNoLoss(t *testing.T) {
	f, err := OpenFile(FileConfig{Path: filepath.Join(t.TempDir(), "disk"), SizeBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	f.flushes.sync = func() error {
		f.flushes.sync = func() error { return nil }
		return unix.EIO
	}
	if err := f.Resize(2 << 20); !errors.Is(err, unix.EIO) {
		t.Errorf("resize: %v", err)
	}
	if err := f.Flush(); !errors.Is(err, unix.EIO) {
		t.Errorf("flush: %v, but a write that it covers may be lost", err)
	}
	if err := f.Flush(); err != nil {
		t.Errorf("flush: %v, want it told once", err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

// TestFile_WithoutHelp: a file system that can neither punch, zero, write
// through nor answer at once costs time, not data.
func TestFile_WithoutHelp(t *testing.T) {
	f, err := OpenFile(FileConfig{Path: filepath.Join(t.TempDir(), "disk"), SizeBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	f.noHoles.Store(true)
	f.noDSync.Store(true)
	f.noTryRead.Store(true)
	f.noTryWrite.Store(true)
	f.atOnce.able = false
	syncs := 0
	f.flushes.sync = func() error { syncs++; return nil }
	if f.Supports(AbilityDiscard) || f.Supports(AbilityTryRead) || f.Supports(AbilityTryWrite) || f.Supports(1<<15) {
		t.Error("it says that it can")
	}
	p := bytes.Repeat([]byte{1}, 300<<10)
	if n, err := f.WriteAtFUA(p, 100); n != len(p) || err != nil || syncs != 1 {
		t.Errorf("write through: %d, %v, %d syncs", n, err, syncs)
	}
	if done, err := f.TryReadAt(p, 0); done || err != nil {
		t.Errorf("try read: %v, %v", done, err)
	}
	if done, err := f.TryWriteAt(p, 0); done || err != nil {
		t.Errorf("try write: %v, %v", done, err)
	}
	if err := f.Discard(200, 200<<10); err != nil {
		t.Fatal(err)
	}
	want := bytes.Clone(p)
	clear(want[100 : 100+200<<10])
	got := make([]byte, len(p))
	if _, err := f.ReadAt(got, 100); err != nil || !bytes.Equal(got, want) {
		t.Errorf("zeros were not written: %v", err)
	}
	f.flushes.sync = func() error { return unix.EIO }
	if err := f.Flush(); !errors.Is(err, ErrMedium) || !errors.Is(err, unix.EIO) {
		t.Errorf("flush: %v", err)
	}
	if _, err := f.WriteAtFUA(p, 0); !errors.Is(err, ErrMedium) {
		t.Errorf("write through: %v", err)
	}
	f.flushes.sync = func() error { return nil }
	if err := f.Flush(); !errors.Is(err, unix.EIO) {
		t.Errorf("flush: %v, want what the write through was told, which may mean older writes", err)
	}
	if err := f.Flush(); err != nil {
		t.Errorf("flush: %v, want it told once", err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

// TestFile_ZeroOnLongBlocks: a device with blocks of 4 KiB refuses to zero parts of them,
// and a disk of shorter ones zeroes those all the same, and no more.
func TestFile_ZeroOnLongBlocks(t *testing.T) {
	f, err := OpenFile(FileConfig{Path: filepath.Join(t.TempDir(), "disk"), SizeBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	whole := int64(0)
	f.zeroUnit = 4096
	f.allocate = func(fd int, mode uint32, off, n int64) error {
		if (off|n)%4096 != 0 || n == 0 {
			return unix.EINVAL
		}
		whole += n
		return unix.Fallocate(fd, mode, off, n)
	}
	for _, tt := range []struct{ off, n, whole int64 }{
		{4096, 8192, 8192},
		{512, 512, 0},
		{3584, 1024, 0},
		{0, 512, 0},
		{3584, 512, 0},
		{4096, 512, 0},
		{512, 4096, 0},
		{3584, 8704, 8192},
		{512, 8192, 4096},
		{4096, 8704, 8192},
		{1<<20 - 4608, 4608, 4096},
	} {
		want := bytes.Repeat([]byte{1}, 1<<20)
		if _, err := f.WriteAt(want, 0); err != nil {
			t.Fatal(err)
		}
		whole = 0
		if err := f.Discard(tt.off, tt.n); err != nil || whole != tt.whole {
			t.Errorf("%d bytes at %d: %d without writing, want %d: %v", tt.n, tt.off, whole, tt.whole, err)
		}
		clear(want[tt.off : tt.off+tt.n])
		got := make([]byte, len(want))
		if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes at %d: others are zero, or not these, %v", tt.n, tt.off, err)
		}
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

// TestMemory_ResizeWaitsForWriters: a write that has begun before its place was cut
// off is not there when the medium grows again.
func TestMemory_ResizeWaitsForWriters(t *testing.T) {
	const offset = 160 << 20
	m, err := NewMemory(MemoryConfig{SizeBytes: 1 << 28})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}()
	const i = offset >> chunkShift
	s := &m.stripes[i%memoryStripes]
	s.Lock() // as WriteAt does, with the size looked at
	done := make(chan error)
	go func() { done <- m.Resize(4096) }()
	for m.Size() != 4096 {
		runtime.Gosched()
	}
	for range 1000 { // Resize has time to pass over the chunk that is not there yet
		runtime.Gosched()
	}
	err = m.writeChunkLocked(bytes.Repeat([]byte{1}, 4096), i, 0)
	s.Unlock()
	if err := errors.Join(err, <-done, m.Resize(1<<28)); err != nil {
		t.Fatal(err)
	}
	if n := m.AllocatedBytes(); n != 0 {
		t.Errorf("%d bytes are allocated of what was cut off", n)
	}
	p := make([]byte, 1)
	if _, err := m.ReadAt(p, offset); err != nil || p[0] != 0 {
		t.Errorf("what was cut off reads as %d, %v", p[0], err)
	}
}

// fuaFile is a file whose writes with FUA are what write says.
func fuaFile(t *testing.T, write func() (int, unix.Errno)) *File {
	t.Helper()
	f, err := OpenFile(FileConfig{Path: filepath.Join(t.TempDir(), "disk"), SizeBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	f.writeFlags = func(int, []byte, int64, uintptr) (int, unix.Errno) { return write() }
	return f
}

// TestFile_FUAThatStandsStill: a write with FUA of which the file system takes nothing, and
// has no error either, fails as one without FUA does. It is not tried for ever.
func TestFile_FUAThatStandsStill(t *testing.T) {
	calls := 0
	f := fuaFile(t, func() (int, unix.Errno) {
		if calls++; calls == 1 {
			return 512, 0
		}
		if calls > 10 {
			return 0, unix.EIO // let it end
		}
		return 0, 0
	})
	n, err := f.WriteAtFUA(make([]byte, 4096), 0)
	if n != 512 || !errors.Is(err, ErrMedium) || !errors.Is(err, io.ErrShortWrite) || calls != 2 {
		t.Errorf("%d bytes, %v, after %d calls", n, err, calls)
	}
	if err := f.Flush(); err != nil {
		t.Errorf("flush: %v, but nothing is lost", err)
	}
}

// TestFile_FUALearnsOfALoss: the kernel tells of lost writes once, and who is told while a
// write with FUA is under way may have been told of that. One that comes later is not meant.
func TestFile_FUALearnsOfALoss(t *testing.T) {
	p := make([]byte, 512)
	for _, tt := range []struct {
		name string
		told func(f *File) error
		left error // for the next flush
	}{
		{"a flush", (*File).Flush, nil},
		{"another write with FUA", func(f *File) error {
			f.writeFlags = func(int, []byte, int64, uintptr) (int, unix.Errno) { return 0, unix.EIO }
			_, err := f.WriteAtFUA(p, 4096)
			return err
		}, unix.EIO},
		{"a resize", func(f *File) error {
			return f.flushes.doAsPart()
		}, unix.EIO},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var f *File
			f = fuaFile(t, func() (int, unix.Errno) {
				f.flushes.sync = func() error { return unix.EIO }
				if err := tt.told(f); !errors.Is(err, unix.EIO) {
					t.Errorf("%s: %v, want the loss", tt.name, err)
				}
				f.flushes.sync = func() error { return nil }
				f.writeFlags = func(int, []byte, int64, uintptr) (int, unix.Errno) { return len(p), 0 }
				return len(p), 0
			})
			if _, err := f.WriteAtFUA(p, 0); !errors.Is(err, unix.EIO) {
				t.Errorf("the write under way: %v, but it may be lost", err)
			}
			if _, err := f.WriteAtFUA(p, 0); err != nil {
				t.Errorf("the write after it: %v", err)
			}
			if err := f.Flush(); !errors.Is(err, tt.left) {
				t.Errorf("the flush after it: %v, want %v", err, tt.left)
			}
			if _, err := f.WriteAtFUA(p, 0); err != nil {
				t.Errorf("a write after that: %v", err)
			}
		})
	}
}

// TestFile_FlushLearnsOfALoss: a write with FUA that is under way as a sync ends may have
// been told what the sync was to be told. One that comes later is not waited for.
func TestFile_FlushLearnsOfALoss(t *testing.T) {
	for _, told := range []unix.Errno{0, unix.EIO} {
		synctest.Test(t, func(t *testing.T) {
			p := make([]byte, 512)
			var leave [2]chan unix.Errno
			f := fuaFile(t, nil)
			f.flushes.sync = func() error { return nil }
			f.writeFlags = func(_ int, p []byte, off int64, _ uintptr) (int, unix.Errno) {
				errno := <-leave[off/4096]
				return len(p), errno
			}
			var group sync.WaitGroup
			begin := func(i int) {
				leave[i] = make(chan unix.Errno)
				group.Go(func() {
					if _, err := f.WriteAtFUA(p, int64(i)*4096); (err != nil) != (told != 0) {
						t.Errorf("write %d: %v", i, err)
					}
				})
				synctest.Wait()
			}
			begin(0)
			flushed := make(chan error, 1)
			go func() { flushed <- f.Flush() }()
			synctest.Wait()
			begin(1)
			leave[0] <- told
			synctest.Wait()
			select {
			case err := <-flushed:
				if told == 0 && err != nil || told != 0 && !errors.Is(err, told) {
					t.Errorf("flush: %v, and the write was told %v", err, told)
				}
			default:
				t.Error("the flush waits for a write that came after its sync")
			}
			leave[1] <- 0
			group.Wait()
		})
	}
}

// TestFile_PrefetchesData: holes are not read. The kernel would fill the page cache with
// their zeros, which takes as long as to read them.
func TestFile_PrefetchesData(t *testing.T) {
	f, err := OpenFile(FileConfig{Path: filepath.Join(t.TempDir(), "disk"), SizeBytes: 1 << 40})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}()
	const piece = 64 << 10
	for _, off := range []int64{1 << 20, 3 << 20, 1 << 39} {
		if _, err := f.WriteAt(make([]byte, piece), off); err != nil {
			t.Fatal(err)
		}
	}
	type span struct{ off, n int64 }
	var got []span
	f.advise = func(_ int, off, n int64, _ int) error {
		got = append(got, span{off, n})
		return nil
	}
	for _, tt := range []struct {
		off, n int64
		want   []span
	}{
		{0, 1 << 40, []span{{1 << 20, piece}, {3 << 20, piece}, {1 << 39, piece}}},
		{0, 1<<20 + 4096, []span{{1 << 20, 4096}}},
		{1<<20 + 4096, 4096, []span{{1<<20 + 4096, 4096}}},
		{0, 1 << 20, nil},
		{1<<39 + piece, 1 << 30, nil},
	} {
		got = nil
		if err := f.Prefetch(tt.off, tt.n); err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%d bytes at %d: %v, %v; want %v", tt.n, tt.off, got, err, tt.want)
		}
	}
	for i := range int64(2 * maxPrefetchExtents) {
		if _, err := f.WriteAt([]byte{1}, 1<<32+i<<16); err != nil {
			t.Fatal(err)
		}
	}
	got = nil
	if err := f.Prefetch(1<<32, 1<<32); err != nil || len(got) != maxPrefetchExtents {
		t.Errorf("%d extents, %v; want %d", len(got), err, maxPrefetchExtents)
	}
}
