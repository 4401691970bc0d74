package main

import (
	"bufio"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Socket activation as systemd does it: descriptor 3 and two variables.
func TestServe_ListenFDs(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "n.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	// LISTEN_PID must be the process that execs.
	cmd := exec.Command("sh", "-c", "LISTEN_PID=$$ LISTEN_FDS=1 exec vhbad serve --http none --admin none --disk d=memory:1MiB")
	cmd.ExtraFiles = []*os.File{f}
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	lines := bufio.NewReader(stdout)
	ready, err := lines.ReadString('\n')
	if want := "ready unix://" + path + "\n"; err != nil || ready != want {
		t.Errorf("first line %q, %v; want %q", ready, err, want)
	}
	if next, err := lines.ReadString('\n'); err != nil || !strings.HasPrefix(next, "attach: ") {
		t.Errorf("second line %q, %v; want no other address", next, err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	hello := make([]byte, 16)
	if n, err := c.Read(hello); err != nil || string(hello[:n]) != "NBDMAGICIHAVEOPT" {
		t.Errorf("greeting %q, %v", hello[:n], err)
	}
	_ = c.Close()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("serve: %v, want exit code 0", err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the service manager's socket is gone: %v", err)
	}
}
