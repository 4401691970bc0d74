package nbd_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// feed has send write what a fuzzer made up to nc, and judge read what comes back.
// The server must end the connection once the input has ended, say nothing that
// judge finds wrong, return all memory and not panic.
func feed(t *testing.T, s *testServer, nc net.Conn, send func(), judge func(r io.Reader) error) {
	t.Helper()
	defer s.close()
	done := make(chan error, 1)
	go func() {
		err := judge(nc)
		// Whatever it thinks of it, the server must get rid of it.
		_, rest := io.Copy(io.Discard, nc)
		if errors.Is(rest, os.ErrDeadlineExceeded) {
			err = errors.Join(err, errors.New("the server hangs"))
		}
		done <- err
	}()
	send()
	_ = nc.(*net.UnixConn).CloseWrite() // the server may have hung up, as it should
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	s.waitStats("end", func(st nbd.Stats) bool { return st.ConnectionsOpen == 0 })
	if n := s.Arena.Stats().PeakBytes; n > 8<<20 {
		t.Fatalf("%d bytes at the peak", n)
	}
}

// fuzzServer is a server for one input.
func fuzzServer(t *testing.T) *testServer {
	d := nbdtest.NewMemory(1 << 20)
	d.Sparse = true
	return newServerOf(t, nbd.Limits{MaxPayloadBytes: 1 << 20, MaxRequests: 16}, 8<<20, nbd.Export{Name: "disk0", Device: d})
}

// raw sends input as it is.
func raw(nc net.Conn, input []byte) func() {
	return func() { _, _ = nc.Write(input) } // the server may have hung up
}

// anything is a judge that finds nothing wrong.
func anything(io.Reader) error { return nil }

// ended says whether err is how a stream ends: a server that hangs up with input
// unread resets the connection.
func ended(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) }

// answersTo returns a judge of the replies to the options in input: they must come
// in order, be of a type that suits the option, and be whole. What comes after
// the options is not looked at.
func answersTo(input []byte) func(r io.Reader) error {
	var asked []uint32
	for b := input[min(4, len(input)):]; len(b) >= 16; {
		asked = append(asked, binary.BigEndian.Uint32(b[8:]))
		length := uint64(binary.BigEndian.Uint32(b[12:]))
		b = b[min(16+length, uint64(len(b))):]
	}
	return func(r io.Reader) error {
		var b [20]byte
		if _, err := io.ReadFull(r, b[:len(hello)]); err != nil || !bytes.Equal(b[:len(hello)], hello) {
			return fmt.Errorf("greeting % x: %w", b[:len(hello)], err)
		}
		for {
			if len(asked) > 0 && asked[0] == exportName {
				return nil // its answer has no header, and is the last
			}
			if _, err := io.ReadFull(r, b[:]); ended(err) {
				return nil
			} else if err != nil {
				return fmt.Errorf("header of a reply: %w", err)
			}
			id, typ, length := binary.BigEndian.Uint32(b[8:]), binary.BigEndian.Uint32(b[12:]), binary.BigEndian.Uint32(b[16:])
			suits := typ == 1 || typ>>31 == 1 ||
				typ == 2 && id == list ||
				typ == 3 && (id == info || id == goTo) ||
				typ == 4 && (id == listContexts || id == setContexts)
			if !bytes.Equal(b[:8], hx(rep)) || len(asked) == 0 || id != asked[0] || !suits || length > 64<<10 {
				return fmt.Errorf("reply % x, options %v are still to be answered", b, asked)
			}
			if _, err := io.CopyN(io.Discard, r, int64(length)); err != nil {
				return fmt.Errorf("data of reply % x: %w", b, err)
			}
			if typ == 1 && (id == goTo || id == startTLS || id == abort) {
				return nil
			}
			if typ == 1 || typ>>31 == 1 {
				asked = asked[1:]
			}
		}
	}
}

// FuzzHandshake is a connection from its first byte.
func FuzzHandshake(f *testing.F) {
	f.Add(hx(fixedNoZer, opt, "00000007", "00000006", "00000000", "0000"))
	f.Add(hx(fixedOnly, opt, "00000001", "00000005", hxs("disk0")))
	f.Add(hx(fixedOnly, opt, "00000003", "00000000", opt, "00000002", "00000000"))
	f.Add(hx(fixedNoZer, opt, "00000006", "00000012", "00000000", "0006", "0000", "0001", "0002", "0003", "0003", "7777"))
	f.Add(hx(fixedNoZer, opt, "00000007", "00000006", "ffffffff", "0000"))
	f.Add(hx("ffffffff"))
	meta := contextData("disk0", "base:allocation")
	f.Add(bytes.Join([][]byte{
		hx(fixedNoZer), option(structured, nil), option(listContexts, contextData("disk0", "base:")), option(setContexts, meta),
		option(goTo, infoData("disk0")), hx(reqMagic, "0000", "0007", cookie, "0000000000000000", "00001000"),
	}, nil))
	f.Add(bytes.Join([][]byte{
		hx(fixedNoZer), option(extended, nil), option(structured, nil), option(info, infoData("secret")), option(unknownOption, meta),
		option(goTo, infoData("hidden")), hx(extReqMagic, "0000", "0000", cookie, "0000000000000000", "0000000000001000"),
	}, nil))
	f.Add(bytes.Join([][]byte{hx(fixedNoZer), option(list, meta), option(startTLS, nil), option(list, nil)}, nil))
	f.Add(bytes.Join([][]byte{hx(fixedNoZer), option(info, make([]byte, 40_000)), option(unknownOption, nil)}, nil))
	a := nbdtest.NewAuthority(f)
	f.Fuzz(func(t *testing.T, input []byte) {
		d := nbdtest.NewMemory(1 << 20)
		s := newServerOf(t, nbd.Limits{MaxPayloadBytes: 1 << 20, MaxRequests: 16, MaxOptionBytes: 10_000}, 8<<20,
			nbd.Export{Name: "disk0", Device: d}, nbd.Export{Name: "secret", Device: d, TLSOnly: true}, nbd.Export{Name: "hidden", Device: d, Hidden: true})
		s.TLSMode, s.TLSConfig = nbd.TLSOptional, serveTLS(a.ServerConfig(false))
		nc := s.dial("unix")
		feed(t, s, nc, raw(nc, input), answersTo(input))
	})
}

func FuzzRequest(f *testing.F) {
	intoTransmission := hx(fixedNoZer, opt, "00000007", "00000006", "00000000", "0000")
	f.Add(hx(reqMagic, "0000", "0000", cookie, "0000000000000000", "00001000"))
	f.Add(hx(reqMagic, "0001", "0001", cookie, "0000000000000000", "00000004", "01020304", reqMagic, "0000", "0003", cookie, "0000000000000000", "00000000"))
	f.Add(hx(reqMagic, "0000", "0001", cookie, "0000000000000000", "00100000", "01020304"))
	f.Add(hx(reqMagic, "8000", "0001", cookie, "0000000000000000", "00200000", "01020304"))
	f.Add(hx(reqMagic, "0002", "0006", cookie, "0000000000000000", "00100000", reqMagic, "0000", "0004", cookie, "00000000000fffff", "00000001"))
	f.Add(hx(reqMagic, "0000", "0005", cookie, "ffffffffffffffff", "ffffffff", reqMagic, "0000", "0002", cookie, "ffffffffffffffff", "ffffffff"))
	f.Fuzz(func(t *testing.T, input []byte) {
		s := fuzzServer(t)
		nc := s.dial("unix")
		feed(t, s, nc, raw(nc, slices.Concat(intoTransmission, input)), anything)
	})
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
	f.Fuzz(func(t *testing.T, input []byte) {
		s := fuzzServer(t)
		nc := s.dial("unix")
		feed(t, s, nc, raw(nc, slices.Concat(intoTransmission, input)), anything)
	})
}

// FuzzTransmission is a connection in each of the formats. Its client knows what
// it has asked for and refuses what the protocol forbids. Each request that came
// whole must be answered once, in the format agreed on; but if the stream then
// ends in nonsense or without DISC, what has not left may be dropped.
func FuzzTransmission(f *testing.F) {
	const zero, far = "0000000000000000", "00000000000fffff"
	simple := hx(reqMagic, "0000", "0001", cookie, zero, "00000004", "01020304", reqMagic, "0000", "0000", cookie, zero, "00001000",
		reqMagic, "0000", "0007", cookie, zero, "00010000", reqMagic, "0004", "0000", cookie, far, "00000001",
		reqMagic, "0000", "0004", cookie, far, "ffffffff", reqMagic, "0010", "0006", cookie, zero, "00100000", reqMagic, "0001", "0003", cookie, zero, "00000000")
	long := hx(extReqMagic, "0020", "0001", cookie, zero, "0000000000000004", "01020304", extReqMagic, "0000", "0000", cookie, zero, "0000000000001000",
		extReqMagic, "0008", "0007", cookie, zero, "0000000000010000", extReqMagic, "0020", "0007", cookie, zero, "000000000000000c", "0000000000001000", "00000001",
		extReqMagic, "0000", "0004", cookie, far, "ffffffffffffffff", extReqMagic, "0020", "0003", cookie, zero, "0000000000000002", "0102")
	disc := hx(reqMagic, "0000", "0002", cookie, zero, "00000000")
	f.Add(uint8(0), simple)
	f.Add(uint8(1), slices.Concat(simple, disc))
	f.Add(uint8(2), long)
	f.Add(uint8(2), slices.Concat(long, hx(extReqMagic, "0000", "0002", cookie, zero, zero)))
	f.Add(uint8(0), slices.Concat(simple, simple[:13]))
	f.Add(uint8(0), hx(reqMagic, "0000", "0000", cookie, zero, "00043131")) // longer than a socket's buffer
	f.Add(uint8(1), slices.Concat(simple, hx("25609514")))
	f.Add(uint8(1), hx(reqMagic, "0000", "0001", cookie, zero, "00100001", "01020304"))
	f.Add(uint8(2), hx(extReqMagic, "0020", "0001", cookie, zero, "ffffffffffffffff", "01020304"))
	f.Fuzz(func(t *testing.T, which uint8, input []byte) {
		s := fuzzServer(t)
		d := dialects()[int(which)%len(dialects())]
		c := s.speak("unix", d)
		commands, rest := commandsIn(input, c.Extended())
		if n := len(commands); len(rest) == 0 && (n == 0 || commands[n-1].Type != nbdtest.CmdDisc) {
			commands = append(commands, nbdtest.Command{Type: nbdtest.CmdDisc})
		}
		feed(t, s, c.Conn, func() {
			for _, cmd := range commands {
				if c.Send(cmd) != nil {
					return // it has hung up; whether it may, answered sees
				}
			}
			raw(c.Conn, rest)()
		}, func(io.Reader) error { return answered(c, commands) })
	})
}

// answered takes a reply to each of commands, and then the end of the stream.
func answered(c *nbdtest.Client, commands []nbdtest.Command) error {
	open := make(map[uint64]nbdtest.Command)
	polite := false
	for _, cmd := range commands {
		if polite = cmd.Type == nbdtest.CmdDisc; !polite {
			open[cmd.Cookie] = cmd
		}
	}
	for {
		r, err := c.Receive()
		if ended(err) && len(open) == 0 || !polite && (ended(err) || errors.Is(err, io.ErrUnexpectedEOF)) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%d of %d requests have no reply: %w", len(open), len(commands), err)
		}
		cmd, ok := open[r.Cookie]
		if !ok {
			return fmt.Errorf("reply to %#x, which is not in flight", r.Cookie)
		}
		delete(open, r.Cookie)
		length := max(cmd.Length64, uint64(cmd.Length))
		ranged := cmd.Type != nbdtest.CmdFlush && cmd.Payload == nil
		if r.Errno == nbd.OK && (cmd.Type > nbdtest.CmdBlockStatus || ranged && (cmd.Offset > c.SizeBytes || length > c.SizeBytes-cmd.Offset)) {
			return fmt.Errorf("%s has no error", cmd)
		}
	}
}

// commandsIn returns the commands that input has whole, numbered by their cookies,
// and what follows them. DISC is the last.
func commandsIn(input []byte, extended bool) (commands []nbdtest.Command, rest []byte) {
	be := binary.BigEndian
	header, magic := 28, hx(reqMagic)
	if extended {
		header, magic = 32, hx(extReqMagic)
	}
	for n := uint64(0); len(input) >= header && bytes.HasPrefix(input, magic); n++ {
		if n == 1000 {
			return commands, nil // that will do
		}
		cmd := nbdtest.Command{Flags: be.Uint16(input[4:]), Type: be.Uint16(input[6:]), Cookie: n, Offset: be.Uint64(input[16:])}
		length := uint64(0)
		if extended {
			length = be.Uint64(input[24:])
			cmd.Length64 = length
		} else {
			cmd.Length = be.Uint32(input[24:])
			length = uint64(cmd.Length)
		}
		payload := uint64(0)
		if cmd.Type == nbdtest.CmdWrite || extended && cmd.Flags&nbdtest.FlagPayloadLen != 0 && cmd.Type != nbdtest.CmdDisc {
			payload = length
		}
		if payload > uint64(len(input)-header) {
			break
		}
		if payload > 0 {
			cmd.Payload = input[header : header+int(payload)]
		}
		commands = append(commands, cmd)
		input = input[header+int(payload):]
		if cmd.Type == nbdtest.CmdDisc {
			break
		}
	}
	return commands, input
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
