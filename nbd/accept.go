package nbd

import (
	"errors"
	"net"
	"syscall"
	"time"
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

// minAcceptPause and maxAcceptPause bound how long Serve waits after an error of Accept.
const minAcceptPause, maxAcceptPause = 5 * time.Millisecond, time.Second

// A drought is a time in which Accept of one listener fails again and again, as it does
// without descriptors.
type drought struct {
	failures int
	since    time.Time
	pause    time.Duration
	// told is the error that the log has, empty if it has none.
	told string
}

// failed counts an error, which is logged unless it was before, and returns after which
// pause to try again.
func (d *drought) failed(s *Server, l net.Listener, err error) time.Duration {
	d.failures++
	if d.failures == 1 {
		d.since = time.Now()
	}
	if text := err.Error(); text != d.told {
		if tell, untold := s.complain(); tell {
			s.Log.Warn("cannot accept", "listener", l.Addr().String(), "error", err, "others_untold", untold)
			d.told = text
		}
	}
	d.pause = min(max(2*d.pause, minAcceptPause), maxAcceptPause)
	return d.pause
}

// ended begins anew once Accept has worked.
func (d *drought) ended(s *Server, l net.Listener) {
	if d.told != "" {
		s.Log.Info("accepts again", "listener", l.Addr().String(), "failures", d.failures, "after", time.Since(d.since).String())
	}
	*d = drought{}
}
