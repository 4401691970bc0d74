package nbd

// Drop closes the connections that use an export, at once: what is in flight is
// not answered, as when a machine loses power. It returns how many it closed. Their
// devices may still be completing requests when it returns.
//
// Concurrency: any goroutine.
func (s *Server) Drop(export string) int {
	s.mu.Lock()
	var conns []*Conn
	for c := range s.conns {
		if c.transmitting && c.export.Name == export {
			conns = append(conns, c)
		}
	}
	s.mu.Unlock()
	for _, c := range conns {
		c.kill(CloseDropped)
	}
	return len(conns)
}
