package metrics

import (
	"io"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Health says what state the daemon is in.
type Health interface {
	// NotReady says why clients are not served. It is empty if they are.
	NotReady() string
}

// index is for people who open the address in a browser.
const index = `vhbad shows here:
  /metrics  for Prometheus
  /healthz  whether the process answers
  /readyz   whether clients are served
`

// Handler serves /metrics, /healthz and /readyz, and an index of them at /. It controls
// nothing, so others may be given access to it.
//
// /healthz is 200 as long as the process answers; /readyz is 200 while clients are served
// and 503, with the reason, otherwise.
func Handler(r *prometheus.Registry, h Health) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(r, promhttp.HandlerOpts{Registry: r, EnableOpenMetrics: true}))
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { text(w, http.StatusOK, index) })
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { text(w, http.StatusOK, "ok\n") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if why := h.NotReady(); why != "" {
			text(w, http.StatusServiceUnavailable, "not ready: "+why+"\n")
			return
		}
		text(w, http.StatusOK, "ready\n")
	})
	return mux
}

func text(w http.ResponseWriter, code int, body string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	_, _ = io.WriteString(w, body) // an error means that the client has gone
}
