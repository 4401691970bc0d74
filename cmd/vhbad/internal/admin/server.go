package admin

import (
	"context"
	"errors"
	"io"
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
	// conns are the open connections, and what is awaited of each one's client.
	// +checklocks:mu
	conns map[net.Conn]awaited
	// +checklocks:mu
	closing bool
}

// awaited is what a connection waits for its client to do, as a set.
type awaited uint8

const (
	awaitsWord   awaited = 1 << iota // anything at all
	awaitsBody                       // the rest of a request's body
	awaitsReader                     // taking the answer, which has begun
)

// Time limits for one request. writeTimeout is for writing the answer alone, if the handler
// calls allowWrite.
const (
	readTimeout  = 10 * time.Second
	writeTimeout = 30 * time.Second
	idleTimeout  = 60 * time.Second
)

// closeGrace is how long a client may take for the rest of a request's body, and of an
// answer, once the server is being closed.
const closeGrace = time.Second

// connKey is the key of a request's connection in its context.
type connKey struct{}

// Serve answers with h on l, which it closes, until Close. If somebody else
// closes l, it serves the connections that there are.
func Serve(l net.Listener, h http.Handler, log *slog.Logger) *Server {
	s := &Server{done: make(chan struct{}), conns: make(map[net.Conn]awaited)}
	s.http = http.Server{
		Handler:           s.watch(h),
		ReadHeaderTimeout: readTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ConnState:         s.connState,
		ConnContext:       func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
	}
	go func() {
		defer close(s.done)
		if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			log.Error("HTTP listener failed", "listener", l.Addr().String(), "error", err)
		}
	}()
	return s
}

// watch has the server know, while h serves a request, what is awaited of its client.
func (s *Server) watch(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := r.Context().Value(connKey{}).(net.Conn)
		if r.ContentLength != 0 {
			s.await(c, awaitsBody, 0)
			r.Body = &watchedBody{ReadCloser: r.Body, ended: func() { s.await(c, 0, awaitsBody) }}
		}
		h.ServeHTTP(&watchedWriter{ResponseWriter: w, begin: func() { s.await(c, awaitsReader, 0) }}, r)
	})
}

// A watchedBody reports the end of a request's body.
type watchedBody struct {
	io.ReadCloser
	ended func()
}

func (b *watchedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.ended()
	}
	return n, err
}

// A watchedWriter reports each part of an answer before it is written.
type watchedWriter struct {
	http.ResponseWriter
	begin func()
}

func (w *watchedWriter) Write(p []byte) (int, error) {
	w.begin()
	return w.ResponseWriter.Write(p)
}

// Unwrap serves http.ResponseController.
func (w *watchedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// connState keeps track of connections.
func (s *Server) connState(c net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		s.await(c, awaitsWord, 0)
	case http.StateActive, http.StateIdle:
		s.await(c, 0, awaitsWord|awaitsBody|awaitsReader)
	default:
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.conns, c)
	}
}

// await adds to what is awaited of a client and takes away from it.
func (s *Server) await(c net.Conn, more, less awaited) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns[c] = s.conns[c]&^less | more
	if s.closing {
		hurry(c, s.conns[c])
	}
}

// hurry ends the wait for a client that may never do what is awaited. Otherwise it would
// delay whoever stops or hands over the daemon: the HTTP server gives a client 5 s to say
// something, readTimeout for a body, and writeTimeout for an answer.
func hurry(c net.Conn, a awaited) {
	end := time.Now().Add(closeGrace)
	if a&awaitsWord != 0 {
		_ = c.Close() // it has not asked for anything
	}
	// The connection may be closed already, which is as well.
	if a&awaitsBody != 0 {
		_ = c.SetReadDeadline(end) // all of it may be here, and just not read yet
	}
	if a&awaitsReader != 0 {
		_ = c.SetWriteDeadline(end)
	}
}

// hurryAll is hurry for all clients, and those to come.
func (s *Server) hurryAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closing = true
	for c, a := range s.conns {
		hurry(c, a)
	}
}

// Close lets requests that have come in full, or do so soon, finish until ctx ends, then
// stops the server.
func (s *Server) Close(ctx context.Context) error {
	s.hurryAll()
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
