package daemon

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/admin"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
)

// A Predecessor is a running daemon that is ready to be replaced. It goes on serving until
// Start with this Predecessor has come as far as it can beside it.
//
// A nil Predecessor has no sockets. Concurrency: one goroutine.
type Predecessor struct {
	c       *net.UnixConn
	log     *slog.Logger
	pid     int32
	drain   time.Duration
	offered []*offeredSocket
	// taken are the sockets that Start has asked for.
	taken []*admin.Listener
	gone  bool // go has been sent
}

// An offeredSocket is an offered socket that nobody has asked for yet.
type offeredSocket struct {
	purpose, origin string
	files           []*os.File
}

// drainGrace is how much longer than its drain timeout a predecessor may take
// before its successor gives up.
const drainGrace = 30 * time.Second

// TakeOver asks the daemon at the admin socket for its place. If no daemon runs there, it
// returns nil and no error.
//
// Errors: the daemon's objection; a daemon that does not answer as it should.
func TakeOver(ctx context.Context, path string, r client.HandOver, log *slog.Logger) (*Predecessor, error) {
	nc, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("take over from %s: %w", path, plain(err))
	}
	p := &Predecessor{c: nc.(*net.UnixConn), log: log}
	p.pid = peerPID(p.c)
	stop := context.AfterFunc(ctx, func() { _ = nc.Close() })
	defer stop()
	if err := p.ask(r); err != nil {
		p.Close()
		return nil, fmt.Errorf("take over from process %d: %w", p.pid, errors.Join(ctx.Err(), err))
	}
	return p, nil
}

// ask makes the request and receives the offer.
func (p *Predecessor) ask(r client.HandOver) error {
	body, err := json.Marshal(r)
	if err != nil {
		return err
	}
	req, err := http.NewRequest(http.MethodPost, "http://vhbad"+admin.HandOverPath, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", admin.HandOverProtocol)
	if err := p.c.SetDeadline(time.Now().Add(stepTimeout)); err != nil {
		return err
	}
	if err := req.Write(p.c); err != nil {
		return err
	}
	// The daemon sends nothing after its answer before it is asked to, so the buffer cannot
	// swallow descriptors.
	res, err := http.ReadResponse(bufio.NewReader(p.c), req)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		defer func() { _ = res.Body.Close() }()
		var problem client.Problem
		if err := json.NewDecoder(io.LimitReader(res.Body, maxHandoverBytes)).Decode(&problem); err != nil || problem.Message == "" {
			problem.Message = res.Status
		}
		return errors.New(problem.Message)
	}
	if err := sendMessage(p.c, handoverMessage{Say: saySend}); err != nil {
		return err
	}
	for {
		m, files, err := receiveMessage(p.c, stepTimeout, saySocket, sayOffer)
		if err != nil {
			return err
		}
		if m.Say == sayOffer {
			closeFiles(files)
			p.drain = time.Duration(m.DrainSeconds * float64(time.Second))
			return nil
		}
		want := 1
		if m.Locked {
			want = 2
		}
		if len(files) != want {
			closeFiles(files)
			return fmt.Errorf("socket %s comes with %d descriptors: want %d", m.Origin, len(files), want)
		}
		p.offered = append(p.offered, &offeredSocket{purpose: m.Purpose, origin: m.Origin, files: files})
	}
}

// take returns the offered socket of that purpose and origin, or nil.
func (p *Predecessor) take(purpose, origin string) (net.Listener, error) {
	if p == nil {
		return nil, nil
	}
	for i, s := range p.offered {
		if s.purpose != purpose || s.origin != origin {
			continue
		}
		p.offered = append(p.offered[:i:i], p.offered[i+1:]...)
		if len(s.files) == 1 {
			return listenerOf(s.files[0])
		}
		l, err := admin.Adopt(s.files[0], s.files[1])
		if err != nil {
			return nil, err
		}
		p.taken = append(p.taken, l)
		return l, nil
	}
	return nil, nil
}

// inTheWay adds to the error of an address that its port belongs to one of the
// predecessor's sockets, which stay open until it has gone.
func (p *Predecessor) inTheWay(a config.Address, err error) error {
	if p == nil || err == nil {
		return err
	}
	var addrs []net.Addr
	for _, s := range p.offered {
		l, lerr := net.FileListener(s.files[0]) // of a duplicate
		if lerr != nil {
			continue // it is no TCP socket
		}
		addrs = append(addrs, l.Addr())
		_ = l.Close() // nothing has been accepted
	}
	if has := holder(a, err, addrs); has != nil {
		return fmt.Errorf("%w: it is the running daemon's %s, which stays open until that has gone: take over with the same address, or stop that one first", syscall.EADDRINUSE, endpointURI(has))
	}
	return err
}

// sayGo tells the predecessor to drain; from then on its sockets are this process's.
func (p *Predecessor) sayGo() error {
	if err := sendMessage(p.c, handoverMessage{Say: sayGo}); err != nil {
		return fmt.Errorf("take over from process %d: %w", p.pid, err)
	}
	if _, _, err := receiveMessage(p.c, stepTimeout, sayDraining); err != nil {
		return fmt.Errorf("take over from process %d: %w", p.pid, err)
	}
	p.gone = true
	for _, l := range p.taken {
		if err := l.Keep(); err != nil { // the lock file's content is only for readers, and there is no way back
			p.log.Warn("the lock of a socket does not say whose it is", "socket", l.Addr().String(), "error", err)
		}
	}
	p.log.Info("taking over", "process", p.pid)
	return nil
}

// wait returns when the predecessor has let go of everything.
//
// Errors: ctx has ended, or it does not come to an end. If it just died, its
// images are free.
func (p *Predecessor) wait(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = p.c.Close() })
	defer stop()
	limit := p.drain + drainGrace
	m, _, err := receiveMessage(p.c, limit, sayDone)
	if err == nil && m.Error != "" {
		p.log.Error("the daemon before this one could not close everything", "process", p.pid, "error", m.Error)
		_, _, err = receiveMessage(p.c, limit, sayDone) // the end
		if errors.Is(err, io.EOF) {
			return nil
		}
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("process %d has not ended after %s: end it", p.pid, limit)
	case err != nil:
		p.log.Error("the daemon before this one died while it drained: what was in flight is lost", "process", p.pid, "error", err)
	}
	return nil
}

// Close ends the conversation. Sockets that nobody asked for are closed; those with a path
// are also removed if they are this process's by now.
func (p *Predecessor) Close() {
	if p == nil {
		return
	}
	for _, s := range p.offered {
		if !p.gone || len(s.files) == 1 {
			closeFiles(s.files)
			continue
		}
		l, err := admin.Adopt(s.files[0], s.files[1])
		if err == nil {
			err = errors.Join(l.Keep(), l.Close())
		}
		if err != nil {
			p.log.Warn("a socket of the daemon before this one is left", "origin", s.origin, "error", err)
		}
	}
	p.offered = nil
	_ = p.c.Close() // nothing is expected any more
}
