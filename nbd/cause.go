package nbd

// A cause says why a request failed, more precisely than its Errno. Clients with
// structured replies are told it in words.
type cause uint8

const (
	causeDevice cause = iota // whatever the device had to say: see Errno
	causeCommand
	causeFlags
	causeReadOnly
	causeBeyondEnd
	causeAlignment
	causePayload
	causeUnfragmented
	causeEmpty
	causeUnexpectedPayload
	causeContexts
	causeMemory
	causeCount
)

// maxErrorTextBytes bounds text.
const maxErrorTextBytes = 64

// causeText is what a client is told, at most maxErrorTextBytes each.
var causeText = [causeCount]string{
	causeCommand:           "the command is unknown or was not offered",
	causeFlags:             "a command flag is unknown or was not offered",
	causeReadOnly:          "the export is read-only",
	causeBeyondEnd:         "the range ends beyond the end of the device",
	causeAlignment:         "the range is not aligned to the minimum block size",
	causePayload:           "the length exceeds the maximum payload",
	causeUnfragmented:      "too long for a reply that is not fragmented",
	causeEmpty:             "the range is empty",
	causeUnexpectedPayload: "the command takes no payload",
	causeContexts:          "the payload names no meta context that was negotiated",
	causeMemory:            "no memory for a request of this length now",
}

// text returns the words for an error.
func (c cause) text(errno Errno, located bool) string {
	if c != causeDevice {
		return causeText[c]
	}
	switch errno {
	case EIO:
		if located {
			return "medium error"
		}
		return "the device failed"
	case ENOSPC:
		return "the device is out of space"
	case ENOTSUP:
		return "writing zeroes would not be fast"
	case EPERM:
		return "the device is write-protected"
	case ENOMEM:
		return "the device is out of memory"
	case ESHUTDOWN:
		return "the device is shutting down"
	case OK, EINVAL, EOVERFLOW:
	}
	return "the device refuses the request"
}
