package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// fakeDaemon's Stop takes as long as the test wants.
type fakeDaemon func(ctx context.Context) error

func (f fakeDaemon) Stop(ctx context.Context) error { return f(ctx) }

// hangs is the Stop of a daemon that heeds nothing.
func hangs(release <-chan struct{}) fakeDaemon {
	return func(context.Context) error {
		<-release
		return nil
	}
}

const drainTimeout = 10 * time.Second

// forced runs stop and returns its error and how long it took.
func forced(d stopper, signals <-chan os.Signal) (time.Duration, error) {
	begun := time.Now()
	err := stop(d, drainTimeout, signals, slog.New(slog.DiscardHandler))
	return time.Since(begun), err
}

func TestStop_InOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		took, err := forced(fakeDaemon(func(ctx context.Context) error {
			if end, ok := ctx.Deadline(); !ok || time.Until(end) != drainTimeout {
				t.Errorf("the stop has until %s", end)
			}
			return nil
		}), nil)
		if err != nil || took != 0 {
			t.Errorf("after %s: %v", took, err)
		}
		why := errors.New("flush: disk broken")
		if _, err := forced(fakeDaemon(func(context.Context) error { return why }), nil); !errors.Is(err, why) {
			t.Errorf("error %v, want that of the daemon", err)
		}
	})
}

// A second signal ends a stop that hangs at once; one that comes within a second
// of the first is the same one, sent twice.
func TestStop_SecondSignal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		defer close(release)
		signals := make(chan os.Signal)
		go func() {
			for range 2 { // after 0.6 and 1.2 s
				<-time.After(signalPause * 6 / 10)
				signals <- syscall.SIGTERM
			}
		}()
		took, err := forced(hangs(release), signals)
		if err == nil || !strings.Contains(err.Error(), "terminated again") {
			t.Errorf("error %v, want one about the second signal", err)
		}
		if took != signalPause*12/10 {
			t.Errorf("it took %s, want the second of the two", took)
		}
	})
}

// A daemon that does not even heed the end of its context is given up.
func TestStop_DrainTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		defer close(release)
		took, err := forced(hangs(release), nil)
		if err == nil || !strings.Contains(err.Error(), "not stopped after 10s") {
			t.Errorf("error %v, want one about the drain timeout", err)
		}
		if took != drainTimeout+forceGrace {
			t.Errorf("it took %s, want %s", took, drainTimeout+forceGrace)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		took, err := forced(fakeDaemon(func(ctx context.Context) error {
			<-ctx.Done() // heeds it, and then puts away the rest
			<-time.After(forceGrace / 2)
			return ctx.Err()
		}), nil)
		if !errors.Is(err, context.DeadlineExceeded) || took != drainTimeout+forceGrace/2 {
			t.Errorf("after %s: %v; want the daemon's own error", took, err)
		}
	})
}
