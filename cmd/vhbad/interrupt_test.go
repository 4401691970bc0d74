package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhbad/vhbad/hba/trace"
)

// newMarks makes a trace of at least that many bytes, which does nothing to the image.
func newMarks(t *testing.T, least int) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "trace")
	r, err := trace.Create(path, trace.Config{Header: trace.Header{Disk: "d", SectorBytes: 512, DiskBytes: 1 << 20, CacheBytes: 1 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Repeat("x", trace.MaxTextBytes)
	for n := 0; n < least; n += len(text) {
		r.Mark(text)
		if err := r.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestTraceReplay_Interrupted: a replay that is broken off leaves no image, which would be
// taken for one, but the one that was there, and ends by the signal, as a loop of a shell
// does then.
func TestTraceReplay_Interrupted(t *testing.T) {
	marks := newMarks(t, 1<<20)
	// Where the tests run under nohup or in the background, the command would heed none.
	heeded := make(chan os.Signal, 1)
	signal.Notify(heeded, syscall.SIGINT, syscall.SIGHUP)
	t.Cleanup(func() { signal.Stop(heeded) })
	for i, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGINT} {
		there := i > 0
		t.Run(fmt.Sprintf("%s/%t", sig, there), func(t *testing.T) {
			folder := t.TempDir()
			image := filepath.Join(folder, "image")
			const before = "of the replay before"
			args := []string{"trace", "replay", "-", "--image", image}
			if there {
				args = append(args, "--force")
				if err := os.WriteFile(image, []byte(before), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			cmd := exec.Command("vhbad", args...)
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			// Far more than pipe and buffers hold: the replay is in the midst of it then.
			if _, err := in.Write(marks[:len(marks)-1]); err != nil {
				t.Error(err)
			}
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait() // its end is looked at
			if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !ws.Signaled() || ws.Signal() != sig {
				t.Errorf("ended with %s, want by the signal", cmd.ProcessState)
			}
			left, err := filepath.Glob(filepath.Join(folder, "*"))
			if hidden, _ := filepath.Glob(filepath.Join(folder, ".*")); err != nil || len(left) > 1 || len(hidden) > 0 {
				t.Errorf("left are %v and %v, %v", left, hidden, err)
			}
			switch b, err := os.ReadFile(image); {
			case there && string(b) != before:
				t.Errorf("the image that was there: %d bytes, %v; want it as it was", len(b), err)
			case !there && !errors.Is(err, os.ErrNotExist):
				t.Errorf("the image: %d bytes, %v; want none", len(b), err)
			}
		})
	}
}

// TestServe_InterruptedReading: a signal ends a daemon whose configuration is a pipe or a
// terminal that has not said all.
func TestServe_InterruptedReading(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "vhbad", "serve", "--config", path)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0) // which waits until it reads
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("ended with %v, want success", err)
	}
	if got, want := stderr.String(), "vhbad: stopped before the configuration was read: terminated\n"; got != want {
		t.Errorf("said %q, want %q", got, want)
	}
}

// Who has a command go on after the terminal is closed keeps that.
func TestTraceReplay_IgnoredSignal(t *testing.T) {
	marks := newMarks(t, 1<<20)
	image := filepath.Join(t.TempDir(), "image")
	cmd := exec.Command("sh", "-c", `trap "" HUP INT; exec vhbad trace replay - --image "$0"`, image)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write(marks[:len(marks)-1]); err != nil {
		t.Error(err)
	}
	for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGINT} {
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
	}
	_, err = in.Write(marks[len(marks)-1:])
	if err = errors.Join(err, in.Close(), cmd.Wait()); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(image); err != nil || info.Size() != 1<<20 {
		t.Errorf("the image: %v, %v; want one of 1 MiB", info, err)
	}
}

// TestRemoveBySignal_Windows: a signal that comes while the file is being made, or just when
// it is complete, is not lost, and leaves no file.
func TestRemoveBySignal_Windows(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	begin := func() (signals chan os.Signal, died chan os.Signal, kept func()) {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		signals, died = make(chan os.Signal, 1), make(chan os.Signal, 2)
		return signals, died, func() { removeBySignal(signals, path, func(sig os.Signal) { died <- sig })() }
	}
	for range 100 { // either side may see it first
		signals, died, keep := begin()
		signals <- syscall.SIGTERM
		keep()
		if len(died) != 1 {
			t.Fatalf("ended %d times by the signal, want once", len(died))
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("the file: %v, want none", err)
		}
	}
	_, died, keep := begin()
	keep()
	if _, err := os.Stat(path); err != nil || len(died) != 0 {
		t.Errorf("without a signal: %v, ended %d times; want the file", err, len(died))
	}
}
