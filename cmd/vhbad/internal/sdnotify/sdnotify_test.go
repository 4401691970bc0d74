package sdnotify_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

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
