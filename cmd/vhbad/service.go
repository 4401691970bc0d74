package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/vhbad/vhbad/cmd/vhbad/internal/daemon"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/sdnotify"
)

// tellManager tells the service manager, if there is one, of states. A failure to do so
// stops nothing.
func tellManager(log *slog.Logger, states ...string) {
	if err := sdnotify.Send(states...); err != nil {
		log.Warn("could not tell the service manager", "error", err)
	}
}

// statusLine is what `systemctl status` shows of a daemon that serves.
func statusLine(disks int, addresses []string) string {
	s := fmt.Sprintf("Serving %d disks", disks)
	if disks == 1 {
		s = "Serving 1 disk"
	}
	const few = 3
	for i, a := range addresses {
		switch i {
		case few:
			return fmt.Sprintf("%s and %d more", s, len(addresses)-few)
		case 0:
			s += " at " + a
		default:
			s += ", " + a
		}
	}
	return s
}

// watchdogBeats is how many signs of life are sent within the service manager's patience.
const watchdogBeats = 3

// keepAlive keeps telling the service manager, if it has asked for that, that the daemon
// lives: each time after alive has returned, which takes the locks that a working daemon
// needs. stop ends that.
func keepAlive(log *slog.Logger, alive func()) (stop func()) {
	patience, err := sdnotify.Watchdog()
	if err != nil {
		log.Warn("no watchdog", "error", err)
	}
	if patience == 0 {
		return func() {}
	}
	tick := time.NewTicker(patience / watchdogBeats)
	end := make(chan struct{})
	go func() {
		defer tick.Stop()
		for {
			alive()
			tellManager(log, sdnotify.Alive)
			select {
			case <-tick.C:
			case <-end:
				return
			}
		}
	}()
	return sync.OnceFunc(func() { close(end) })
}

// tellServing tells the service manager that the daemon is ready, and what it
// serves.
func tellServing(d *daemon.Daemon, log *slog.Logger) {
	addresses := make([]string, 0, len(d.Endpoints()))
	for _, e := range d.Endpoints() {
		addresses = append(addresses, e.URI)
	}
	tellManager(log, sdnotify.Ready, sdnotify.Status(statusLine(len(d.Disks()), addresses)))
}

// reloadOn has the daemon read its configuration again at each signal, or once for all
// signals that come during a reload. The outcome is in the log. stop ends that.
func reloadOn(signals <-chan os.Signal, d *daemon.Daemon) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		for {
			select {
			case <-signals:
				_, _ = d.Reload(ctx) // Reload logs the outcome
			case <-ctx.Done():
				return
			}
		}
	}()
	return cancel
}
