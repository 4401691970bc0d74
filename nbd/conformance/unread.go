package conformance

import "net"

// unread is a connection from which something was read too early; Read returns it again.
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
