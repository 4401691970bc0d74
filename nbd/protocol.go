package nbd

import "github.com/pojntfx/go-nbd/pkg/protocol"

// Handshake flags. Source: proto.md, "Flag fields", "Handshake flags" and
// "Client flags".
const (
	flagFixedNewstyle = protocol.NEGOTIATION_HANDSHAKE_FLAG_FIXED_NEWSTYLE
	flagNoZeroes      = uint16(1 << 1)

	clientFixedNewstyle = uint32(1 << 0)
	clientNoZeroes      = uint32(1 << 1)
	clientFlags         = clientFixedNewstyle | clientNoZeroes
)

// Sizes of fixed parts on the wire, in bytes.
const (
	newstyleHeaderBytes = 8 + 8 + 2
	clientFlagsBytes    = 4
	optionHeaderBytes   = 8 + 4 + 4
	replyHeaderBytes    = 8 + 4 + 4 + 4
	infoExportBytes     = 2 + 8 + 2
	infoBlockSizeBytes  = 2 + 4 + 4 + 4
	// exportNameZeroes follow the answer to EXPORT_NAME unless the client set
	// NO_ZEROES.
	exportNameZeroes = 124

	requestBytes     = 4 + 2 + 2 + 8 + 8 + 4
	simpleReplyBytes = 4 + 4 + 8

	// maxDrainBytes is how much data of a refused option is read and thrown away.
	maxDrainBytes = 64 << 10

	// maxStringBytes is the longest string of the protocol, and maxMessageBytes the
	// longest that it recommends: "Conventions".
	maxStringBytes  = 4096
	maxMessageBytes = 256
)

// Option types that get an answer other than ERR_UNSUP. Source: proto.md,
// "Option types".
const (
	optExportName = uint32(1)
	optAbort      = protocol.NEGOTIATION_ID_OPTION_ABORT
	optList       = protocol.NEGOTIATION_ID_OPTION_LIST
	optInfo       = protocol.NEGOTIATION_ID_OPTION_INFO
	optStartTLS   = uint32(5)
	optGo         = protocol.NEGOTIATION_ID_OPTION_GO

	optStructuredReply = uint32(8)
	optListMetaContext = uint32(9)
	optSetMetaContext  = uint32(10)
	optExtendedHeaders = uint32(11)
)

// Option reply types. Source: proto.md, "Option reply types".
const (
	repAck    = protocol.NEGOTIATION_TYPE_REPLY_ACK
	repServer = protocol.NEGOTIATION_TYPE_REPLY_SERVER
	repInfo   = protocol.NEGOTIATION_TYPE_REPLY_INFO

	repMetaContext = uint32(4)

	repErrUnsup         = protocol.NEGOTIATION_TYPE_REPLY_ERR_UNSUPPORTED
	repErrPolicy        = uint32(1<<31 | 2)
	repErrInvalid       = uint32(1<<31 | 3)
	repErrTLSReqd       = uint32(1<<31 | 5)
	repErrUnknown       = protocol.NEGOTIATION_TYPE_REPLY_ERR_UNKNOWN
	repErrShutdown      = uint32(1<<31 | 7)
	repErrBlockSizeReqd = uint32(1<<31 | 8)
	repErrTooBig        = uint32(1<<31 | 9)
	repErrExtHeaderReqd = uint32(1<<31 | 10)
)

// Information types. Source: proto.md, "NBD_INFO".
const (
	infoExport      = protocol.NEGOTIATION_TYPE_INFO_EXPORT
	infoName        = protocol.NEGOTIATION_TYPE_INFO_NAME
	infoDescription = protocol.NEGOTIATION_TYPE_INFO_DESCRIPTION
	infoBlockSize   = protocol.NEGOTIATION_TYPE_INFO_BLOCKSIZE
)

// Transmission flags. Source: proto.md, "Transmission flags".
const (
	transmitHasFlags     = protocol.NEGOTIATION_REPLY_FLAGS_HAS_FLAGS
	transmitReadOnly     = uint16(1 << 1)
	transmitFlush        = uint16(1 << 2)
	transmitFUA          = uint16(1 << 3)
	transmitRotational   = uint16(1 << 4)
	transmitTrim         = uint16(1 << 5)
	transmitWriteZeroes  = uint16(1 << 6)
	transmitCanMultiConn = protocol.NEGOTIATION_REPLY_FLAGS_CAN_MULTI_CONN
	transmitDF           = uint16(1 << 7)
	transmitCache        = uint16(1 << 10)
	transmitFastZero     = uint16(1 << 11)
	// transmitStatusPayload says that BLOCK_STATUS may name contexts in a payload.
	transmitStatusPayload = uint16(1 << 12)
)

// Request types. Source: proto.md, "Request types".
const (
	cmdRead        = protocol.TRANSMISSION_TYPE_REQUEST_READ
	cmdWrite       = protocol.TRANSMISSION_TYPE_REQUEST_WRITE
	cmdDisc        = protocol.TRANSMISSION_TYPE_REQUEST_DISC
	cmdFlush       = uint16(3)
	cmdTrim        = uint16(4)
	cmdCache       = uint16(5)
	cmdWriteZeroes = uint16(6)
	cmdBlockStatus = uint16(7)
)

// Command flags. Source: proto.md, "Command flags".
const (
	cmdFlagFUA        = uint16(1 << 0)
	cmdFlagNoHole     = uint16(1 << 1)
	cmdFlagDF         = uint16(1 << 2)
	cmdFlagReqOne     = uint16(1 << 3)
	cmdFlagFastZero   = uint16(1 << 4)
	cmdFlagPayloadLen = uint16(1 << 5)
)

// Magics of the other formats. Source: proto.md, "Structured reply chunk
// message"; the extension branch's "Extended request message" and "Extended
// reply chunk message".
const (
	magicStructuredReply = uint32(0x668e33ef)
	magicExtendedRequest = uint32(0x21e41c71)
	magicExtendedReply   = uint32(0x6e8a278c)
)

// Flags and types of reply chunks. Source: proto.md, "Structured reply flags",
// "Structured reply types".
const (
	chunkFlagDone = uint16(1 << 0)

	chunkNone           = uint16(0)
	chunkOffsetData     = uint16(1)
	chunkOffsetHole     = uint16(2)
	chunkBlockStatus    = uint16(5)
	chunkBlockStatusExt = uint16(6)
	chunkError          = uint16(1<<15 | 1)
	chunkErrorOffset    = uint16(1<<15 | 2)
)
