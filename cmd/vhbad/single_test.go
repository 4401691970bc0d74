package main

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// abort ends a handshake in good order: NBD_OPT_ABORT.
const abort = "\x00\x00\x00\x03IHAVEOPT\x00\x00\x00\x02\x00\x00\x00\x00"

// talk shakes hands with the server at the other end.
func talk(t *testing.T, rw io.ReadWriter) {
	t.Helper()
	hello := make([]byte, 18)
	if _, err := io.ReadFull(rw, hello); err != nil || string(hello[:16]) != "NBDMAGICIHAVEOPT" {
		t.Errorf("greeting %q, %v", hello, err)
	}
	if _, err := io.WriteString(rw, abort); err != nil {
		t.Error(err)
	}
	if rest, err := io.ReadAll(rw); err != nil || len(rest) != 20 {
		t.Errorf("after ABORT: %d bytes, %v; want the 20 of its ACK and the end", len(rest), err)
	}
}

// single is `vhbad serve --single`.
func single(args ...string) (cmd *exec.Cmd, stderr *bytes.Buffer) {
	cmd = exec.Command("vhbad", append([]string{"serve", "--single", "--memory", "32MiB", "--disk", "d=memory:1MiB"}, args...)...)
	stderr = &bytes.Buffer{}
	cmd.Stderr = stderr
	return cmd, stderr
}

func TestServe_SingleSocket(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	far, near := os.NewFile(uintptr(fds[0]), "server"), os.NewFile(uintptr(fds[1]), "client")
	c, err := net.FileConn(near)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = errors.Join(c.Close(), near.Close()) }()
	cmd, stderr := single("--log-level", "info")
	cmd.Stdin, cmd.Stdout = far, far
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := far.Close(); err != nil {
		t.Error(err)
	}
	talk(t, c)
	if err := cmd.Wait(); err != nil {
		t.Errorf("serve: %v, want exit code 0", err)
	}
	for _, want := range []string{"ready stdio\n", "the client is gone", "stopped"} {
		if !strings.Contains(stderr.String(), want) {
			t.Errorf("standard error lacks %q:\n%s", want, stderr)
		}
	}
}

func TestServe_SinglePipes(t *testing.T) {
	cmd, stderr := single()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	talk(t, struct {
		io.Reader
		io.Writer
	}{out, in})
	if err := cmd.Wait(); err != nil {
		t.Errorf("serve: %v, want exit code 0\n%s", err, stderr)
	}
	if got := stderr.String(); got != "ready stdio\n" {
		t.Errorf("standard error %q, want only that it is ready", got)
	}
}

// As libnbd starts a server: nbdinfo -- [ vhbad serve --single … ].
func TestServe_SingleActivated(t *testing.T) {
	path := filepath.Join(t.TempDir(), "n.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	stderr := &bytes.Buffer{}
	cmd := exec.Command("sh", "-c", "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=unknown exec vhbad serve --single --memory 32MiB --disk d=memory:1MiB")
	cmd.ExtraFiles, cmd.Stderr = []*os.File{f}, stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	talk(t, c)
	if err := cmd.Wait(); err != nil {
		t.Errorf("serve: %v, want exit code 0\n%s", err, stderr)
	}
}

// Descriptors can be named for control and metrics.
func TestServe_FDNames(t *testing.T) {
	dir := t.TempDir()
	var files []*os.File
	for _, name := range []string{"n.sock", "a.sock"} {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: filepath.Join(dir, name)})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		f, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		files = append(files, f)
	}
	run := func(names string) (*exec.Cmd, *bytes.Buffer) {
		stderr := &bytes.Buffer{}
		cmd := exec.Command("sh", "-c", "LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES="+names+" exec vhbad serve --http none --memory 32MiB --disk d=memory:1MiB")
		cmd.ExtraFiles, cmd.Stderr = files, stderr
		return cmd, stderr
	}
	for names, want := range map[string]string{
		"x":           "has 1 names: want LISTEN_FDS=2",
		"admin:admin": `two sockets are called "admin"`,
	} {
		cmd, stderr := run(names)
		if err := cmd.Run(); err == nil || !strings.Contains(stderr.String(), want) {
			t.Errorf("names %q: %v, want %q\n%s", names, err, want, stderr)
		}
	}
	cmd, stderr := run("nbd:admin")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("vhbad", "status", "--admin", filepath.Join(dir, "a.sock")).CombinedOutput()
	if err != nil {
		t.Errorf("status: %v\n%s", err, out)
	}
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("serve: %v, want exit code 0\n%s", err, stderr)
	}
}

func TestServe_SingleNobody(t *testing.T) {
	cmd, stderr := single() // standard input and output are /dev/null
	if err := cmd.Run(); cmd.ProcessState.ExitCode() != exitUsage || !strings.Contains(stderr.String(), "put is neither a socket nor a pipe") {
		t.Errorf("%v, want exit code %d and a reason:\n%s", err, exitUsage, stderr)
	}
}
