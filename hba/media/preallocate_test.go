package media_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/vhbad/vhbad/hba/media"
)

// allocated is how many bytes of a file have their place.
func allocated(t *testing.T, path string) int64 {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Sys().(*syscall.Stat_t).Blocks * 512
}

func TestOpenFile_Preallocate(t *testing.T) {
	const size = 130 << 20 // three pieces
	path := filepath.Join(t.TempDir(), "image")
	var steps []int64
	progress := func(done, total int64) error {
		if total != size {
			t.Errorf("progress of %d bytes, want %d", total, size)
		}
		steps = append(steps, done)
		return nil
	}
	f, err := media.OpenFile(media.FileConfig{Path: path, SizeBytes: size, Preallocate: true, Progress: progress})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if n := allocated(t, path); n < size {
		t.Errorf("%d bytes are allocated, want %d", n, size)
	}
	if len(steps) != 3 || steps[2] != size {
		t.Errorf("progress %v, want three steps to %d", steps, size)
	}
}

// A file that is there keeps what it holds.
func TestOpenFile_PreallocateExisting(t *testing.T) {
	const size = 2 << 20
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	f, err := media.OpenFile(media.FileConfig{Path: path, Preallocate: true})
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 8)
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, []byte("data\x00\x00\x00\x00")) {
		t.Errorf("%q, %v; want what was there", got, err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if n := allocated(t, path); n < size {
		t.Errorf("%d bytes are allocated, want %d", n, size)
	}
}

// Who stops it leaves nothing behind, and no file that was not there.
func TestOpenFile_PreallocateStopped(t *testing.T) {
	enough := errors.New("enough")
	stop := func(int64, int64) error { return enough }
	folder := t.TempDir()
	path := filepath.Join(folder, "image")
	_, err := media.OpenFile(media.FileConfig{Path: path, SizeBytes: 1 << 20, Preallocate: true, Progress: stop})
	if !errors.Is(err, enough) {
		t.Errorf("got %v, want the error of Progress", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file is there: %v", err)
	}
	empty := filepath.Join(folder, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := media.OpenFile(media.FileConfig{Path: empty, SizeBytes: 1 << 20, Preallocate: true, Progress: stop}); !errors.Is(err, enough) {
		t.Errorf("got %v, want the error of Progress", err)
	}
	if st, err := os.Stat(empty); err != nil || st.Size() != 0 {
		t.Errorf("a file that was empty: %v, %v; want it empty", st, err)
	}
}
