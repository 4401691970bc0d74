package media_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vhbad/vhbad/hba/media"
)

// TestFile_ZeroIsFast: what a file says of its zeroing is what its file system
// does, and asking leaves nothing behind.
func TestFile_ZeroIsFast(t *testing.T) {
	dir := t.TempDir()
	other, err := os.Create(filepath.Join(dir, "other"))
	if err != nil {
		t.Fatal(err)
	}
	fd := int(other.Fd())
	want := unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE, 0, 4096) == nil ||
		unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4096) == nil &&
			unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, 0, 4096) == nil
	if tmp, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR, 0o600); err != nil {
		want = false // there is no way to ask
	} else if err := unix.Close(tmp); err != nil {
		t.Error(err)
	}
	if err := other.Close(); err != nil {
		t.Error(err)
	}
	path := filepath.Join(dir, "disk")
	f := newFile(t, media.FileConfig{Path: path, SizeBytes: 1 << 20})
	if got := media.Probe(f).ZeroIsFast; got != want {
		t.Errorf("zeroing is fast: %t, want %t", got, want)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("%v in the folder, %v", entries, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Blocks != 0 {
		t.Errorf("%d blocks allocated, %v", st.Blocks, err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if f := newFile(t, media.FileConfig{Path: path, ReadOnly: true}); media.Probe(f).ZeroIsFast {
		t.Error("a read-only file zeroes fast")
	}
}

// TestFile_ExtentsAgree: extents are what lseek says of the same file.
func TestFile_ExtentsAgree(t *testing.T) {
	const size = 16 << 20
	path := filepath.Join(t.TempDir(), "disk")
	f := newFile(t, media.FileConfig{Path: path, SizeBytes: size})
	for _, at := range []int64{0, 1 << 20, 1<<20 + 4096, 5 << 20, size - 65536} {
		mustWrite(t, f, 65536, 1, at)
	}
	other, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	fd := int(other.Fd())
	extents := 0
	for at := int64(0); at < size; extents++ {
		e, err := f.ExtentAt(at)
		if err != nil {
			t.Fatal(err)
		}
		whence := unix.SEEK_DATA
		if e.Data {
			whence = unix.SEEK_HOLE
		}
		next, err := unix.Seek(fd, at, whence)
		if errors.Is(err, unix.ENXIO) {
			next, err = size, nil
		}
		if err != nil || e.OffsetBytes != at || e.End() != next {
			t.Fatalf("%+v, but lseek from %d: %d, %v", e, at, next, err)
		}
		at = next
	}
	if extents == 0 {
		t.Error("no extents")
	}
}
