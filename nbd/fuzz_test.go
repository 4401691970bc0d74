package nbd_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

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

// FuzzExtendedRequest is FuzzRequest with extended headers, and block status
// agreed on.
func FuzzExtendedRequest(f *testing.F) {
	intoTransmission := hx(fixedNoZer, opt, "0000000b", "00000000",
		opt, "0000000a", "0000001b", "00000000", "00000001", "0000000f", hxs("base:allocation"),
		opt, "00000007", "00000006", "00000000", "0000")
	const zero, one = "0000000000000000", "0000000000000001"
	f.Add(hx(extReqMagic, "0000", "0000", cookie, zero, "0000000000001000"))
	f.Add(hx(extReqMagic, "0021", "0001", cookie, zero, "0000000000000004", "01020304", extReqMagic, "0000", "0003", cookie, zero, zero))
	f.Add(hx(extReqMagic, "0000", "0001", cookie, zero, "0000000000000004", "01020304"))
	f.Add(hx(extReqMagic, "0020", "0003", cookie, zero, "0000000000000004", "01020304"))
	f.Add(hx(extReqMagic, "0020", "0007", cookie, zero, "000000000000000c", one, "00000001"))
	f.Add(hx(extReqMagic, "0028", "0007", cookie, zero, "000000000000000d", one, "00000001", "00"))
	f.Add(hx(extReqMagic, "0008", "0007", cookie, zero, "0000000000001000"))
	f.Add(hx(extReqMagic, "0000", "0004", cookie, one, "ffffffffffffffff", extReqMagic, "0020", "0004", cookie, one, "ffffffffffffffff"))
	f.Add(hx(extReqMagic, "0004", "0000", cookie, zero, "0000000000200000", extReqMagic, "ffff", "0002", cookie, zero, zero))
	f.Fuzz(func(t *testing.T, input []byte) { feed(t, intoTransmission, input) })
}

// FuzzReply has a device answer requests as the input says, and the client, which
// refuses what the protocol forbids, must understand every reply as it was
// meant. Six bytes make a request: kind, two of length, and three that say what
// the answer is made of. There are no more than memory in flight allows.
func FuzzReply(f *testing.F) {
	f.Add(uint8(0), []byte{0, 16, 0, 1, 2, 3})
	f.Add(uint8(1), []byte{0, 16, 0, 1, 2, 3, 0, 255, 255, 9, 40, 0, 1, 16, 0, 1, 2, 3})
	f.Add(uint8(2), []byte{0, 0, 9, 0, 1, 0, 1, 64, 0, 0, 200, 7, 2, 16, 0, 9, 9, 9, 3, 1, 0, 5, 0, 0})
	f.Add(uint8(2), []byte{4, 255, 255, 0, 255, 255, 5, 255, 255, 0, 0, 255, 6, 1, 1, 255, 0, 0})
	f.Fuzz(checkReplies)
}

// checkReplies is FuzzReply for one input.
func checkReplies(t *testing.T, which uint8, script []byte) {
	const size = 1 << 20
	m := nbdtest.NewManual(size)
	s := newServer(t, m, nbd.Limits{})
	defer s.close()
	d := dialects()[int(which)%len(dialects())]
	c := s.speak("unix", d)
	var want []nbdtest.Reply
	var asked []*nbd.Request
	for n := uint64(0); len(script) >= 6 && n < 16; n++ {
		length := uint32(script[1])<<8 | uint32(script[2]) + 1
		cmd := nbdtest.Command{Type: nbdtest.CmdRead, Cookie: n, Offset: n << 10, Length: length}
		if script[0]%4 == 1 && d.name != "simple" {
			cmd.Type = nbdtest.CmdBlockStatus
		}
		if err := c.Send(cmd); err != nil {
			t.Fatal(err)
		}
		r := <-m.Requests
		asked = append(asked, r)
		want = append(want, script2reply(c, r, cmd, [6]byte(script)))
		script = script[6:]
	}
	// Answered together, so that replies share system calls.
	for i, r := range asked {
		conn, errno := r.Conn(), want[i].Errno
		flush := false
		if at := want[i].ErrorOffset; at >= 0 {
			flush = r.Fail(errno, uint64(at))
		} else {
			flush = r.Complete(errno)
		}
		if flush {
			defer conn.Flush()
		}
		if d.name == "simple" {
			want[i].ErrorOffset = -1
		}
	}
	if len(asked) > 0 {
		asked[0].Conn().Flush()
	}
	for _, w := range want {
		got, err := c.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Data, w.Data) {
			t.Fatalf("%s: reply %d has other data than was meant", d.name, w.Cookie)
		}
		got.Message, got.Chunks, got.Data, w.Data = "", 0, nil, nil // cmp is slow with bytes
		if diff := cmp.Diff(w, got); diff != "" {
			t.Fatalf("%s (-want +got):\n%s", d.name, diff)
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

// script2reply has r answered as b says, but for completing it, and returns what
// the client should make of it.
func script2reply(c *nbdtest.Client, r *nbd.Request, cmd nbdtest.Command, b [6]byte) nbdtest.Reply {
	want := nbdtest.Reply{Cookie: cmd.Cookie, ErrorOffset: -1}
	skip, run, what := int(b[3]), int(b[4])+1, b[5]
	switch {
	case b[0]%4 == 2:
		want.Errno = nbd.EIO
		want.ErrorOffset = int64(cmd.Offset) + int64(skip)%int64(cmd.Length)
	case b[0]%4 == 3:
		want.Errno = nbd.Errno(what) + 1
	case cmd.Type == nbdtest.CmdBlockStatus:
		var list []nbdtest.Extent
		state := nbd.ExtentState(what % 4)
		for sum, more := 0, true; more; state = (state + 1) % 4 {
			n := min(run, int(cmd.Length)-sum)
			more = r.AddExtent(uint64(run), state)
			if room := len(r.Data) / extentSize(c); len(list) < room {
				list = append(list, nbdtest.Extent{Length: uint64(n), State: state})
			}
			sum += n
		}
		want.Extents = map[uint32][]nbdtest.Extent{c.Contexts["base:allocation"]: list}
	default:
		want.Data = pattern(int(cmd.Length), what)
		copy(r.Data, want.Data)
		for at := skip; at < len(r.Data); at += run + skip + 1 {
			n := min(run, len(r.Data)-at)
			if !r.AddHole(at, n) {
				break
			}
			clear(want.Data[at : at+n])
			want.Holes = append(want.Holes, nbdtest.Range{Offset: cmd.Offset + uint64(at), Length: uint64(n)})
		}
	}
	return want
}

// extentSize is the size of an extent on the wire, which the width of contexts'
// chunks follows from.
func extentSize(c *nbdtest.Client) int {
	if c.Extended() {
		return 16
	}
	return 8
}
