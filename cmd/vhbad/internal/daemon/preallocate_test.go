package daemon

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A shown is a Progress.
type shown struct {
	update func(done, total int64)
	end    func()
}

func (s *shown) Update(done, total int64) { s.update(done, total) }
func (s *shown) End()                     { s.end() }

// TestPreallocate: who waits sees how far it has come, and may stop it.
func TestPreallocate(t *testing.T) {
	const spec = "db=file:$DIR/image,size=1MiB,preallocate"
	t.Run("shown", func(t *testing.T) {
		s := newSettings(t, spec)
		o := s.options(t)
		var steps []string
		ends := 0
		o.Progress = func(what string) Progress {
			return &shown{end: func() { ends++ }, update: func(done, total int64) {
				if done == total && total == 1<<20 {
					steps = append(steps, what)
				}
			}}
		}
		d, err := Start(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		stopper(t, d)()
		if len(steps) != 1 || steps[0] != "preallocating disk db" {
			t.Errorf("told of %q, want of the disk once", steps)
		}
		if ends != 1 {
			t.Errorf("the end is told %d times, want once", ends)
		}
	})
	t.Run("logged", func(t *testing.T) {
		s := newSettings(t, spec)
		o := s.options(t)
		var log strings.Builder
		o.Log = slog.New(slog.NewTextHandler(&log, nil))
		d, err := Start(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		stopper(t, d)()
		if n := strings.Count(log.String(), `msg="disk preallocated" disk=db size_bytes=1048576`); n != 1 {
			t.Errorf("%d lines tell of it, want 1:\n%s", n, log.String())
		}
	})
	t.Run("stopped", func(t *testing.T) {
		s := newSettings(t, spec)
		o := s.options(t)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ends := 0
		o.Progress = func(string) Progress {
			return &shown{end: func() { ends++ }, update: func(int64, int64) { cancel() }}
		}
		if _, err := Start(ctx, o); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want that it was canceled", err)
		}
		if _, err := os.Stat(filepath.Join(s.dir, "image")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the image is left: %v", err)
		}
		if ends != 1 {
			t.Errorf("the end is told %d times, want once", ends)
		}
	})
}
