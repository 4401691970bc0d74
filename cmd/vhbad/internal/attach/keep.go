package attach

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"
)

const (
	// checkInterval is how often Keep looks at the device even if nothing wakes it.
	checkInterval = time.Second
	// dialTimeout bounds one attempt to reconnect, handshakes included.
	dialTimeout = 10 * time.Second
	// steadyTime is how long connections must have lasted for their loss to be answered at
	// once: some servers accept every connection and close it.
	steadyTime = 2 * lastBackoff
	// resizeGrace is added to the device's timeout: see Attachment.grow.
	resizeGrace = 2 * time.Second
)

// An Attachment is an attached device and our descriptors of its sockets.
//
// Concurrency: one goroutine.
type Attachment struct {
	Device Device
	// TakenOver says that another process had attached the device.
	TakenOver bool

	kernel  *kernel
	driver  *driver
	options Options
	sockets sockets
	index   int
	// flags are the transmission flags given to the kernel when the device was attached;
	// zero while they are not known.
	flags uint16
	// exportBytes is the size that the server reported last. It may exceed the device's
	// size until grow.
	exportBytes uint64
	// pid is the device's owner according to sysfs: this process, as numbered in the first
	// process id namespace. Any other value means another attachment.
	pid int
	// reconnected is when the kernel last got a socket.
	reconnected time.Time
	backoff     backoff
	adoption    adoption
}

func (k *kernel) hold(ctx context.Context, o Options) (*Attachment, error) {
	if o.Timeout <= 0 || o.DeadConnTimeout <= 0 {
		return nil, fmt.Errorf("timeout %v, dead connection timeout %v: reconnecting needs both above 0, for without them the kernel does not send requests again on a new connection", o.Timeout, o.DeadConnTimeout)
	}
	if a, err := k.adopt(o); a != nil || err != nil {
		return a, err
	}
	return k.connectAll(ctx, o)
}

// Close closes our descriptors. The device stays attached.
func (a *Attachment) Close() error {
	a.sockets.close()
	return a.driver.close()
}

// Keep replaces connections that have ended, until the device is detached, which is no
// error, or until ctx ends. While no connection is left, the kernel holds requests back for
// the dead connection timeout. A request that was under way on a connection that ended is
// sent again once it is older than the timeout. A value from recheck makes Keep ask the
// server whether the export has grown.
//
// Errors: that of ctx.
func (a *Attachment) Keep(ctx context.Context, log *slog.Logger, recheck <-chan os.Signal) error {
	log = log.With("device", a.Device.Path)
	wake := make(chan struct{}, 1)
	woken := func() {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
	stopWatch, err := a.sockets.watch(woken)
	if err != nil {
		return err
	}
	defer stopWatch()
	died := make(chan struct{}, 1)
	stopListen, err := a.kernel.listen(func(index int) {
		if index != a.index && index != anyDevice {
			return
		}
		select {
		case died <- struct{}{}:
		default:
		}
		woken()
	})
	switch {
	case err == nil:
		defer stopListen()
	case a.adoption.foreign > 0:
		return fmt.Errorf("the kernel does not tell of dead connections, and %s was attached by another process: %w", a.Device.Path, err)
	default:
		log.Debug("not told by the kernel of dead connections; looking at the sockets only", "error", err)
	}
	tick := time.NewTicker(checkInterval)
	defer tick.Stop()
	for {
		select {
		case <-died:
			a.adoption.suspect()
		default:
		}
		if err := a.check(ctx, log, wake); errors.Is(err, errDetached) {
			log.Info("detached by somebody else")
			return nil
		} else if err != nil {
			return err
		}
		select {
		case <-wake:
		case <-tick.C:
		case <-recheck:
			if err := a.askSize(ctx); err != nil {
				log.Warn("could not ask for the export's size", "error", err)
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// askSize asks the server for the export's size, on a connection made for that.
func (a *Attachment) askSize(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	fds, info, err := dialAll(ctx, a.options.Server, 1, nil)
	if err != nil {
		return err
	}
	leave(fds)
	if err := a.fits(info); err != nil {
		return err
	}
	a.exportBytes = info.sizeBytes
	return nil
}

// check looks once at everything that Keep looks after.
//
// Errors: errDetached, the context's.
func (a *Attachment) check(ctx context.Context, log *slog.Logger, wake <-chan struct{}) error {
	st, err := a.kernel.state(a.index)
	if err != nil {
		return err
	}
	if st.pid != a.pid {
		return errDetached
	}
	dead, err := a.sockets.ended()
	if err != nil {
		return err
	}
	if len(dead) > 0 || a.adoption.suspected() {
		return a.reconnect(ctx, log, wake, len(dead))
	}
	return a.grow(log, &st)
}

// reconnect tries until no connection is dead.
//
// Errors: errDetached, the context's.
func (a *Attachment) reconnect(ctx context.Context, log *slog.Logger, wake <-chan struct{}, lost int) error {
	// A device that is being detached also loses its connections.
	if err := a.driver.reconfigure(reconfigureRequest{index: a.index, backend: a.Device.BackendID}); errors.Is(err, errDetached) {
		return err
	}
	began := time.Now()
	if lost > 0 {
		log.Warn("connections lost: reconnecting", "lost", lost, "of", a.Device.Connections,
			"server", a.options.Server.String(), "requests_wait_at_most", a.options.DeadConnTimeout)
	}
	if time.Since(a.reconnected) > steadyTime {
		a.backoff = backoff{}
	} else if err := a.backoff.wait(ctx, nil); err != nil {
		return err
	}
	last, late := "", false
	for {
		err := a.attempt(ctx)
		switch {
		case errors.Is(err, errNoneDead):
			return nil
		case err == nil:
			log.Info("reconnected", "after", time.Since(began).Round(time.Millisecond))
			return nil
		case errors.Is(err, errDetached):
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		}
		if text := err.Error(); text != last { // a server that stays away is reported only once
			log.Warn("cannot reconnect yet: trying again", "error", err)
			last = text
		}
		if !late && time.Since(began) > a.options.DeadConnTimeout {
			log.Error("no connection within the dead connection timeout: requests that wait may have failed")
			late = true
		}
		if err := a.backoff.wait(ctx, wake); err != nil {
			return err
		}
	}
}

// attempt dials once and replaces whatever is dead. It succeeds if nothing is dead any
// more.
//
// Errors: errDetached, errNoneDead; after any other, try again.
func (a *Attachment) attempt(ctx context.Context) error {
	dead, err := a.sockets.ended()
	if err != nil {
		return err
	}
	n := len(dead)
	if a.adoption.suspected() {
		n += a.adoption.foreign
	}
	if n == 0 {
		return nil
	}
	id := reconfigureRequest{index: a.index, backend: a.Device.BackendID}
	if err := a.driver.reconfigure(id); err != nil {
		return err
	}
	// The kernel replaces only sockets that it knows to be dead, so make it notice.
	shutDown(dead)
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	fds, info, err := dialAll(ctx, a.options.Server, n, a.fits)
	if err != nil {
		return err
	}
	id.fds = fds
	if err := a.driver.reconfigure(id); err != nil {
		closeAll(fds)
		return err
	}
	a.exportBytes = info.sizeBytes
	if a.flags == 0 {
		a.flags = info.flags
	}
	var errs error
	ours, foreign := 0, 0
	for _, fd := range fds {
		ok, err := taken(fd)
		switch {
		case !ok:
			closeAll([]int{fd})
		case len(dead) > 0:
			err = a.sockets.replace(dead[0], fd)
			dead = dead[1:]
			ours++
		default:
			err = a.sockets.add(fd)
			foreign++
		}
		errs = errors.Join(errs, err)
	}
	if ours+foreign > 0 {
		a.reconnected = time.Now()
	}
	if len(dead) > 0 {
		errs = errors.Join(errs, fmt.Errorf("the kernel has not yet given up %d dead connections", len(dead)))
	}
	return errors.Join(errs, a.adoption.settle(ours, foreign))
}

// neededFlags are the transmission flags that the kernel acts on. It is given them only
// once, when the device is attached.
const neededFlags = flagFlush | flagFUA | flagTrim | flagWriteZeroes

// fits returns why the device cannot go on with an export, nil if it can.
func (a *Attachment) fits(info exportInfo) error {
	lost := a.flags & neededFlags &^ info.flags
	switch {
	case info.sizeBytes&^(uint64(a.Device.BlockBytes)-1) < a.Device.SizeBytes:
		return fmt.Errorf("the export has shrunk to %d bytes, the device has %d: is it the same?", info.sizeBytes, a.Device.SizeBytes)
	case info.flags&flagReadOnly != 0 && !a.Device.ReadOnly:
		return errors.New("the export has become read-only, and the device is not")
	case a.Device.Connections > 1 && info.flags&flagMultiConn == 0:
		return errors.New("the export has lost NBD_FLAG_CAN_MULTI_CONN, and the device has several connections")
	case lost != 0:
		return fmt.Errorf("the export has lost abilities that the kernel uses: transmission flags are %#x, were %#x", info.flags, a.flags)
	case info.minBlockBytes > a.Device.BlockBytes:
		return fmt.Errorf("the export's smallest block has become %d bytes, the device's is %d", info.minBlockBytes, a.Device.BlockBytes)
	}
	return nil
}

// grow tells the kernel that an export has grown. That may freeze the device until all
// requests in flight are done, and nothing else can be changed meanwhile. So grow waits
// until no request can still be stuck on a connection that has ended.
func (a *Attachment) grow(log *slog.Logger, st *deviceState) error {
	size := a.exportBytes &^ (uint64(a.Device.BlockBytes) - 1)
	if size <= a.Device.SizeBytes || st.inFlight && time.Since(a.reconnected) < a.options.Timeout+resizeGrace {
		return nil
	}
	if err := a.driver.reconfigure(reconfigureRequest{index: a.index, backend: a.Device.BackendID, sizeBytes: size}); err != nil {
		log.Error("the export has grown, but the kernel does not take the new size", "size_bytes", size, "error", err)
		a.exportBytes = a.Device.SizeBytes // do not try again
		return nil
	}
	log.Info("the device has grown", "size_bytes", size, "was_bytes", a.Device.SizeBytes)
	a.Device.SizeBytes = size
	return nil
}
