package admin

import (
	"net/http"

	"github.com/vhbad/vhbad/client"
)

// Status tells about the daemon.
type Status interface {
	// Status may be called from any goroutine, at any time until the server is
	// closed.
	Status() client.Status
}

func statusRoutes(s Status) []Route {
	return []Route{{
		Method: http.MethodGet, Path: "/v1/status", ID: "status",
		Summary:  "What the daemon is and does",
		Endpoint: call(func(*http.Request, None) (client.Status, error) { return s.Status(), nil }),
	}}
}
