// Package trace is a file of what a disk with a write cache did, and its replay.
//
// A Recorder writes each step of a cache.Cache (hba/cache) to a file, in the cache's
// order. Replay repeats the steps on a medium that holds what the disk held when the
// recording began, and leaves what a power cut at any of them would have left, for any
// seed and policy. The image depends on trace, place and options alone, and can be made
// on any machine, without the daemon and without the load.
//
// # The file
//
// Little endian throughout. A header:
//
//	 0   8  "VHBADTRC"
//	 8   2  version, 1
//	10   2  length of the header, with its sum
//	12   4  bytes of a sector: 512 or 4096
//	16   8  bytes of the disk
//	24   8  bytes of the cache
//	32   8  time of the first step, in nanoseconds since 1970
//	40   8  cache-seed
//	48   1  cache-eviction: 0 fifo, 1 random, 2 none
//	49   1  length of the disk's name
//	50   2  zero
//	52   …  the disk's name, UTF-8
//	     4  sum of all of that
//
// Then records, numbered from 1:
//
//	 0   4  length of the body
//	 4   1  kind
//	 5   1  flags: 1 FUA, 2 a lie, 4 failed
//	 6   1  op: 0 write, 1 trim, 2 zero, 3 allocate
//	 7   1  zero
//	 8   8  nanoseconds since the header's time
//	16   …  body
//	     4  sum
//
// with a body by kind, see cache.StepKind for what it says:
//
//	 1 write      id, offset, length (8 bytes each), and of op 0 so many bytes
//	 2 durable    id, offset, length
//	 3 through    as write
//	 4 unsure     offset, length
//	 5 answer     id
//	 6 flush      id before which it covers writes
//	 7 flushed    the same, and how many it covered
//	 8 lie        offset, length
//	 9 cut        seed (8), tear in bytes (4), policy (1), damage (1), sectors to lose of
//	              what was flushed (2)
//	10 image      SHA-256 of the pending sectors (32); text if failed
//	11 resize     bytes of the disk
//	12 mark       text, UTF-8
//	13 broke      text: what was done that no correct drive does
//	14 leave      id
//	15 end        text: why nothing more was recorded, empty at the disk's end
//
// A sum is the CRC-32C of everything before it in the header or record, continued from
// the previous sum, so that a record that is missing, or comes from another file, is
// detected like a damaged one. A file without an end comes from a daemon that is still
// running or was killed; it is good as far as it goes. Version 1 does not change: a
// layout with more in it gets another number, and a reader refuses versions and kinds
// that it does not know.
//
// # Room
//
// What is recorded and not yet in the file takes room in Config.BufferBytes. A write to
// the disk waits for room, or, if it is longer than the whole buffer, until nothing else
// is in it: a slow file makes a slow disk. Some steps cannot wait: the writes that a
// cache chooses to make durable, what it has done by then, marks, and what rules do to
// commands. They may take 4 MiB more, and 28 bytes for each sector of the cache, which
// is one step for each write that it can hold. Beyond that the trace ends. The buffers
// grow by doubling.
//
// A file that fails or is full also ends the trace, at the last whole record. The trace
// gives the reason if there is room for it; the disk goes on.
//
// # Concurrency
//
// A Recorder may be used by any goroutine, a Reader and Replay by one at a time.
package trace
