package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/sandbox"
)

// What a daemon keeps: of a regular image its folder, of a device only itself, of
// certificates the places that links lead to.
func TestAccessOf(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	in := func(path string) string { return filepath.Join(dir, path) }
	for _, folder := range []string{"images", "real", "certificates", "renewed"} {
		if err := os.Mkdir(in(folder), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for path, target := range map[string]string{"images/link": "real/image", "certificates/server-key.pem": "renewed/key"} {
		if err := os.WriteFile(in(target), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(in(target), in(path)); err != nil {
			t.Fatal(err)
		}
	}
	c := &config.Config{
		Disks:   []config.Disk{{Name: "m", Memory: config.MiB}, {Name: "f", File: in("images/link")}, {Name: "d", File: os.DevNull}},
		Listen:  []config.Address{{Network: "tcp", Target: "127.0.0.1:0"}, {Network: "unix", Target: "/run/a/nbd.sock"}},
		Admin:   "/run/b/admin.sock",
		TLS:     config.TLS{Certificates: in("certificates")},
		Sandbox: config.Sandbox{Paths: []string{"/srv/more"}},
	}
	want := sandbox.Access{
		Read: []string{
			"/proc/self", "/proc/stat", "/proc/sys/net/core/somaxconn", "/sys/dev/block", "/sys/devices",
			"/etc/vhbad", "/etc/vhbad", in("certificates"), in("renewed"),
		},
		Images:  []string{"/srv/more", in("real"), os.DevNull},
		Sockets: []string{"/run/a", "/run/b"},
	}
	if diff := cmp.Diff(want, accessOf(c, "/etc/vhbad/not-there.yaml")); diff != "" {
		t.Errorf("want -, got +:\n%s", diff)
	}
}

// The running daemon has given up new privileges, with all its threads, unless it
// is told not to; and it removes its sockets when it ends.
func TestServe_Sandbox(t *testing.T) {
	mine, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	// Asked for its version, a kernel without it knows no such call.
	_, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	landlocked := errno == 0
	for mode, want := range map[string]int{"auto": 1, "off": mine} {
		dir, more := t.TempDir(), t.TempDir()
		sock := filepath.Join(dir, "n.sock")
		cmd := exec.Command("vhbad", "serve", "--http", "none", "--admin", filepath.Join(dir, "a.sock"), "--sandbox", mode, "--sandbox-path", more,
			"--disk", "d=file:"+filepath.Join(dir, "images", "d.img")+",size=1MiB", "--listen", "unix://"+sock)
		cmd.Stderr = os.Stderr
		if err := os.Mkdir(filepath.Join(dir, "images"), 0o755); err != nil {
			t.Fatal(err)
		}
		startReady(t, cmd, sock)
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", cmd.Process.Pid))
		if err != nil || len(threads) == 0 {
			t.Errorf("no threads: %v", err)
		}
		for _, thread := range threads {
			b, err := os.ReadFile(thread)
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
				continue // it has ended since
			}
			if line := fmt.Sprintf("\nNoNewPrivs:\t%d\n", want); err != nil || !strings.Contains(string(b), line) {
				t.Errorf("sandbox %s: %s has no line %q, %v", mode, thread, line, err)
			}
		}
		outside := filepath.Join(t.TempDir(), "x.img")
		out, err := exec.Command("vhbad", "disk", "add", "x=file:"+outside+",size=1MiB", "--admin", filepath.Join(dir, "a.sock")).CombinedOutput()
		if _, made := os.Stat(outside); mode == "auto" && landlocked {
			if err == nil || !strings.Contains(string(out), "the sandbox, which cannot be left") || made == nil {
				t.Errorf("sandbox %s: an image in another folder: %v, file: %v\n%s", mode, err, made, out)
			}
		} else if err != nil || made != nil {
			t.Errorf("sandbox %s, landlock %v: an image in another folder: %v, file: %v\n%s", mode, landlocked, err, made, out)
		}
		// A file that was made for nothing takes no place, though it may not be removed.
		image := filepath.Join(more, "y.img")
		out, err = exec.Command("vhbad", "disk", "add", "y=file:"+image+",size=1MiB,cache=writeback,trace="+filepath.Join(more, "none", "t"),
			"--admin", filepath.Join(dir, "a.sock")).CombinedOutput()
		if info, made := os.Stat(image); err == nil || made == nil && info.Size() != 0 {
			t.Errorf("sandbox %s: a disk whose trace cannot be made: %v, file: %v\n%s", mode, err, info, out)
		}
		if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("sandbox %s: %v, want exit code 0", mode, err)
		}
		left, err := os.ReadDir(dir)
		if err != nil || len(left) != 1 {
			t.Errorf("sandbox %s: left %v, %v; want the folder of images alone", mode, left, err)
		}
	}
}

// A socket whose owner is given by name does not stand in the way of a reload, which
// cannot look the name up any more.
func TestServe_SandboxOwner(t *testing.T) {
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	owner := me.Username
	if group, err := user.LookupGroupId(me.Gid); err == nil { // not every one has a name
		owner += ":" + group.Name
	}
	dir := t.TempDir()
	sock, control, file := filepath.Join(dir, "n.sock"), filepath.Join(dir, "a.sock"), filepath.Join(dir, "v.yaml")
	text := fmt.Sprintf("listen: [\"unix://%s?owner=%s\"]\ndisks: [{name: d, memory: 1MiB}]\n", sock, owner)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("vhbad", "serve", "--config", file, "--http", "none", "--admin", control)
	startReady(t, cmd, sock)
	if out, err := exec.Command("vhbad", "reload", "--admin", control).CombinedOutput(); err != nil || string(out) != "nothing has changed\n" {
		t.Errorf("reload: %v\n%s", err, out)
	}
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// An address that a reload cannot open is told with what to do about it: in the sandbox
// what that does not allow, and else nothing of it.
func TestServe_SandboxAddress(t *testing.T) {
	_, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	const places, names = "the sandbox makes no unix sockets", "names of hosts cannot be looked up in the sandbox: want a number"
	for mode, wants := range map[string]map[string]string{
		"auto": {"unix:///dev/pts/n.sock": places, "tcp://host.invalid:0": names},
		"off":  {"unix:///dev/pts/n.sock": "permission denied"},
	} {
		dir := t.TempDir()
		sock, control, file := filepath.Join(dir, "n.sock"), filepath.Join(dir, "a.sock"), filepath.Join(dir, "v.yaml")
		configure := func(more string) {
			t.Helper()
			text := fmt.Sprintf("listen: [%q, %s]\ndisks: [{name: d, memory: 1MiB}]\n", "unix://"+sock, more)
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		configure("")
		cmd := exec.Command("vhbad", "serve", "--config", file, "--http", "none", "--admin", control, "--sandbox", mode)
		startReady(t, cmd, sock)
		for address, want := range wants {
			if mode == "auto" && errno != 0 {
				continue // there is no sandbox, and names are looked up
			}
			configure(address)
			out, err := exec.Command("vhbad", "reload", "--admin", control).CombinedOutput()
			if err == nil || !strings.Contains(string(out), "listen on "+address) || !strings.Contains(string(out), want) ||
				strings.Contains(string(out), "sandbox") != (mode == "auto") {
				t.Errorf("sandbox %s, listen on %s: %v, want an error with %q\n%s", mode, address, err, want, out)
			}
		}
		if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
}
