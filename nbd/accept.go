package nbd

import (
	"errors"
	"syscall"
)

// acceptAgain says whether accept may work again after err: the process or the
// system is out of something, or the client was gone before it was accepted.
func acceptAgain(err error) bool {
	for _, e := range []syscall.Errno{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EINTR,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
