package metrics

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestHandler_ReadOnly: the address that is shown to others changes nothing. Only GET and
// HEAD are served, and only at the three paths and their index; everything that controls
// the daemon is on the admin socket.
func TestHandler_ReadOnly(t *testing.T) {
	h := Handler(NewRegistry(full(), "v1"), health(true))
	shown := []string{"/", "/metrics", "/healthz", "/readyz"}
	for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "X"} {
		for _, path := range append([]string{"/v1/status", "/v1/handover", "/v1/disks", "/v1/reload", "/debug/pprof/", "/metrics/x"}, shown...) {
			r := httptest.NewRequest(method, path, strings.NewReader("{}"))
			r.Header.Set("Connection", "Upgrade")
			r.Header.Set("Upgrade", "vhbad-handover")
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			want := http.StatusNotFound
			for _, p := range shown {
				switch {
				case p != path:
				case method == "GET" || method == "HEAD":
					want = http.StatusOK
				default:
					want = http.StatusMethodNotAllowed
				}
			}
			if w.Code != want {
				t.Errorf("%s %s: %d, want %d", method, path, w.Code, want)
			}
		}
	}
}
