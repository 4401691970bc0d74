package nbd

// A crawl is what the sweeper remembers of a connection that waits for its client.
type crawl struct {
	movedBytes uint64 // sent and received
	sinceNs    int64  // since epoch
}

// memoryShort says whether the longest request might find no memory.
func (s *Server) memoryShort() bool {
	return s.Arena.SizeBytes()-s.Arena.Stats().InUseBytes < 2*s.limits.MaxPayloadBytes
}

// crawls says whether c should make room for others if memory is short: then a
// client has to take or send as much as is held for it within Limits.ReplyTimeout.
// A byte now and then, which otherwise satisfies that limit, would tie the memory up for
// days. A connection that holds little, or waits for the device, is left alone.
//
// visits remembers how far c was when that time began; this visit is at atNs since
// epoch.
//
// Concurrency: the sweeper.
func (c *Conn) crawls(visits map[*Conn]crawl, atNs int64) bool {
	held := c.heldBytes.Load()
	if held <= scarceBytes || c.requestSince.Load() == 0 && c.replySince.Load() == 0 {
		delete(visits, c)
		return false
	}
	moved := c.receivedBytes.Load() + c.sentBytes.Load()
	last, seen := visits[c]
	if !seen || moved-last.movedBytes >= uint64(held) {
		visits[c] = crawl{movedBytes: moved, sinceNs: atNs}
		return false
	}
	return atNs-last.sinceNs > int64(c.limits.ReplyTimeout)
}
