package attach

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"testing"
)

// TestFarewell: a client that does not go on says so, whatever made it.
func TestFarewell(t *testing.T) {
	be := binary.BigEndian
	abort := []byte("IHAVEOPT\x00\x00\x00\x02\x00\x00\x00\x00")
	for kind, want := range map[uint32][]byte{
		errUnsupported: abort, errPolicy: abort, errTLSRequired: abort, errUnknown: abort, errShutdown: abort,
		4711: nil, // no reply of the protocol: whoever sends that need not be told
	} {
		t.Run(fmt.Sprintf("%#x", kind), func(t *testing.T) {
			reply := []byte("NBDMAGICIHAVEOPT\x00\x03\x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x07")
			reply = be.AppendUint32(be.AppendUint32(reply, kind), 0)
			var sent bytes.Buffer
			if _, err := negotiate(struct {
				io.Reader
				io.Writer
			}{bytes.NewReader(reply), &sent}, "d"); err == nil {
				t.Fatal("no error")
			}
			const flagsAndGo = 4 + 16 + 4 + 1 + 2 + 2
			if got := sent.Bytes()[flagsAndGo:]; !bytes.Equal(got, want) {
				t.Errorf("behind GO it sent %q, want %q", got, want)
			}
		})
	}

	t.Run("in transmission", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "s")
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		got := make(chan []byte, 1)
		go func() {
			defer func() { _ = l.Close() }() // the test is over
			c, err := l.Accept()
			if err != nil {
				got <- nil
				return
			}
			defer func() { _ = c.Close() }()
			export := served{name: "d", size: 1 << 20} // without NBD_FLAG_HAS_FLAGS
			if err := export.handshake(c); err != nil {
				got <- []byte(err.Error())
				return
			}
			b, _ := io.ReadAll(c) // the bytes tell
			got <- b
		}()
		if _, _, err := dialAll(context.Background(), Server{Network: "unix", Address: path, Export: "d"}, 1, nil); err == nil {
			t.Fatal("no error")
		}
		want := append([]byte("\x25\x60\x95\x13\x00\x00\x00\x02"), make([]byte, 20)...)
		if b := <-got; !bytes.Equal(b, want) {
			t.Errorf("in transmission it sent %q, want %q", b, want)
		}
	})
}
