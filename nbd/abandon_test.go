package nbd_test

import (
	"bytes"
	"io"
	"testing"

	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// TestAbandon: an abandoned request is answered with its error and its slot is used
// again, but nobody gets its memory before the loan is returned, not even when the
// connection has ended.
func TestAbandon(t *testing.T) {
	const length = 3 << 10 // so that write and read share blocks with what comes after
	for _, dia := range dialects() {
		t.Run(dia.name, func(t *testing.T) {
			d := nbdtest.NewManual(4 << 20)
			s := newServer(t, d, nbd.Limits{MaxRequests: 2})
			c := s.speak("unix", dia)
			payload := pattern(length, 5)
			if err := c.Send(
				nbdtest.Command{Type: nbdtest.CmdWrite, Cookie: 1, Length: length, Payload: payload},
				nbdtest.Command{Type: nbdtest.CmdRead, Cookie: 2, Offset: length, Length: length},
			); err != nil {
				t.Fatal(err)
			}
			write, read := <-d.Requests, <-d.Requests
			if write.Op != nbd.OpWrite {
				write, read = read, write
			}
			out, in := write.Data, read.Data
			copy(in, pattern(length, 6))
			kept := bytes.Clone(in)
			var loans []nbd.Loan
			for _, r := range []*nbd.Request{write, read} {
				conn := r.Conn()
				loan, flush := r.Abandon(nbd.ESHUTDOWN)
				loans = append(loans, loan)
				if flush {
					conn.Flush()
				}
			}
			for range loans {
				if r, err := c.Receive(); err != nil || r.Errno != nbd.ESHUTDOWN || len(r.Data) != 0 {
					t.Fatalf("abandoned: %+v, %v, want ESHUTDOWN", r, err)
				}
			}
			// Both slots are free, and whatever comes uses other memory.
			other := pattern(length, 7)
			for i := range uint64(100) {
				if err := c.Send(
					nbdtest.Command{Type: nbdtest.CmdWrite, Cookie: 10 + 2*i, Length: length, Payload: other},
					nbdtest.Command{Type: nbdtest.CmdRead, Cookie: 11 + 2*i, Length: length},
				); err != nil {
					t.Fatal(err)
				}
				for range 2 {
					r := <-d.Requests
					if r.Op == nbd.OpRead {
						copy(r.Data, other)
					}
					nbdtest.Complete(r, nbd.OK)
				}
				for range 2 {
					if r, err := c.Receive(); err != nil || r.Errno != nbd.OK {
						t.Fatalf("request behind: %+v, %v", r, err)
					}
				}
			}
			if held := s.Snapshot().Connections[0].HeldBytes; held < 2*length {
				t.Errorf("the connection counts %d bytes, want those lent, too", held)
			}
			_ = c.Conn.Close()
			<-d.Closed
			s.waitStats("end of the connection", func(st nbd.Stats) bool { return len(st.Connections) == 0 })
			if !bytes.Equal(out, payload) || !bytes.Equal(in, kept) {
				t.Error("memory that was lent has been used for something else")
			}
			for _, l := range loans {
				if used := s.Arena.Stats().InUseBytes; used == 0 {
					t.Error("memory that was lent has gone back to the arena")
				}
				l.Return()
			}
			if used := s.Arena.Stats().InUseBytes; used != 0 {
				t.Errorf("%d bytes are in use after all loans have been returned", used)
			}
			nbd.Loan{}.Return() // of nothing
		})
	}
}

// TestAbandon_Drain: what a client sends to a connection that has answered everything
// and waits for it to close does not go into memory that is lent.
func TestAbandon_Drain(t *testing.T) {
	d := nbdtest.NewManual(4 << 20)
	s := newServer(t, d, nbd.Limits{})
	c := s.client("tcp")
	payload := pattern(4<<10, 5)
	if err := c.Send(nbdtest.Command{Type: nbdtest.CmdWrite, Cookie: 1, Length: 4 << 10, Payload: payload}); err != nil {
		t.Fatal(err)
	}
	write := <-d.Requests
	data, conn := write.Data, write.Conn()
	loan, flush := write.Abandon(nbd.ESHUTDOWN)
	if flush {
		conn.Flush()
	}
	if r, err := c.Receive(); err != nil || r.Errno != nbd.ESHUTDOWN {
		t.Fatalf("abandoned: %+v, %v", r, err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Shutdown(t.Context()) }()
	if _, err := io.ReadAll(c.Conn); err != nil {
		t.Fatal(err)
	}
	_, _ = c.Conn.Write(bytes.Repeat([]byte{0xee}, 8<<10)) // the server may have closed
	_ = c.Conn.Close()
	<-d.Closed
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(data, payload) {
		t.Error("memory that was lent has been read into")
	}
	loan.Return()
}
