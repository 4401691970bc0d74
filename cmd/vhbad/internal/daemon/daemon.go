package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/netutil"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/admin"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/events"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/metrics"
	"github.com/vhbad/vhbad/hba"
	"github.com/vhbad/vhbad/hba/media"
)

// Options say what to run.
type Options struct {
	Config  *config.Config
	Version string
	Log     *slog.Logger
	// Inherited listeners are served besides those of Config, and closed by Stop
	// or by a Start that fails.
	Inherited Sockets
	// OpenMedium opens a disk's medium; nil means as configured. It is for tests, whose
	// media fail.
	OpenMedium func(c *config.Disk) (media.Media, error)
	// Progress begins to show the progress of something that takes long. If nil, the log
	// reports only its end.
	Progress func(what string) Progress
	// Predecessor is the daemon whose place this one takes; nil if there is none.
	// Start closes it.
	Predecessor *Predecessor
	// Single serves only one client: Conn or, if that is nil, the first to connect to the
	// inherited NBD listener. See Daemon.ClientGone.
	Single bool
	Conn   net.Conn
	// Reload reads the configuration again, for Daemon.Reload; nil if there is none to
	// read. Reloaded, unless nil, is told the outcome, perhaps before Start has returned.
	Reload   func() (*config.Config, error)
	Reloaded func(d *Daemon, err error)
	// LogLevel is set by a reload; nil if the level does not change.
	LogLevel *slog.LevelVar
	// HoldLimit is port.SystemConfig.HoldLimit: zero for its default.
	HoldLimit time.Duration
	// Clock is the clock of fault rules; nil means real time.
	Clock hba.Clock
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

// A step is something that Start has done and that can be undone.
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

	// current is the configuration in force, of which Options.Config was the first.
	current  atomic.Pointer[config.Config]
	reloaded lastReload
	// reading is for readAgain.
	reading chan struct{}

	// steps belongs to the goroutine that calls Start and Stop.
	steps []step
	// sockets may be changed only by the holder of changing.
	sockets []*socket
	// accepting counts the listeners that are served.
	accepting sync.WaitGroup
	// reshape are the unix sockets that were taken over and may need another mode or owner.
	reshape []admin.UnixSocket
	faults  faults

	// failed gets the error of a listener that broke.
	failed chan error

	// events is what happens, as the admin socket reports it.
	events *events.Log

	// certificates are nil if TLS is off.
	certificates *certificates

	httpAddr string

	// clientGone is closed when the one client of Options.Single is gone.
	clientGone chan struct{}

	// handingOver is set while another daemon asks for this one's place.
	handingOver atomic.Bool
	// successor is where the other daemon waits, once handedOver is closed.
	successor  *net.UnixConn
	handedOver chan struct{}

	// changing is the right to change what is served: whoever has put a value in holds the
	// right, until it takes the value out.
	changing chan struct{}
	// matching is set while matchDisks waits for its turn.
	matching atomic.Bool
	// life ends when the daemon begins to stop, by endLife.
	life    context.Context
	endLife context.CancelFunc

	mu sync.RWMutex
	// machine is nil before it is complete and once it is being taken apart.
	// +checklocks:mu
	machine *machine
	// +checklocks:mu
	endpoints []Endpoint
}

// Start brings everything up. When it fails, nothing is left running.
func Start(ctx context.Context, o Options) (*Daemon, error) {
	d := &Daemon{o: o, log: o.Log, started: time.Now(), events: events.NewLog(events.DefaultCapacity, nil), failed: make(chan error, 1), handedOver: make(chan struct{}), clientGone: make(chan struct{})}
	d.current.Store(o.Config)
	d.reloaded.set(nil)
	d.changing, d.reading = make(chan struct{}, 1), make(chan struct{}, 1)
	d.life, d.endLife = context.WithCancel(context.WithoutCancel(ctx))
	defer o.Predecessor.Close()
	if err := d.start(ctx); err != nil {
		// ctx may have ended: that may be why the start failed.
		undoCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), o.Config.Limits.DrainTimeout.Std())
		defer cancel()
		d.endLife()
		return nil, errors.Join(err, d.undoAll(undoCtx))
	}
	d.state.Store(uint32(stateReady))
	d.events.Publish(client.EventReady, "")
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
	for _, l := range d.o.Inherited.NBD {
		d.sockets = append(d.sockets, &socket{Listener: l, purpose: purposeNBD})
	}
	d.pushAlways("sockets", func(context.Context) error {
		for _, l := range d.o.Inherited.All() {
			_ = l.Close() // whoever served it has closed it
		}
		for _, s := range d.sockets {
			_ = s.Close() // likewise
		}
		if d.o.Conn != nil {
			_ = d.o.Conn.Close() // likewise
		}
		return nil
	})
	var err error
	if d.certificates, err = loadCertificates(&d.o.Config.TLS, d.log); err != nil {
		return err
	}
	if err := d.startFront(ctx); err != nil {
		return err
	}
	m, err := d.startMachine(ctx)
	if err != nil {
		return err
	}
	if d.o.Predecessor == nil { // with one, they are open already
		if err := d.openNBD(ctx); err != nil {
			return err
		}
	}
	if d.o.Single {
		d.serveSingle(m)
	} else {
		d.serveNBD(m)
	}
	return ctx.Err()
}

// startFront starts what works without the machine. A predecessor, if there is one, has
// ended by the time it returns; before the predecessor is told to go, everything whose
// failure can be foreseen has been tried.
func (d *Daemon) startFront(ctx context.Context) error {
	p := d.o.Predecessor
	if p != nil {
		if err := d.openNBD(ctx); err != nil {
			return err
		}
		if err := errors.Join(d.checkImages(), d.o.Config.CheckFaults()); err != nil {
			return err
		}
	}
	serveControl, err := d.openControl(ctx)
	if err != nil {
		return err
	}
	if p != nil {
		if err := ctx.Err(); err != nil {
			return err // the predecessor goes on serving
		}
		undo, err := reshape(d.reshape)
		if err == nil {
			err = p.sayGo()
		}
		if err != nil {
			return errors.Join(err, undo())
		}
	}
	serveControl()
	if p == nil {
		return nil
	}
	return p.wait(ctx)
}

// checkImages reports images that cannot be opened, as far as that shows while the
// predecessor has them.
func (d *Daemon) checkImages() error {
	for i := range d.o.Config.Disks {
		c := &d.o.Config.Disks[i]
		if c.File == "" {
			continue
		}
		if err := media.CheckFile(fileConfig(c)); err != nil {
			return fmt.Errorf("disk %q: %w", c.Name, err)
		}
	}
	return nil
}

// maxHTTPConnections bounds how many clients of metrics and health have a connection at
// once: they may be anybody, and each descriptor that they keep is one less for clients of
// disks. Further ones wait.
const maxHTTPConnections = 64

// openControl opens the admin socket and the HTTP listener. serve starts serving both.
func (d *Daemon) openControl(ctx context.Context) (serve func(), err error) {
	c := d.o.Config
	adminListener, err := d.openOne(purposeAdmin, c.Admin, d.o.Inherited.Admin, func() (net.Listener, error) {
		return admin.ListenUnix(ctx, c.Admin, 0o600)
	})
	if err != nil {
		return nil, fmt.Errorf("admin %w (--admin sets the path, --admin %s switches it off)", err, config.Off)
	}
	httpListener, err := d.openOne(purposeHTTP, c.HTTP, d.o.Inherited.HTTP, func() (net.Listener, error) {
		l, err := listenTCP(c.HTTP, func(network, address string) (net.Listener, error) {
			return new(net.ListenConfig).Listen(ctx, network, address)
		})
		if err != nil {
			return nil, d.o.Predecessor.inTheWay(config.Address{Network: "tcp", Target: c.HTTP}, plain(err))
		}
		return l, nil
	})
	if err != nil {
		return nil, fmt.Errorf("http %s: %w (--http sets the address, --http %s switches it off)", c.HTTP, err, config.Off)
	}
	return func() {
		if adminListener != nil {
			s := admin.Serve(adminListener, admin.Handler(admin.Sources{Status: d, Disks: d, Reload: d, HandOver: d, Events: d.events, Power: d, Faults: d}), d.log)
			d.pushAlways("admin socket", func(ctx context.Context) error {
				d.events.Close() // which ends the streams
				return s.Close(ctx)
			})
		}
		if httpListener != nil {
			d.httpAddr = httpListener.Addr().String()
			s := admin.Serve(netutil.LimitListener(httpListener, maxHTTPConnections), metrics.Handler(metrics.NewRegistry(d, d.o.Version), d), d.log)
			d.pushAlways("http", s.Close)
		}
	}, nil
}

// openOne returns the listener for a purpose: an inherited one, one that is taken over, or
// a new one; nil if there is to be none.
func (d *Daemon) openOne(purpose, origin string, inherited net.Listener, open func() (net.Listener, error)) (net.Listener, error) {
	l := inherited
	switch {
	case l != nil:
		origin = ""
	case origin == "":
		return nil, nil
	default:
		var err error
		if l, err = d.o.Predecessor.take(purpose, origin); err != nil {
			return nil, err
		}
		if l == nil { // or what a service manager gave the predecessor
			if l, err = d.o.Predecessor.take(purpose, ""); err != nil {
				return nil, err
			}
			if l != nil {
				origin = ""
			}
		}
		if l == nil {
			if l, err = open(); err != nil {
				return nil, err
			}
		}
	}
	d.sockets = append(d.sockets, &socket{Listener: l, purpose: purpose, origin: origin})
	return l, nil
}

// Endpoints are the addresses being served.
func (d *Daemon) Endpoints() []Endpoint {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return slices.Clone(d.endpoints)
}

// HTTPAddress returns the address of the metrics, empty if they are switched off.
func (d *Daemon) HTTPAddress() string { return d.httpAddr }

// Ready reports whether the daemon has started and does not stop.
func (d *Daemon) Ready() bool { return state(d.state.Load()) == stateReady }

// NotReady implements metrics.Health. A daemon none of whose disks can be used is not
// ready: whoever asks sends clients elsewhere. One without disks waits for those that are
// added, and a disk that a rule has pulled out is as it is meant to be.
func (d *Daemon) NotReady() string {
	if !d.Ready() {
		return state(d.state.Load()).String()
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.machine == nil {
		return stateDraining.String()
	}
	lost := false
	for _, e := range d.machine.list() {
		switch {
		case e.state() != client.DiskServing:
		case e.LogicalUnit().Stats().GivenUp:
			lost = true
		default:
			return ""
		}
	}
	if lost {
		return "no disk answers, and no reset has helped"
	}
	return ""
}

// ClientGone is closed when the only client, of Options.Single, is gone; the
// daemon should be stopped then.
func (d *Daemon) ClientGone() <-chan struct{} { return d.clientGone }

// Failed gets an error if a listener breaks; the daemon should be stopped then.
func (d *Daemon) Failed() <-chan error { return d.failed }

// lastChange waits until nothing can change what is served any more.
func (d *Daemon) lastChange(ctx context.Context) error {
	select {
	case d.changing <- struct{}{}:
		<-d.changing // the next to come finds that the daemon stops
		return nil
	case <-ctx.Done():
		return fmt.Errorf("a change of disks has not ended: %w", ctx.Err())
	}
}

// Stop drains clients, flushes every disk and takes everything down. When ctx ends it gives
// up on what is not finished.
//
// Errors: whatever could not be finished. Data that clients were told is durable is durable
// all the same.
func (d *Daemon) Stop(ctx context.Context) error {
	d.state.Store(uint32(stateDraining))
	d.events.Publish(client.EventStopping, "")
	d.endFaults()
	d.endLife()
	err := errors.Join(d.lastChange(ctx), d.undoAll(ctx))
	d.farewell(err)
	return err
}
