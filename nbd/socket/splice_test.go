package socket_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhbad/vhbad/nbd/socket"
)

// pipeWith returns the end to read from of a pipe that has b in it.
func pipeWith(t *testing.T, b []byte) (fd int) {
	t.Helper()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fds[0]) })
	if _, err := unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, len(b)); err != nil {
		t.Fatal(err)
	}
	if n, err := unix.Write(fds[1], b); n != len(b) || err != nil {
		t.Fatalf("%d of %d bytes in the pipe: %v", n, len(b), err)
	}
	if err := unix.Close(fds[1]); err != nil {
		t.Fatal(err)
	}
	return fds[0]
}

// splicePattern is n bytes of which no two neighbours of 256 are the same.
func splicePattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i) ^ byte(i>>8)
	}
	return b
}

// TestSplice: what is in a pipe comes out at the other end, after what was sent before it;
// a full socket says so, and who waits goes on when there is room.
func TestSplice(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			a, b := pair(t, network)
			c := take(t, b)
			header, want := []byte("header"), splicePattern(1<<20)
			if n, err := c.TrySendMore([][]byte{header}); n != len(header) || err != nil {
				t.Fatalf("%d bytes, %v", n, err)
			}
			pipes, left := []int{}, 0
			for range 16 { // more than any socket holds
				pipes = append(pipes, pipeWith(t, want))
			}
			full := false
			for !full && len(pipes) > 0 {
				for left = len(want); left > 0; {
					n, err := c.TrySplice(pipes[0], left)
					if err != nil {
						t.Fatal(err)
					}
					if full = n == 0; full {
						break
					}
					left -= n
				}
				if !full {
					pipes = pipes[1:]
				}
			}
			if !full {
				t.Fatal("the socket takes all there is")
			}
			read := make(chan error, 1)
			go func() {
				got := make([]byte, len(header))
				if _, err := io.ReadFull(a, got); err != nil || !bytes.Equal(got, header) {
					read <- errors.Join(err, errors.New("not the header"))
					return
				}
				got = make([]byte, len(want))
				for range 16 {
					if _, err := io.ReadFull(a, got); err != nil || !bytes.Equal(got, want) {
						read <- errors.Join(err, errors.New("not what was in the pipe"))
						return
					}
				}
				read <- nil
			}()
			for len(pipes) > 0 {
				for left > 0 {
					n, err := c.Splice(pipes[0], left)
					if n == 0 || err != nil {
						t.Fatalf("%d bytes, %v", n, err)
					}
					left -= n
				}
				pipes, left = pipes[1:], len(want)
			}
			if err := <-read; err != nil {
				t.Error(err)
			}
		})
	}
}

// TestSplice_Receiver: one that waits to receive meanwhile gets what comes.
func TestSplice_Receiver(t *testing.T) {
	a, b := pair(t, "unix")
	c := take(t, b)
	const rounds = 200
	received := make(chan error, 1)
	go func() {
		got := make([]byte, 1)
		for i := range rounds {
			if n, err := c.Receive([][]byte{got}); n != 1 || err != nil || got[0] != byte(i) {
				received <- errors.Join(err, errors.New("not what was sent"))
				return
			}
		}
		received <- nil
	}()
	want := splicePattern(64 << 10)
	got := make([]byte, len(want))
	for i := range rounds {
		fd := pipeWith(t, want)
		for left := len(want); left > 0; {
			n, err := c.Splice(fd, left)
			if err != nil {
				t.Fatal(err)
			}
			left -= n
		}
		if _, err := io.ReadFull(a, got); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("round %d: %v, or not what was in the pipe", i, err)
		}
		if _, err := a.Write([]byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-received; err != nil {
		t.Error(err)
	}
	if socket.NonBlockingForTest(c) {
		t.Error("the socket does not wait any more")
	}
}

// TestSplice_Ends: closed, gone and late are told as by Send.
func TestSplice_Ends(t *testing.T) {
	some := splicePattern(64 << 10)
	t.Run("closed", func(t *testing.T) {
		_, b := pair(t, "unix")
		c := take(t, b)
		_ = c.Close()
		if _, err := c.Splice(pipeWith(t, some), len(some)); !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
	t.Run("closed meanwhile", func(t *testing.T) {
		_, b := pair(t, "unix")
		c := take(t, b)
		for n := 1; n > 0; { // until the socket is full
			var err error
			if n, err = c.TrySplice(pipeWith(t, some), len(some)); err != nil {
				t.Fatal(err)
			}
		}
		last := pipeWith(t, some)
		ended := make(chan error, 1)
		go func() {
			for {
				if _, err := c.Splice(last, len(some)); err != nil {
					ended <- err
					return
				}
			}
		}()
		_ = c.Close()
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
	t.Run("gone", func(t *testing.T) {
		a, b := pair(t, "unix")
		c := take(t, b)
		_ = a.Close()
		if _, err := c.Splice(pipeWith(t, some), len(some)); !errors.Is(err, syscall.EPIPE) {
			t.Error(err)
		}
	})
	t.Run("nothing there", func(t *testing.T) {
		_, b := pair(t, "unix")
		c := take(t, b)
		var fds [2]int
		if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
			t.Fatal(err)
		}
		if err := c.SetWriteDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		for _, fd := range []int{fds[1], fds[0]} { // there is somebody who could write, and not
			if _, err := c.Splice(fds[0], len(some)); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Error(err)
			}
			if err := unix.Close(fd); err != nil {
				t.Fatal(err)
			}
		}
	})
	t.Run("late", func(t *testing.T) {
		_, b := pair(t, "unix")
		c := take(t, b)
		if err := c.SetWriteDeadline(time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.TrySplice(pipeWith(t, some), len(some)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
	})
}
