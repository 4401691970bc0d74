package daemon

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// TestCache_ReadsAhead: CACHE has the kernel read the range of an image, and no more,
// into its page cache before anybody asks for it.
func TestCache_ReadsAhead(t *testing.T) {
	const size, from, to = 16 << 20, 4 << 20, 7 << 20
	page := os.Getpagesize()
	s := newSettings(t, "f=file:$DIR/f.img")
	path := filepath.Join(s.dir, "f.img")
	if err := os.WriteFile(path, bytes.Repeat([]byte("data"), size/4), 0o600); err != nil {
		t.Fatal(err)
	}
	image, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = image.Close() }()
	s.mustStart(t)
	c := s.speak(t, "f", formats[1])
	if err := image.Sync(); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		if err := unix.Fadvise(int(image.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			t.Fatal(err)
		}
		if slices.Contains(cachedPages(t, image, size), true) {
			return "the file system of " + s.dir + " keeps a file in its cache: set TMPDIR to a folder on a disk"
		}
		return ""
	})
	ask(t, c, nbdtest.Command{Type: nbdtest.CmdCache, Offset: from, Length: to - from}, nbd.OK)
	eventually(t, func() string { // the kernel reads on after it has answered
		if slices.Contains(cachedPages(t, image, size)[from/page:to/page], false) {
			return fmt.Sprintf("CACHE of %d bytes at %d has not brought them all into the cache", to-from, from)
		}
		return ""
	})
	all := cachedPages(t, image, size)
	// Its own readahead is the kernel's to choose, but not that large.
	if slices.Contains(all[:from/page/2], true) || slices.Contains(all[(to+size)/2/page:], true) {
		t.Error("CACHE of a part has brought all of the image into the cache")
	}
}

// A plodder is an image on a file system that punches holes, but has no other way
// to zero a range and keep its place than to write zeros.
type plodder struct{ *media.File }

func (plodder) ZeroIsFast() bool { return false }

// zeroAllocates says whether the file system of a folder zeroes a range and keeps
// its place without writing it.
func zeroAllocates(t *testing.T, dir string) bool {
	t.Helper()
	f, err := os.CreateTemp(dir, "zero")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	fd := int(f.Fd())
	const keep = unix.FALLOC_FL_KEEP_SIZE
	return unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE|keep, 0, 4096) == nil ||
		unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|keep, 0, 4096) == nil && unix.Fallocate(fd, keep, 0, 4096) == nil
}

// TestFastZero_File: an image zeroes fast where its file system does, whether or not the
// space is to be kept. ENOTSUP is for zeroing that would really be slow; the same command
// without the flag works all the same.
func TestFastZero_File(t *testing.T) {
	const size, from, length = 8 << 20, 1<<20 + 4096, 4 << 20
	const slack = 64 << 10 // of the file system's own blocks
	for _, tt := range []struct {
		name   string
		wrap   func(*media.File) media.Media
		noHole bool // is fast
	}{
		{"file", func(f *media.File) media.Media { return f }, zeroAllocates(t, t.TempDir())},
		{"slow file", func(f *media.File) media.Media { return plodder{f} }, false},
	} {
		s := newSettings(t, "d=memory:1MiB")
		path := filepath.Join(s.dir, "d.img")
		f, err := media.OpenFile(media.FileConfig{Path: path, SizeBytes: size})
		if err != nil {
			t.Fatal(err)
		}
		d := s.startOn(t, tt.wrap(f))
		c := s.speak(t, "d", formats[1])
		data := bytes.Repeat([]byte{7}, size)
		taken := func() int64 {
			ask(t, c, nbdtest.Command{Type: nbdtest.CmdFlush}, nbd.OK)
			fi, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			return fi.Sys().(*syscall.Stat_t).Blocks * 512
		}
		for _, z := range []struct {
			name  string
			flags uint16
			fast  bool
		}{
			{"fast", nbdtest.FlagFastZero, true},
			{"fast, no hole", nbdtest.FlagFastZero | nbdtest.FlagNoHole, tt.noHole},
			{"no hole", nbdtest.FlagNoHole, true},
			{"neither", 0, true},
		} {
			t.Run(tt.name+", "+z.name, func(t *testing.T) {
				ask(t, c, nbdtest.Command{Type: nbdtest.CmdWrite, Length: size, Payload: data}, nbd.OK)
				before := taken()
				want, errno := bytes.Clone(data), nbd.ENOTSUP
				if z.fast {
					clear(want[from : from+length])
					errno = nbd.OK
				}
				ask(t, c, nbdtest.Command{Type: nbdtest.CmdWriteZeroes, Flags: z.flags, Offset: from, Length: length}, errno)
				if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, want) {
					t.Errorf("the image is not what it should be: %v", err)
				}
				released := before - taken()
				if hole := z.fast && z.flags&nbdtest.FlagNoHole == 0; hole && released < length-slack || !hole && released > slack {
					t.Errorf("%d bytes of the file were released", released)
				}
			})
		}
		noViolations(t, machineOf(d))
	}
}
