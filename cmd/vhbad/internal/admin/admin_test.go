package admin

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vhbad/vhbad/client"
)

func listen(t *testing.T, path string, perm fs.FileMode) net.Listener {
	t.Helper()
	l, err := ListenUnix(t.Context(), path, perm)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func TestListenUnix_ModeAndCleanup(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.sock")
	l := listen(t, path, 0o600)
	fi, err := os.Stat(path)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", fi.Mode(), err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestListenUnix_Live(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.sock")
	listen(t, path, 0)
	_, err := ListenUnix(t.Context(), path, 0)
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "process ") {
		t.Errorf("error %v, want ErrInUse with path and process", err)
	}
}

func TestListenUnix_LiveForeign(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.sock")
	l, err := net.Listen("unix", path) // a program that knows no lock files
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if _, err := ListenUnix(t.Context(), path, 0); !errors.Is(err, ErrInUse) {
		t.Errorf("error %v, want ErrInUse", err)
	}
	if _, err := os.Stat(path + ".lock"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("lock file after a failure: %v", err)
	}
}

func TestListenUnix_Stale(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false) // as if killed
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	listen(t, path, 0)
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
}

func TestListenUnix_NoSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.sock")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ListenUnix(t.Context(), path, 0); !errors.Is(err, fs.ErrExist) {
		t.Errorf("error %v, want fs.ErrExist", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
		t.Errorf("file now %q, %v", b, err)
	}
}

func TestListenUnix_NoFolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none", "x.sock")
	if _, err := ListenUnix(t.Context(), path, 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v, want fs.ErrNotExist", err)
	}
}

// Of many that come and go, one at a time has the path.
func TestListenUnix_Race(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.sock")
	var holders, won atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				l, err := ListenUnix(t.Context(), path, 0o600)
				if errors.Is(err, ErrInUse) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				if n := holders.Add(1); n != 1 {
					t.Errorf("%d holders", n)
				}
				runtime.Gosched()
				won.Add(1)
				holders.Add(-1)
				if err := l.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if won.Load() == 0 {
		t.Error("nobody ever got the path")
	}
}

type fixed client.Status

func (f fixed) Status() client.Status { return client.Status(f) }

func TestServe_Status(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.sock")
	s := Serve(listen(t, path, 0o600), Handler(fixed{Version: "v9", State: "ready"}), slog.New(slog.DiscardHandler))
	c := client.New(path)
	defer c.Close()
	got, err := c.Status(t.Context())
	if err != nil || got.Version != "v9" || got.State != "ready" {
		t.Errorf("got %+v, %v", got, err)
	}
	if err := s.Close(context.Background()); err != nil {
		t.Error(err)
	}
	if _, err := c.Status(t.Context()); !errors.Is(err, client.ErrNotRunning) {
		t.Errorf("after Close: %v, want ErrNotRunning", err)
	}
}

func TestHandler_Wrong(t *testing.T) {
	h := Handler(fixed{})
	for _, tt := range []struct {
		method, path string
		code         int
		want         string
	}{
		{"GET", "/", http.StatusNotFound, "no such thing"},
		{"GET", "/v2/status", http.StatusNotFound, "no such thing"},
		{"POST", "/v1/status", http.StatusMethodNotAllowed, "want GET"},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(tt.method, tt.path, nil))
		if w.Code != tt.code || !strings.Contains(w.Body.String(), tt.want) {
			t.Errorf("%s %s: %d %s", tt.method, tt.path, w.Code, w.Body)
		}
	}
}
