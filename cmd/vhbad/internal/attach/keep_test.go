package attach

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// watchedLog gathers log lines and can be waited for.
type watchedLog struct {
	mu sync.Mutex
	// +checklocks:mu
	text strings.Builder
	// +checklocks:mu
	more chan struct{} // closed at the next line
}

func newWatchedLog() *watchedLog { return &watchedLog{more: make(chan struct{})} }

func (w *watchedLog) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.more)
	w.more = make(chan struct{})
	return w.text.Write(p)
}

// waitFor waits until the log has text n times.
func (w *watchedLog) waitFor(t *testing.T, text string, n int) {
	t.Helper()
	timeout := time.After(30 * time.Second)
	for {
		w.mu.Lock()
		got, more := w.text.String(), w.more
		w.mu.Unlock()
		if strings.Count(got, text) >= n {
			return
		}
		select {
		case <-more:
		case <-timeout:
			t.Fatalf("log has %q not %d times:\n%s", text, n, got)
		}
	}
}

func (w *watchedLog) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.String()
}

// keeping is an Attachment under test, in Keep.
type keeping struct {
	*fakeKernel
	*exportServer
	log     *watchedLog
	recheck chan os.Signal
	cancel  context.CancelFunc
	ended   chan error
}

var keptExport = served{name: "d", size: 1 << 20, flags: goodFlags | flagFlush | flagFUA}

func newKeeping(t *testing.T) *keeping {
	t.Helper()
	return &keeping{
		fakeKernel: newFakeKernel(t, 0), exportServer: newExportServer(t, keptExport),
		log: newWatchedLog(), recheck: make(chan os.Signal), ended: make(chan error, 1),
	}
}

// startKeep attaches /dev/nbd0 and keeps it.
func startKeep(t *testing.T, connections int, prepare func(k *fakeKernel)) *keeping {
	t.Helper()
	p := newKeeping(t)
	if prepare != nil {
		prepare(p.fakeKernel)
	}
	a, err := p.hold(deadline(t), p.options(connections))
	if err != nil {
		t.Fatal(err)
	}
	p.keep(t, a)
	return p
}

func (p *keeping) options(connections int) Options {
	return Options{
		Server: p.Server, Connections: connections, Timeout: time.Minute, DeadConnTimeout: time.Minute,
		Device: p.path(0),
	}
}

// keep has a kept until the end of the test.
func (p *keeping) keep(t *testing.T, a *Attachment) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	p.cancel = cancel
	over := make(chan struct{})
	go func() {
		defer close(over)
		err := a.Keep(ctx, slog.New(slog.NewTextHandler(p.log, nil)), p.recheck)
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		p.ended <- err
	}()
	t.Cleanup(func() {
		cancel()
		<-over
		if t.Failed() {
			asks := p.asks()
			t.Logf("netlink, the last of %d: %q\nlog:\n%s", len(asks), asks[max(0, len(asks)-40):], p.log)
		}
	})
}

// wantEnd waits for the end of Keep.
func (p *keeping) wantEnd(t *testing.T, want error) {
	t.Helper()
	select {
	case err := <-p.ended:
		if !errors.Is(err, want) {
			t.Errorf("Keep: %v, want %v", err, want)
		}
	case <-time.After(30 * time.Second):
		t.Error("Keep does not end")
	}
}

// giveUp has the driver give its first connection up.
func (k *fakeKernel) giveUp() {
	k.mu.Lock()
	defer k.mu.Unlock()
	shutDown(k.held[:1])
}

func TestKeep_ReconnectsAll(t *testing.T) {
	p := startKeep(t, 3, nil)
	for round := range 2 {
		p.drop(-1)
		p.log.waitFor(t, "msg=reconnected", round+1)
	}
	p.await(t, 3)
	p.cancel()
	p.wantEnd(t, context.Canceled)
	if n := p.alive(); n != 3 {
		t.Errorf("%d connections are left without Keep, want 3: the kernel has its own", n)
	}
}

func TestKeep_ReplacesDeadOnly(t *testing.T) {
	p := startKeep(t, 3, nil)
	p.drop(1)
	p.log.waitFor(t, "msg=reconnected", 1)
	if n := p.acceptedUntilNow(); n != 4 {
		t.Errorf("%d connections were made in all, want 3 and one more", n)
	}
	p.await(t, 3)
	if !slices.Contains(p.asks(), "reconfigure 0 sockets=1") {
		t.Errorf("netlink: %q, want one socket replaced", p.asks())
	}
}

// A kernel that gives a connection up, after a timeout say, shuts it down.
func TestKeep_KernelGivesUp(t *testing.T) {
	p := startKeep(t, 2, nil)
	p.giveUp()
	p.log.waitFor(t, "msg=reconnected", 1)
	p.await(t, 2)
}

// The end of a connection may be seen before the driver marks it dead. Until
// then it takes new sockets, says that all is well, and drops them.
func TestKeep_DriverNoticesLate(t *testing.T) {
	p := startKeep(t, 2, func(k *fakeKernel) { k.beBlind(3) })
	p.drop(-1)
	p.log.waitFor(t, "msg=reconnected", 1)
	p.log.waitFor(t, "the kernel has not yet given up", 1)
	p.await(t, 2)
	if n := len(slices.DeleteFunc(p.asks(), func(ask string) bool { return !strings.Contains(ask, "sockets") })); n < 1+4 {
		t.Errorf("netlink: %q, want sockets offered at least 4 times", p.asks())
	}
}

// multicast lets a test say LINK_DEAD.
type multicast struct{ listening chan func(index int) }

func newMulticast(k *fakeKernel) *multicast {
	m := &multicast{listening: make(chan func(int), 1)}
	k.listen = func(died func(int)) (func(), error) {
		m.listening <- died
		return func() {}, nil
	}
	return m
}

// wait waits until somebody listens, and returns the function to call for a LINK_DEAD.
func (m *multicast) wait() func(index int) { return <-m.listening }

// LINK_DEAD does not have to wait for the next look.
func TestKeep_LinkDead(t *testing.T) {
	var news *multicast
	p := startKeep(t, 1, func(k *fakeKernel) { news = newMulticast(k) })
	died := news.wait()
	died(0) // nothing is dead: nothing happens
	died(7) // that is another device
	p.drop(-1)
	died(0)
	p.log.waitFor(t, "msg=reconnected", 1)
	p.await(t, 1)
}

func TestKeep_ServerAway(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		change func(*served)
		want   string
	}{
		{"refuses", func(s *served) { s.fail = errShutdown }, "shutting down"},
		{"unknown", func(s *served) { s.fail = errUnknown }, "no export"},
		{"tls", func(s *served) { s.fail = errTLSRequired }, "wants TLS"},
		{"silly", func(s *served) { s.raw = []byte("HTTP/1.1 400 Bad Request\r\n") }, "no NBD server"},
		{"shrunk", func(s *served) { s.size -= 512 }, "shrunk to 1048064 bytes, the device has 1048576"},
		{"read-only", func(s *served) { s.flags |= flagReadOnly }, "become read-only"},
		{"no multi-conn", func(s *served) { s.flags &^= flagMultiConn }, "has lost NBD_FLAG_CAN_MULTI_CONN"},
		{"no flush", func(s *served) { s.flags &^= flagFlush }, "lost abilities"},
		{"block size", func(s *served) { s.minBlock = 4096 }, "smallest block has become 4096"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := startKeep(t, 2, nil)
			other := keptExport
			tt.change(&other)
			p.change(other)
			p.drop(-1)
			p.log.waitFor(t, tt.want, 1)
			p.await(t, 0)
			// It comes back, with an ability more.
			other = keptExport
			other.flags |= flagTrim
			p.change(other)
			p.log.waitFor(t, "msg=reconnected", 1)
			if n := strings.Count(p.log.String(), tt.want); n != 1 {
				t.Errorf("the log says %d times %q, want once", n, tt.want)
			}
			// That ability may go again: the kernel was never told of it.
			p.change(keptExport)
			p.drop(-1)
			p.log.waitFor(t, "msg=reconnected", 2)
		})
	}
}

func TestKeep_Grown(t *testing.T) {
	p := startKeep(t, 1, nil)
	grown := keptExport
	grown.size = 1<<20 + 4096 + 100
	p.change(grown)
	p.set(0, "inflight", "1 0\n") // a request that may be stuck
	p.drop(-1)
	p.log.waitFor(t, "msg=reconnected", 1)
	if slices.Contains(p.asks(), "reconfigure 0 size=1052672") {
		t.Error("the new size was told while requests could be stuck")
	}
	p.set(0, "inflight", "0 0\n")
	p.log.waitFor(t, "the device has grown", 1)
	if !slices.Contains(p.asks(), "reconfigure 0 size=1052672") {
		t.Errorf("netlink: %q, want the new size", p.asks())
	}
	// From now on the new size is what the export must have.
	p.change(keptExport)
	p.drop(-1)
	p.log.waitFor(t, "shrunk to 1048576 bytes, the device has 1052672", 1)
}

// An export that grows while all is well is seen when somebody says so.
func TestKeep_Recheck(t *testing.T) {
	p := startKeep(t, 2, nil)
	changed := keptExport
	changed.size = 1 << 19
	p.change(changed)
	p.recheck <- unix.SIGHUP
	p.log.waitFor(t, "could not ask for the export's size", 1)
	p.log.waitFor(t, "shrunk to 524288 bytes", 1)
	changed.size = 1 << 21
	p.change(changed)
	p.recheck <- unix.SIGHUP
	p.log.waitFor(t, "the device has grown", 1)
	if !slices.Contains(p.asks(), "reconfigure 0 size=2097152") {
		t.Errorf("netlink: %q, want the new size", p.asks())
	}
	p.await(t, 2)
}

func TestKeep_Detached(t *testing.T) {
	t.Run("while connected", func(t *testing.T) {
		p := startKeep(t, 2, nil)
		if err := p.detach(deadline(t), "nbd0", false); err != nil {
			t.Fatal(err)
		}
		p.wantEnd(t, nil)
		p.log.waitFor(t, "detached by somebody else", 1)
	})
	t.Run("while the server is away", func(t *testing.T) {
		p := startKeep(t, 2, nil)
		away := keptExport
		away.fail = errShutdown
		p.change(away)
		p.drop(-1)
		p.log.waitFor(t, "shutting down", 1)
		if err := p.detach(deadline(t), "nbd0", false); err != nil {
			t.Fatal(err)
		}
		p.wantEnd(t, nil)
	})
	t.Run("forced while mounted", func(t *testing.T) {
		p := startKeep(t, 2, nil)
		p.beLazy() // sysfs goes on naming the owner
		p.failWith("reconfigure 0", unix.EINVAL)
		p.drop(-1)
		p.wantEnd(t, nil)
	})
	t.Run("and attached by another", func(t *testing.T) {
		p := startKeep(t, 2, nil)
		p.set(0, "pid", "1\n")
		p.wantEnd(t, nil)
	})
	t.Run("told to end while the server is away", func(t *testing.T) {
		p := startKeep(t, 2, nil)
		away := keptExport
		away.fail = errPolicy
		p.change(away)
		p.drop(-1)
		p.log.waitFor(t, "does not let us use", 1)
		p.cancel()
		p.wantEnd(t, context.Canceled)
	})
}

// A server that takes every connection and closes it is not asked without a pause.
func TestKeep_ServerHangsUp(t *testing.T) {
	p := startKeep(t, 1, nil)
	bad := keptExport
	bad.hangUp = true
	p.change(bad)
	began := time.Now()
	p.drop(-1)
	p.log.waitFor(t, "msg=reconnected", 4)
	// Three losses came right after a reconnection: each waits at least half a step.
	if least, took := (50+100+200)*time.Millisecond, time.Since(began); took < least {
		t.Errorf("four reconnections within %v, want no less than %v", took, least)
	}
}

func TestHold_NeedsTimeouts(t *testing.T) {
	for _, o := range []Options{{Connections: 1, Timeout: time.Second}, {Connections: 1, DeadConnTimeout: time.Second}} {
		if a, err := newFakeKernel(t, 0).hold(deadline(t), o); err == nil || a != nil || !strings.Contains(err.Error(), "needs both") {
			t.Errorf("%+v: %v, want that it needs both", o, err)
		}
	}
}

// Attempts come after about 100 ms, 200 ms and so on up to 5 s.
func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b backoff
		for attempt := range 100 {
			step := lastBackoff
			if attempt < 6 {
				step = firstBackoff << attempt
			}
			began := time.Now()
			if err := b.wait(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			if got := time.Since(began); got < step/2 || got >= step {
				t.Errorf("attempt %d after %v, want %v to %v", attempt, got, step/2, step)
			}
		}
		early := make(chan struct{}, 1)
		early <- struct{}{}
		began := time.Now()
		if err := b.wait(t.Context(), early); err != nil || time.Since(began) != 0 {
			t.Errorf("woken early: %v after %v, want at once", err, time.Since(began))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if err := b.wait(ctx, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("context over: %v", err)
		}
	})
}

// The default identifier is stable, and short enough for the kernel.
func TestBackendID(t *testing.T) {
	for _, tt := range []struct {
		o    Options
		want string
	}{
		{Options{Server: Server{"tcp", "h:1", "a b"}}, "nbd://h:1/a%20b"},
		{Options{Server: Server{"unix", "/run/s x", "d"}}, "nbd+unix:///d?socket=/run/s%20x"},
		{Options{Server: Server{"unix", "/s", ""}, BackendID: "mine"}, "mine"},
	} {
		if got := tt.o.backendID(); got != tt.want {
			t.Errorf("%+v: %q, want %q", tt.o, got, tt.want)
		}
	}
	long := Options{Server: Server{"tcp", "h:1", strings.Repeat("x", 300)}}
	other := Options{Server: Server{"tcp", "h:1", strings.Repeat("x", 301)}}
	if id := long.backendID(); len(id) > MaxBackendID || id != long.backendID() || id == other.backendID() {
		t.Errorf("long name: %q and %q, want different ones of at most %d bytes", id, other.backendID(), MaxBackendID)
	}
}
