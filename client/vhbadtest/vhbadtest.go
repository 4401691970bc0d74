package vhbadtest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vhbad/vhbad/client"
)

// Variable is the environment variable that holds the path of the program.
const Variable = "VHBAD"

// Writeback is a Disk.Cache: a volatile write cache, whose power can be cut.
const Writeback = "writeback"

// patience bounds how long a daemon may take to start, to end, or to publish an event
// that is waited for.
const patience = 60 * time.Second

// A Disk describes a disk to be served.
type Disk struct {
	// Name is the name of the disk and of its export. If empty, it is "disk0" for the
	// first disk, "disk1" for the second and so on.
	Name string
	// SizeBytes is the size of a disk in memory, or of a File that is to be created; 64
	// MiB if both SizeBytes and File are missing.
	SizeBytes int64
	// File is the path of an image; if empty, the disk is in memory.
	File string
	// BlockBytes is 512 or 4096; 512 if zero.
	BlockBytes int
	// Cache is Writeback, or empty for none. The rest applies to Writeback only:
	// CacheSizeBytes, CacheEviction ("fifo", "random" or "none"), CacheSeed, and Trace,
	// the path of a file that records what the disk does.
	Cache          string
	CacheSizeBytes int64
	CacheEviction  string
	CacheSeed      uint64
	Trace          string
	// Hostile are promises that the disk breaks: "lying-flush", "ignored-fua".
	Hostile []string
}

// spec returns the disk in the form of vhbad's flags.
func (d *Disk) spec() string {
	quote := func(s string) string { return strings.ReplaceAll(s, ",", ",,") }
	var b strings.Builder
	if d.File != "" {
		b.WriteString(d.Name + "=file:" + quote(d.File))
		if d.SizeBytes != 0 {
			fmt.Fprintf(&b, ",size=%d", d.SizeBytes)
		}
	} else {
		size := d.SizeBytes
		if size == 0 {
			size = 64 << 20
		}
		fmt.Fprintf(&b, "%s=memory:%d", d.Name, size)
	}
	for _, o := range []struct {
		key   string
		value string
	}{
		{"block-size", number(int64(d.BlockBytes))},
		{"cache", d.Cache},
		{"cache-size", number(d.CacheSizeBytes)},
		{"cache-eviction", d.CacheEviction},
		{"trace", quote(d.Trace)},
	} {
		if o.value != "" {
			b.WriteString("," + o.key + "=" + o.value)
		}
	}
	if d.CacheSeed != 0 {
		fmt.Fprintf(&b, ",cache-seed=%d", d.CacheSeed)
	}
	for _, act := range d.Hostile {
		b.WriteString(",hostile=" + act)
	}
	return b.String()
}

func number(n int64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatInt(n, 10)
}

// Options say how a daemon is started.
type Options struct {
	// Disks are the disks it serves; if empty, one Disk with the defaults.
	Disks []Disk
	// Flags are further flags for vhbad serve, such as --hostile.
	Flags []string
}

// A Daemon is a daemon that runs for one test. Its first disk is embedded, as most tests
// have only one.
type Daemon struct {
	*Export
	t      testing.TB
	folder string
	admin  *client.Client
	logs   *logs
	ended  chan error
	wait   time.Duration // for an event
}

// An Export is a disk of a daemon.
type Export struct {
	Name string
	d    *Daemon
}

// Start starts a daemon that serves these disks, and waits until it does.
func Start(t testing.TB, disks ...Disk) *Daemon {
	t.Helper()
	return StartWith(t, Options{Disks: disks})
}

// StartWith is Start with options.
func StartWith(t testing.TB, o Options) *Daemon {
	t.Helper()
	program, err := find()
	if err != nil {
		t.Fatal(err)
	}
	folder, err := os.MkdirTemp("", "vhbadtest-") //nolint:usetesting // t.TempDir has names that are too long for a socket's
	if err != nil {
		t.Fatal(err)
	}
	d := &Daemon{t: t, folder: folder, logs: &logs{}, ended: make(chan error, 1), wait: patience}
	t.Cleanup(d.stop)
	disks := append([]Disk(nil), o.Disks...)
	if len(disks) == 0 {
		disks = []Disk{{}}
	}
	args := []string{"serve", "--listen=unix://" + d.Socket(), "--admin=" + d.adminPath(), "--http=none", "--log-format=text"}
	for i := range disks {
		if disks[i].Name == "" {
			disks[i].Name = fmt.Sprintf("disk%d", i)
		}
		args = append(args, "--disk="+disks[i].spec())
	}
	d.Export = &Export{Name: disks[0].Name, d: d}
	d.admin = client.New(d.adminPath())
	ready := make(chan struct{})
	go d.run(program, append(args, o.Flags...), ready)
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-ready:
	case err := <-d.ended:
		d.ended <- nil // it has been told of
		t.Fatalf("%s has ended before it served: %v\n%s", program, err, d.logs)
	case <-timer.C:
		t.Fatalf("%s has not served for %v\n%s", program, patience, d.logs)
	}
	return d
}

// find finds the program.
func find() (string, error) {
	if path := os.Getenv(Variable); path != "" {
		if _, err := exec.LookPath(path); err != nil {
			return "", fmt.Errorf("vhbadtest: $%s: %w", Variable, err)
		}
		return path, nil
	}
	path, err := exec.LookPath("vhbad")
	if err != nil {
		return "", fmt.Errorf("vhbadtest: %w: `go install github.com/vhbad/vhbad/cmd/vhbad@latest` installs it, and $%s can name another", err, Variable)
	}
	return path, nil
}

// run runs the daemon to its end. It keeps its thread: the daemon dies with the thread
// that started it.
func (d *Daemon) run(program string, args []string, ready chan<- struct{}) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	out, in, err := os.Pipe()
	if err != nil {
		d.ended <- err
		return
	}
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = in, d.logs
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err = cmd.Start()
	_ = in.Close() // it is the daemon's now
	if err != nil {
		_ = out.Close()
		d.ended <- err
		return
	}
	d.logs.started(cmd.Process)
	read := make(chan struct{})
	go func() {
		defer close(read)
		defer func() { _ = out.Close() }()
		lines := bufio.NewScanner(out)
		for open := true; lines.Scan(); {
			if open && strings.HasPrefix(lines.Text(), "ready unix://"+d.Socket()) {
				open = false
				close(ready)
			}
		}
	}()
	<-read
	d.ended <- cmd.Wait()
}

// stop ends the daemon, and shows its log if the test has failed.
func (d *Daemon) stop() {
	defer func() { _ = os.RemoveAll(d.folder) }()
	if d.admin != nil {
		d.admin.Close()
	}
	d.logs.signal(syscall.SIGTERM)
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case err := <-d.ended:
		if err != nil {
			d.t.Errorf("vhbad: %v", err)
		}
	case <-timer.C:
		d.logs.signal(syscall.SIGKILL)
		d.t.Errorf("vhbad has not ended for %v: %v", patience, <-d.ended)
	}
	if d.t.Failed() {
		d.t.Logf("vhbad said:\n%s", d.logs)
	}
}

// logs keeps the tail of a daemon's log, and its process.
type logs struct {
	mu      sync.Mutex
	b       []byte
	process *os.Process
}

// maxLogBytes is how much of the log is kept.
const maxLogBytes = 64 << 10

// Write implements io.Writer.
func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b = append(l.b, p...)
	if len(l.b) > 2*maxLogBytes {
		l.b = append([]byte("…\n"), l.b[len(l.b)-maxLogBytes:]...)
	}
	return len(p), nil
}

// String returns what has been kept.
func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(bytes.TrimSpace(l.b))
}

func (l *logs) started(p *os.Process) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.process = p
}

func (l *logs) signal(s os.Signal) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.process != nil {
		_ = l.process.Signal(s) // it may have ended, as Wait will say
	}
}

func (d *Daemon) adminPath() string { return filepath.Join(d.folder, "admin.sock") }

// Socket is the path of the NBD socket.
func (d *Daemon) Socket() string { return filepath.Join(d.folder, "nbd.sock") }

// Client returns a client of the daemon's API, for what has no method here.
func (d *Daemon) Client() *client.Client { return d.admin }

// Environ returns the environment for commands: NBD_URI is the first disk, and other
// commands of vhbad find the daemon.
func (d *Daemon) Environ() []string {
	return append(os.Environ(), "NBD_URI="+d.URI(), client.AdminVariable+"="+d.adminPath())
}

// Disk returns the disk of that name.
func (d *Daemon) Disk(name string) *Export {
	d.t.Helper()
	if _, err := d.admin.Disk(d.t.Context(), name); err != nil {
		d.t.Fatal(err)
	}
	return &Export{Name: name, d: d}
}

// Fault puts a rule into force; see docs/faults.md. The rule ends with the daemon or by
// RemoveFault.
func (d *Daemon) Fault(r client.FaultRule) {
	d.t.Helper()
	if _, err := d.admin.PutFault(d.t.Context(), r); err != nil {
		d.t.Fatal(err)
	}
}

// RemoveFault ends a rule, and returns how often it has fired.
func (d *Daemon) RemoveFault(name string) (fired uint64) {
	d.t.Helper()
	f, err := d.admin.Fault(d.t.Context(), name)
	if err == nil {
		err = d.admin.RemoveFault(d.t.Context(), name)
	}
	if err != nil {
		d.t.Fatal(err)
	}
	return f.Fired
}

// ReleaseFault releases the commands that a rule holds, and returns how many there were.
func (d *Daemon) ReleaseFault(name string) (released int) {
	d.t.Helper()
	released, err := d.admin.ReleaseFault(d.t.Context(), name, 0)
	if err != nil {
		d.t.Fatal(err)
	}
	return released
}

// Mark sets a mark, which rules can wait for and traces record.
func (d *Daemon) Mark(text string) {
	d.t.Helper()
	if _, err := d.admin.SetMark(d.t.Context(), text); err != nil {
		d.t.Fatal(err)
	}
}

// Events returns the events so far, only those of the given types if there are any.
func (d *Daemon) Events(types ...client.EventType) (events []client.Event) {
	d.t.Helper()
	stream, err := d.admin.Events(d.t.Context(), client.EventFilter{Since: new(uint64), Types: types, NoFollow: true})
	if err != nil {
		d.t.Fatal(err)
	}
	defer func() { _ = stream.Close() }()
	for e, err := range stream.All() {
		if err != nil {
			d.t.Fatal(err)
		}
		events = append(events, e)
	}
	return events
}

// WaitEvent waits for the first event of a type since the daemon started, or since the
// event after. The test fails if none comes within a minute.
func (d *Daemon) WaitEvent(kind client.EventType, after client.Event) client.Event {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), d.wait)
	defer cancel()
	e, err := d.event(ctx, kind, after)
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = fmt.Errorf("there has been no event %s after number %d for %v", kind, after.Seq, d.wait)
	}
	if err != nil {
		d.t.Fatal(err)
	}
	return e
}

// event returns the first event of a type that follows after.
func (d *Daemon) event(ctx context.Context, kind client.EventType, after client.Event) (client.Event, error) {
	stream, err := d.admin.Events(ctx, client.EventFilter{Since: &after.Seq, Types: []client.EventType{kind}})
	if err != nil {
		return client.Event{}, err
	}
	defer func() { _ = stream.Close() }()
	for e, err := range stream.All() {
		if err != nil {
			return client.Event{}, err
		}
		if e.Type == kind {
			return e, nil
		}
	}
	return client.Event{}, fmt.Errorf("vhbad has ended before there was an event %s after number %d", kind, after.Seq)
}

// URI returns the NBD URI of the disk.
func (e *Export) URI() string {
	return "nbd+unix:///" + url.PathEscape(e.Name) + "?socket=" + url.QueryEscape(e.d.Socket())
}

// CutPower cuts the power of the disk, which must have a write cache, and restores it.
func (e *Export) CutPower(o client.PowerCutOptions) *client.PowerReport {
	e.d.t.Helper()
	r, err := e.d.admin.CutPower(e.d.t.Context(), e.Name, o)
	if err != nil {
		e.d.t.Fatal(err)
	}
	return r
}

// Power returns what is pending in the disk's write cache, and the reports of its power
// cuts.
func (e *Export) Power() *client.Power {
	e.d.t.Helper()
	p, err := e.d.admin.Power(e.d.t.Context(), e.Name)
	if err != nil {
		e.d.t.Fatal(err)
	}
	return p
}

// Image returns all bytes of the disk, as a client reads them now.
func (e *Export) Image() []byte {
	e.d.t.Helper()
	c := e.Dial()
	defer func() { _ = c.Close() }()
	p := make([]byte, c.Size())
	if _, err := c.ReadAt(p, 0); err != nil {
		e.d.t.Fatal(err)
	}
	return p
}

// Dial connects to the disk. The connection is closed at the end of the test if it is
// still open.
func (e *Export) Dial() *Conn {
	e.d.t.Helper()
	c, err := dial(e.d.Socket(), e.Name)
	if err != nil {
		e.d.t.Fatalf("disk %s: %v", e.Name, err)
	}
	e.d.t.Cleanup(func() { _ = c.Close() })
	return c
}
