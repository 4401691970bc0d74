package sdnotify_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/vhbad/vhbad/cmd/vhbad/internal/sdnotify"
)

func TestSend(t *testing.T) {
	for _, name := range []string{filepath.Join(t.TempDir(), "n"), fmt.Sprintf("@vhbad-test-%d", os.Getpid())} {
		l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: name})
		if err != nil {
			t.Fatal(err)
		}
		t.Setenv(sdnotify.Variable, name)
		if err := sdnotify.Send(sdnotify.Ready, sdnotify.Status("two\nlines")); err != nil {
			t.Error(err)
		}
		b := make([]byte, 100)
		n, err := l.Read(b)
		if want := "READY=1\nSTATUS=two lines"; err != nil || string(b[:n]) != want {
			t.Errorf("to %s: got %q, %v; want %q", name, b[:n], err, want)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestSend_NoManager(t *testing.T) {
	t.Setenv(sdnotify.Variable, "")
	if err := sdnotify.Send(sdnotify.Ready); err != nil {
		t.Errorf("without a service manager: %v", err)
	}
	for _, bad := range []string{"relative", filepath.Join(t.TempDir(), "nobody")} {
		t.Setenv(sdnotify.Variable, bad)
		if err := sdnotify.Send(sdnotify.Ready); err == nil {
			t.Errorf("%s=%s: no error", sdnotify.Variable, bad)
		}
	}
}

func TestWatchdog(t *testing.T) {
	me := strconv.Itoa(os.Getpid())
	for _, c := range []struct {
		usec, pid string
		want      time.Duration
		bad       bool
	}{
		{"", "", 0, false},
		{"30000000", "", 30 * time.Second, false},
		{"30000000", me, 30 * time.Second, false},
		{"30000000", "1", 0, false},
		{"0", me, 0, true},
		{"-1", me, 0, true},
		{"soon", me, 0, true},
		{"9223372036854775807", me, 0, true},
	} {
		t.Setenv("WATCHDOG_USEC", c.usec)
		t.Setenv("WATCHDOG_PID", c.pid)
		got, err := sdnotify.Watchdog()
		if got != c.want || (err != nil) != c.bad {
			t.Errorf("WATCHDOG_USEC=%q WATCHDOG_PID=%q: %v, %v; want %v", c.usec, c.pid, got, err, c.want)
		}
	}
}

func TestStates(t *testing.T) {
	if got, want := sdnotify.Extend(1500*time.Millisecond), "EXTEND_TIMEOUT_USEC=1500000"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	var first, second int64
	for _, n := range []*int64{&first, &second} {
		if _, err := fmt.Sscanf(sdnotify.Reloading(), "RELOADING=1\nMONOTONIC_USEC=%d", n); err != nil {
			t.Fatalf("%q: %v", sdnotify.Reloading(), err)
		}
	}
	if first <= 0 || second < first {
		t.Errorf("reloading at %d, then at %d: want a clock that goes on", first, second)
	}
}
