package client

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// A DiskState says whether a disk is served.
type DiskState string

// The states of a disk.
const (
	DiskServing DiskState = "serving"
	// DiskLeaving is a disk that is being removed: no new client can use it.
	DiskLeaving DiskState = "leaving"
	// DiskUnplugged is a disk that a fault has unplugged: no client can use it until it is
	// plugged in again.
	DiskUnplugged DiskState = "unplugged"
)

// A DiskOrigin says where a disk comes from.
type DiskOrigin string

// The origins of a disk.
const (
	// OriginConfiguration is a disk from the configuration file or the command line.
	OriginConfiguration DiskOrigin = "configuration"
	// OriginAPI is a disk that was added while the daemon ran; it is gone after a
	// restart.
	OriginAPI DiskOrigin = "api"
)

// DiskList is the body of GET /v1/disks.
type DiskList struct {
	Disks []Disk `json:"disks"`
}

// DiskSpec describes a disk to add: the body of PUT /v1/disks/{name}.
type DiskSpec struct {
	// MemoryBytes is the size of a disk in memory. Exactly one of MemoryBytes and
	// File must be given.
	MemoryBytes int64 `json:"memory_bytes,omitempty"`
	// File is the absolute path of an image.
	File string `json:"file,omitempty"`
	// SizeBytes creates the file with this size if it does not exist; without it, the
	// file is used as it is.
	SizeBytes int64 `json:"size_bytes,omitempty"`
	// Preallocate allocates space for the whole file on the file system.
	Preallocate bool `json:"preallocate,omitempty"`
	// BlockBytes is the logical block size, 512 or 4096. The default is 512.
	BlockBytes  int64  `json:"block_bytes,omitempty"`
	ReadOnly    bool   `json:"read_only,omitempty"`
	Description string `json:"description,omitempty"`
	// Hidden keeps the disk out of the list of exports.
	Hidden bool `json:"hidden,omitempty"`
	// TLSOnly reserves the disk for clients that use TLS.
	TLSOnly bool `json:"tls_only,omitempty"`
	// Allow, unless empty, reserves the disk for clients with one of these names in
	// their certificate.
	Allow []string `json:"allow,omitempty"`
	// MaxConnections is how many clients may use the disk at once; without it, the disk
	// has no limit of its own.
	MaxConnections int `json:"max_connections,omitempty"`
	// Cache is "none" (default) or "writeback": a volatile write cache, whose power
	// can be cut. CacheSizeBytes, CacheEviction, CacheSeed, Trace and Hostile need it.
	Cache string `json:"cache,omitempty"`
	// CacheSizeBytes is how much the cache holds. The default is 64 MiB.
	CacheSizeBytes int64 `json:"cache_size_bytes,omitempty"`
	// CacheEviction is "fifo" (default), "random" (drawn by CacheSeed) or "none".
	CacheEviction string `json:"cache_eviction,omitempty"`
	// CacheSeed varies what a random CacheEviction draws.
	CacheSeed uint64 `json:"cache_seed,omitempty"`
	// Trace is the absolute path of a file that records what the disk does.
	Trace string `json:"trace,omitempty"`
	// Hostile lists the promises that the disk breaks: "lying-flush", "ignored-fua".
	Hostile []string `json:"hostile,omitempty"`
}

// DiskChange is a change to a disk: the body of PATCH /v1/disks/{name}.
type DiskChange struct {
	// SizeBytes is the new size, which must not be below the present one.
	SizeBytes int64 `json:"size_bytes"`
}

// DiskRemoval says how the removal of a disk went.
type DiskRemoval struct {
	Name string `json:"name"`
	// ConnectionsClosed is how many clients were told to leave.
	ConnectionsClosed int `json:"connections_closed"`
	// ConnectionsKilled is how many of them did not finish in time.
	ConnectionsKilled int `json:"connections_killed"`
	// FlushError is why the last writes may not be durable, absent if they are.
	FlushError string `json:"flush_error,omitempty"`
}

// RemoveOptions say how a disk is removed.
type RemoveOptions struct {
	// Force removes a disk even while clients use it: each gets answers to its requests
	// in flight, and its connection is closed. It also removes a disk that cannot be
	// flushed.
	Force bool
	// DrainTimeout is how long clients, and the flush, may take to finish; zero means the
	// daemon's drain-timeout.
	DrainTimeout time.Duration
}

// Disks lists the disks.
//
// Errors: as Status.
func (c *Client) Disks(ctx context.Context) ([]Disk, error) {
	var l DiskList
	if err := c.get(ctx, "/v1/disks", &l); err != nil {
		return nil, err
	}
	return l.Disks, nil
}

// Disk asks for one disk.
//
// Errors: ErrNotFound; otherwise as Status.
func (c *Client) Disk(ctx context.Context, name string) (*Disk, error) {
	d := &Disk{}
	if err := c.get(ctx, "/v1/disks/"+segment(name), d); err != nil {
		return nil, err
	}
	return d, nil
}

// AddDisk adds a disk, which stays until it is removed or the daemon ends. It succeeds if
// there already is a disk of the same name and specification.
//
// Errors: ErrInvalid; ErrConflict for a name or a file that is taken; ErrInternal for a
// medium that cannot be opened. On an error nothing has changed.
func (c *Client) AddDisk(ctx context.Context, name string, spec DiskSpec) (*Disk, error) {
	d := &Disk{}
	if err := c.call(ctx, http.MethodPut, "/v1/disks/"+segment(name), spec, d); err != nil {
		return nil, err
	}
	return d, nil
}

// RemoveDisk removes a disk. Its file stays.
//
// Errors: ErrNotFound; without Force, ErrConflict for a disk that clients use or that
// cannot be flushed: it is then served as before.
func (c *Client) RemoveDisk(ctx context.Context, name string, o RemoveOptions) (*DiskRemoval, error) {
	q := url.Values{}
	if o.Force {
		q.Set("force", "true")
	}
	if o.DrainTimeout != 0 {
		q.Set("drain_timeout", o.DrainTimeout.String())
	}
	path := "/v1/disks/" + segment(name)
	if len(q) > 0 {
		path += "?" + q.Encode()
	}
	r := &DiskRemoval{}
	if err := c.call(ctx, http.MethodDelete, path, nil, r); err != nil {
		return nil, err
	}
	return r, nil
}

// GrowDisk makes a disk larger. Clients that are connected can use the new part at
// once; they learn of it when they ask for the size.
//
// Errors: ErrNotFound; ErrInvalid for a size that is below the present one or no
// multiple of the block.
func (c *Client) GrowDisk(ctx context.Context, name string, sizeBytes int64) (*Disk, error) {
	d := &Disk{}
	if err := c.call(ctx, http.MethodPatch, "/v1/disks/"+segment(name), DiskChange{SizeBytes: sizeBytes}, d); err != nil {
		return nil, err
	}
	return d, nil
}
