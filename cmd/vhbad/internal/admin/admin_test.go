package admin

import (
	"bufio"
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/events"
)

func listen(t *testing.T, path string, perm fs.FileMode) *Listener {
	t.Helper()
	l, err := ListenUnix(t.Context(), path, perm)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func TestListenUnix_ModeAndCleanup(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.sock")
	l := listen(t, path, 0o600)
	fi, err := os.Stat(path)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", fi.Mode(), err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestListenUnix_Umask: whatever the umask, a socket ends with the mode that was
// asked for, and begins with no permission beyond it.
func TestListenUnix_Umask(t *testing.T) {
	before := unix.Umask(0) // of the whole process: this test runs beside no other
	defer unix.Umask(before)
	for _, mask := range []int{0, 0o022, 0o077, 0o777} {
		for _, perm := range []fs.FileMode{0o600, 0o660, 0o666} {
			unix.Umask(0) // the folder is the test's
			path := filepath.Join(t.TempDir(), "x.sock")
			unix.Umask(mask)
			l, err := UnixSocket{Path: path, Perm: perm, UID: -1, GID: -1}.bind(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if fi, err := os.Stat(path); err != nil || fi.Mode().Perm()&^perm != 0 {
				t.Errorf("umask %04o: begins with %v, %v; want nothing beyond %v", mask, fi.Mode(), err, perm)
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
			listen(t, path, perm)
			if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != perm {
				t.Errorf("umask %04o: mode %v, %v; want %v", mask, fi.Mode(), err, perm)
			}
		}
	}
}

// TestListenUnix_LockLink: a link in the place of the lock is not followed, so what
// it leads to is neither made nor written.
func TestListenUnix_LockLink(t *testing.T) {
	dir := t.TempDir()
	path, target := filepath.Join(dir, "x.sock"), filepath.Join(dir, "target")
	if err := os.WriteFile(target, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{target, filepath.Join(dir, "none")} {
		if err := os.Symlink(to, path+lockSuffix); err != nil {
			t.Fatal(err)
		}
		if _, err := ListenUnix(t.Context(), path, 0o600); !errors.Is(err, unix.ELOOP) {
			t.Errorf("lock is a link to %s: %v, want ELOOP", to, err)
		}
		if err := os.Remove(path + lockSuffix); err != nil {
			t.Fatal(err)
		}
	}
	left, err := os.ReadDir(dir)
	if b, rerr := os.ReadFile(target); string(b) != "content" || rerr != nil || err != nil || len(left) != 1 {
		t.Errorf("target %q, %v; in the folder %v, %v", b, rerr, left, err)
	}
}

func TestListenUnix_Live(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.sock")
	listen(t, path, 0)
	_, err := ListenUnix(t.Context(), path, 0)
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "process ") {
		t.Errorf("error %v, want ErrInUse with path and process", err)
	}
}

func TestListenUnix_LiveForeign(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.sock")
	l, err := net.Listen("unix", path) // a program that knows no lock files
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if _, err := ListenUnix(t.Context(), path, 0); !errors.Is(err, ErrInUse) {
		t.Errorf("error %v, want ErrInUse", err)
	}
	if _, err := os.Stat(path + ".lock"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("lock file after a failure: %v", err)
	}
}

func TestListenUnix_Stale(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false) // as if killed
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	listen(t, path, 0)
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
}

func TestListenUnix_NoSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.sock")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ListenUnix(t.Context(), path, 0); !errors.Is(err, fs.ErrExist) {
		t.Errorf("error %v, want fs.ErrExist", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
		t.Errorf("file now %q, %v", b, err)
	}
}

func TestListenUnix_NoFolder(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "none")
	path := filepath.Join(folder, "x.sock")
	if _, err := ListenUnix(t.Context(), path, 0); !errors.Is(err, fs.ErrNotExist) || !strings.HasSuffix(err.Error(), "folder "+folder+": no such file or directory: make it or choose another path") {
		t.Errorf("error %v, want fs.ErrNotExist with the folder", err)
	}
	if err := os.WriteFile(folder, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ListenUnix(t.Context(), path, 0); !errors.Is(err, unix.ENOTDIR) || !strings.Contains(err.Error(), "folder "+folder+": not a directory") {
		t.Errorf("error %v, want ENOTDIR with the folder", err)
	}
}

// Of many that come and go, one at a time has the path.
func TestListenUnix_Race(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.sock")
	var holders, won atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				l, err := ListenUnix(t.Context(), path, 0o600)
				if errors.Is(err, ErrInUse) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				if n := holders.Add(1); n != 1 {
					t.Errorf("%d holders", n)
				}
				runtime.Gosched()
				won.Add(1)
				holders.Add(-1)
				if err := l.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if won.Load() == 0 {
		t.Error("nobody ever got the path")
	}
}

type fixed client.Status

func (f fixed) Status() client.Status { return client.Status(f) }

func (f fixed) Reload(context.Context) (client.Reload, error) {
	return client.Reload{DisksAdded: []string{"d"}}, nil
}

// fakeDisks are disks that can be asked for anything, and stay as they are.
type fakeDisks []client.Disk

func (f fakeDisks) Disks() []client.Disk { return f }

func (fakeDisks) AddDisk(_ context.Context, name string, spec client.DiskSpec) (client.Disk, error) {
	return client.Disk{Name: name, SizeBytes: uint64(spec.MemoryBytes), Operations: []client.Operation{}}, nil
}

func (fakeDisks) RemoveDisk(_ context.Context, name string, o client.RemoveOptions) (client.DiskRemoval, error) {
	if !o.Force || o.DrainTimeout != 1500*time.Millisecond {
		return client.DiskRemoval{}, Conflict("disk %q: no", name)
	}
	return client.DiskRemoval{Name: name}, nil
}

func (fakeDisks) GrowDisk(_ context.Context, name string, sizeBytes int64) (client.Disk, error) {
	return client.Disk{Name: name, SizeBytes: uint64(sizeBytes), Operations: []client.Operation{}}, nil
}

func (f fixed) HandOver(_ context.Context, r client.HandOver) (func(*net.UnixConn), error) {
	if !r.DiscardMemory {
		return nil, errors.New("not now")
	}
	return func(c *net.UnixConn) { _ = c.Close() }, nil
}

// CutPower and Power make fixed a Power.
func (f fixed) CutPower(disk string, o client.PowerCutOptions) (client.PowerReport, error) {
	return client.PowerReport{
		Disk: disk, Policy: o.Policy, Seed: *o.Seed, Tear: "none", Damage: "old", Class: "legal", Acts: map[string]int{"garbage": 1},
		Findings: []client.PowerFinding{{Act: "garbage"}}, Flushes: []client.PowerFlush{{Number: 1}}, Writes: []client.PowerWrite{{ID: 1}},
	}, nil
}

func (f fixed) Power(string) (client.Power, error) {
	return client.Power{On: true, OldestPending: new(time.Time), Hostile: []string{}, Reports: []client.PowerReport{}}, nil
}

// sources are those of a daemon that is f and in which nothing happens.
func sources(f fixed) Sources {
	return Sources{Status: f, Disks: fakeDisks(f.Disks), Reload: f, HandOver: f, Events: events.NewLog(8, nil), Power: f, Faults: faulty{}}
}

func TestServe_Status(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.sock")
	s := Serve(listen(t, path, 0o600), Handler(sources(fixed{Version: "v9", State: "ready"})), slog.New(slog.DiscardHandler))
	c := client.New(path)
	defer c.Close()
	got, err := c.Status(t.Context())
	if err != nil || got.Version != "v9" || got.State != "ready" {
		t.Errorf("got %+v, %v", got, err)
	}
	if err := s.Close(context.Background()); err != nil {
		t.Error(err)
	}
	if _, err := c.Status(t.Context()); !errors.Is(err, client.ErrNotRunning) {
		t.Errorf("after Close: %v, want ErrNotRunning", err)
	}
}

func TestHandler_Wrong(t *testing.T) {
	h := Handler(sources(fixed{}))
	for _, tt := range []struct {
		method, path string
		code         int
		want         string
	}{
		{"GET", "/", http.StatusNotFound, "no such thing"},
		{"GET", "/v2/status", http.StatusNotFound, "no such thing"},
		{"POST", "/v1/status", http.StatusMethodNotAllowed, "want GET"},
		{"POST", "/v1/status?x=1", http.StatusMethodNotAllowed, "want GET, HEAD"},
		{"GET", "/v1/status?x=1", http.StatusBadRequest, `parameter \"x\" is not known: want none`},
		{"GET", "/v1/status?%zz", http.StatusBadRequest, "query: "},
		{"GET", "/v1/events?since=x", http.StatusBadRequest, `since \"x\": want the number of an event`},
		{"GET", "/v1/events?since=1", http.StatusBadRequest, "since 1: the newest event is 0"},
		{"GET", "/v1/events?since=0&since=0", http.StatusBadRequest, `parameter \"since\" is given 2 times`},
		{"GET", "/v1/events?type=no", http.StatusBadRequest, `type \"no\" is not known: want daemon.ready, daemon.stopping, `},
		{"GET", "/v1/events?follow=maybe", http.StatusBadRequest, `follow \"maybe\": want true or false`},
		{"PUT", "/v1/disks/x", http.StatusBadRequest, "body: empty: want a JSON object"},
		{"GET", "/v1/disks/x", http.StatusNotFound, "disk \\\"x\\\": there is none of that name: `vhbad disk list` shows those there are"},
		{"POST", "/v1/disks/x", http.StatusMethodNotAllowed, "want DELETE, GET, HEAD, PATCH, PUT"},
		{"DELETE", "/v1/disks/x?force=maybe", http.StatusBadRequest, `force \"maybe\": want true or false`},
		{"DELETE", "/v1/disks/x?drain_timeout=0s", http.StatusBadRequest, `drain_timeout \"0s\": want 1ms to 24h0m0s`},
		{"DELETE", "/v1/disks/x?drain_timeout=5", http.StatusBadRequest, `drain_timeout \"5\": want`},
		{"DELETE", "/v1/disks/x", http.StatusConflict, `disk \"x\": no`},
		{"GET", "/v1/handover", http.StatusMethodNotAllowed, "want POST"},
		{"POST", "/v1/handover", http.StatusUpgradeRequired, "--takeover"},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(tt.method, tt.path, nil))
		if w.Code != tt.code || !strings.Contains(w.Body.String(), tt.want) {
			t.Errorf("%s %s: %d %s", tt.method, tt.path, w.Code, w.Body)
		}
	}
}

func TestHandler_HandOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.sock")
	s := Serve(listen(t, path, 0o600), Handler(sources(fixed{})), slog.New(slog.DiscardHandler))
	defer func() {
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	for body, want := range map[string]struct {
		code int
		text string
	}{
		`{}`:                      {http.StatusConflict, "not now"},
		`{`:                       {http.StatusBadRequest, "body"},
		`{"discard_memory":true}`: {http.StatusSwitchingProtocols, ""},
	} {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		req := httptest.NewRequest(http.MethodPost, HandOverPath, strings.NewReader(body))
		req.Header.Set("Connection", "Upgrade")
		req.Header.Set("Upgrade", HandOverProtocol)
		if err := req.Write(c); err != nil {
			t.Error(err)
		}
		res, err := http.ReadResponse(bufio.NewReader(c), req)
		if err != nil {
			t.Fatalf("%s: %v", body, err)
		}
		b, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode != want.code || !strings.Contains(string(b), want.text) {
			t.Errorf("%s: %s %s, %v; want %d with %q", body, res.Status, b, err, want.code, want.text)
		}
		_ = res.Body.Close()
		_ = c.Close()
	}
}

// files are duplicates of a listener's socket and lock, as if passed to another
// process.
func files(t *testing.T, l *Listener) (socket, lock *os.File) {
	t.Helper()
	socket, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := l.LockConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		dup, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Error(err)
		}
		lock = os.NewFile(uintptr(dup), "lock")
	}); err != nil {
		t.Fatal(err)
	}
	return socket, lock
}

// Of two that share a socket, the one that keeps it removes it.
func TestAdopt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.sock")
	old := listen(t, path, 0o600)
	given, err := Adopt(files(t, old))
	if err != nil {
		t.Fatal(err)
	}
	if err := given.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the socket of a listener that was not kept: %v", err)
	}
	if given, err = Adopt(files(t, old)); err != nil {
		t.Fatal(err)
	}
	old.Leave()
	if err := given.Keep(); err != nil {
		t.Error(err)
	}
	if err := old.Close(); err != nil {
		t.Error(err)
	}
	if _, err := ListenUnix(t.Context(), path, 0); !errors.Is(err, ErrInUse) {
		t.Errorf("listen beside the heir: %v, want ErrInUse", err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	if err := given.Close(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// A socket that somebody has removed is made again beside the old one. Until it is kept it
// goes with its listener; then it is as any other.
func TestListener_Renew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.sock")
	old := listen(t, path, 0o600)
	there := func(when string, want bool) {
		t.Helper()
		c, err := net.Dial("unix", path)
		if (err == nil) != want {
			t.Errorf("%s: %v, want an answer: %v", when, err, want)
		}
		if err == nil {
			_ = c.Close()
		}
	}
	renew := func() *Listener {
		t.Helper()
		l, err := Adopt(files(t, old))
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Renew(t.Context(), UnixSocket{Path: path, Perm: 0o640, UID: -1, GID: -1}); err != nil {
			t.Fatal(err)
		}
		return l
	}
	if l, err := Adopt(files(t, old)); err != nil {
		t.Error(err)
	} else {
		if err := l.Renew(t.Context(), UnixSocket{Path: path}); !errors.Is(err, ErrInUse) {
			t.Errorf("a socket that is there: %v, want ErrInUse", err)
		}
		_ = l.Close()
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	l := renew()
	there("renewed", true)
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v; want mode 0640", fi, err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	there("renewed and not kept", false)
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket that was not kept: %v", err)
	}
	l = renew()
	old.Leave()
	if err := errors.Join(l.Keep(), old.Close()); err != nil {
		t.Error(err)
	}
	there("kept", true)
	next, err := Adopt(files(t, l))
	if err != nil {
		t.Fatal(err)
	}
	l.Leave()
	if err := errors.Join(next.Keep(), l.Close()); err != nil {
		t.Error(err)
	}
	there("handed on", true)
	if err := next.Close(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// A lock file that somebody has removed, as those do who tidy up old files, is made again for
// the heir. If that does not keep the socket, it leaves no lock file behind.
func TestAdopt_LockRemoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.sock")
	old := listen(t, path, 0o600)
	if err := os.Remove(path + lockSuffix); err != nil {
		t.Fatal(err)
	}
	given, err := Adopt(files(t, old))
	if err != nil {
		t.Fatal(err)
	}
	if err := given.Close(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 || left[0].Name() != "x.sock" {
		t.Errorf("beside the socket of a listener that was not kept: %v, %v", left, err)
	}
	if given, err = Adopt(files(t, old)); err != nil {
		t.Fatal(err)
	}
	old.Leave()
	if err := errors.Join(given.Keep(), old.Close()); err != nil {
		t.Error(err)
	}
	if _, err := ListenUnix(t.Context(), path, 0); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "process ") {
		t.Errorf("listen beside the heir: %v, want ErrInUse with the process", err)
	}
	next, err := Adopt(files(t, given))
	if err != nil {
		t.Fatal(err)
	}
	given.Leave()
	if err := errors.Join(next.Keep(), given.Close()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path + lockSuffix); err != nil {
		t.Errorf("the lock of the next heir: %v", err)
	}
	if err := next.Close(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestAdopt_OtherLock(t *testing.T) {
	dir := t.TempDir()
	socket, lock := files(t, listen(t, filepath.Join(dir, "x.sock"), 0))
	_, other := files(t, listen(t, filepath.Join(dir, "y.sock"), 0))
	if err := lock.Close(); err != nil {
		t.Error(err)
	}
	if _, err := Adopt(socket, other); err == nil || !strings.Contains(err.Error(), "another file") {
		t.Errorf("the lock of another path: %v", err)
	}
}

func TestUnixSocket_Owner(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.sock")
	l, err := UnixSocket{Path: path, UID: os.Getuid(), GID: os.Getgid()}.Listen(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o660 {
		t.Errorf("%v, %v; want mode 0660", fi.Mode(), err)
	}
}

// A connection that has asked nothing, as browsers open them in advance, keeps no server
// from ending.
func TestServer_CloseSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &pipeListener{make(chan net.Conn), make(chan struct{})}
		s := Serve(l, http.NotFoundHandler(), slog.New(slog.DiscardHandler))
		silent, far := net.Pipe()
		l.conns <- far
		synctest.Wait()
		begin := time.Now()
		if err := s.Close(t.Context()); err != nil {
			t.Errorf("Close: %v", err)
		}
		if took := time.Since(begin); took > time.Second { // net/http takes it for idle after 5 s
			t.Errorf("Close took %v", took)
		}
		if _, err := silent.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("the silent connection: %v, want its end", err)
		}
	})
}

// A client that does not send all of its request, or does not take its answer, keeps no
// server from ending.
func TestServer_CloseStalled(t *testing.T) {
	longAnswer := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(make([]byte, 1<<20)) // its reader has gone to sleep
	})
	half := "PUT /v1/disks/d HTTP/1.1\r\nHost: vhbad\r\nContent-Length: 100\r\n\r\n{"
	for _, tt := range []struct {
		name, request string
		handler       http.Handler
	}{
		{"half a body", half, Handler(sources(fixed{}))},
		{"half a body that nobody wants", half, http.NotFoundHandler()},
		{"half a chunk", "POST /v1/reload HTTP/1.1\r\nHost: vhbad\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", Handler(sources(fixed{}))},
		{"half a request behind a whole one", "GET /v1/status HTTP/1.1\r\nHost: vhbad\r\n\r\n" + half, Handler(sources(fixed{}))},
		{"no reader", "GET / HTTP/1.1\r\nHost: vhbad\r\n\r\n", longAnswer},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := &pipeListener{make(chan net.Conn), make(chan struct{})}
				s := Serve(l, tt.handler, slog.New(slog.DiscardHandler))
				near, far := net.Pipe()
				defer func() { _ = near.Close() }()
				l.conns <- far
				if tt.name != "no reader" {
					go func() { _, _ = io.Copy(io.Discard, near) }()
				}
				if _, err := io.WriteString(near, tt.request); err != nil {
					t.Error(err)
				}
				synctest.Wait()
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				begin := time.Now()
				if err := s.Close(ctx); err != nil {
					t.Errorf("Close: %v", err)
				}
				if took := time.Since(begin); took > 2*time.Second {
					t.Errorf("Close took %v", took)
				}
			})
		})
	}
}

// A request that its client has sent before the server is closed gets its answer, though it
// is read only then.
func TestServer_CloseAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := strings.Repeat("all of it ", 1000) // more than the HTTP server reads ahead
		read, finish := make(chan struct{}), make(chan struct{})
		c, end := servePipe(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			<-read
			text, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			<-finish
			if err := r.Context().Err(); err != nil {
				t.Errorf("the request's context: %v", err)
			}
			_, _ = w.Write(text)
		}))
		ended := make(chan error, 1)
		go func() {
			synctest.Wait()
			go func() { ended <- end() }()
			synctest.Wait()
			close(read)
			time.Sleep(5 * time.Second)
			close(finish)
		}()
		res, err := c.Post("http://vhbad/", "text/plain", strings.NewReader(all))
		if err != nil {
			t.Fatal(err)
		}
		if text, err := io.ReadAll(res.Body); err != nil || string(text) != all {
			t.Errorf("answer of %d bytes, %v; want all %d", len(text), err, len(all))
		}
		_ = res.Body.Close()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
