//go:build kernel

package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// A tree is a number of files in folders of a hundred, whose names, sizes and
// contents follow from a seed. So a check knows every byte without a list, which
// is stronger than a checksum kept beside the files.
type tree struct {
	seed  uint64
	files int
}

const (
	treeFolderFiles = 100
	treeFileBytes   = 128 << 10 // the largest file
)

// file returns the path of file i and its content, in buf.
func (tr tree) file(root string, i int, buf []byte) (path string, content []byte) {
	r := rand.NewPCG(tr.seed, uint64(i))
	sizeBytes := int(r.Uint64() % (treeFileBytes / 32))
	if i%50 == 0 {
		sizeBytes *= 32 // some are larger than a page and than one request
	}
	for at := 0; at < sizeBytes; at += 8 {
		binary.LittleEndian.PutUint64(buf[at:], r.Uint64())
	}
	return filepath.Join(root, fmt.Sprintf("%03d", i/treeFolderFiles), fmt.Sprintf("%05d", i)), buf[:sizeBytes]
}

// write makes the files; the last of each folder is fsynced, and so is the folder.
//
// Fresh memory and system calls are what costs in a guest: so one buffer, and no
// more calls than open, write and close.
func (tr tree) write(root string) error {
	buf := make([]byte, treeFileBytes)
	for i := range tr.files {
		path, content := tr.file(root, i, buf)
		if i%treeFolderFiles == 0 {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				return err
			}
		}
		if err := writeFile(path, content, i%treeFolderFiles == treeFolderFiles-1); err != nil {
			return fmt.Errorf("write %s: %w", path, err)
		}
		if i%treeFolderFiles == treeFolderFiles-1 {
			if err := fsync(filepath.Dir(path)); err != nil {
				return err
			}
		}
	}
	return nil
}

func writeFile(path string, content []byte, sync bool) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	n, err := unix.Write(fd, content)
	if err == nil && n != len(content) {
		err = io.ErrShortWrite
	}
	if err == nil && sync {
		err = unix.Fsync(fd)
	}
	return errors.Join(err, unix.Close(fd))
}

// treeReaders read at once in a check: with one, each small file costs a whole
// round trip through two processes, which the guest's one processor makes slow.
const treeReaders = 16

// check reads every file back and compares each byte.
func (tr tree) check(root string) error {
	var readers sync.WaitGroup
	failures := make([]error, treeReaders)
	for first := range treeReaders {
		readers.Go(func() { failures[first] = tr.checkShare(root, first) })
	}
	readers.Wait()
	return errors.Join(failures...)
}

// checkShare checks every file of one reader, the first of which is first.
func (tr tree) checkShare(root string, first int) error {
	buf, got := make([]byte, treeFileBytes), make([]byte, treeFileBytes+1)
	for i := first; i < tr.files; i += treeReaders {
		path, want := tr.file(root, i, buf)
		n, err := readFile(path, got)
		if err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		if !bytes.Equal(got[:n], want) {
			return fmt.Errorf("%s: %d bytes, want %d; content differs at byte %d (seed %d)",
				path, n, len(want), mismatch(got[:n], want), tr.seed)
		}
	}
	return nil
}

// readFile reads the start of a file in one call, which a file system does not cut short.
func readFile(path string, buf []byte) (int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	n, err := unix.Read(fd, buf)
	return n, errors.Join(err, unix.Close(fd))
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
	return errors.Join(f.Sync(), f.Close())
}
