package cache

// Cutting reports whether a cut waits for what is in progress.
func (c *Cache) Cutting() bool { return c.cutting.Load() != 0 }

// Life counts power cuts.
func (c *Cache) Life() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.life
}

// Off reports whether the power is being cut.
func (c *Cache) Off() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.off
}
