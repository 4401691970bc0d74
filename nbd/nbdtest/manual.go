package nbdtest

import "github.com/vhbad/vhbad/nbd"

// A Manual is a device whose requests wait for the test to complete them.
type Manual struct {
	// Description is what clients see.
	Description nbd.Info
	// Requests delivers every request submitted, of all connections, in order.
	Requests chan *nbd.Request
	// Closed gets a value for each session closed.
	Closed chan struct{}
	// OpenErr, if set, is what Open returns.
	OpenErr error
}

var _ nbd.Device = (*Manual)(nil)

// NewManual returns a device of sizeBytes that takes every command. Its
// channels hold up to 4096 requests that the test has not looked at.
func NewManual(sizeBytes int) *Manual {
	return &Manual{
		Description: everything(sizeBytes),
		Requests:    make(chan *nbd.Request, 4096),
		Closed:      make(chan struct{}, 4096),
	}
}

// Info implements nbd.Device.
func (m *Manual) Info() nbd.Info { return m.Description }

// SizeBytes implements nbd.Device.
func (m *Manual) SizeBytes() uint64 { return m.Description.SizeBytes }

// Open implements nbd.Device.
func (m *Manual) Open(*nbd.Conn) (nbd.Session, error) {
	if m.OpenErr != nil {
		return nil, m.OpenErr
	}
	return &manualSession{m}, nil
}

// Complete ends r and sends the reply if that is up to the caller.
func Complete(r *nbd.Request, errno nbd.Errno) {
	c := r.Conn()
	if r.Complete(errno) {
		c.Flush()
	}
}

type manualSession struct{ m *Manual }

func (s *manualSession) Submit(batch []*nbd.Request) {
	for _, r := range batch {
		s.m.Requests <- r
	}
}

func (s *manualSession) Close() { s.m.Closed <- struct{}{} }
