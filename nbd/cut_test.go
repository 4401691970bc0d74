package nbd_test

import (
	"io"
	"testing"

	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

const cutReadBytes = 4096

// A cutCase is a request whose reply breaks off, and how the device answers it.
type cutCase struct {
	name   string
	cmd    nbdtest.Command
	answer func(*nbd.Request) nbd.Errno
	// half is how much of it HalfReply leaves with simple, structured and extended
	// replies; zero where there is none such.
	half [3]int
}

func cutCases() []cutCase {
	fill := func(r *nbd.Request) nbd.Errno {
		copy(r.Data, pattern(len(r.Data), 7))
		return nbd.OK
	}
	return []cutCase{
		{"read", nbdtest.Command{Type: nbdtest.CmdRead, Length: cutReadBytes}, fill, [3]int{16 + 2048, 20 + (8+4096)/2, 32 + (8+4096)/2}},
		{"long read", nbdtest.Command{Type: nbdtest.CmdRead, Length: payloadBytes}, fill, [3]int{16 + 1<<19, 20 + 4 + 1<<19, 32 + 4 + 1<<19}},
		{"read with a hole", nbdtest.Command{Type: nbdtest.CmdRead, Length: cutReadBytes}, func(r *nbd.Request) nbd.Errno {
			clear(r.Data)
			copy(r.Data, pattern(1024, 7))
			if r.Sparse {
				r.AddHole(1024, 2048)
			}
			return nbd.OK
		}, [3]int{16 + 2048, 20 + (8+1024+20+12+20+8+1024)/2, 32 + (8+1024+32+12+32+8+1024)/2}},
		{"flush", nbdtest.Command{Type: nbdtest.CmdFlush}, func(*nbd.Request) nbd.Errno { return nbd.OK }, [3]int{8, 8, 16}},
		{"error", nbdtest.Command{Type: nbdtest.CmdRead, Length: 512}, func(*nbd.Request) nbd.Errno { return nbd.EIO }, [3]int{
			8, 20 + (6+len("the device failed"))/2, 32 + (6+len("the device failed"))/2,
		}},
		{"status", nbdtest.Command{Type: nbdtest.CmdBlockStatus, Length: 8192}, func(r *nbd.Request) nbd.Errno {
			r.AddExtent(4096, 0)
			r.AddExtent(4096, nbd.StateHole)
			return nbd.OK
		}, [3]int{0, 20 + (4+2*8)/2, 32 + (8+2*16)/2}},
	}
}

// before is the request whose reply goes ahead of the one that breaks off.
var before = nbdtest.Command{Type: nbdtest.CmdRead, Cookie: 1, Offset: 512, Length: 512}

// wireOf is what the server sends for before and then cc, whole.
func (cc *cutCase) wireOf(t *testing.T, s *testServer, d *nbdtest.Manual, network string, dia dialect) (first, second []byte) {
	t.Helper()
	var got [2][]byte
	for i, commands := range [][]nbdtest.Command{{before}, {before, cc.cmd}} {
		c := s.speak(network, dia)
		if err := c.Send(commands...); err != nil {
			t.Fatal(err)
		}
		for j := range commands {
			r := <-d.Requests
			if j == 0 {
				copy(r.Data, pattern(512, 3))
				nbdtest.Complete(r, nbd.OK)
			} else {
				nbdtest.Complete(r, cc.answer(r))
			}
		}
		// A server that sends need not take anything meanwhile, and a pipe keeps nothing.
		sent := make(chan error, 1)
		go func() { sent <- c.Send(nbdtest.Command{Type: nbdtest.CmdDisc}) }()
		var err error
		if got[i], err = io.ReadAll(c.Conn); err != nil {
			t.Fatal(err)
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
		_ = c.Conn.Close() // else the server waits for it
		<-d.Closed
	}
	return got[0], got[1][len(got[0]):]
}

// TestCutReply: what goes before the reply arrives whole, of the reply what was
// asked for, and nothing after it. Other connections go on.
func TestCutReply(t *testing.T) {
	authority := nbdtest.NewAuthority(t)
	for _, network := range []string{"unix", "tcp", "pipe"} {
		for _, secure := range []bool{false, true} {
			for i, dia := range dialects() {
				for _, cc := range cutCases() {
					if cc.half[i] == 0 {
						continue
					}
					name := network + "/" + dia.name
					if secure {
						name += "+tls"
					}
					t.Run(name+"/"+cc.name, func(t *testing.T) {
						d := nbdtest.NewManual(4 << 20)
						s := newServer(t, d, nbd.Limits{})
						dia := dia
						if secure {
							dia = s.secure(dia, authority)
						}
						cc.cmd.Cookie = 2
						first, second := cc.wireOf(t, s, d, network, dia)
						other := s.speak(network, dia)
						cuts := []uint32{0, 1, 15, uint32(len(second)) - 1, uint32(len(second)), uint32(len(second)) + 1, nbd.HalfReply}
						for k, at := range cuts {
							want := len(second)
							if at == nbd.HalfReply {
								want = cc.half[i]
							}
							want = min(want, int(at))
							got := cc.cut(t, s, d, network, dia, at)
							if n := len(got) - len(first); n != want || string(got) != string(first)+string(second[:n]) {
								t.Errorf("cut after %d: %d bytes, want the %d before it and %d of %d", at, len(got), len(first), want, len(second))
							}
							flushes(t, other, d)
							s.waitStats("close", func(st nbd.Stats) bool { return st.Closes[nbd.CloseInjected] == uint64(k+1) })
						}
						op := nbd.OpRead
						switch cc.cmd.Type {
						case nbdtest.CmdFlush:
							op = nbd.OpFlush
						case nbdtest.CmdBlockStatus:
							op = nbd.OpBlockStatus
						}
						if n := s.Snapshot().Exports[0].Ops[op].Injected; n != uint64(len(cuts)) {
							t.Errorf("%d requests count as injected, want %d", n, len(cuts))
						}
					})
				}
			}
		}
	}
}

// flushes checks that a connection works.
func flushes(t *testing.T, c *nbdtest.Client, d *nbdtest.Manual) {
	t.Helper()
	if err := c.Send(nbdtest.Command{Type: nbdtest.CmdFlush, Cookie: 9}); err != nil {
		t.Fatal(err)
	}
	nbdtest.Complete(<-d.Requests, nbd.OK)
	if r, err := c.Receive(); err != nil || r.Cookie != 9 || r.Errno != nbd.OK {
		t.Fatalf("another connection got %+v, %v", r, err)
	}
}

// cut has the reply to cc break off, with a reply before it, one behind it and a
// write in flight, and returns all that the client got.
func (cc *cutCase) cut(t *testing.T, s *testServer, d *nbdtest.Manual, network string, dia dialect, at uint32) []byte {
	t.Helper()
	c := s.speak(network, dia)
	payload := pattern(cutReadBytes, 5)
	if err := c.Send(before, cc.cmd, nbdtest.Command{Type: nbdtest.CmdFlush, Cookie: 3},
		nbdtest.Command{Type: nbdtest.CmdWrite, Cookie: 4, Length: cutReadBytes, Payload: payload}); err != nil {
		t.Fatal(err)
	}
	ahead, victim, behind, write := <-d.Requests, <-d.Requests, <-d.Requests, <-d.Requests
	copy(ahead.Data, pattern(512, 3))
	conn := ahead.Conn()
	flush := ahead.Complete(nbd.OK)
	errno := cc.answer(victim)
	victim.CutReply(at)
	flush = victim.Complete(errno) || flush
	flush = behind.Complete(nbd.OK) || flush
	if flush {
		conn.Flush()
	}
	got, err := io.ReadAll(c.Conn)
	if err != nil {
		t.Errorf("cut after %d: the stream ended with %v, want a plain end", at, err)
	}
	// What a client says into the void must not get into what is in flight.
	if network != "pipe" {
		_, _ = c.Conn.Write(make([]byte, 64<<10))
	}
	_ = c.Conn.Close()
	select {
	case <-d.Closed:
		t.Fatal("the session was closed with a write in flight")
	default:
	}
	if string(write.Data) != string(payload) {
		t.Error("the write in flight has other data now")
	}
	nbdtest.Complete(write, nbd.OK)
	<-d.Closed
	return got
}

// TestCutReply_NotFollowed: a reply that breaks off was not sent, however much of it was, and
// whatever its slot was used for before.
func TestCutReply_NotFollowed(t *testing.T) {
	d := nbdtest.NewManual(1 << 20)
	s := newServer(t, d, nbd.Limits{MaxRequests: 1})
	c := s.client("unix")
	for cookie, length := range []uint32{512, 1024} {
		if err := c.Send(nbdtest.Command{Type: nbdtest.CmdRead, Cookie: uint64(cookie), Length: length}); err != nil {
			t.Fatal(err)
		}
		r := <-d.Requests
		r.FollowReply()
		if length == 1024 {
			r.CutReply(1000)
			nbdtest.Complete(r, nbd.OK)
			break
		}
		nbdtest.Complete(r, nbd.OK)
		get(t, c)
	}
	if b, err := io.ReadAll(c.Conn); err != nil || len(b) != 1000 {
		t.Errorf("%d bytes of the reply, %v", len(b), err)
	}
	<-d.Closed
	st := s.waitStats("end", func(st nbd.Stats) bool { return st.ConnectionsOpen == 0 })
	if n := st.ReplyTimes[nbd.OpRead].Count(); n != 1 {
		t.Errorf("%d replies were followed to the client, want 1", n)
	}
}
