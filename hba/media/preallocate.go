package media

// allocationPieceBytes is how much is allocated between two reports of progress.
const allocationPieceBytes = 64 << 20

// preallocate reserves space on the file system for every byte of the file, so that no
// write runs out of it. The file's contents stay. A fresh file, which holds only zeros,
// is written where the file system cannot allocate by itself.
func (f *File) preallocate(c FileConfig, size int64, fresh bool) error {
	written := false
	for done := int64(0); done < size; {
		n := min(allocationPieceBytes, size-done)
		err := error(nil)
		if !written {
			err = f.fallocate(0, done, n)
			written = fresh && notSupported(err)
		}
		if written {
			err = f.zeroByWriting(done, n)
		}
		if err != nil {
			return c.errorf("allocate %d bytes at %d: %w", n, done, err)
		}
		done += n
		if c.Progress == nil {
			continue
		}
		if err := c.Progress(done, size); err != nil {
			return c.errorf("allocated %d of %d bytes: %w", done, size, err)
		}
	}
	return nil
}
