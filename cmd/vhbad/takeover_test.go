package main

import (
	"bufio"
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// startServe runs `vhbad serve` and waits until it is ready.
func startServe(t *testing.T, args ...string) (cmd *exec.Cmd, stderr *bytes.Buffer) {
	t.Helper()
	stderr = &bytes.Buffer{}
	cmd = exec.Command("vhbad", append([]string{"serve", "--http", "none", "--log-format", "json", "--memory", "32MiB"}, args...)...)
	cmd.Stderr = stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // it has exited if all went well
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || !strings.HasPrefix(line, "ready ") {
		_ = cmd.Wait() // so that stderr is complete
		t.Fatalf("%v: first line %q, %v\n%s", args, line, err, stderr)
	}
	return cmd, stderr
}

func TestServe_TakeOver(t *testing.T) {
	dir := t.TempDir()
	args := []string{
		"--admin", filepath.Join(dir, "a.sock"), "--listen", "unix://" + filepath.Join(dir, "n.sock"), "--listen", "tcp://127.0.0.1:0",
		"--disk", "d=file:" + filepath.Join(dir, "d.img") + ",size=1MiB", "--takeover",
	}
	first, firstLog := startServe(t, args...) // there is none to take over from
	second, secondLog := startServe(t, args...)
	if err := first.Wait(); err != nil {
		t.Errorf("the first daemon: %v, want exit code 0\n%s", err, firstLog)
	}
	if out, err := exec.Command("vhbad", "status", "--admin", filepath.Join(dir, "a.sock")).CombinedOutput(); err != nil || !strings.Contains(string(out), "ready for") {
		t.Errorf("status: %v\n%s", err, out)
	}
	if err := second.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := second.Wait(); err != nil {
		t.Errorf("the second daemon: %v, want exit code 0\n%s", err, secondLog)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*.sock*")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	for log, want := range map[*bytes.Buffer]string{firstLog: "handing over", secondLog: "taking over"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("log lacks %q:\n%s", want, log)
		}
	}
}

func TestServe_TakeOverMemory(t *testing.T) {
	dir := t.TempDir()
	args := []string{"--admin", filepath.Join(dir, "a.sock"), "--listen", "unix://" + filepath.Join(dir, "n.sock"), "--disk", "ram=memory:1MiB"}
	first, firstLog := startServe(t, args...)
	out, err := exec.Command("vhbad", append([]string{"serve", "--http", "none", "--memory", "32MiB", "--takeover"}, args...)...).CombinedOutput()
	if err == nil || !strings.Contains(string(out), `disk "ram" is in memory`) {
		t.Errorf("%v, want a refusal that names the disk:\n%s", err, out)
	}
	second, secondLog := startServe(t, append(args, "--takeover", "--takeover-discard-memory")...)
	for cmd, log := range map[*exec.Cmd]*bytes.Buffer{first: firstLog, second: secondLog} {
		if cmd == second {
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Error(err)
			}
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v, want exit code 0\n%s", err, log)
		}
	}
}

// A daemon that waits for the answer of the one whose place it is to take ends when it is
// told to.
func TestServe_TakeOverSignalled(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "a.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	cmd := exec.Command("vhbad", "serve", "--http", "none", "--memory", "32MiB", "--takeover",
		"--admin", l.Addr().String(), "--listen", "unix://"+filepath.Join(dir, "n.sock"))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := bufio.NewReader(c).ReadString('\n'); err != nil {
		t.Error(err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v, want exit code 0\n%s", err, &stderr)
	}
}

// Who has been asked to stop by another daemon is not in a hurry because of one
// signal.
func TestAfterFirst(t *testing.T) {
	signals := make(chan os.Signal)
	rest := afterFirst(signals)
	signals <- syscall.SIGTERM
	signals <- syscall.SIGINT
	if got := <-rest; got != syscall.SIGINT {
		t.Errorf("got %v, want the second signal", got)
	}
}
