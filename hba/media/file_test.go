package media_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vhbad/vhbad/hba/media"
)

func writeFile(t *testing.T, path string, n int, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, bytes.Repeat([]byte{7}, n), mode); err != nil {
		t.Fatal(err)
	}
}

func TestOpenFile_Refused(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	writeFile(t, at("short"), 4096, 0o600)
	writeFile(t, at("odd"), 4097, 0o600)
	writeFile(t, at("empty"), 0, 0o600)
	writeFile(t, at("protected"), 4096, 0o444)
	if err := unix.Mkfifo(at("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(at("nowhere"), at("dangling")); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		config media.FileConfig
		want   string
	}{
		{"no path", media.FileConfig{SizeBytes: 4096}, "without a path"},
		{"missing, no size", media.FileConfig{Path: at("new")}, "does not exist; give size="},
		{"missing, read-only", media.FileConfig{Path: at("new"), SizeBytes: 4096, ReadOnly: true}, "read-only disk cannot create"},
		{"missing folder", media.FileConfig{Path: at("no/new"), SizeBytes: 4096}, "no such file or directory"},
		{"size of no blocks", media.FileConfig{Path: at("new"), SizeBytes: 1000}, "not a multiple of the block size, 512"},
		{"negative size", media.FileConfig{Path: at("new"), SizeBytes: -512}, "not a multiple"},
		{"impossible size", media.FileConfig{Path: at("new"), SizeBytes: 1<<63 - 512}, "set its size to"},
		{"shorter than asked for", media.FileConfig{Path: at("short"), SizeBytes: 8192}, "has 4096 bytes, less than size=8192; drop size= or grow it first: truncate -s 8192"},
		{"longer than asked for", media.FileConfig{Path: at("short"), SizeBytes: 512}, "has 4096 bytes, more than size=512"},
		{"file of no blocks", media.FileConfig{Path: at("odd")}, "has 4097 bytes, not a multiple of the block size, 512"},
		{"file of no long blocks", media.FileConfig{Path: at("short"), BlockBytes: 8192}, "not a multiple of the block size, 8192"},
		{"empty", media.FileConfig{Path: at("empty")}, "is empty; give size="},
		{"empty, read-only", media.FileConfig{Path: at("empty"), ReadOnly: true, SizeBytes: 4096}, "is empty"},
		{"directory", media.FileConfig{Path: dir}, "is a directory"},
		{"fifo", media.FileConfig{Path: at("fifo"), SizeBytes: 4096}, "neither a regular file nor a block device"},
		{"character device", media.FileConfig{Path: "/dev/null"}, "neither a regular file nor a block device"},
		{"write-protected", media.FileConfig{Path: at("protected")}, "is write-protected (mode 0444); serve it with the read-only option"},
		{"a link to nowhere", media.FileConfig{Path: at("dangling"), SizeBytes: 4096}, "file exists"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, err := media.OpenFile(tt.config)
			if err == nil {
				t.Fatalf("opened, close: %v", f.Close())
			}
			if !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), tt.config.Path) {
				t.Errorf("got  %v\nwant the path and %q", err, tt.want)
			}
			checked := media.CheckFile(tt.config)
			if tt.name == "impossible size" { // the file system has the last word
				checked = err
			}
			if checked == nil || checked.Error() != err.Error() {
				t.Errorf("checked beforehand: %v\nwant %v", checked, err)
			}
		})
	}
	if _, err := os.Stat(at("new")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a failed open has left a file behind: %v", err)
	}
	if b, err := os.ReadFile(at("short")); err != nil || len(b) != 4096 || b[0] != 7 {
		t.Errorf("a failed open has changed a file: %d bytes, %v", len(b), err)
	}
}

// A file that can be opened passes the check, which leaves it as it is and needs no lock.
func TestCheckFile(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	writeFile(t, at("empty"), 0, 0o600)
	writeFile(t, at("protected"), 4096, 0o444)
	newFile(t, media.FileConfig{Path: at("open"), SizeBytes: 8192})
	for _, c := range []media.FileConfig{
		{Path: at("new"), SizeBytes: 4096},
		{Path: at("empty"), SizeBytes: 4096},
		{Path: at("protected"), ReadOnly: true},
		{Path: at("open")},
		{Path: at("open"), SizeBytes: 8192, BlockBytes: 4096},
		{Path: at("open"), ReadOnly: true},
	} {
		if err := media.CheckFile(c); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(at("new")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a check has made a file: %v", err)
	}
	if fi, err := os.Stat(at("empty")); err != nil || fi.Size() != 0 {
		t.Errorf("a check has changed a file: %v, %v", fi, err)
	}
}

func TestOpenFile_Locks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	f, err := media.OpenFile(media.FileConfig{Path: path, SizeBytes: 8192})
	if err != nil {
		t.Fatal(err)
	}
	for _, readOnly := range []bool{false, true} {
		if _, err := media.OpenFile(media.FileConfig{Path: path, ReadOnly: readOnly}); err == nil ||
			!strings.Contains(err.Error(), path+": is in use") {
			t.Errorf("opened twice: %v", err)
		}
	}
	mustWrite(t, f, 512, 1, 0)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	a := newFile(t, media.FileConfig{Path: path, ReadOnly: true})
	b := newFile(t, media.FileConfig{Path: path, ReadOnly: true})
	mustBe(t, a, 512, 1, 0)
	mustBe(t, b, 512, 1, 0)
	if _, err := media.OpenFile(media.FileConfig{Path: path}); err == nil || !strings.Contains(err.Error(), "is in use") {
		t.Errorf("opened for writing while others read: %v", err)
	}
}

// qemuOpen opens a file and locks the bytes that qemu does.
func qemuOpen(t *testing.T, path string, bytes ...int64) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	for _, b := range bytes {
		l := unix.Flock_t{Type: unix.F_RDLCK, Start: b, Len: 1}
		if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &l); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// TestOpenFile_LocksOfQemu: qemu and a disk do not have one image together, unless both
// only read.
func TestOpenFile_LocksOfQemu(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	writeFile(t, path, 8192, 0o600)
	opens := func(readOnly bool) bool {
		f, err := media.OpenFile(media.FileConfig{Path: path, ReadOnly: readOnly})
		if err != nil {
			if !strings.Contains(err.Error(), path+": is in use") {
				t.Error(err)
			}
			return false
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		return true
	}
	for _, tt := range []struct {
		name          string
		locks         []int64
		read, written bool
	}{
		{"qemu-nbd", []int64{100, 101, 103, 201, 203}, false, false},
		{"qemu-nbd -r", []int64{100, 201, 203}, true, false},
		{"writes, and lets others write", []int64{100, 101}, false, false},
		{"only reads, and lets others write", []int64{100}, true, true},
	} {
		q := qemuOpen(t, path, tt.locks...)
		if read, written := opens(true), opens(false); read != tt.read || written != tt.written {
			t.Errorf("%s: opened for reading: %v, for writing: %v; want %v, %v", tt.name, read, written, tt.read, tt.written)
		}
		if err := q.Close(); err != nil {
			t.Error(err)
		}
	}

	q := qemuOpen(t, path)
	locked := func() (bytes []int64) {
		for b := range int64(300) {
			l := unix.Flock_t{Type: unix.F_WRLCK, Start: b, Len: 1}
			if err := unix.FcntlFlock(q.Fd(), unix.F_OFD_GETLK, &l); err != nil {
				t.Fatal(err)
			}
			if l.Type != unix.F_UNLCK {
				bytes = append(bytes, b)
			}
		}
		return bytes
	}
	for readOnly, want := range map[bool][]int64{true: {100, 201, 203}, false: {100, 101, 103, 201, 203}} {
		f, err := media.OpenFile(media.FileConfig{Path: path, ReadOnly: readOnly})
		if err != nil {
			t.Fatal(err)
		}
		if got := locked(); !slices.Equal(got, want) {
			t.Errorf("read-only %v: locked %v, want %v", readOnly, got, want)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	if got := locked(); len(got) != 0 {
		t.Errorf("a disk that is closed leaves %v locked", got)
	}
	other := qemuOpen(t, path)
	if err := media.LockFile(other); err != nil || len(locked()) != 5 || opens(true) {
		t.Errorf("LockFile: %v, %v locked", err, locked())
	}
	if err := media.UnlockFile(other); err != nil || len(locked()) != 0 || !opens(false) {
		t.Errorf("UnlockFile: %v, %v locked", err, locked())
	}
}

func TestOpenFile_KeepsAndCreates(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "disk")
	f := newFile(t, media.FileConfig{Path: path, SizeBytes: 1 << 40})
	mustWrite(t, f, 512, 9, 1<<40-512)
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	if st.Size != 1<<40 || st.Blocks > 1024 {
		t.Errorf("%d bytes, %d blocks: not sparse", st.Size, st.Blocks)
	}
	if st.Mode&0o777 != 0o600 {
		t.Errorf("mode %#o, want 0600", st.Mode&0o777)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	again := newFile(t, media.FileConfig{Path: path, SizeBytes: 1 << 40, BlockBytes: 4096})
	mustBe(t, again, 512, 9, 1<<40-512)

	empty := filepath.Join(dir, "empty")
	writeFile(t, empty, 0, 0o600)
	if f := newFile(t, media.FileConfig{Path: empty, SizeBytes: 8192}); f.Size() != 8192 {
		t.Errorf("empty file: %d bytes", f.Size())
	}
	if f := newFile(t, media.FileConfig{Path: filepath.Join(dir, "taken as it is"), SizeBytes: 4096}); f.Size() != 4096 || f.ReadOnly() {
		t.Errorf("%d bytes, read-only %v", f.Size(), f.ReadOnly())
	}
}

// TestFile_Damaged: a file that somebody deletes or cuts short does not grow as if nothing
// had happened, and what was cut off is no hole. One that never had a name is none that
// was deleted.
func TestFile_Damaged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	writeFile(t, path, 8192, 0o600)
	f := newFile(t, media.FileConfig{Path: path})
	if err := os.Truncate(path, 4096); err != nil {
		t.Fatal(err)
	}
	if err := f.Resize(16384); !errors.Is(err, media.ErrMedium) || !strings.Contains(err.Error(), "cut short by somebody else, from 8192 bytes to 4096") {
		t.Errorf("resize when it was cut short: %v", err)
	}
	for off, want := range map[int64]media.Extent{
		0: {LengthBytes: 4096, Data: true}, 4096: {OffsetBytes: 4096, LengthBytes: 4096, Data: true}, 8000: {OffsetBytes: 8000, LengthBytes: 192, Data: true},
	} {
		if e, err := f.ExtentAt(off); err != nil || e != want {
			t.Errorf("extent at %d when it was cut short: %+v, %v, want %+v", off, e, err, want)
		}
	}
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 4096); err != nil {
		t.Fatal(err)
	}
	if e, err := f.ExtentAt(0); err != nil || e != (media.Extent{LengthBytes: 4096}) {
		t.Errorf("extent at a hole before what was cut off: %+v, %v", e, err)
	}
	if err := errors.Join(os.Truncate(path, 8192), os.Remove(path)); err != nil {
		t.Fatal(err)
	}
	if err := f.Resize(16384); !errors.Is(err, media.ErrMedium) || !strings.Contains(err.Error(), "has been deleted") {
		t.Errorf("resize when it was deleted: %v", err)
	}
	if f.Size() != 8192 {
		t.Errorf("%d bytes after that, want 8192", f.Size())
	}

	writeFile(t, path, 8192, 0o600)
	held, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = held.Close() }()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	nameless := newFile(t, media.FileConfig{Path: fmt.Sprintf("/proc/self/fd/%d", held.Fd())})
	if err := nameless.Resize(16384); err != nil {
		t.Errorf("resize of a file without a name: %v", err)
	}
}

func TestFile_ReadOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	writeFile(t, path, 8192, 0o444)
	f := newFile(t, media.FileConfig{Path: path, ReadOnly: true})
	mustBe(t, f, 8192, 7, 0)
	a := media.Probe(f)
	if a.Discard != nil || a.Zero != nil || a.FUA != nil || a.TryWrite != nil || a.Resize != nil || a.CompareAndWrite != nil || a.Extents == nil {
		t.Errorf("abilities %+v", a)
	}
	if _, err := f.WriteAt(make([]byte, 512), 0); !errors.Is(err, media.ErrReadOnly) {
		t.Errorf("write: %v, want ErrReadOnly", err)
	}
	if err := f.Resize(4096); !errors.Is(err, media.ErrReadOnly) {
		t.Errorf("resize: %v, want ErrReadOnly", err)
	}
	if err := f.Flush(); err != nil {
		t.Errorf("flush: %v", err)
	}
	mustBe(t, f, 8192, 7, 0)
}

// TestFile_Truncated: what is gone is an error, not zeros.
func TestFile_Truncated(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	f := newFile(t, media.FileConfig{Path: path, SizeBytes: 1 << 20})
	mustWrite(t, f, 1<<20, 5, 0)
	if err := os.Truncate(path, 10000); err != nil {
		t.Fatal(err)
	}
	mustBe(t, f, 10000, 5, 0)
	n, err := f.ReadAt(make([]byte, 8192), 8192)
	var where *media.Error
	if !errors.Is(err, media.ErrMedium) || !errors.As(err, &where) || where.OffsetBytes != 10000 || n != 10000-8192 {
		t.Errorf("%d bytes, %v; want ErrMedium at 10000", n, err)
	}
	if done, err := f.TryReadAt(make([]byte, 512), 20000); done || err != nil {
		t.Errorf("try beyond the file's end: %v, %v; want to be sent to ReadAt", done, err)
	}
}

// TestFile_ZeroWhereTruncated: what is gone does not read as zeros, so to zero it fails.
func TestFile_ZeroWhereTruncated(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	f := newFile(t, media.FileConfig{Path: path, SizeBytes: 1 << 20})
	if err := os.Truncate(path, 10000); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ off, n, want int64 }{{8192, 4096, 10000}, {16384, 4096, 16384}, {4096, 4096, -1}} {
		for name, zero := range map[string]func() error{
			"discard":  func() error { return f.Discard(tt.off, tt.n) },
			"zero":     func() error { return f.Zero(tt.off, tt.n, false) },
			"allocate": func() error { return f.Zero(tt.off, tt.n, true) },
		} {
			var where *media.Error
			switch err := zero(); {
			case tt.want < 0:
				if err != nil {
					t.Errorf("%s at %d: %v", name, tt.off, err)
				}
			case !errors.Is(err, media.ErrMedium) || !errors.As(err, &where) || where.OffsetBytes != tt.want:
				t.Errorf("%s at %d: %v, want ErrMedium at %d", name, tt.off, err, tt.want)
			}
		}
	}
}

func TestFile_DiscardFreesSpace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	f := newFile(t, media.FileConfig{Path: path, SizeBytes: 4 << 20})
	used := func() int64 {
		if err := f.Flush(); err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		return st.Blocks * 512
	}
	mustWrite(t, f, 4<<20, 1, 0)
	before := used()
	if before < 4<<20 {
		t.Fatalf("%d bytes used after writing all", before)
	}
	if err := f.Discard(1<<20, 2<<20); err != nil {
		t.Fatal(err)
	}
	if after := used(); after > before-2<<20+64<<10 {
		t.Errorf("%d bytes used, %d before: nothing was freed", after, before)
	}
	if e, err := f.ExtentAt(1 << 20); err != nil || e.Data || e.LengthBytes != 2<<20 {
		t.Errorf("extent %+v, %v", e, err)
	}
	if err := f.Zero(1<<20, 2<<20, true); err != nil {
		t.Fatal(err)
	}
	if after := used(); after < 4<<20 {
		t.Errorf("%d bytes used: nothing was allocated", after)
	}
	mustBe(t, f, 2<<20, 0, 1<<20)
	mustBe(t, f, 1<<20, 1, 0)
	mustBe(t, f, 1<<20, 1, 3<<20)
}

func TestFile_CloseMeanwhile(t *testing.T) {
	dir := t.TempDir()
	for i := range 10 {
		f, err := media.OpenFile(media.FileConfig{Path: filepath.Join(dir, "disk"), SizeBytes: 1 << 20})
		if err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		var group sync.WaitGroup
		for w := range 4 {
			group.Go(func() {
				p := make([]byte, 8192)
				for {
					var err error
					switch w {
					case 0:
						_, err = f.ReadAt(p, 65000)
					case 1:
						_, err = f.WriteAt(p, 65000)
					case 2:
						err = f.Flush()
					default:
						_, err = f.CompareAndWriteAt(p, p, 0)
					}
					if err != nil {
						if !errors.Is(err, media.ErrClosed) {
							t.Error(err)
						}
						return
					}
				}
			})
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		group.Wait()
	}
}
