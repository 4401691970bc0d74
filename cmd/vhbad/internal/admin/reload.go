package admin

import (
	"context"
	"net/http"

	"github.com/vhbad/vhbad/client"
)

// Reload reads the configuration again.
type Reload interface {
	// Reload puts the new configuration into force, or changes nothing. Its errors are
	// those of this package.
	Reload(ctx context.Context) (client.Reload, error)
}

func reloadRoutes(l Reload) []Route {
	return []Route{{
		Method: http.MethodPost, Path: "/v1/reload", ID: "reload",
		Summary:  "Read the configuration again",
		Detail:   "All of it takes effect or none. The answer comes when it is in force and the disks that it has removed are gone.",
		Problems: []int{http.StatusConflict},
		Endpoint: call(func(r *http.Request, _ None) (client.Reload, error) {
			return l.Reload(context.WithoutCancel(r.Context()))
		}),
	}}
}
