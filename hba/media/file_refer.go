package media

import (
	"github.com/vhbad/vhbad/internal/dma"
	"golang.org/x/sys/unix"
)

// ReferAt implements Referrer, with the pages of the page cache. Without mayBlock they
// must all be there.
func (f *File) ReferAt(to dma.Pages, n int, off int64, mayBlock bool) bool {
	s := stripesOf(off, 1)
	if !smallPages || to.Expired() || f.noSplice.Load() || n < 1 || off&(pageBytes-1)+int64(n) > dma.PipeMostBytes {
		return false
	}
	if mayBlock {
		f.ranges.share(s)
	} else if !f.ranges.tryShare(s) {
		return false
	}
	defer f.ranges.unshare(s)
	if !inside(off, int64(n), f.size.Load()) || !mayBlock && !f.cached(off, n) {
		return false
	}
	pipe, ok := to.Begin()
	if !ok {
		return false
	}
	return to.End(f.spliceAll(pipe, n, off))
}

// probeBytes is the distance between the pages that are checked: the default length of
// read-ahead.
const probeBytes = 128 << 10

// cached reports whether all pages with the n bytes from off are in the page cache and
// some of them, including the last, have been read: pages read ahead are present before
// they are read. The kernel may still drop some at once, and make a splice wait for
// them; it does so with pages that have not been used for long.
func (f *File) cached(off int64, n int) bool {
	if f.noCacheStat.Load() || f.noTryRead.Load() {
		return false
	}
	first := off &^ (pageBytes - 1)
	last := (off + int64(n) - 1) &^ (pageBytes - 1)
	var stat unix.Cachestat_t
	err := unix.Cachestat(uint(f.fd), &unix.CachestatRange{Off: uint64(first), Len: uint64(last - first + pageBytes)}, &stat, 0)
	if err != nil {
		f.noCacheStat.Store(true) // before Linux 6.5, or the file is not ours to write
		return false
	}
	if stat.Cache != uint64(last-first)>>pageShift+1 {
		return false
	}
	end := off + int64(n)
	for at := off; at < end; at += probeBytes {
		if !f.readable(at) {
			return false
		}
	}
	return f.readable(end - 1)
}

// readable reports whether the byte at off can be read without waiting.
func (f *File) readable(off int64) bool {
	var b [1]byte
	n, errno := preadNoWait(f.fd, b[:], off)
	return errno == 0 && n == 1
}

// spliceAll moves references to the n bytes from off to a pipe that has room for them.
func (f *File) spliceAll(pipe, n int, off int64) bool {
	for n > 0 {
		k, errno := splice(f.fd, off, pipe, n)
		switch {
		case errno == unix.EINTR:
			continue
		case errno != 0 || k == 0: // k == 0: the file was truncated
			if noSuchFlag(errno) {
				f.noSplice.Store(true) // the file system has none
			}
			return false
		}
		off += int64(k)
		n -= k
	}
	return true
}
