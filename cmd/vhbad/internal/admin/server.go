package admin

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// A Server serves HTTP on one listener, within limits that fit a control or
// metrics interface.
type Server struct {
	http http.Server
	done chan struct{}

	mu sync.Mutex
	// silent are the connections that have not sent anything yet.
	// +checklocks:mu
	silent map[net.Conn]bool
	// +checklocks:mu
	closing bool
}

// Time limits for one request. writeTimeout is for writing the answer alone, if the handler
// calls allowWrite.
const (
	readTimeout  = 10 * time.Second
	writeTimeout = 30 * time.Second
	idleTimeout  = 60 * time.Second
)

// Serve answers with h on l, which it closes, until Close. If somebody else
// closes l, it serves the connections that there are.
func Serve(l net.Listener, h http.Handler, log *slog.Logger) *Server {
	s := &Server{done: make(chan struct{}), silent: make(map[net.Conn]bool)}
	s.http = http.Server{
		Handler:           h,
		ReadHeaderTimeout: readTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ConnState:         s.connState,
	}
	go func() {
		defer close(s.done)
		if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			log.Error("HTTP listener failed", "listener", l.Addr().String(), "error", err)
		}
	}()
	return s
}

// connState keeps track of silent connections.
func (s *Server) connState(c net.Conn, state http.ConnState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case state != http.StateNew:
		delete(s.silent, c)
	case s.closing:
		_ = c.Close() // it is not waited for
	default:
		s.silent[c] = true
	}
}

// closeSilent closes silent connections. The HTTP server would give them 5 s to say
// something, and so delay whoever stops or hands over the daemon.
func (s *Server) closeSilent() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closing = true
	for c := range s.silent {
		_ = c.Close() // it has not asked for anything
	}
}

// Close lets requests finish until ctx ends, then stops the server.
func (s *Server) Close(ctx context.Context) error {
	s.closeSilent()
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

// Sources are the parts of the daemon that the API serves, one field for each concern. A
// concern that is nil has no routes.
type Sources struct {
	Status   Status
	Disks    Disks
	Reload   Reload
	HandOver HandOver
	Events   Events
	Power    Power
	Faults   Faults
}

// Routes returns the API as a table.
func Routes(s Sources) []Route {
	var routes []Route
	if s.Status != nil {
		routes = append(routes, statusRoutes(s.Status)...)
	}
	if s.Disks != nil {
		routes = append(routes, diskRoutes(s.Disks)...)
	}
	if s.Reload != nil {
		routes = append(routes, reloadRoutes(s.Reload)...)
	}
	if s.Events != nil {
		routes = append(routes, eventRoutes(s.Events)...)
	}
	if s.Power != nil {
		routes = append(routes, powerRoutes(s.Power)...)
	}
	if s.Faults != nil {
		routes = append(routes, faultRoutes(s.Faults)...)
	}
	if s.HandOver != nil {
		routes = append(routes, handOverRoutes(s.HandOver)...)
	}
	return check(append(routes, openAPIRoutes()...))
}

// Handler returns the API's handler, without a listener.
func Handler(s Sources) http.Handler { return mux(Routes(s)) }
