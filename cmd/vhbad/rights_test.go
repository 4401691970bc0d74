package main

import (
	"bufio"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// anybody is a user that owns nothing.
const anybody = 65534

// TestServe_NoRoot: a user who owns a folder and nothing else, with no group and no
// capability, serves a disk, and what the daemon makes is that user's alone, even
// under umask 0.
func TestServe_NoRoot(t *testing.T) {
	dir := t.TempDir()
	program, err := exec.LookPath("vhbad")
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	program = filepath.Join(dir, "vhbad") // of a name that testscript knows
	if err := os.WriteFile(program, b, 0o755); err != nil {
		t.Fatal(err)
	}
	image, sock, admin := filepath.Join(dir, "d.img"), filepath.Join(dir, "n.sock"), filepath.Join(dir, "a.sock")
	cmd := exec.Command("sh", "-c", `umask 0; exec "$@"`, "sh", program, "serve", "--http", "127.0.0.1:0", "--admin", admin,
		"--disk", "d=file:"+image+",size=1MiB", "--listen", "unix://"+sock+"?mode=0640", "--listen", "tcp://127.0.0.1:0")
	cmd.Stderr = os.Stderr
	cmd.Dir = "/"
	if os.Getuid() == 0 {
		for _, path := range []string{filepath.Dir(dir), dir} { // of root, with nothing for others
			if err := os.Chmod(path, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Chown(dir, anybody, anybody); err != nil {
			t.Fatal(err)
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: anybody, Gid: anybody, Groups: []uint32{}}}
	}
	startReady(t, cmd, sock)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"CapEff:\t0000000000000000", "CapPrm:\t0000000000000000"} {
		if !strings.Contains(string(status), "\n"+line+"\n") {
			t.Errorf("no line %q in\n%s", line, status)
		}
	}
	for path, want := range map[string]fs.FileMode{image: 0o600, admin: 0o600, admin + ".lock": 0o600, sock: 0o640} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want %v", path, info.Mode(), err, want)
		}
	}
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v, want exit code 0", err)
	}
}

// startReady starts a daemon and returns when it says that it is ready, at sock.
func startReady(t *testing.T, cmd *exec.Cmd, sock string) {
	t.Helper()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "ready unix://"+sock+"\n" {
		t.Errorf("%q: first line %q, %v", cmd.Args, line, err)
	}
}
