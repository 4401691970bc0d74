package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/vhbad/vhbad/client"
)

// Source tells what the API reports.
type Source interface {
	// Status may be called from any goroutine, at any time until Close returns.
	Status() client.Status
	// HandOver decides whether the daemon lets another one take its place. The
	// result, which must be called, talks with that one and closes the
	// connection.
	HandOver(r client.HandOver) (func(c *net.UnixConn), error)
}

// HandOverPath is where another daemon asks for this one's place, and
// HandOverProtocol what the connection speaks from then on.
const (
	HandOverPath     = "/v1/handover"
	HandOverProtocol = "vhbad-handover"
)

// maxBodyBytes bounds the body of a request.
const maxBodyBytes = 64 << 10

// A Server serves HTTP on one listener, within limits that fit a control or
// metrics interface.
type Server struct {
	http http.Server
	done chan struct{}
}

// Time limits for one request.
const (
	readTimeout  = 10 * time.Second
	writeTimeout = 30 * time.Second
	idleTimeout  = 60 * time.Second
)

// Serve answers with h on l, which it closes, until Close. If somebody else
// closes l, it serves the connections that there are.
func Serve(l net.Listener, h http.Handler, log *slog.Logger) *Server {
	s := &Server{done: make(chan struct{})}
	s.http = http.Server{
		Handler:           h,
		ReadHeaderTimeout: readTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	go func() {
		defer close(s.done)
		if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			log.Error("HTTP listener failed", "listener", l.Addr().String(), "error", err)
		}
	}()
	return s
}

// Close lets requests finish until ctx ends, and stops.
func (s *Server) Close(ctx context.Context) error {
	err := s.http.Shutdown(ctx)
	if errors.Is(err, net.ErrClosed) {
		err = nil // the listener was closed already
	}
	if err != nil {
		err = errors.Join(err, s.http.Close())
	}
	<-s.done
	return err
}

// Handler is the API without a listener.
func Handler(src Source) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, src.Status())
	})
	mux.HandleFunc("/v1/status", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Allow", "GET, HEAD")
		answer(w, http.StatusMethodNotAllowed, client.Problem{Message: r.Method + " " + r.URL.Path + ": want GET"})
	})
	mux.HandleFunc("POST "+HandOverPath, func(w http.ResponseWriter, r *http.Request) { handOver(w, r, src) })
	mux.HandleFunc(HandOverPath, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Allow", "POST")
		answer(w, http.StatusMethodNotAllowed, client.Problem{Message: r.Method + " " + r.URL.Path + ": want POST"})
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		answer(w, http.StatusNotFound, client.Problem{Message: r.Method + " " + r.URL.Path + ": no such thing: want GET /v1/status"})
	})
	return mux
}

// handOver asks src, and gives it the connection if it agrees.
func handOver(w http.ResponseWriter, r *http.Request, src Source) {
	if r.Header.Get("Upgrade") != HandOverProtocol {
		answer(w, http.StatusUpgradeRequired, client.Problem{Message: "want the header Upgrade: " + HandOverProtocol + ": this is for `vhbad serve --takeover`"})
		return
	}
	var ask client.HandOver
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBodyBytes)).Decode(&ask); err != nil {
		answer(w, http.StatusBadRequest, client.Problem{Message: "body: " + err.Error()})
		return
	}
	talk, err := src.HandOver(ask)
	if err != nil {
		answer(w, http.StatusConflict, client.Problem{Message: err.Error()})
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

func answer(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	// An error means that the client has gone; there is nobody to tell.
	_ = json.NewEncoder(w).Encode(body)
}
