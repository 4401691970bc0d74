package media

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// ErrInUse is why a file cannot be locked: others have it open.
var ErrInUse = errors.New("is in use: another disk or process holds its lock")

// Bytes of a file that qemu and its tools lock, all for reading (its
// block/file-posix.c): qemuDoes plus a number for each thing that they do with an image,
// and qemuAlone plus the number for each thing that nobody else may do meanwhile.
const (
	qemuDoes  = 100
	qemuAlone = 200

	qemuRead   = 0
	qemuWrite  = 1
	qemuResize = 3
)

// LockFile takes the locks that OpenFile takes for an image that is to be written.
// UnlockFile gives them up; so does closing the file.
//
// Errors: ErrInUse; what the kernel says.
func LockFile(f *os.File) error { return lock(int(f.Fd()), false) }

// UnlockFile undoes LockFile.
func UnlockFile(f *os.File) error {
	all := unix.Flock_t{Type: unix.F_UNLCK, Whence: unix.SEEK_SET, Start: qemuDoes, Len: 2 * (qemuAlone - qemuDoes)}
	err := ignoringEINTR(func() error { return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &all) })
	if noByteLocks(err) {
		err = nil
	}
	return errors.Join(err, ignoringEINTR(func() error { return unix.Flock(int(f.Fd()), unix.LOCK_UN) }))
}

// lock takes the file for this disk alone, or for several readers. There are two kinds
// of locks: that of flock, which most programs take, and those of qemu, which ignores
// flock's.
//
// Errors: ErrInUse; what the kernel says.
func lock(fd int, readOnly bool) error {
	how := unix.LOCK_EX
	if readOnly {
		how = unix.LOCK_SH
	}
	err := ignoringEINTR(func() error { return unix.Flock(fd, how|unix.LOCK_NB) })
	if errors.Is(err, unix.EWOULDBLOCK) {
		return ErrInUse
	}
	if err != nil {
		return err
	}
	if locked, err := flockLocksBytes(fd); locked || err != nil {
		return err
	}
	does, alone := []int64{qemuRead}, []int64{qemuWrite, qemuResize}
	if !readOnly {
		does = append(does, qemuWrite, qemuResize)
	}
	for _, at := range [][]int64{added(does, qemuDoes), added(alone, qemuAlone)} {
		for _, off := range at {
			if err := byteLock(fd, unix.F_OFD_SETLK, unix.F_RDLCK, off); err != nil {
				return err
			}
		}
	}
	// First take, then look: of two that come together, neither may overlook the other.
	for _, at := range [][]int64{added(does, qemuAlone), added(alone, qemuDoes)} {
		for _, off := range at {
			if err := byteLock(fd, unix.F_OFD_GETLK, unix.F_WRLCK, off); err != nil {
				return err
			}
		}
	}
	return nil
}

// flockLocksBytes reports whether the file system of fd implements flock as a lock of
// all bytes, as a rule: mount options may say otherwise. There, qemu's locks conflict
// with flock's anyway. More byte locks would keep readers from each other on NFS, and on
// SMB, where they are mandatory, keep the disk from its own first block.
//
// Source: flock(2), "NFS details" and "CIFS details".
func flockLocksBytes(fd int) (bool, error) {
	magic, err := fileSystemOf(fd)
	return locksBytes(magic), err
}

func locksBytes(magic uint32) bool {
	switch magic {
	case unix.NFS_SUPER_MAGIC, unix.SMB_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC:
		return true
	}
	return false
}

func added(numbers []int64, base int64) []int64 {
	out := make([]int64, len(numbers))
	for i, n := range numbers {
		out[i] = base + n
	}
	return out
}

// byteLock takes a lock of one byte, or asks whether it is available. On a file system
// without such locks nothing conflicts.
func byteLock(fd, command int, kind int16, off int64) error {
	l := unix.Flock_t{Type: kind, Whence: unix.SEEK_SET, Start: off, Len: 1}
	err := ignoringEINTR(func() error { return unix.FcntlFlock(uintptr(fd), command, &l) })
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EACCES):
		return ErrInUse
	case noByteLocks(err):
		return nil
	case err != nil:
		return err
	case command == unix.F_OFD_GETLK && l.Type != unix.F_UNLCK:
		return ErrInUse
	}
	return nil
}

// noByteLocks reports whether an error says that the file system has no locks of bytes.
func noByteLocks(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOLCK) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS)
}
