//go:build ship

package ship

import (
	"bufio"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

var units = []string{"vhbad.service", "vhbad.socket", "vhbad-admin.socket", "vhbad-attach@.service"}

func readUnit(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "deploy/systemd", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestUnits_Verify has systemd read them; it must have nothing to say.
func TestUnits_Verify(t *testing.T) {
	folder := t.TempDir()
	args := []string{"verify", "--man=no"}
	for _, name := range units {
		text := strings.ReplaceAll(readUnit(t, name), "/usr/bin/vhbad", dist(t, "stage/vhbad"))
		path := filepath.Join(folder, strings.Replace(name, "@.", "@nbd0.", 1))
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		args = append(args, path)
	}
	out, err := exec.Command("systemd-analyze", args...).CombinedOutput()
	if err != nil || len(out) != 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

// TestUnits_Commented wants a reason for each line that takes a right away: who has
// to loosen one needs it. A line without one belongs to the one above.
func TestUnits_Commented(t *testing.T) {
	for _, name := range units {
		section, reason := "", false
		for line := range strings.Lines(readUnit(t, name)) {
			switch line = strings.TrimSpace(line); {
			case line == "":
				reason = false
			case strings.HasPrefix(line, "["):
				section, reason = line, false
			case strings.HasPrefix(line, "#"):
				reason = true
			case section == "[Service]" && !reason:
				t.Errorf("%s: %s: say why, in a line above", name, line)
			}
		}
	}
}

// TestService_Starts runs vhbad.service's own command line as systemd would: sockets
// of the two socket units by name, the packaged configuration, a notify socket.
func TestService_Starts(t *testing.T) {
	folder := t.TempDir()
	text, err := os.ReadFile(filepath.Join(root, "deploy/package/vhbad.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(folder, "vhbad.yaml")
	replaced := strings.NewReplacer("/var/lib/vhbad", folder, "127.0.0.1:9810", "127.0.0.1:0").Replace(string(text))
	if err := os.WriteFile(config, []byte(replaced), 0o644); err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^ExecStart=(.*)$`).FindStringSubmatch(readUnit(t, "vhbad.service"))
	if m == nil {
		t.Fatal("vhbad.service has no ExecStart")
	}
	line := strings.NewReplacer("/usr/bin/vhbad", dist(t, "stage/vhbad"), "/etc/vhbad/vhbad.yaml", config).Replace(m[1])
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: filepath.Join(folder, "notify")})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = notify.Close() }()
	cmd := exec.Command("sh", "-c", "LISTEN_PID=$$ exec "+line)
	var names []string
	for _, unit := range []string{"vhbad.socket", "vhbad-admin.socket"} {
		name := regexp.MustCompile(`(?m)^FileDescriptorName=(.*)$`).FindStringSubmatch(readUnit(t, unit))
		if name == nil {
			t.Fatalf("%s names no descriptor", unit)
		}
		names = append(names, name[1])
		l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: filepath.Join(folder, name[1])})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		f, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		_, _ = l.Close(), t
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	cmd.Env = append(os.Environ(), "LISTEN_FDS=2", "LISTEN_FDNAMES="+strings.Join(names, ":"),
		"NOTIFY_SOCKET="+notify.LocalAddr().String(), "WATCHDOG_USEC=30000000")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, f := range cmd.ExtraFiles {
		_ = f.Close() // the child has it
	}
	if err := notify.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4096)
	n, err := notify.Read(b)
	if err != nil || !strings.HasPrefix(string(b[:n]), "READY=1\n") {
		t.Errorf("message %q, %v; want READY=1", b[:n], err)
	}
	c, err := net.Dial("unix", filepath.Join(folder, "nbd"))
	if err != nil {
		t.Fatal(err)
	}
	if hello, err := bufio.NewReader(c).Peek(16); string(hello) != "NBDMAGICIHAVEOPT" {
		t.Errorf("greeting %q, %v", hello, err)
	}
	_ = c.Close()
	if got := output(t, dist(t, "stage/vhbad"), "status", "--admin", filepath.Join(folder, "admin")); !strings.Contains(got, "disk0") {
		t.Errorf("status: %q", got)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%s: %v", line, err)
	}
	if info, err := os.Stat(filepath.Join(folder, "disk0.img")); err != nil || info.Size() != 1<<30 {
		t.Errorf("the image of the packaged configuration: %v, %v", info, err)
	}
}
