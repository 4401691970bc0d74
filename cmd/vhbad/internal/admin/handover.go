package admin

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"reflect"
	"time"

	"github.com/vhbad/vhbad/client"
)

// HandOverPath is where another daemon asks for this one's place, and HandOverProtocol the
// protocol of the connection from then on.
const (
	HandOverPath     = "/v1/handover"
	HandOverProtocol = "vhbad-handover"
)

// HandOver lets another daemon take this one's place.
type HandOver interface {
	// HandOver decides whether another daemon may take over; it gives up when ctx ends. The
	// function that it returns talks with that daemon and closes the connection; it must be
	// called.
	HandOver(ctx context.Context, r client.HandOver) (func(c *net.UnixConn), error)
}

func handOverRoutes(h HandOver) []Route {
	return []Route{{
		Method: http.MethodPost, Path: HandOverPath, ID: "handOver",
		Summary: "Let another daemon take this one's place",
		Detail: "For `vhbad serve --takeover` only: with the header Upgrade: " + HandOverProtocol +
			" the connection goes over to a protocol between the two daemons, which is theirs.",
		Problems: []int{http.StatusConflict, http.StatusUpgradeRequired},
		Endpoint: Endpoint{
			Body: reflect.TypeFor[client.HandOver](), Status: http.StatusSwitchingProtocols,
			serve: func(w http.ResponseWriter, r *http.Request) { handOver(w, r, h) },
		},
	}}
}

// handOver asks h and, if it agrees, gives it the connection.
func handOver(w http.ResponseWriter, r *http.Request, h HandOver) {
	if r.Header.Get("Upgrade") != HandOverProtocol {
		answer(w, http.StatusUpgradeRequired, client.Problem{
			Message: "want the header Upgrade: " + HandOverProtocol + ": this is for `vhbad serve --takeover`", Code: client.CodeInvalid,
		})
		return
	}
	var ask client.HandOver
	if err := decodeBody(w, r, &ask); err != nil {
		refuse(w, err)
		return
	}
	talk, err := h.HandOver(r.Context(), ask)
	if err != nil {
		refuse(w, Conflict("%v", err))
		return
	}
	nc, _, err := http.NewResponseController(w).Hijack()
	if err != nil { // it stands on no connection of its own: not ours
		panic(fmt.Sprintf("admin: a request that cannot be upgraded: %v", err))
	}
	c := nc.(*net.UnixConn)
	// If these fail, so does what talk does next.
	_ = c.SetDeadline(time.Time{})
	_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+HandOverProtocol+"\r\n\r\n")
	talk(c)
}
