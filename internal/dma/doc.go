// Package dma is host memory as a device sees it: an arena of buffers outside
// the Go heap, and an IOMMU through which a device reaches them.
//
// # Arena
//
// One Arena is mapped at start. Blocks are powers of two from MinBlockBytes up,
// handed out by a buddy allocator. When it is exhausted Alloc says so and
// AllocWait waits in line: running out is back-pressure, never growth.
//
// # IOMMU
//
// A device never sees a Go pointer. The owner of a buffer maps it into a window
// and gives the device the resulting Addr; Translate turns an Addr back into
// memory while the mapping lives. Every Map gives a fresh generation, so an Addr
// that outlives its mapping faults instead of reaching somebody else's data:
// a device that touches a request's pages after completion is always caught.
// (Generations are 16 bits: an address exactly 65536 mappings old passes.)
//
//	Addr  63      48 47      32 31               0
//	      [ window  ][generation][ offset, bytes  ]
//
// Mapping and unmapping cost a store or two, with no lock and no table walk. Only a
// device that means to touch memory which may be unmapped any time has the unmapping
// wait for it, in Use.
//
// # Pipes
//
// A Pipe may stand for a long block whose data are only sent, never looked at. A device
// that has the data in pages puts references to those into the pipe and copies nothing; one
// that does not, or does not know of pipes, fills the memory as usual. Windows, addresses
// and limits are the memory's in either case.
package dma
