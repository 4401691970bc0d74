package miniport

import (
	"structs"

	"github.com/vhbad/vhbad/hba"
)

// maxSegments is the longest scatter/gather list the driver takes: a transfer
// of maxTransferBytes in pages, plus one page more if it does not start on a
// boundary.
const maxSegments = maxTransferBytes/4096 + 1

// maxTransferBytes is the longest data phase the driver asks for.
const maxTransferBytes = 1 << 20

// An extension is what the driver keeps in SRB.Extension, from BuildIo until it
// completes the SRB. Only segments is read by the device.
type extension struct {
	_ structs.HostLayout

	// command is what StartIo copies into the submission ring.
	command hba.Command
	// completion is the device's answer, copied out of the ring by the interrupt
	// handler for the DPC.
	completion hba.Completion
	// queue is the queue pair the command was built for.
	queue uint32
	// visits counts the queues whose DPC a reset has waited for: see resets.go.
	visits uint32
	_      [8]byte

	segments [maxSegments]hba.Segment
}
