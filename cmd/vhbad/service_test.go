package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A manager is a service manager's socket.
type manager struct {
	*net.UnixConn
	path string
}

func newManager(t *testing.T) manager {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return manager{l, path}
}

// next returns the next message, line by line.
func (m manager) next(t *testing.T) []string {
	t.Helper()
	if err := m.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4096)
	n, err := m.Read(b)
	if err != nil {
		t.Fatalf("no message for the service manager: %v", err)
	}
	return strings.Split(string(b[:n]), "\n")
}

// What systemd hears of a service of Type=notify with a watchdog.
func TestServe_Notify(t *testing.T) {
	m := newManager(t)
	sock := filepath.Join(t.TempDir(), "n.sock")
	cmd := exec.Command("vhbad", "serve", "--http", "none", "--admin", "none", "--drain-timeout", "20s",
		"--disk", "d=memory:1MiB", "--listen", "unix://"+sock)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+m.path, "WATCHDOG_USEC=50000")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	want := []string{"READY=1", "STATUS=Serving 1 disk at unix://" + sock}
	if got := m.next(t); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("first message %q, want %q", got, want)
	}
	if c, err := net.Dial("unix", sock); err != nil {
		t.Errorf("ready, but: %v", err)
	} else {
		_ = c.Close()
	}
	for range 3 {
		if got := m.next(t); fmt.Sprint(got) != "[WATCHDOG=1]" {
			t.Errorf("message %q, want a sign of life", got)
		}
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for {
		got := m.next(t)
		if got[0] == "WATCHDOG=1" {
			continue // it lives until the end
		}
		want := []string{"STOPPING=1", "STATUS=Finishing what is in flight", "EXTEND_TIMEOUT_USEC=26000000"}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("last words %q, want %q", got, want)
		}
		break
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("serve: %v, want exit code 0", err)
	}
}

func TestStatusLine(t *testing.T) {
	for _, c := range []struct {
		disks     int
		addresses []string
		want      string
	}{
		{1, nil, "Serving 1 disk"},
		{2, []string{"a", "b"}, "Serving 2 disks at a, b"},
		{9, []string{"a", "b", "c", "d", "e"}, "Serving 9 disks at a, b, c and 2 more"},
	} {
		if got := statusLine(c.disks, c.addresses); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}

// What systemd hears of a reload, good or bad: when it begins, and that it has ended.
func TestServe_NotifyReload(t *testing.T) {
	m := newManager(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "vhbad.yaml")
	write := func(disks string) {
		t.Helper()
		text := "http: none\nadmin: none\nlisten: [\"unix://" + dir + "/n.sock\"]\ndisks: [" + disks + "]\n"
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("{name: a, memory: 1MiB}")
	cmd := exec.Command("vhbad", "serve", "--config", file)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+m.path)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	at := " at unix://" + dir + "/n.sock"
	if got, want := m.next(t), []string{"READY=1", "STATUS=Serving 1 disk" + at}; !slices.Equal(got, want) {
		t.Errorf("first message %q, want %q", got, want)
	}
	for _, c := range []struct{ disks, status string }{
		{"{name: a, memory: 1MiB}, {name: b, memory: 1MiB}", "STATUS=Serving 2 disks" + at},
		{"{name: a, tape: 1MiB}", "STATUS=Serving 2 disks" + at},
	} {
		write(c.disks)
		if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		// systemd compares this clock with its own to tell which reload has ended.
		got := m.next(t)
		if len(got) != 2 || got[0] != "RELOADING=1" || !strings.HasPrefix(got[1], "MONOTONIC_USEC=") {
			t.Errorf("at a signal: %q", got)
		}
		if got := m.next(t); !slices.Equal(got, []string{"READY=1", c.status}) {
			t.Errorf("after a reload with disks %s: %q, want ready and %q", c.disks, got, c.status)
		}
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("serve: %v, want exit code 0", err)
	}
}
