//go:build kernel

package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
)

// A tree is a number of files in folders of a hundred, whose names, sizes and
// contents follow from a seed. So a check knows every byte without a list, which
// is stronger than a checksum kept beside the files.
type tree struct {
	seed  uint64
	files int
}

const treeFolderFiles = 100

func (tr tree) file(root string, i int) (path string, content []byte) {
	r := rand.NewPCG(tr.seed, uint64(i))
	sizeBytes := int(r.Uint64() % 4096)
	if i%50 == 0 {
		sizeBytes *= 32 // some larger than a page, some larger than an extent
	}
	content = make([]byte, sizeBytes, sizeBytes+8)
	for at := 0; at < sizeBytes; at += 8 {
		binary.LittleEndian.PutUint64(content[at:at+8:sizeBytes+8], r.Uint64())
	}
	return filepath.Join(root, fmt.Sprintf("%03d", i/treeFolderFiles), fmt.Sprintf("%05d", i)), content
}

// write makes the files; the last of each folder is fsynced, and so is the folder.
func (tr tree) write(root string) error {
	for i := range tr.files {
		path, content := tr.file(root, i)
		if i%treeFolderFiles == 0 {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				return err
			}
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			return err
		}
		if i%treeFolderFiles == treeFolderFiles-1 {
			if err := fsync(path); err != nil {
				return err
			}
			if err := fsync(filepath.Dir(path)); err != nil {
				return err
			}
		}
	}
	return nil
}

// check reads every file back and compares each byte.
func (tr tree) check(root string) error {
	for i := range tr.files {
		path, want := tr.file(root, i)
		got, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("%s: content differs at byte %d of %d (seed %d)", path, mismatch(got, want), len(want), tr.seed)
		}
	}
	return nil
}

func mismatch(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

func fsync(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("fsync %s: %w", path, err)
	}
	return f.Close()
}
