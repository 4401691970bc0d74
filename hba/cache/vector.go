package cache

import "sync"

// WriteVectorAt implements media.VectorWriter: the segments are one write, with
// one fate, and may begin and end inside of a sector.
func (c *Cache) WriteVectorAt(segments [][]byte, n int, off int64, fua bool) (int, error) {
	b := gather(segments, n)
	defer gathered.Put(b)
	if fua {
		return c.WriteAtFUA(*b, off)
	}
	return c.WriteAt(*b, off)
}

// TryWriteVectorAt implements media.VectorWriter.
func (c *Cache) TryWriteVectorAt(segments [][]byte, n int, off int64) (bool, error) {
	if n > maxTryBytes {
		return false, nil
	}
	b := gather(segments, n)
	defer gathered.Put(b)
	return c.TryWriteAt(*b, off)
}

// gathered holds spare buffers of type *[]byte.
var gathered = sync.Pool{New: func() any { return new([]byte) }}

// gather copies the first n bytes of the segments into a buffer from gathered.
func gather(segments [][]byte, n int) *[]byte {
	b := gathered.Get().(*[]byte)
	*b = (*b)[:0]
	for _, s := range segments {
		*b = append(*b, s[:min(len(s), n-len(*b))]...)
	}
	if len(*b) != n {
		panic("cache: segments that are shorter than the write")
	}
	return b
}
