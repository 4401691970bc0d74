package daemon

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// TestCopyReads: a long read is sent from the pages of the file, where a write that comes
// before the client has received it is seen, unless the configuration wants a copy. A short
// one is a copy in any case.
func TestCopyReads(t *testing.T) {
	for _, tt := range []struct {
		name   string
		bytes  int
		copies bool
		want   byte
	}{
		{"long", 64 << 10, false, 2},
		{"copied", 64 << 10, true, 1},
		{"short", 32 << 10, false, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			image := filepath.Join(t.TempDir(), "image")
			s := newSettings(t, "d=file:"+image+",size=1MiB")
			s.CopyReads = tt.copies
			_, stop := s.mustStart(t)
			defer stop()
			reader, writer := dialPlain(t, s.socket()), dialPlain(t, s.socket())
			write := func(v byte) {
				t.Helper()
				b := bytes.Repeat([]byte{v}, tt.bytes)
				if r, err := writer.Do(nbdtest.Command{Type: nbdtest.CmdWrite, Length: uint32(len(b)), Payload: b}); err != nil || r.Errno != 0 {
					t.Fatalf("write: %v, %v", r.Errno, err)
				}
			}
			write(1)
			if !cacheKnown(t, image) {
				tt.want = 1 // it is copied in any case
			}
			if err := reader.Send(nbdtest.Command{Type: nbdtest.CmdRead, Cookie: 1, Length: uint32(tt.bytes)}); err != nil {
				t.Fatal(err)
			}
			awaitBytes(t, reader.Conn.(*net.UnixConn), 16+tt.bytes)
			write(2)
			r, err := reader.Receive()
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(r.Data, bytes.Repeat([]byte{tt.want}, tt.bytes)) {
				t.Errorf("the read begins with %d and ends with %d, want %d everywhere", r.Data[0], r.Data[tt.bytes-1], tt.want)
			}
		})
	}
}

// cacheKnown says whether the kernel says what is cached of a file.
func cacheKnown(t *testing.T, path string) bool {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	return unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{Len: 4096}, &unix.Cachestat_t{}, 0) == nil
}

// dialPlain connects a client with simple replies to disk d.
func dialPlain(t *testing.T, socket string) *nbdtest.Client {
	t.Helper()
	nc, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	c, err := nbdtest.Dial(nc, "d", nbdtest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// awaitBytes waits until so many bytes are there to be received.
func awaitBytes(t *testing.T, nc *net.UnixConn, want int) {
	t.Helper()
	raw, err := nc.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); <-tick.C {
		there := 0
		if err := raw.Control(func(fd uintptr) { there, _ = unix.IoctlGetInt(int(fd), unix.SIOCINQ) }); err != nil {
			t.Fatal(err)
		}
		if there >= want {
			return
		}
	}
	t.Fatalf("no %d bytes in time", want)
}
