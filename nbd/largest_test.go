//go:build !race

package nbd_test

import (
	"bytes"
	"testing"

	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// TestLargestPayload_Dialects moves 64 MiB in one request each way, in the formats
// that have chunks. The race detector would take a minute for it.
func TestLargestPayload_Dialects(t *testing.T) {
	const size = 64 << 20
	m := nbdtest.NewMemory(size)
	s := newServer(t, m, nbd.Limits{MaxPayloadBytes: size})
	secure := s.secure(dialects()[2], nbdtest.NewAuthority(t))
	for i, tt := range []struct {
		dialect
		flags uint16
	}{{dialects()[1], nbdtest.FlagDF}, {dialects()[2], 0}, {secure, 0}} {
		c := s.speak("unix", tt.dialect)
		data := pattern(size, byte(i+1))
		must(t, c, nbdtest.Command{Type: nbdtest.CmdWrite, Cookie: 1, Length: size, Payload: data}, nbd.OK)
		r := must(t, c, nbdtest.Command{Type: nbdtest.CmdRead, Flags: tt.flags, Cookie: 2, Length: size}, nbd.OK)
		if !bytes.Equal(r.Data, data) {
			t.Errorf("%s: 64 MiB read back differ from what was written", tt.name)
		}
	}
}
