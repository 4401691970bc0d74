package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/internal/latency"
	"github.com/vhbad/vhbad/nbd/socket"
)

// ErrServerClosed is what Serve returns after Shutdown.
var ErrServerClosed = errors.New("nbd: server closed")

// A Server serves exports to NBD clients. Set its exported fields, which must
// not change afterwards, and call Serve.
//
// Concurrency: its methods may be called from any goroutine.
type Server struct {
	// Exports are what clients can ask for.
	Exports Exports
	// Arena is the memory of all data in transit, where devices can reach it.
	Arena *dma.Arena
	// Limits bound what clients can take.
	Limits Limits
	// Replies says which formats of replies clients can agree on. The zero value is
	// RepliesExtended: all.
	Replies Replies
	// CopyReads makes the server copy long reads, as it does short ones, instead of
	// sending pages of the devices.
	CopyReads bool
	// TLSMode says whether clients may or must use TLS. The zero value is TLSOff.
	TLSMode TLSMode
	// TLSConfig returns the configuration for each TLS handshake, so that certificates
	// can be replaced while the server runs. Versions before TLS 1.2 are refused
	// whatever it says. To ask clients for certificates, set ClientAuth and
	// ClientCAs. TLSConfig is needed unless TLSMode is TLSOff, and must be safe for
	// concurrent use. If it returns nil the client is refused.
	TLSConfig func() *tls.Config
	// Log gets messages about connections; nil discards them.
	Log *slog.Logger
	// Opened and Closed, unless nil, are called for each connection that enters
	// transmission and for each that has left it, on the connection's goroutine. They
	// must not wait.
	Opened func(ConnStats)
	Closed func(ConnStats, CloseReason)

	setupOnce sync.Once
	setupErr  error
	limits    Limits // with defaults filled in

	wg sync.WaitGroup // connections and the sweeper

	// mu guards the registry; see the package comment for its place.
	mu sync.Mutex
	// +checklocks:mu
	conns map[*Conn]struct{}
	// +checklocks:mu
	listeners map[net.Listener]struct{}
	// +checklocks:mu
	draining bool
	// stop is closed when draining begins.
	stop chan struct{}
	// +checklocks:mu
	sweeping bool
	// alone tells the sweeper that the last connection has gone.
	alone chan struct{}
	// nextID counts all connections there have ever been.
	// +checklocks:mu
	nextID uint64
	// +checklocks:mu
	failures [NegotiationFailureCount]uint64
	// pauses and replyTimes need no lock.
	pauses     trial
	replyTimes [OpCount]latency.Histogram
	// +checklocks:mu
	closes [CloseReasonCount]uint64
	// folded has the counters of closed connections, by export. A live
	// connection's export has an entry too.
	// +checklocks:mu
	folded map[string]*OpTable
	// peers counts the connections of each peer, if they are limited.
	// +checklocks:mu
	peers map[peer]int
	// inUse counts the connections of each export by its name, users those of each
	// device, from the moment that they are let in.
	// +checklocks:mu
	inUse map[string]int
	// +checklocks:mu
	users map[Device]int
	// leaving has a channel for each device whose last connection somebody waits for.
	// The channel is closed when that has gone.
	// +checklocks:mu
	leaving map[Device]chan struct{}
	// accepts paces connections, complaints lines of the log.
	// +checklocks:mu
	accepts pacer
	// +checklocks:mu
	complaints pacer
	// untold counts the lines that complain has kept out of the log.
	// +checklocks:mu
	untold uint64
	// +checklocks:mu
	receivedBytes, sentBytes, lentBytes uint64
}

// setup checks the configuration, once.
func (s *Server) setup() error {
	s.setupOnce.Do(func() {
		s.stop = make(chan struct{})
		s.alone = make(chan struct{}, 1)
		s.mu.Lock()
		s.conns = make(map[*Conn]struct{})
		s.listeners = make(map[net.Listener]struct{})
		s.folded = make(map[string]*OpTable)
		s.peers = make(map[peer]int)
		s.inUse = make(map[string]int)
		s.users = make(map[Device]int)
		s.leaving = make(map[Device]chan struct{})
		s.mu.Unlock()
		if s.Log == nil {
			s.Log = slog.New(slog.DiscardHandler)
		}
		switch {
		case s.Exports == nil:
			s.setupErr = errors.New("nbd: server without Exports")
		case s.Arena == nil:
			s.setupErr = errors.New("nbd: server without Arena")
		case s.Replies > RepliesSimple:
			s.setupErr = fmt.Errorf("nbd: Replies is %d: want RepliesExtended, RepliesStructured or RepliesSimple", s.Replies)
		case s.TLSMode > TLSRequired:
			s.setupErr = fmt.Errorf("nbd: TLSMode is %d: want TLSOff, TLSOptional or TLSRequired", s.TLSMode)
		case s.TLSMode != TLSOff && s.TLSConfig == nil:
			s.setupErr = fmt.Errorf("nbd: TLSMode is %v, but there is no TLSConfig", s.TLSMode)
		default:
			s.limits, s.setupErr = s.Limits.withDefaults(s.Arena)
		}
		if s.setupErr == nil {
			s.mu.Lock()
			s.accepts = newAcceptPacer(s.limits.MaxConnectionRate)
			s.complaints = newPacer(complaintsPerSecond, complaintBurst)
			s.mu.Unlock()
		}
	})
	return s.setupErr
}

// Serve accepts connections from l until Shutdown, and closes l.
//
// Errors: ErrServerClosed after Shutdown; a wrong configuration; an error of Accept.
// When Accept runs out of file descriptors Serve tries again.
func (s *Server) Serve(l net.Listener) error {
	defer func() { _ = l.Close() }() // Shutdown may have closed it
	if err := s.setup(); err != nil {
		return err
	}
	s.mu.Lock()
	if s.draining {
		s.mu.Unlock()
		return ErrServerClosed
	}
	s.listeners[l] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.listeners, l)
		s.mu.Unlock()
	}()
	var d drought
	for {
		nc, err := l.Accept()
		if err == nil {
			d.ended(s, l)
			if c := s.register(nc); c != nil {
				go s.run(c)
			}
			if !s.awaitAccept() {
				return ErrServerClosed
			}
			continue
		}
		select {
		case <-s.stop:
			return ErrServerClosed
		default:
		}
		if !acceptAgain(err) {
			return fmt.Errorf("nbd: accept on %v: %w", l.Addr(), err)
		}
		select {
		case <-s.stop:
			return ErrServerClosed
		case <-time.After(d.failed(s, l, err)):
		}
	}
}

// ServeConn serves one connection to its end and closes it.
//
// Errors: only a wrong configuration. How the connection ended is logged and
// counted.
func (s *Server) ServeConn(nc net.Conn) error {
	if err := s.setup(); err != nil {
		_ = nc.Close()
		return err
	}
	if c := s.register(nc); c != nil {
		s.run(c)
	}
	return nil
}

// register makes nc a connection of the server, or closes it and returns nil.
func (s *Server) register(nc net.Conn) *Conn {
	var who peer
	if s.limits.MaxConnectionsPerPeer > 0 {
		who = peerOf(nc)
	}
	tune(nc)
	if conn, err := socket.Take(nc); err == nil {
		nc = conn // else it is no socket, or descriptors are short: it is served all the same
	}
	c := &Conn{
		peer:   who,
		server: s,
		arena:  s.Arena,
		limits: &s.limits,
		nc:     nc,
		wire:   nc,
		since:  time.Now(),
		ended:  make(chan struct{}),
	}
	if a := nc.RemoteAddr(); a != nil && a.String() != "@" { // a unix socket without a name
		c.remote = a.String()
	}
	c.cond.L = &c.mu
	c.ctx, c.cancel = context.WithCancel(context.Background())

	s.mu.Lock()
	s.nextID++
	c.id = s.nextID
	why := s.vetLocked(c)
	if why < NegotiationFailureCount {
		s.failures[why]++
		s.mu.Unlock()
		c.kill(CloseKilled)
		if tell, untold := s.complain(); tell {
			s.Log.Warn("connection turned away", "remote", c.remote, "reason", why.String(), "others_untold", untold)
		}
		return nil
	}
	defer s.mu.Unlock()
	s.conns[c] = struct{}{}
	if c.peer != (peer{}) {
		s.peers[c.peer]++
	}
	s.wg.Add(1)
	if !s.sweeping {
		s.sweeping = true
		s.wg.Go(s.sweep)
	}
	return c
}

// tune sets the options that a TCP connection should have. It works without them.
func tune(nc net.Conn) {
	if tcp, ok := nc.(*net.TCPConn); ok {
		_ = tcp.SetNoDelay(true)
		_ = tcp.SetKeepAlive(true)
	}
}

// vetLocked returns why a connection cannot be taken, or NegotiationFailureCount if
// it can.
//
// +checklocks:s.mu
func (s *Server) vetLocked(c *Conn) NegotiationFailure {
	switch {
	case s.draining:
		return NegotiationShutdown
	case len(s.conns) >= s.limits.MaxConnections:
		return NegotiationTooManyConnections
	case c.peer != (peer{}) && s.peers[c.peer] >= s.limits.MaxConnectionsPerPeer:
		return NegotiationTooManyOfPeer
	}
	return NegotiationFailureCount
}

// run is the life of a registered connection.
func (s *Server) run(c *Conn) {
	defer s.wg.Done()
	defer close(c.ended)
	log := s.Log.With("conn", c.id, "remote", c.remote)
	end, ok := c.negotiate()
	if ok {
		log.Info("connected", "export", c.export.Name, "replies", c.agreed.String(), "tls", c.tls, "client", c.clientName)
		if s.Opened != nil {
			s.Opened(s.connStats(c))
		}
		c.transmit()
		reason := CloseReason(c.reason.Load())
		log.Info("disconnected", "export", c.export.Name, "reason", reason.String())
		if s.Closed != nil {
			s.Closed(s.connStats(c), reason)
		}
	} else {
		c.kill(CloseKilled)
		if end.silent {
			log.Debug("closed in negotiation", "reason", end.reason.String())
		} else if tell, untold := s.complain(); tell {
			log.Warn("negotiation failed", "reason", end.reason.String(), "detail", end.detail, "others_untold", untold)
		}
	}
	s.unregister(c, end.reason)
}

// unregister undoes register, and counts how the connection ended: for reason, if it never
// transmitted.
func (s *Server) unregister(c *Conn, reason NegotiationFailure) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	if len(s.conns) == 0 {
		select {
		case s.alone <- struct{}{}:
		default:
		}
	}
	if c.peer != (peer{}) {
		if s.peers[c.peer]--; s.peers[c.peer] == 0 {
			delete(s.peers, c.peer)
		}
	}
	s.releaseLocked(c)
	if !c.transmitting {
		if reason < NegotiationFailureCount {
			s.failures[reason]++
		}
		return
	}
	s.closes[c.reason.Load()]++
	c.loadOps(s.folded[c.export.Name])
	s.receivedBytes += c.receivedBytes.Load()
	s.sentBytes += c.sentBytes.Load()
	s.lentBytes += c.lentBytes.Load()
}

// reserve counts n's connection among those of e, or says why it cannot be one of them: e
// has as many as it may have, or is no longer on offer, or not to this client: it may have
// waited since it asked.
func (s *Server) reserve(n *negotiation, e Export) *refusal {
	c := n.c
	s.mu.Lock()
	defer s.mu.Unlock()
	// Look up once more, for DrainDevice: a client that comes after it finds no export,
	// and one that came before is among those that it sees.
	now, ok := s.Exports.Lookup(e.Name)
	if !ok || now.Device != e.Device {
		return &refusal{repErrUnknown, NegotiationNoExport, fmt.Sprintf("no export %q any more", clip(e.Name, maxMessageBytes))}
	}
	if no := n.mayUse(now); no != nil {
		return no
	}
	if now.MaxConnections > 0 && s.inUse[e.Name] >= now.MaxConnections {
		return &refusal{
			repErrPolicy, NegotiationTooManyOfExport,
			fmt.Sprintf("export %q has as many connections as it may have, %d", e.Name, now.MaxConnections),
		}
	}
	s.inUse[e.Name]++
	s.users[e.Device]++
	c.reserved, c.reservedName, c.reservedDevice = true, e.Name, e.Device
	return nil
}

// release undoes reserve.
func (s *Server) release(c *Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.releaseLocked(c)
}

// releaseLocked undoes reserve, if it was called.
//
// +checklocks:s.mu
func (s *Server) releaseLocked(c *Conn) {
	if !c.reserved {
		return
	}
	c.reserved = false
	if s.inUse[c.reservedName]--; s.inUse[c.reservedName] == 0 {
		delete(s.inUse, c.reservedName)
	}
	d := c.reservedDevice
	if s.users[d]--; s.users[d] > 0 {
		return
	}
	delete(s.users, d)
	if ch := s.leaving[d]; ch != nil {
		close(ch)
		delete(s.leaving, d)
	}
}

// enter marks c as transmitting for c.export. It returns false if the server or the
// export's device is draining.
func (s *Server) enter(c *Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining || c.draining() {
		return false
	}
	c.transmitting = true
	if s.folded[c.export.Name] == nil {
		s.folded[c.export.Name] = &OpTable{}
	}
	return true
}

// Shutdown drains the server: it stops accepting, ends negotiations, lets each
// connection answer what it has in flight and closes it. When ctx ends it closes
// the remaining connections at once and returns without waiting for what their
// devices still have to complete.
//
// Errors: the context's error if the drain did not finish.
func (s *Server) Shutdown(ctx context.Context) error {
	if err := s.setup(); err != nil {
		return nil //nolint:nilerr // a server that was never able to serve has nothing to shut down
	}
	s.mu.Lock()
	if !s.draining {
		s.draining = true
		close(s.stop)
	}
	for l := range s.listeners {
		_ = l.Close() // Serve sees it
	}
	for c := range s.conns {
		s.drainLocked(c)
	}
	s.mu.Unlock()

	done := make(chan struct{})
	go func() {
		s.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	conns := make([]*Conn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	s.mu.Unlock()
	for _, c := range conns {
		c.kill(CloseKilled)
	}
	return ctx.Err()
}
