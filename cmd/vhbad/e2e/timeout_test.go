//go:build kernel

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Timeouts of the scenario about them. They are above those of one slow guest, and
// far below the half minute after which the kernel would only begin to grumble.
const (
	hangTimeout     = 2 * time.Second
	deadConnTimeout = 5 * time.Second
	hangBackend     = "hangs, on purpose"
)

// timeoutScenario has a server that does not answer, and one that is gone: the
// device fails requests after the times that attach was given, and neither before nor
// never.
func timeoutScenario() scenario {
	s := scenario{name: "timeout"}
	add := func(name string, run func(g *guest) error) { s.steps = append(s.steps, step{name, run}) }
	start := func(g *guest) error { return g.startServer(overUnix, "file:"+guestImage+",size=64MiB") }
	attach := func(args ...string) func(g *guest) error {
		return func(g *guest) error {
			args := append([]string{"attach", "--wait", guestCommandTimeout.String()}, args...)
			if err := g.run(g.binary, append(args, overUnix.uri(), guestDevice)...); err != nil {
				return err
			}
			return waitFor(guestDevice+" has a size", func() bool { return sysfs("size") != "0" && sysfs("pid") != "" })
		}
	}
	fault := func(args ...string) func(g *guest) error {
		return func(g *guest) error {
			return g.run(g.binary, append([]string{"fault", "--admin", "/run/admin.sock"}, args...)...)
		}
	}
	pattern := bytes.Repeat([]byte("hang"), directBytes/4)

	add("start", start)
	add("attach", attach("--timeout", hangTimeout.String(), "--backend-id", hangBackend))
	add("sysfs", func(*guest) error {
		// Source: linux Documentation/ABI/stable/sysfs-block, io_timeout: milliseconds.
		if got, want := sysfs("queue/io_timeout"), fmt.Sprint(hangTimeout.Milliseconds()); got != want {
			return fmt.Errorf("the device's time-out is %q ms, want %s", got, want)
		}
		if got := sysfs("backend"); got != hangBackend {
			return fmt.Errorf("the device's backend is %q, want %q", got, hangBackend)
		}
		return nil
	})
	add("write", func(*guest) error {
		return direct(func(fd int, b []byte) (int, error) { return unix.Pwrite(fd, b, 0) }, pattern)
	})
	add("hang/rule", fault("add", "stuck", "hang", "op=read"))
	add("hang/read", func(*guest) error { return wantEIO(hangTimeout) })
	add("hang/next", func(*guest) error { return wantEIO(0) }) // nothing is left to ask
	add("hang/detach", func(g *guest) error { return g.detach(vhbadClient) })
	add("hang/remove", fault("remove", "stuck"))
	add("attach_again", attach("--timeout", hangTimeout.String(), "--dead-conn-timeout", deadConnTimeout.String()))
	add("read_again", func(*guest) error {
		b := make([]byte, directBytes)
		if err := direct(func(fd int, b []byte) (int, error) { return unix.Pread(fd, b, 0) }, b); err != nil {
			return err
		}
		if !bytes.Equal(b, pattern) {
			return errors.New("what was written before the hang is not there")
		}
		return nil
	})
	add("gone/kill", (*guest).killServer)
	add("gone/read", func(*guest) error { return wantEIO(deadConnTimeout) })
	add("gone/detach", func(g *guest) error { return g.detach(vhbadClient) })
	add("gone/start", start)
	add("without/attach", attach())
	add("without/sysfs", func(*guest) error {
		if got, want := sysfs("backend"), overUnix.uri(); got != want {
			return fmt.Errorf("the device's backend is %q, want %q", got, want)
		}
		return nil
	})
	add("without/rule", fault("add", "stuck", "hang", "op=read"))
	add("without/read", func(g *guest) error {
		read := make(chan error, 1)
		go func() {
			read <- direct(func(fd int, b []byte) (int, error) { return unix.Pread(fd, b, 0) }, make([]byte, directBytes))
		}()
		// All that the kernel does then, after its usual time or that of the last time
		// that the device was attached.
		err := waitFor("the kernel grumbles", func() bool {
			out, err := g.output("dmesg")
			return err == nil && strings.Contains(out, "Possible stuck request")
		})
		if err := errors.Join(err, fault("release", "stuck")(g), fault("remove", "stuck")(g)); err != nil {
			return err
		}
		return <-read
	})
	add("without/detach", func(g *guest) error { return g.detach(vhbadClient) })
	add("stop", (*guest).stopServer)
	return s
}

// directBytes is one transfer past the page cache.
const directBytes = 4096

// direct does one read or write of the device past the page cache. b is what is
// written, and where what was read goes.
func direct(transfer func(fd int, b []byte) (int, error), b []byte) error {
	aligned, err := unix.Mmap(-1, 0, directBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	fd, err := unix.Open(guestDevice, unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: guestDevice, Err: err}
	}
	copy(aligned, b)
	done := make(chan error, 1)
	go func() {
		n, err := transfer(fd, aligned)
		if err == nil && n != directBytes {
			err = fmt.Errorf("%d bytes, want %d", n, directBytes)
		}
		done <- err
	}()
	select {
	case err = <-done:
	case <-time.After(guestCommandTimeout):
		return fmt.Errorf("no answer after %v", guestCommandTimeout) // the descriptor and memory are still in use
	}
	copy(b, aligned)
	return errors.Join(err, unix.Close(fd), unix.Munmap(aligned))
}

// wantEIO wants a read of the device to fail with EIO, and not before that time.
func wantEIO(atLeast time.Duration) error {
	began := time.Now()
	err := direct(func(fd int, b []byte) (int, error) { return unix.Pread(fd, b, 0) }, make([]byte, directBytes))
	if !errors.Is(err, unix.EIO) {
		return fmt.Errorf("read: %w, want %w", err, unix.EIO)
	}
	// The kernel counts in ticks and rounds.
	if took := time.Since(began); took < atLeast-atLeast/4 {
		return fmt.Errorf("the read failed after %v already, want %v", took, atLeast)
	}
	return nil
}
