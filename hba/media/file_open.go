package media

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vhbad/vhbad/internal/aside"
	"golang.org/x/sys/unix"
)

// FileConfig describes a File.
type FileConfig struct {
	Path string
	// SizeBytes is the size of a file to create, or what an existing one must
	// have. Zero takes an existing file or device as it is.
	SizeBytes int64
	// BlockBytes must divide the size; 512 if zero.
	BlockBytes uint32
	// ReadOnly opens for reading; the lock is then shared with other readers.
	ReadOnly bool
	// AllowBlockDevice lets Path be a block device. It is a guard against
	// overwriting one by mistake.
	AllowBlockDevice bool
	// Preallocate reserves space on the file system for all of the file before it is
	// used; its contents stay. It is for regular files that may be written.
	Preallocate bool
	// Progress, if not nil, is told how far Preallocate has come. If it returns an
	// error, OpenFile fails with that error.
	Progress func(doneBytes, totalBytes int64) error
}

// OpenFile opens or creates a file as a medium.
//
// An empty file counts as one to create. Errors name the path, what is wrong
// with it and what would help.
func OpenFile(c FileConfig) (*File, error) {
	if err := c.settle(); err != nil {
		return nil, err
	}
	fd, created, err := c.open()
	if err != nil {
		return nil, err
	}
	f := &File{path: c.Path, fd: fd, readOnly: c.ReadOnly, zeroUnit: 1, allocate: unix.Fallocate, writeFlags: pwriteFlags, advise: unix.Fadvise}
	f.flushes.sync = func() error { return ignoringEINTR(func() error { return unix.Fdatasync(fd) }) }
	opened := time.Now()
	f.atOnce.now = func() time.Duration { return time.Since(opened) }
	f.atOnce.stepAside = aside.Step
	if err := f.setUp(c, created); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return f, nil
}

// CheckFile reports what OpenFile would, as far as that shows without opening, locking or
// making the file: another process may have it.
func CheckFile(c FileConfig) error {
	if err := c.settle(); err != nil {
		return err
	}
	var st unix.Stat_t
	there, err := c.look(&st)
	if err != nil {
		return err
	}
	if !there {
		err := unix.Access(filepath.Dir(c.Path), unix.W_OK|unix.X_OK)
		if unix.Lstat(c.Path, &st) == nil {
			err = unix.EEXIST // a link to nowhere
		}
		if err != nil {
			return c.errorf("create: %w", err)
		}
		return nil
	}
	mode := uint32(unix.R_OK)
	if !c.ReadOnly {
		mode |= unix.W_OK
	}
	if err := unix.Access(c.Path, mode); err != nil {
		return c.openError(err)
	}
	regular := st.Mode&unix.S_IFMT == unix.S_IFREG
	if !regular || st.Size == 0 && c.SizeBytes > 0 && !c.ReadOnly {
		return nil // a device's size shows when it is open, and an empty file gets one
	}
	return c.checkSize(st.Size)
}

// settle fills in defaults, and checks what can be checked without the file.
func (c *FileConfig) settle() error {
	if c.BlockBytes == 0 {
		c.BlockBytes = 512
	}
	if c.Path == "" {
		return errors.New("media: file without a path")
	}
	if c.SizeBytes < 0 || c.SizeBytes%int64(c.BlockBytes) != 0 {
		return c.errorf("size %d bytes is not a multiple of the block size, %d bytes", c.SizeBytes, c.BlockBytes)
	}
	return nil
}

func (c *FileConfig) errorf(format string, args ...any) error {
	return fmt.Errorf("media: file %s: %w", c.Path, fmt.Errorf(format, args...))
}

// look gets the status of a file that can be opened, or is not there and can be created.
func (c *FileConfig) look(st *unix.Stat_t) (there bool, err error) {
	err = unix.Stat(c.Path, st)
	switch {
	case errors.Is(err, unix.ENOENT) && c.SizeBytes == 0:
		return false, c.errorf("does not exist; give size= to create it")
	case errors.Is(err, unix.ENOENT) && c.ReadOnly:
		return false, c.errorf("does not exist, and a read-only disk cannot create it")
	case errors.Is(err, unix.ENOENT):
		return false, nil
	case err != nil:
		return false, c.errorf("%w", err)
	}
	if err := c.checkKind(st); err != nil {
		return false, err
	}
	if !c.ReadOnly && st.Mode&0o222 == 0 {
		// Root could write it nevertheless, but its owner does not want it written.
		return false, c.errorf("is write-protected (mode %#o); serve it with the read-only option or chmod it", st.Mode&0o777)
	}
	return true, nil
}

// open opens the file, and creates it if it is not there and has a size.
func (c *FileConfig) open() (fd int, created bool, err error) {
	// The kind of a file is looked at before it is opened, as opening a device
	// can have effects, and again afterwards.
	var st unix.Stat_t
	there, err := c.look(&st)
	if err != nil {
		return -1, false, err
	}
	if !there {
		fd, err = openRetry(c.Path, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL)
		if err != nil {
			return -1, false, c.errorf("create: %w", err)
		}
		return fd, true, nil
	}
	flags := unix.O_RDWR
	if c.ReadOnly {
		flags = unix.O_RDONLY
	}
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		flags |= unix.O_EXCL // fails if it is mounted or otherwise taken
	}
	fd, err = openRetry(c.Path, flags)
	if err != nil {
		return -1, false, c.openError(err)
	}
	return fd, false, nil
}

// openError says of an error of open(2) or access(2) what would help.
func (c *FileConfig) openError(err error) error {
	switch {
	case errors.Is(err, unix.EROFS):
		return c.errorf("is on a read-only file system; serve it with the read-only option")
	case errors.Is(err, unix.EACCES) && !c.ReadOnly && unix.Access(c.Path, unix.R_OK) == nil:
		return c.errorf("may not be written by this user; serve it with the read-only option or chmod it: %w", err)
	case errors.Is(err, unix.EACCES):
		return c.errorf("may not be read by this user: %w", err)
	case errors.Is(err, unix.EBUSY):
		return c.errorf("is a block device in use, mounted perhaps")
	}
	return c.errorf("open: %w", err)
}

func openRetry(path string, flags int) (fd int, err error) {
	err = ignoringEINTR(func() error {
		var err error
		fd, err = unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_LARGEFILE, 0o600)
		return err
	})
	return fd, err
}

func (c *FileConfig) checkKind(st *unix.Stat_t) error {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return nil
	case unix.S_IFBLK:
		if c.AllowBlockDevice {
			return nil
		}
		return c.errorf("is a block device, which would be overwritten; allow block devices to mean it")
	case unix.S_IFDIR:
		return c.errorf("is a directory; want a regular file")
	}
	return c.errorf("is neither a regular file nor a block device")
}

// checkSize reports what is wrong with the size of a file.
func (c *FileConfig) checkSize(size int64) error {
	switch {
	case size == 0:
		return c.errorf("is empty; give size= to make it a disk")
	case c.SizeBytes > 0 && size > c.SizeBytes:
		return c.errorf("has %d bytes, more than size=%d; drop size= or truncate it yourself", size, c.SizeBytes)
	case c.SizeBytes > 0 && size < c.SizeBytes:
		return c.errorf("has %d bytes, less than size=%d; drop size= or grow it first: truncate -s %d %s",
			size, c.SizeBytes, c.SizeBytes, c.Path)
	case size%int64(c.BlockBytes) != 0:
		return c.errorf("has %d bytes, not a multiple of the block size, %d bytes", size, c.BlockBytes)
	}
	return nil
}

// setUp locks the open file, settles its size and finds out what it can do.
func (f *File) setUp(c FileConfig, created bool) error {
	err := lock(f.fd, c.ReadOnly)
	if errors.Is(err, ErrInUse) {
		return c.errorf("%w", err)
	}
	if err != nil {
		return c.errorf("lock: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return c.errorf("stat: %w", err)
	}
	if err := c.checkKind(&st); err != nil {
		return err
	}
	f.device, f.linked = st.Mode&unix.S_IFMT == unix.S_IFBLK, st.Nlink > 0
	size, err := unix.Seek(f.fd, 0, unix.SEEK_END)
	if err != nil {
		return c.errorf("find the end: %w", err)
	}
	fresh := size == 0 && c.SizeBytes > 0 && !c.ReadOnly && !f.device
	if fresh {
		if err := f.makeSize(c, created); err != nil {
			if created {
				err = errors.Join(err, unix.Unlink(c.Path))
			}
			return err
		}
		size = c.SizeBytes
	}
	if err := c.checkSize(size); err != nil {
		return err
	}
	if c.Preallocate && !fresh {
		if f.device || c.ReadOnly {
			return c.errorf("cannot be preallocated: want a regular file that may be written")
		}
		if err := f.preallocate(c, size, false); err != nil {
			return err
		}
	}
	f.size.Store(size)
	f.probe(&st)
	return nil
}

// makeSize gives an empty file its size, durably.
func (f *File) makeSize(c FileConfig, created bool) error {
	if err := ignoringEINTR(func() error { return unix.Ftruncate(f.fd, c.SizeBytes) }); err != nil {
		return c.errorf("set its size to %d bytes: %w", c.SizeBytes, err)
	}
	if c.Preallocate {
		if err := f.preallocate(c, c.SizeBytes, true); err != nil {
			return errors.Join(err, unix.Ftruncate(f.fd, 0)) // empty, as it was
		}
	}
	if err := ignoringEINTR(func() error { return unix.Fsync(f.fd) }); err != nil {
		return c.errorf("sync: %w", err)
	}
	if !created {
		return nil
	}
	dir, err := unix.Open(filepath.Dir(c.Path), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil // a directory that cannot be read cannot be synced either
	}
	err = ignoringEINTR(func() error { return unix.Fsync(dir) })
	if closeErr := unix.Close(dir); err == nil {
		err = closeErr
	}
	if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: directories have no sync here
		return c.errorf("sync its directory: %w", err)
	}
	return nil
}

// probe tries operations that change nothing, to learn what the file system can do.
func (f *File) probe(st *unix.Stat_t) {
	size := f.size.Load()
	switch {
	case f.readOnly:
	case f.device:
		f.noHoles.Store(!deviceZeroes(st.Rdev))
		f.zeroUnit = pageBytes // unless it says
		if n, err := unix.IoctlGetInt(f.fd, unix.BLKSSZGET); err == nil && n > 0 {
			f.zeroUnit = int64(n)
		}
	default:
		// Beyond the end there is nothing to punch.
		err := f.fallocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, size, pageBytes)
		f.noHoles.Store(notSupported(err))
		f.zeroFast = zeroesFast(f.path, st.Dev)
	}
	if _, err := unix.Seek(f.fd, 0, unix.SEEK_DATA); err != nil && err != unix.ENXIO {
		f.noExtents.Store(true)
	}
	f.atOnce.able = !f.readOnly && !f.device && writesWaitForDisk(f.fd)
	var b [1]byte
	if _, errno := preadNoWait(f.fd, b[:], 0); noSuchFlag(errno) {
		f.noTryRead.Store(true)
	}
}

// zeroesFast reports whether the file system of path, on device dev, zeroes and
// allocates a range without writing it. Trying that changes a file, so a nameless file
// next to path is tried. Where there can be none, the answer is no.
func zeroesFast(path string, dev uint64) bool {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return false
	}
	fd, err := openRetry(filepath.Dir(path), unix.O_TMPFILE|unix.O_RDWR)
	if err != nil {
		return false
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	f := &File{fd: fd, allocate: unix.Fallocate}
	fast := err == nil && st.Dev == dev && // a file may be mounted by itself
		f.zeroAllocated(0, pageBytes) == nil
	return errors.Join(err, unix.Close(fd)) == nil && fast
}

// deviceZeroes reports whether a block device zeroes without being sent zeros; otherwise
// the kernel would write them itself.
func deviceZeroes(rdev uint64) bool {
	at := fmt.Sprintf("/sys/dev/block/%d:%d/", unix.Major(rdev), unix.Minor(rdev))
	for _, queue := range []string{"queue", "../queue"} { // of a disk, of a partition's disk
		if b, err := os.ReadFile(at + queue + "/write_zeroes_max_bytes"); err == nil {
			return strings.TrimSpace(string(b)) != "0"
		}
	}
	return false
}
