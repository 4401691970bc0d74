package nbd

import "context"

// Dropped are connections that Drop has closed.
type Dropped struct{ conns []*Conn }

// Drop closes the connections that use an export, at once: what is in flight is
// not answered, as when a machine loses power. Those that are about to use it, and may
// have opened its device, are among them. Devices may still be completing requests when
// it returns: see Dropped.Wait.
//
// Concurrency: any goroutine.
func (s *Server) Drop(export string) Dropped {
	s.mu.Lock()
	var conns []*Conn
	for c := range s.conns {
		if c.reserved && c.reservedName == export {
			conns = append(conns, c)
		}
	}
	s.mu.Unlock()
	for _, c := range conns {
		c.kill(CloseDropped)
	}
	return Dropped{conns}
}

// Count returns how many connections Drop has closed.
func (d Dropped) Count() int { return len(d.conns) }

// Wait waits until the devices of the connections have completed every request, and
// their sessions are closed.
//
// Concurrency: any goroutine. Errors: the context's.
func (d Dropped) Wait(ctx context.Context) error {
	for _, c := range d.conns {
		select {
		case <-c.ended:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
