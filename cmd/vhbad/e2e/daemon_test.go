//go:build interop

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	startTimeout   = time.Minute
	stopTimeout    = time.Minute
	commandTimeout = 90 * time.Second
)

// A daemon is a server under test. It is stopped, and its exit status checked,
// at the end of the test.
type daemon struct {
	cmd     *exec.Cmd
	listen  string // tcp://HOST:PORT or unix:///PATH, with the real port
	output  *output
	exited  chan struct{} // closed after cmd was waited for
	exitErr error         // valid once exited is closed
}

// An output gathers what a process prints and can be watched for a line.
type output struct {
	mu sync.Mutex
	// +checklocks:mu
	buf bytes.Buffer
	// +checklocks:mu
	more chan struct{} // closed at the next write
}

func newOutput() *output { return &output{more: make(chan struct{})} }

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.more)
	o.more = make(chan struct{})
	return o.buf.Write(p)
}

// snapshot returns the text until now and a channel that is closed when there is more.
func (o *output) snapshot() (string, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String(), o.more
}

func (o *output) String() string {
	text, _ := o.snapshot()
	return text
}

// newServerConfig is a server of disk over "unix" or "tcp", in a folder of its own.
func newServerConfig(t *testing.T, network, disk string) serverConfig {
	t.Helper()
	folder := socketFolder(t)
	c := serverConfig{kind: *serverFlag, binary: vhbadBinary, disk: disk, folder: folder}
	switch {
	case network == "unix":
		c.listen = "unix://" + filepath.Join(folder, "s")
	case c.kind == serverVhbad:
		c.listen = "tcp://127.0.0.1:0"
	default:
		c.listen = "tcp://" + freeAddress(t)
	}
	return c
}

// socketFolder is a temporary folder whose path is short: that of a socket has at
// most 107 bytes, and a test's own folder has the test's name in it.
func socketFolder(t *testing.T) string {
	t.Helper()
	folder, err := os.MkdirTemp("", "vhbad-") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(folder); err != nil {
			t.Error(err)
		}
	})
	return folder
}

// freeAddress finds a TCP port for a server that does not tell which one it took.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}()
	return l.Addr().String()
}

// startDaemon starts a server and waits until it is ready.
func startDaemon(t *testing.T, config serverConfig) *daemon {
	t.Helper()
	if config.kind == serverNbdkit {
		tool(t, "nbdkit")
	}
	command, err := config.command()
	if err != nil {
		t.Fatal(err)
	}
	return start(t, config, command)
}

func start(t *testing.T, config serverConfig, command *exec.Cmd) *daemon {
	t.Helper()
	d := &daemon{cmd: command, listen: config.listen, output: newOutput(), exited: make(chan struct{})}
	command.Stdout, command.Stderr = d.output, d.output
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		d.exitErr = command.Wait()
		close(d.exited)
	}()
	t.Cleanup(func() {
		d.stop(t)
		if t.Failed() {
			t.Logf("output of the server:\n%s", d.output)
		}
	})
	if config.kind == serverVhbad {
		d.waitReady(t)
	} else {
		d.waitAccepts(t)
	}
	return d
}

// ready is the line that vhbad prints for each listener.
var ready = regexp.MustCompile(`(?m)^ready ((?:tcp|unix)://\S+)\n`)

// waitReady waits for the ready line, and learns the port from it.
func (d *daemon) waitReady(t *testing.T) {
	t.Helper()
	timeout := time.After(startTimeout)
	for {
		text, more := d.output.snapshot()
		if match := ready.FindStringSubmatch(text); match != nil {
			d.listen = match[1]
			return
		}
		select {
		case <-more:
		case <-d.exited:
			t.Fatalf("server ended before it was ready: %v\n%s", d.exitErr, d.output)
		case <-timeout:
			t.Fatalf("no ready line after %v", startTimeout)
		}
	}
}

// awaitOutput waits until the server has printed text so often.
func (d *daemon) awaitOutput(t *testing.T, text string, times int) {
	t.Helper()
	timeout := time.After(startTimeout)
	for {
		printed, more := d.output.snapshot()
		n := strings.Count(printed, text)
		if n >= times {
			return
		}
		select {
		case <-more:
		case <-timeout:
			t.Fatalf("server printed %q %d times, want %d", text, n, times)
		}
	}
}

// waitAccepts waits until a server that prints nothing accepts.
func (d *daemon) waitAccepts(t *testing.T) {
	t.Helper()
	timeout := time.After(startTimeout)
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	network, address, _ := strings.Cut(d.listen, "://")
	for {
		if c, err := net.Dial(network, address); err == nil {
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
			return
		}
		select {
		case <-again.C:
		case <-d.exited:
			t.Fatalf("server ended before it was ready: %v\n%s", d.exitErr, d.output)
		case <-timeout:
			t.Fatalf("server does not accept after %v", startTimeout)
		}
	}
}

// stop asks the server to end, and wants exit status 0 in good time. It may be
// called again.
func (d *daemon) stop(t *testing.T) {
	t.Helper()
	select {
	case <-d.exited: // a test that ends it early has looked at exitErr
		return
	default:
	}
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Errorf("SIGTERM: %v", err)
	}
	select {
	case <-d.exited:
		if d.exitErr != nil {
			t.Errorf("server after SIGTERM: %v, want exit status 0", d.exitErr)
		}
	case <-time.After(stopTimeout):
		t.Errorf("server still runs %v after SIGTERM", stopTimeout)
		d.kill(t)
	}
}

// kill ends the server with no chance to tidy up. SIGQUIT comes first, so that a
// server that hangs tells where.
func (d *daemon) kill(t *testing.T) {
	t.Helper()
	if err := d.cmd.Process.Signal(syscall.SIGQUIT); err != nil {
		t.Errorf("SIGQUIT: %v", err)
	}
	select {
	case <-d.exited:
	case <-time.After(time.Second):
		if err := d.cmd.Process.Kill(); err != nil {
			t.Errorf("SIGKILL: %v", err)
		}
		<-d.exited
	}
}

// uri is the URI of an export, "" for the default one.
func (d *daemon) uri(export string) string {
	if path, ok := strings.CutPrefix(d.listen, "unix://"); ok {
		return "nbd+unix:///" + export + "?socket=" + path
	}
	return "nbd://" + strings.TrimPrefix(d.listen, "tcp://") + "/" + export
}

// run runs a peer to its end and fails the test if it fails.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := try(t, name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// try runs a peer to its end; its error holds what it printed.
func try(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
	defer cancel()
	command := peer(ctx, t, name, args...)
	out, err := command.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %w\n%s", strings.Join(command.Args, " "), err, out)
	}
	return string(out), nil
}

// peer is the command of a program on this host.
func peer(ctx context.Context, t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	command := exec.CommandContext(ctx, tool(t, name), args...)
	// nbdsh finds its Python by PATH, and only Debian's has the nbd module.
	command.Env = append(os.Environ(), "PATH="+strings.Join(toolFolders, ":"), "LC_ALL=C")
	command.WaitDelay = time.Second
	return command
}

// nbdsh runs one of the Python scripts in testdata.
func nbdsh(t *testing.T, uri, script string) {
	t.Helper()
	nbdshScript(t, script, "-u", uri)
}

// nbdshScript runs one of the Python scripts in testdata with h connected as the
// arguments say.
func nbdshScript(t *testing.T, script string, connect ...string) {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", script))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
	defer cancel()
	command := peer(ctx, t, "nbdsh", append(connect, "-c", "-")...)
	command.Stdin = f
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("nbdsh %s: %v\n%s", script, err, out)
	}
}
