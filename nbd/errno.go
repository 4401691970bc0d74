package nbd

import "fmt"

// An Errno is the error field of a reply. The values are those of the wire,
// which happen to be Linux's.
//
// Source: proto.md, "Error values".
type Errno uint32

// Error values.
const (
	OK        Errno = 0
	EPERM     Errno = 1
	EIO       Errno = 5
	ENOMEM    Errno = 12
	EINVAL    Errno = 22
	ENOSPC    Errno = 28
	EOVERFLOW Errno = 75
	ENOTSUP   Errno = 95
	ESHUTDOWN Errno = 108
)

// String returns the error's name.
func (e Errno) String() string {
	switch e {
	case OK:
		return "OK"
	case EPERM:
		return "EPERM"
	case EIO:
		return "EIO"
	case ENOMEM:
		return "ENOMEM"
	case EINVAL:
		return "EINVAL"
	case ENOSPC:
		return "ENOSPC"
	case EOVERFLOW:
		return "EOVERFLOW"
	case ENOTSUP:
		return "ENOTSUP"
	case ESHUTDOWN:
		return "ESHUTDOWN"
	}
	return fmt.Sprintf("Errno(%d)", uint32(e))
}
