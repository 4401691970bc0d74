package conformance

// Numbers of the protocol, written down here once more on purpose.
const (
	magicNBD        = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption     = 0x49484156454f5054 // "IHAVEOPT"
	magicOptReply   = 0x0003e889045565a9
	magicRequest    = 0x25609513
	magicSimple     = 0x67446698
	magicStructured = 0x668e33ef
	magicExtRequest = 0x21e41c71
	magicExtReply   = 0x6e8a278c
)

// Handshake and client flags.
const (
	fixedNewstyle = 1 << 0
	noZeroes      = 1 << 1
)

// Options.
const (
	optExportName = 1
	optAbort      = 2
	optList       = 3
	optPeek       = 4
	optStartTLS   = 5
	optInfo       = 6
	optGo         = 7
	optStructured = 8
	optListMeta   = 9
	optSetMeta    = 10
	optExtended   = 11
	optUnknown    = 0x7ea0beef
)

// Option replies.
const (
	repAck         = 1
	repServer      = 2
	repInfo        = 3
	repMeta        = 4
	repError       = 1 << 31
	repUnsup       = repError | 1
	repPolicy      = repError | 2
	repInvalid     = repError | 3
	repTLSReqd     = repError | 5
	repUnknown     = repError | 6
	repBlockReqd   = repError | 8
	repTooBig      = repError | 9
	repExtReqd     = repError | 10
	infoExport     = 0
	infoName       = 1
	infoDesc       = 2
	infoBlockSize  = 3
	maxStringBytes = 4096
)

// Transmission flags.
const (
	flagHas           = 1 << 0
	flagReadOnly      = 1 << 1
	flagFlush         = 1 << 2
	flagFUA           = 1 << 3
	flagTrim          = 1 << 5
	flagWriteZeroes   = 1 << 6
	flagDF            = 1 << 7
	flagMultiConn     = 1 << 8
	flagCache         = 1 << 10
	flagFastZero      = 1 << 11
	flagStatusPayload = 1 << 12
	flagsKnown        = 1<<13 - 1
)

// Commands.
const (
	cmdRead        = 0
	cmdWrite       = 1
	cmdDisc        = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdCache       = 5
	cmdWriteZeroes = 6
	cmdBlockStatus = 7
)

// Command flags.
const (
	withFUA        = 1 << 0
	withNoHole     = 1 << 1
	withDF         = 1 << 2
	withReqOne     = 1 << 3
	withFastZero   = 1 << 4
	withPayloadLen = 1 << 5
	withUnknown    = 1 << 13
)

// Chunks of structured and extended replies.
const (
	chunkDone        = 1 << 0
	typeNone         = 0
	typeData         = 1
	typeHole         = 2
	typeStatus       = 5
	typeStatusExt    = 6
	typeErrorBit     = 1 << 15
	typeError        = typeErrorBit | 1
	typeErrorOffset  = typeErrorBit | 2
	stateHole        = 1 << 0
	stateZero        = 1 << 1
	maxExtents       = 1 << 20
	maxReplyBytes    = 65 << 20
	maxOptReplyBytes = 1 << 20
)

// Errors of replies.
const (
	errPerm     = 1
	errIO       = 5
	errNoMem    = 12
	errInvalid  = 22
	errNoSpace  = 28
	errOverflow = 75
	errNotSup   = 95
	errShutdown = 108
)

// knownErrors are all that a server may send.
var knownErrors = map[uint32]string{
	errPerm: "EPERM", errIO: "EIO", errNoMem: "ENOMEM", errInvalid: "EINVAL", errNoSpace: "ENOSPC",
	errOverflow: "EOVERFLOW", errNotSup: "ENOTSUP", errShutdown: "ESHUTDOWN",
}
