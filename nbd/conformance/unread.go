package conformance

import "net"

// unread is a connection of which something was read too early.
type unread struct {
	net.Conn
	b []byte
}

// Read implements net.Conn.
func (u *unread) Read(p []byte) (int, error) {
	if len(u.b) > 0 {
		n := copy(p, u.b)
		u.b = u.b[n:]
		return n, nil
	}
	return u.Conn.Read(p)
}
