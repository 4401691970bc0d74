package miniport

import "unsafe"

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
