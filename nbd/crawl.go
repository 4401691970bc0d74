package nbd

// A crawl is how far a connection that waits for its client was when the sweeper last
// saw it get on.
type crawl struct {
	seen       bool
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
// This visit is at atNs since epoch.
//
// Concurrency: the sweeper.
func (c *Conn) crawls(atNs int64) bool {
	held, last := c.heldBytes.Load(), &c.visits.crawl
	if held <= scarceBytes || c.requestSince.Load() == 0 && c.replySince.Load() == 0 {
		last.seen = false
		return false
	}
	moved := c.receivedBytes.Load() + c.sentBytes.Load()
	if !last.seen || moved-last.movedBytes >= uint64(held) {
		*last = crawl{seen: true, movedBytes: moved, sinceNs: atNs}
		return false
	}
	return atNs-last.sinceNs > int64(c.limits.ReplyTimeout)
}
