package sandbox_test

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"

	"github.com/vhbad/vhbad/cmd/vhbad/internal/sandbox"
)

// folderVariable has this program enter a sandbox in that folder and try things,
// instead of running tests: there is no way back.
const folderVariable = "VHBAD_SANDBOX_FOLDER"

// listenerVariable has the address of somebody who listens.
const listenerVariable = "VHBAD_SANDBOX_LISTENER"

func TestMain(m *testing.M) {
	if folder := os.Getenv(folderVariable); folder != "" {
		os.Exit(inside(folder))
	}
	os.Exit(m.Run())
}

// inside prints a line for each attempt: its name, and "yes" or the error.
func inside(folder string) int {
	in := func(path string) string { return filepath.Join(folder, path) }
	held, err := os.OpenFile(in("outside/held"), os.O_RDWR, 0)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	err = sandbox.Enter(sandbox.Access{
		Read:    []string{in("certificates"), in("config"), in("not-there")},
		Images:  []string{in("images"), in("device")},
		Sockets: []string{in("sockets")},
	})
	if err != nil && !errors.Is(err, sandbox.ErrUnsupported) {
		fmt.Println(err)
		return 1
	}
	fmt.Println("landlock", verdict(err))
	_, offset := time.Now().Zone()
	fmt.Println("zone", offset)
	for _, path := range []string{"images/a", "images/not-there", "images/link-out", "device", "outside/held", "outside/not-there"} {
		if err := sandbox.Reaches(in(path)); err != nil {
			fmt.Println("reaches-"+path, err)
		} else {
			fmt.Println("reaches-"+path, "yes")
		}
	}
	_, err = net.Dial("tcp", os.Getenv(listenerVariable))
	fmt.Println("connect", verdict(err))
	open := func(path string, flags int) error {
		f, err := os.OpenFile(in(path), flags, 0o600)
		if err == nil {
			_ = f.Close() // nothing was written
		}
		return err
	}
	privileges, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	if privileges != 1 {
		err = errors.Join(err, fmt.Errorf("no_new_privs is %d", privileges))
	}
	fmt.Println("privileges", verdict(err))
	_, err = held.WriteAt([]byte("x"), 0)
	fmt.Println("held", verdict(errors.Join(err, held.Truncate(1))))
	for _, try := range []struct {
		name string
		err  error
	}{
		{"read-certificate", open("certificates/key", os.O_RDONLY)},
		{"read-config", open("config", os.O_RDONLY)},
		{"write-image", open("images/a", os.O_RDWR)},
		{"make-image", open("images/new", os.O_RDWR|os.O_CREATE)},
		{"write-device", open("device", os.O_RDWR)},
		{"remove-socket", os.Remove(in("sockets/s"))},
		{"write-certificate", open("certificates/key", os.O_WRONLY)},
		{"make-certificate", open("certificates/new", os.O_RDWR|os.O_CREATE)},
		{"write-config", open("config", os.O_WRONLY)},
		{"remove-image", os.Remove(in("images/a"))},
		{"link-image", os.Symlink("a", in("images/link"))},
		{"read-socket-folder", open("sockets/file", os.O_RDONLY)},
		{"read-outside", open("outside/held", os.O_RDONLY)},
		{"make-outside", open("outside/new", os.O_RDWR|os.O_CREATE)},
		{"remove-outside", os.Remove(in("outside/held"))},
		{"read-passwd", open("../../../../../../../etc/passwd", os.O_RDONLY)},
		{"execute", exec.Command("/bin/true").Run()},
	} {
		fmt.Println(try.name, verdict(try.err))
	}
	return 0
}

func verdict(err error) string {
	switch {
	case err == nil:
		return "yes"
	case errors.Is(err, fs.ErrPermission), errors.Is(err, sandbox.ErrUnsupported):
		return "no"
	}
	return err.Error()
}

// TestEnter_OnlyWhatIsNamed: a process in the sandbox reads and writes what it was
// given and what it had open, and nothing else.
func TestEnter_OnlyWhatIsNamed(t *testing.T) {
	folder, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"certificates/key", "config", "images/a", "device", "sockets/s", "sockets/file", "outside/held"} {
		if err := os.MkdirAll(filepath.Join(folder, filepath.Dir(path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(folder, path), []byte("content"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../outside/held", filepath.Join(folder, "images/link-out")); err != nil {
		t.Fatal(err)
	}
	// Five hours and a half: no zone that a machine of a test is likely to be in.
	zone := filepath.Join(folder, "zone")
	if err := os.WriteFile(zone, []byte("TZif2"+strings.Repeat("\x00", 39)+"TZif2"+strings.Repeat("\x00", 31)+
		"\x00\x00\x00\x01\x00\x00\x00\x02"+"\x00\x00\x4d\x58\x00\x00X\x00"+"\nX-5:30\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), folderVariable+"="+folder, listenerVariable+"="+l.Addr().String(), "TZ="+zone)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	got := map[string]string{}
	for line := range strings.Lines(string(out)) {
		name, verdict, _ := strings.Cut(strings.TrimSpace(line), " ")
		got[name] = verdict
	}
	want := map[string]string{
		"privileges": "yes", "held": "yes", "read-certificate": "yes", "read-config": "yes",
		"write-image": "yes", "make-image": "yes", "write-device": "yes", "remove-socket": "yes",
		"zone": "19800", "reaches-images/a": "yes", "reaches-images/not-there": "yes", "reaches-device": "yes",
	}
	if got["landlock"] == "yes" { // without it these depend on the user
		for _, name := range []string{
			"write-certificate", "make-certificate", "write-config", "remove-image", "link-image", "read-socket-folder",
			"read-outside", "make-outside", "remove-outside", "read-passwd", "execute",
		} {
			want[name] = "no"
		}
		if version, err := ll.LandlockGetABIVersion(); err == nil && version >= 4 { // the first that knows TCP
			want["connect"] = "no"
		}
		for _, path := range []string{"outside/held", "outside/not-there", "images/link-out"} {
			at := filepath.Join(folder, "outside")
			want["reaches-"+path] = fmt.Sprintf("%s: the sandbox, which cannot be left, has images in %s, %s only: "+
				"restart with --sandbox-path %s, or with a path of sandbox in the configuration",
				filepath.Join(folder, path), filepath.Join(folder, "device"), filepath.Join(folder, "images"), at)
		}
	} else {
		t.Log("this kernel has no landlock: only what stays allowed was tested")
	}
	for name, verdict := range want {
		if got[name] != verdict {
			t.Errorf("%s: %q, want %q", name, got[name], verdict)
		}
	}
}
