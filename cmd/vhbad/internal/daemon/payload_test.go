//go:build !race

package daemon

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// random is n bytes that compress badly and repeat nowhere.
func random(t *testing.T, n int) []byte {
	t.Helper()
	seed := [32]byte{byte(rand.Uint32()), 1}
	t.Logf("seed %v", seed)
	b := make([]byte, n)
	_, _ = rand.NewChaCha8(seed).Read(b) // it cannot fail
	return b
}

// TestPayload_Largest: 64 MiB go to the medium and back in one request each, whole
// blocks or not. A byte more is refused, its payload skipped, and the connection lives
// on; beyond twice as much the connection ends. The race detector would take a minute
// for it.
func TestPayload_Largest(t *testing.T) {
	const most = 64 << 20
	s := newSettings(t, "m=memory:256MiB", "f=file:$DIR/f.img,size=256MiB")
	s.Limits.Memory = 256 * config.MiB
	d, _ := s.mustStart(t)
	data := random(t, most+1)
	for i, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			at := uint64(i)<<20 + 512
			if f.Extended {
				at += 77 // parts of blocks
			}
			for _, export := range []string{"m", "f"} {
				c := s.speak(t, export, f)
				if c.MaxPayloadBytes != most {
					t.Errorf("%s: the largest payload is told to be %d bytes, want %d", export, c.MaxPayloadBytes, most)
				}
				ask(t, c, nbdtest.Command{Type: nbdtest.CmdWrite, Offset: at, Length: most, Payload: data[:most]}, nbd.OK)
				r := ask(t, c, nbdtest.Command{Type: nbdtest.CmdRead, Offset: at, Length: most}, nbd.OK)
				if !bytes.Equal(r.Data, data[:most]) {
					t.Errorf("%s: 64 MiB read back differ from what was written", export)
				}

				ask(t, c, nbdtest.Command{Type: nbdtest.CmdRead, Length: most + 1}, nbd.EINVAL)
				if f.Structured || f.Extended {
					ask(t, c, nbdtest.Command{Type: nbdtest.CmdRead, Flags: nbdtest.FlagDF, Length: most + 1}, nbd.EOVERFLOW)
				}
				ask(t, c, nbdtest.Command{Type: nbdtest.CmdWrite, Offset: at + 1, Length: most + 1, Payload: data}, nbd.EINVAL)
				r = ask(t, c, nbdtest.Command{Type: nbdtest.CmdRead, Offset: at, Length: most}, nbd.OK)
				if !bytes.Equal(r.Data, data[:most]) {
					t.Errorf("%s: a write that was refused has changed the disk", export)
				}

				if err := c.Send(nbdtest.Command{Type: nbdtest.CmdWrite, Length: 2*most + 1}); err != nil {
					t.Fatal(err)
				}
				if _, err := c.Receive(); !errors.Is(err, io.EOF) {
					t.Errorf("%s: after the header of a write that is too long to skip: %v, want the end", export, err)
				}
			}
			b := make([]byte, most)
			image, err := os.Open(filepath.Join(s.dir, "f.img"))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := image.ReadAt(b, int64(at)); err != nil || !bytes.Equal(b, data[:most]) {
				t.Errorf("the image does not hold what was written: %v", err)
			}
			if err := image.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	noViolations(t, machineOf(d))
}
