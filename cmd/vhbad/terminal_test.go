package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhbad/vhbad/internal/progress"
)

// newTerminal opens a pseudo-terminal: what is written to the second is read from the
// first, as it would be shown.
func newTerminal(t *testing.T) (screen, terminal *os.File) {
	t.Helper()
	screen, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = screen.Close() })
	n, err := unix.IoctlGetInt(int(screen.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(screen.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return screen, terminal
}

// TestServe_Terminal: the log is text for people and JSON for programs.
func TestServe_Terminal(t *testing.T) {
	for name, want := range map[string]string{"terminal": " level=INFO msg=serving disks=1", "pipe": `"level":"INFO","msg":"serving","disks":1`} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command("vhbad", "serve", "--http", "none", "--admin", "none", "--disk", "d=memory:1MiB",
				"--listen", "unix://"+filepath.Join(t.TempDir(), "s"))
			var shown io.Reader
			if name == "terminal" {
				screen, terminal := newTerminal(t)
				cmd.Stderr, shown = terminal, screen
				defer func() { _ = terminal.Close() }()
			} else {
				r, err := cmd.StderrPipe()
				if err != nil {
					t.Fatal(err)
				}
				shown = r
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(shown).ReadString('\n')
			if err != nil || !strings.Contains(line, want) {
				t.Errorf("first line %q, %v; want %q in it", line, err, want)
			}
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestBar_Columns: a bar knows how wide its terminal is, which may change.
func TestBar_Columns(t *testing.T) {
	screen, terminal := newTerminal(t)
	defer func() { _ = terminal.Close() }()
	now := time.Unix(0, 0)
	bar := progress.NewBar(terminal, "replaying", progress.Bytes, func() time.Time {
		now = now.Add(time.Second)
		return now
	})
	for done, columns := range []uint16{80, 50, 20, 50} {
		if err := unix.IoctlSetWinsize(int(terminal.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 25, Col: columns}); err != nil {
			t.Fatal(err)
		}
		bar.Update(int64(done), 10)
		line := make([]byte, 256)
		n, err := screen.Read(line)
		if err != nil || n == 0 || n > int(columns) || line[0] != '\r' { // one less than columns, behind \r
			t.Errorf("%d columns: %q, %v", columns, line[:n], err)
		}
	}
}
