package admin

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/vhbad/vhbad/client"
)

// Disks adds, changes and removes disks. An operation is carried through whether or not the
// client that asked for it is still there.
type Disks interface {
	// Disks lists them.
	Disks() []client.Disk
	// AddDisk adds a disk, RemoveDisk removes one and GrowDisk makes one larger. Their
	// errors are those of this package.
	AddDisk(ctx context.Context, name string, spec client.DiskSpec) (client.Disk, error)
	RemoveDisk(ctx context.Context, name string, o client.RemoveOptions) (client.DiskRemoval, error)
	GrowDisk(ctx context.Context, name string, sizeBytes int64) (client.Disk, error)
}

// Bounds of drain_timeout.
const (
	minDrainTimeout = time.Millisecond
	maxDrainTimeout = 24 * time.Hour
)

func diskRoutes(d Disks) []Route {
	const one = "/v1/disks/{name}"
	return []Route{{
		Method: http.MethodGet, Path: "/v1/disks", ID: "disks",
		Summary: "The disks",
		Endpoint: call(func(*http.Request, None) (client.DiskList, error) {
			return client.DiskList{Disks: d.Disks()}, nil
		}),
	}, {
		Method: http.MethodGet, Path: one, ID: "disk",
		Summary: "One disk", Problems: []int{http.StatusNotFound},
		Endpoint: call(func(r *http.Request, _ None) (client.Disk, error) {
			return findDisk(d, r.PathValue("name"))
		}),
	}, {
		Method: http.MethodPut, Path: one, ID: "addDisk",
		Summary:  "Add a disk",
		Detail:   "It is there until it is removed or the daemon ends. If there is one of that name and the same specification, nothing changes.",
		Problems: []int{http.StatusConflict},
		Endpoint: call(func(r *http.Request, spec client.DiskSpec) (client.Disk, error) {
			return d.AddDisk(context.WithoutCancel(r.Context()), r.PathValue("name"), spec)
		}),
	}, {
		Method: http.MethodPatch, Path: one, ID: "growDisk",
		Summary:  "Make a disk larger",
		Problems: []int{http.StatusNotFound},
		Endpoint: call(func(r *http.Request, c client.DiskChange) (client.Disk, error) {
			return d.GrowDisk(context.WithoutCancel(r.Context()), r.PathValue("name"), c.SizeBytes)
		}),
	}, {
		Method: http.MethodDelete, Path: one, ID: "removeDisk",
		Summary: "Remove a disk",
		Detail: "One that clients use, or that cannot be flushed, stays unless force is given. Then clients get answers to what " +
			"they have in flight, and their connections are closed. The disk's file stays.",
		Query: []Parameter{
			{Name: "force", Of: true, Summary: "End the connections of clients, and go on though the disk cannot be flushed."},
			{Name: "drain_timeout", Of: "", Summary: "How long clients and the flush may take, as in 30s or 1m30s. The default is the daemon's drain-timeout."},
		},
		Problems: []int{http.StatusNotFound, http.StatusConflict},
		Endpoint: call(func(r *http.Request, _ None) (client.DiskRemoval, error) {
			o, err := removeOptions(r)
			if err != nil {
				return client.DiskRemoval{}, err
			}
			return d.RemoveDisk(context.WithoutCancel(r.Context()), r.PathValue("name"), o)
		}),
	}}
}

func findDisk(d Disks, name string) (client.Disk, error) {
	disks := d.Disks()
	for i := range disks {
		if disks[i].Name == name {
			return disks[i], nil
		}
	}
	return client.Disk{}, NoDisk(name)
}

func removeOptions(r *http.Request) (o client.RemoveOptions, err error) {
	q := r.URL.Query()
	if s := q.Get("force"); q.Has("force") {
		if o.Force, err = strconv.ParseBool(s); err != nil {
			return o, Invalid("force %q: want true or false", s)
		}
	}
	if s := q.Get("drain_timeout"); q.Has("drain_timeout") {
		o.DrainTimeout, err = time.ParseDuration(s)
		if err != nil || o.DrainTimeout < minDrainTimeout || o.DrainTimeout > maxDrainTimeout {
			return o, Invalid("drain_timeout %q: want %s to %s, as in 30s or 1m30s", s, minDrainTimeout, maxDrainTimeout)
		}
	}
	return o, nil
}
