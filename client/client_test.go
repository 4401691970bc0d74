package client

import (
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func serve(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	c := New(path)
	t.Cleanup(func() {
		c.Close()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return c
}

func TestStatus(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || r.URL.Path != "/v1/status" {
			t.Errorf("asked %s %s", r.Method, r.URL.Path)
		}
		_, _ = w.Write([]byte(`{"version":"v1","disks":[{"name":"d","size_bytes":512}],"from_the_future":1}`))
	})
	got, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&Status{Version: "v1", Disks: []Disk{{Name: "d", SizeBytes: 512}}}, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func TestStatus_Errors(t *testing.T) {
	for body, want := range map[string]string{
		`{"error":"not ready"}`: "not ready",
		`oops`:                  "503 Service Unavailable",
	} {
		c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = w.Write([]byte(body))
		})
		if _, err := c.Status(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("{")) })
	if _, err := c.Status(t.Context()); err == nil || !strings.Contains(err.Error(), c.Path()) {
		t.Errorf("error %v, want one that names the socket", err)
	}
}

func TestStatus_NotRunning(t *testing.T) {
	c := New(filepath.Join(t.TempDir(), "none.sock"))
	if _, err := c.Status(t.Context()); !errors.Is(err, ErrNotRunning) || !strings.Contains(err.Error(), "none.sock") {
		t.Errorf("error %v, want ErrNotRunning with the path", err)
	}
}

// TestDefaultPath_Variable: a path from the working directory is one, too. Passed over, it
// would have commands reach another daemon than the one that was named.
func TestDefaultPath_Variable(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", "/run/user/1")
	t.Chdir(t.TempDir())
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for value, want := range map[string]string{
		"/run/v.sock": "/run/v.sock", "v.sock": filepath.Join(here, "v.sock"), "../v.sock": filepath.Join(filepath.Dir(here), "v.sock"),
		"": "/run/user/1/vhbad.sock", "none": NoAdmin, "./none": filepath.Join(here, "none"),
	} {
		t.Setenv(AdminVariable, value)
		if got := New("").Path(); got != want {
			t.Errorf("%s=%q: got %q, want %q", AdminVariable, value, got, want)
		}
	}
}

// TestClient_NoAdmin: a socket that happens to have that name is not asked.
func TestClient_NoAdmin(t *testing.T) {
	t.Chdir(t.TempDir())
	l, err := net.Listen("unix", NoAdmin)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.NotFoundHandler()}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	if _, err := New(NoAdmin).Status(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("error %v, want ErrNotRunning", err)
	}
}

func TestDefaultPath(t *testing.T) {
	t.Setenv(AdminVariable, "")
	for dir, want := range map[string]string{"/run/user/1": "/run/user/1/vhbad.sock", "": "/run/vhbad.sock", "rel": "/run/vhbad.sock"} {
		t.Setenv("XDG_RUNTIME_DIR", dir)
		if got := New("").Path(); got != want {
			t.Errorf("XDG_RUNTIME_DIR=%q: got %q, want %q", dir, got, want)
		}
	}
}
