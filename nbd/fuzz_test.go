package nbd_test

import (
	"errors"
	"io"
	"os"
	"testing"

	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// feed sends what a fuzzer made up to a fresh server after prefix and reads what
// comes back to the end. The server must end the connection once the input has
// ended, return all memory and not panic; newServerOf checks the rest.
func feed(t *testing.T, prefix, input []byte) {
	t.Helper()
	d := nbdtest.NewMemory(1 << 20)
	s := newServerOf(t, nbd.Limits{MaxPayloadBytes: 1 << 20, MaxRequests: 16}, 8<<20, nbd.Export{Name: "disk0", Device: d})
	defer s.close()
	nc := s.dial("unix")
	done := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, nc)
		done <- err
	}()
	// A write may fail because the server has hung up, as it should.
	_, _ = nc.Write(prefix)
	_, _ = nc.Write(input)
	if w, ok := nc.(interface{ CloseWrite() error }); ok {
		_ = w.CloseWrite()
	}
	if err := <-done; errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("the server hangs")
	}
	s.waitStats("end", func(st nbd.Stats) bool {
		for _, c := range st.Connections {
			if c.HeldBytes > 8<<20 {
				t.Fatalf("%d bytes held", c.HeldBytes)
			}
		}
		return st.ConnectionsOpen == 0
	})
	if n := s.Arena.Stats().PeakBytes; n > 8<<20 {
		t.Fatalf("%d bytes at the peak", n)
	}
}

func FuzzHandshake(f *testing.F) {
	f.Add(hx(fixedNoZer, opt, "00000007", "00000006", "00000000", "0000"))
	f.Add(hx(fixedOnly, opt, "00000001", "00000005", hxs("disk0")))
	f.Add(hx(fixedOnly, opt, "00000003", "00000000", opt, "00000002", "00000000"))
	f.Add(hx(fixedNoZer, opt, "00000006", "00000012", "00000000", "0006", "0000", "0001", "0002", "0003", "0003", "7777"))
	f.Add(hx(fixedNoZer, opt, "00000007", "00000006", "ffffffff", "0000"))
	f.Add(hx("ffffffff"))
	f.Fuzz(func(t *testing.T, input []byte) { feed(t, nil, input) })
}

func FuzzRequest(f *testing.F) {
	intoTransmission := hx(fixedNoZer, opt, "00000007", "00000006", "00000000", "0000")
	f.Add(hx(reqMagic, "0000", "0000", cookie, "0000000000000000", "00001000"))
	f.Add(hx(reqMagic, "0001", "0001", cookie, "0000000000000000", "00000004", "01020304", reqMagic, "0000", "0003", cookie, "0000000000000000", "00000000"))
	f.Add(hx(reqMagic, "0000", "0001", cookie, "0000000000000000", "00100000", "01020304"))
	f.Add(hx(reqMagic, "8000", "0001", cookie, "0000000000000000", "00200000", "01020304"))
	f.Add(hx(reqMagic, "0002", "0006", cookie, "0000000000000000", "00100000", reqMagic, "0000", "0004", cookie, "00000000000fffff", "00000001"))
	f.Add(hx(reqMagic, "0000", "0005", cookie, "ffffffffffffffff", "ffffffff", reqMagic, "0000", "0002", cookie, "ffffffffffffffff", "ffffffff"))
	f.Fuzz(func(t *testing.T, input []byte) { feed(t, intoTransmission, input) })
}
