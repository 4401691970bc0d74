package miniport

import (
	"sync/atomic"
	"unsafe"

	"github.com/vhbad/vhbad/hba"
)

// extensionHeadBytes is where the chained list starts in an SRB extension.
const extensionHeadBytes = int(unsafe.Offsetof(extension{}.segments))

// extensionBytes is the size of an SRB extension.
const extensionBytes = int(unsafe.Sizeof(extension{}))

var (
	_ [0]byte = [unsafe.Offsetof(extension{}.command)]byte{}
	_ [0]byte = [unsafe.Offsetof(extension{}.segments) % 16]byte{}
)

// extensionOf is the driver's view of an SRB extension. The port aligns
// extensions to at least 16 bytes.
func extensionOf(b []byte) *extension {
	_ = b[extensionBytes-1]
	return (*extension)(unsafe.Pointer(unsafe.SliceData(b)))
}

// submissionRing is the driver's view of a submission ring's memory.
func submissionRing(b []byte) []hba.Command {
	return unsafe.Slice((*hba.Command)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/hba.CommandBytes)
}

// completionRing is the driver's view of a completion ring's memory.
func completionRing(b []byte) []hba.Completion {
	return unsafe.Slice((*hba.Completion)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/hba.CompletionBytes)
}

// loadPhase reads an entry's phase. It pairs with the device's store, which
// comes after the rest of the entry.
func loadPhase(c *hba.Completion) uint32 {
	return (*atomic.Uint32)(unsafe.Pointer(&c.Phase)).Load()
}

// storePhase clears an entry's phase while the device is stopped.
func storePhase(c *hba.Completion, phase uint32) {
	(*atomic.Uint32)(unsafe.Pointer(&c.Phase)).Store(phase)
}
