package daemon

import (
	"cmp"
	"errors"
	"log/slog"
	"sync"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/sandbox"
	"github.com/vhbad/vhbad/hba/cache"
	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/hba/trace"
)

// A recording is the trace of a disk. A nil one records nothing, and its methods do
// nothing.
type recording struct {
	*trace.Recorder
	path string
	end  func() // reports the end
	once sync.Once
}

// record begins the trace that c asks for, if any, and reports what becomes of it.
func (d *Daemon) record(md media.Media, c *config.Disk) (*recording, error) {
	if c.Trace == "" {
		return nil, nil
	}
	if err := sandbox.Reaches(c.Trace); err != nil {
		return nil, err
	}
	eviction, err := cache.ParseEviction(cmp.Or(c.CacheEviction, cache.EvictFIFO.String()))
	if err != nil {
		return nil, err
	}
	name, path := c.Name, c.Trace
	r, err := trace.Create(path, trace.Config{
		Header: trace.Header{
			Disk: name, SectorBytes: int(c.BlockSize), DiskBytes: md.Size(), CacheBytes: cmp.Or(int64(c.CacheSize), cache.DefaultSizeBytes),
			Eviction: eviction, CacheSeed: c.CacheSeed,
		},
		OnFail: func(err error) {
			d.log.Error("trace failed: the disk goes on without", "disk", name, "path", path, "error", err)
			d.events.Publish(client.EventTraceFailed, name, slog.String("path", path), slog.String("error", err.Error()))
		},
	})
	if err != nil {
		return nil, err
	}
	d.log.Info("trace started", "disk", name, "path", path)
	d.events.Publish(client.EventTraceStarted, name, slog.String("path", path))
	return &recording{Recorder: r, path: path, end: func() {
		if err := r.Close(); err != nil {
			d.log.Error("trace is not complete", "disk", name, "path", path, "error", err)
			return
		}
		s := r.Stats()
		d.log.Info("trace ended", "disk", name, "path", path, "records", s.Records, "size_bytes", s.Bytes)
		d.events.Publish(client.EventTraceEnded, name, slog.String("path", path), slog.Uint64("records", s.Records), slog.Uint64("bytes", s.Bytes))
	}}, nil
}

// recorder returns the recorder for the cache, nil if nothing is recorded.
func (r *recording) recorder() cache.Recorder {
	if r == nil {
		return nil
	}
	return r.Recorder
}

// mark records a mark.
func (r *recording) mark(text string) {
	if r != nil {
		r.Mark(text)
	}
}

// settle waits until what has been recorded is in the file. A failure has been reported
// elsewhere.
func (r *recording) settle() {
	if r != nil {
		_ = r.Flush()
	}
}

// metrics returns what the collector reports.
func (r *recording) metrics() *trace.Stats {
	if r == nil {
		return nil
	}
	s := r.Stats()
	return &s
}

// status returns what the API reports.
func (r *recording) status() *client.PowerTrace {
	if r == nil {
		return nil
	}
	s := r.Stats()
	t := &client.PowerTrace{Path: r.path, Records: s.Records, Bytes: s.Bytes, Waits: s.Waits}
	if s.Err != nil {
		t.Error = s.Err.Error()
	}
	return t
}

// Close ends the trace. A failure is reported, but is no reason to keep the disk.
func (r *recording) Close() error {
	if r != nil {
		r.once.Do(r.end)
	}
	return nil
}

// recorded is a cache with its trace, which ends when the cache is closed.
type recorded struct {
	*cache.Cache
	trace *recording
}

// Close implements media.Media.
func (r *recorded) Close() error { return errors.Join(r.Cache.Close(), r.trace.Close()) }
