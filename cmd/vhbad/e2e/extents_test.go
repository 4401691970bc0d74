//go:build interop

package e2e

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// An extent is a run of bytes that are all data, or all a hole.
type extent struct {
	Offset, Length int64
	Hole           bool
}

// addExtent appends an extent, or makes the last one longer.
func addExtent(list []extent, e extent) []extent {
	if n := len(list); n > 0 && list[n-1].Hole == e.Hole {
		list[n-1].Length += e.Length
		return list
	}
	return append(list, e)
}

// sparseImage makes a file that is mostly holes, and returns where its data is.
func sparseImage(t *testing.T) (path string, dataBytes int64) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "sparse")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(diskBytes); err != nil {
		t.Fatal(err)
	}
	for _, data := range []struct{ offset, length int64 }{{0, 64 << 10}, {5 << 20, 1 << 20}, {9<<20 + 128<<10, 64 << 10}, {diskBytes - 256<<10, 256 << 10}} {
		content := make([]byte, data.length)
		if _, err := rand.Read(content); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(content, data.offset); err != nil {
			t.Fatal(err)
		}
		dataBytes += data.length
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
	return path, dataBytes
}

// fileExtents asks the kernel where a file has holes.
func fileExtents(t *testing.T, path string) []extent {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}()
	var list []extent
	for at, isHole := int64(0), false; at < diskBytes; isHole = !isHole {
		whence := unix.SEEK_HOLE // where this run of data ends
		if isHole {
			whence = unix.SEEK_DATA
		}
		end, err := f.Seek(at, whence)
		if isHole && errors.Is(err, unix.ENXIO) {
			end, err = diskBytes, nil
		}
		if err != nil {
			t.Fatal(err)
		}
		if end > at {
			list = addExtent(list, extent{at, end - at, isHole})
		}
		at = end
	}
	return list
}

// What clients are told of holes is what the file has.
func TestExtents_AgreeWithFile(t *testing.T) {
	path, _ := sparseImage(t)
	want := fileExtents(t, path)
	if len(want) < 6 {
		t.Fatalf("the image has only %d extents: does the file system know holes?", len(want))
	}
	d := startDaemon(t, newServerConfig(t, "unix", "file:"+path))

	t.Run("nbdinfo", func(t *testing.T) {
		var told []struct {
			Offset int64 `json:"offset"`
			Length int64 `json:"length"`
			Type   int   `json:"type"`
		}
		if err := json.Unmarshal([]byte(run(t, "nbdinfo", "--map", "--json", d.uri(exportName))), &told); err != nil {
			t.Fatal(err)
		}
		var got []extent
		for _, e := range told {
			// Source: proto.md, base:allocation: a hole and reads as zeros, or neither.
			if e.Type != 0 && e.Type != 3 {
				t.Errorf("extent at %d of type %d, want 0 or 3", e.Offset, e.Type)
			}
			got = addExtent(got, extent{e.Offset, e.Length, e.Type != 0})
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("-file +nbdinfo --map\n%s", diff)
		}
	})
	t.Run("qemu-img", func(t *testing.T) {
		var told []struct {
			Start  int64 `json:"start"`
			Length int64 `json:"length"`
			Zero   bool  `json:"zero"`
			Data   bool  `json:"data"`
		}
		if err := json.Unmarshal([]byte(run(t, "qemu-img", "map", "--output=json", "-f", "raw", d.uri(exportName))), &told); err != nil {
			t.Fatal(err)
		}
		var got []extent
		for _, e := range told {
			if e.Zero == e.Data {
				t.Errorf("extent at %d: zero %v, data %v; want one of them", e.Start, e.Zero, e.Data)
			}
			got = addExtent(got, extent{e.Start, e.Length, !e.Data})
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("-file +qemu-img map\n%s", diff)
		}
	})
	t.Run("after trim", func(t *testing.T) {
		run(t, "qemu-io", "-f", "raw", "-d", "unmap", d.uri(exportName), "-c", "discard 5M 512k", "-c", "flush")
		now := fileExtents(t, path)
		if diff := cmp.Diff(want, now); diff == "" {
			t.Error("a trim made no hole in the file")
		}
		if got := run(t, "nbdinfo", "--map", "--totals", d.uri(exportName)); got == "" {
			t.Error("nbdinfo --map --totals prints nothing")
		}
	})
}

// A client that was there before sees a disk grow, in BLOCK_STATUS too.
func TestGrow_SeenByClients(t *testing.T) {
	path, _ := sparseImage(t)
	config := newServerConfig(t, "unix", "file:"+path)
	d := startDaemon(t, config)
	grow, err := json.Marshal([]string{
		vhbadBinary, "disk", "grow", exportName, strconv.Itoa(2 * diskBytes), "--admin", filepath.Join(config.folder, "admin.sock"),
	})
	if err != nil {
		t.Fatal(err)
	}
	nbdshScript(t, "grow.py", "--base-allocation", "-u", d.uri(exportName), "-c", "grow = "+string(grow))
	if fi, err := os.Stat(path); err != nil || fi.Size() != 2*diskBytes {
		t.Errorf("the image has %d bytes, %v; want %d", fi.Size(), err, 2*diskBytes)
	}
}

// A copy over eight connections is exact, and what was sparse stays sparse.
func TestNbdcopy_SparseEightConnections(t *testing.T) {
	path, dataBytes := sparseImage(t)
	copied, back := filepath.Join(t.TempDir(), "copied"), filepath.Join(t.TempDir(), "back")
	source := startDaemon(t, newServerConfig(t, "unix", "file:"+path))
	target := startDaemon(t, newServerConfig(t, "tcp", "file:"+copied+",size=64MiB"))
	options := []string{"--threads=8", "--connections=8", "--requests=64", "--request-size=262144", "--flush"}
	run(t, "nbdcopy", append(options, source.uri(exportName), target.uri(exportName))...)
	run(t, "cmp", path, copied)
	target.awaitOutput(t, `"msg":"connected"`, 8)
	run(t, "nbdcopy", append(options, target.uri(exportName), back)...)
	run(t, "cmp", path, back)
	for _, file := range []string{copied, back} {
		// Half a megabyte of slack: requests and file systems round outward.
		if got, most := allocatedBytes(t, file), dataBytes+512<<10; got > most {
			t.Errorf("%s takes %d bytes of %d, want at most %d: the source has %d of data", filepath.Base(file), got, diskBytes, most, dataBytes)
		}
	}
	// And dense data over sparse: eight writers, eight readers.
	dense := image(t, diskBytes)
	run(t, "nbdcopy", append(options, dense, target.uri(exportName))...)
	run(t, "nbdcopy", append(options, target.uri(exportName), back)...)
	run(t, "cmp", dense, back)
}

func allocatedBytes(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}
