package daemon

import (
	"slices"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
)

// diskConfig converts the API's specification of a disk to a configuration. TestDiskConfig
// makes sure that it has a field for every key of a configured disk.
func diskConfig(name string, s *client.DiskSpec) config.Disk {
	return config.Disk{
		Name: name, Memory: config.Size(s.MemoryBytes), File: s.File, Size: config.Size(s.SizeBytes), Preallocate: s.Preallocate,
		BlockSize: config.Size(s.BlockBytes), ReadOnly: s.ReadOnly, Description: s.Description, Hidden: s.Hidden,
		TLSOnly: s.TLSOnly, Allow: slices.Clone(s.Allow), Connections: s.MaxConnections,
		Cache: s.Cache, CacheSize: config.Size(s.CacheSizeBytes), CacheEviction: s.CacheEviction, CacheSeed: s.CacheSeed,
		Trace: s.Trace, Hostile: slices.Clone(s.Hostile),
	}
}

// DiskSpec converts a disk to the API's form; see diskConfig.
func DiskSpec(c *config.Disk) client.DiskSpec {
	return client.DiskSpec{
		MemoryBytes: int64(c.Memory), File: c.File, SizeBytes: int64(c.Size), Preallocate: c.Preallocate, BlockBytes: int64(c.BlockSize),
		ReadOnly: c.ReadOnly, Description: c.Description, Hidden: c.Hidden, TLSOnly: c.TLSOnly,
		Allow: slices.Clone(c.Allow), MaxConnections: c.Connections,
		Cache: c.Cache, CacheSizeBytes: int64(c.CacheSize), CacheEviction: c.CacheEviction, CacheSeed: c.CacheSeed,
		Trace: c.Trace, Hostile: slices.Clone(c.Hostile),
	}
}

// sameDisk reports whether two disks, both checked, are configured alike.
func sameDisk(a, b *config.Disk) bool { return a.String() == b.String() }
