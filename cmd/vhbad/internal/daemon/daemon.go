package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vhbad/vhbad/cmd/vhbad/internal/admin"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/metrics"
	"github.com/vhbad/vhbad/hba/media"
)

// Options say what to run.
type Options struct {
	Config  *config.Config
	Version string
	Log     *slog.Logger
	// Inherited listeners are served besides those of Config, and closed by Stop
	// or by a Start that fails.
	Inherited []net.Listener
	// OpenMedium opens a disk's medium. Nil: what its configuration says. It is
	// for tests, which have media that fail.
	OpenMedium func(c *config.Disk) (media.Media, error)
	// HoldLimit is port.SystemConfig.HoldLimit: zero for its default.
	HoldLimit time.Duration
}

// state is where a Daemon is in its life.
type state uint32

const (
	stateStarting state = iota
	stateReady
	stateDraining
)

func (s state) String() string {
	return [...]string{"starting", "ready", "draining"}[s]
}

// An Endpoint is an address being served.
type Endpoint struct {
	// URI is tcp://HOST:PORT or unix:///PATH, with the actual port.
	URI string
	// AttachHint is a command line that attaches the first disk.
	AttachHint string
}

// A step is something that Start has done.
type step struct {
	name string
	undo func(ctx context.Context) error
	// always: undo it even if an earlier undo failed.
	always bool
}

// A Daemon is one running vhbad.
type Daemon struct {
	o       Options
	log     *slog.Logger
	started time.Time
	state   atomic.Uint32

	// steps belongs to the goroutine that calls Start and Stop.
	steps []step
	// failed gets the error of a listener that broke.
	failed chan error

	endpoints []Endpoint
	httpAddr  string

	mu sync.RWMutex
	// machine is nil before it is complete and once it is being taken apart.
	// +checklocks:mu
	machine *machine
}

// Start brings everything up. When it fails, nothing is left running.
func Start(ctx context.Context, o Options) (*Daemon, error) {
	d := &Daemon{o: o, log: o.Log, started: time.Now(), failed: make(chan error, 1)}
	if err := d.start(ctx); err != nil {
		// The reason for failing may be that ctx has ended.
		undoCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), o.Config.Limits.DrainTimeout.Std())
		defer cancel()
		return nil, errors.Join(err, d.undoAll(undoCtx))
	}
	d.state.Store(uint32(stateReady))
	return d, nil
}

func (d *Daemon) push(name string, undo func(context.Context) error) {
	d.steps = append(d.steps, step{name: name, undo: undo})
}

func (d *Daemon) pushAlways(name string, undo func(context.Context) error) {
	d.steps = append(d.steps, step{name: name, undo: undo, always: true})
}

// undoAll undoes the steps, last first.
func (d *Daemon) undoAll(ctx context.Context) error {
	var errs []error
	stuck := false
	for len(d.steps) > 0 {
		s := d.steps[len(d.steps)-1]
		d.steps = d.steps[:len(d.steps)-1]
		if stuck && !s.always {
			continue
		}
		d.log.Debug("stopping", "step", s.name)
		if err := s.undo(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", s.name, err))
			stuck = stuck || ctx.Err() != nil
		}
	}
	return errors.Join(errs...)
}

func (d *Daemon) start(ctx context.Context) error {
	inherited := d.o.Inherited
	d.pushAlways("inherited sockets", func(context.Context) error {
		for _, l := range inherited {
			_ = l.Close() // the NBD server has closed those that it served
		}
		return nil
	})
	if err := d.startControl(ctx); err != nil {
		return err
	}
	m, err := d.startMachine(ctx)
	if err != nil {
		return err
	}
	if err := d.startListeners(ctx, m); err != nil {
		return err
	}
	return ctx.Err()
}

// startControl opens the admin socket and HTTP.
func (d *Daemon) startControl(ctx context.Context) error {
	c := d.o.Config
	if c.Admin != "" {
		l, err := admin.ListenUnix(ctx, c.Admin, 0o600)
		if err != nil {
			return fmt.Errorf("admin %w (--admin sets the path, --admin %s switches it off)", err, config.Off)
		}
		s := admin.Serve(l, admin.Handler(d), d.log)
		d.pushAlways("admin socket", s.Close)
	}
	if c.HTTP != "" {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", c.HTTP)
		if err != nil {
			return fmt.Errorf("http %s: %w (--http sets the address, --http %s switches it off)", c.HTTP, plain(err), config.Off)
		}
		d.httpAddr = l.Addr().String()
		s := admin.Serve(l, metrics.Handler(metrics.NewRegistry(d, d.o.Version), d), d.log)
		d.pushAlways("http", s.Close)
	}
	return nil
}

// Endpoints are the addresses being served.
func (d *Daemon) Endpoints() []Endpoint { return d.endpoints }

// HTTPAddress is where metrics are, empty if nowhere.
func (d *Daemon) HTTPAddress() string { return d.httpAddr }

// Ready implements metrics.Health.
func (d *Daemon) Ready() bool { return state(d.state.Load()) == stateReady }

// Failed gets an error if a listener breaks; the daemon should be stopped then.
func (d *Daemon) Failed() <-chan error { return d.failed }

// Stop drains clients, flushes every disk and takes all down. When ctx ends it
// gives up what is not finished.
//
// Errors: whatever could not be finished; data that clients were told is durable
// is durable all the same.
func (d *Daemon) Stop(ctx context.Context) error {
	d.state.Store(uint32(stateDraining))
	return d.undoAll(ctx)
}
