package nbd_test

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// get fetches the next reply.
func get(t *testing.T, c *nbdtest.Client) nbdtest.Reply {
	t.Helper()
	r, err := c.Receive()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestFail: a client with chunks is told where and, in words, how a command
// failed; any other gets the error alone.
func TestFail(t *testing.T) {
	tests := []struct {
		errno   nbd.Errno
		at      uint64
		offset  int64
		message string
	}{
		{nbd.EIO, 4096, 4096, "medium error"},
		{nbd.EIO, 8191, 8191, "medium error"},
		{nbd.EIO, 8192, -1, "the device failed"}, // beyond the request
		{nbd.EIO, 4095, -1, "the device failed"},
		{nbd.EIO, 1<<64 - 1, -1, "the device failed"},
		{nbd.ENOSPC, 5000, 5000, "the device is out of space"},
		{nbd.ENOSPC, 0, -1, "the device is out of space"},
		{nbd.ENOTSUP, 0, -1, "writing zeroes would not be fast"},
		{nbd.EPERM, 0, -1, "the device is write-protected"},
		{nbd.ENOMEM, 0, -1, "the device is out of memory"},
		{nbd.ESHUTDOWN, 0, -1, "the device is shutting down"},
		{nbd.EINVAL, 0, -1, "the device refuses the request"},
	}
	for _, d := range dialects() {
		m := nbdtest.NewManual(1 << 20)
		c := newServer(t, m, nbd.Limits{}).speak("unix", d)
		for i, tt := range tests {
			for _, typ := range []uint16{nbdtest.CmdRead, nbdtest.CmdTrim} {
				cookie := uint64(i)<<8 | uint64(typ)
				if err := c.Send(nbdtest.Command{Type: typ, Cookie: cookie, Offset: 4096, Length: 4096}); err != nil {
					t.Fatal(err)
				}
				r := <-m.Requests
				if conn := r.Conn(); r.Fail(tt.errno, tt.at) {
					conn.Flush()
				}
				want := nbdtest.Reply{Cookie: cookie, Errno: tt.errno, ErrorOffset: -1}
				if d.name != "simple" {
					want.Chunks, want.Message, want.ErrorOffset = 1, tt.message, tt.offset
				}
				if diff := cmp.Diff(want, get(t, c)); diff != "" {
					t.Errorf("%s, type %d, %v at %d (-want +got):\n%s", d.name, typ, tt.errno, tt.at, diff)
				}
			}
		}
		// The next one in the same slot has nothing left of it.
		if err := c.Send(nbdtest.Command{Type: nbdtest.CmdRead, Length: 1}); err != nil {
			t.Fatal(err)
		}
		nbdtest.Complete(<-m.Requests, nbd.EIO)
		if r := get(t, c); r.ErrorOffset != -1 {
			t.Errorf("%s: an old offset, %d", d.name, r.ErrorOffset)
		}
	}
}

// TestBlockStatus_Room: the room for extents grows while it is too little, up to
// the protocol's limit.
func TestBlockStatus_Room(t *testing.T) {
	const grain, limit = 512, 1 << 20
	for _, d := range dialects()[1:] {
		m := nbdtest.NewManual((limit + 1) * grain)
		c := newServer(t, m, nbd.Limits{MaxPayloadBytes: 16 << 20}).speak("unix", d)
		enough := 32 << 10
		if d.Extended {
			enough = limit
		}
		for want := 512; ; want = min(4*want, limit) {
			if err := c.Send(nbdtest.Command{Type: nbdtest.CmdBlockStatus, Length: (limit + 1) * grain}); err != nil {
				t.Fatal(err)
			}
			r := <-m.Requests
			state := nbd.StateHole
			for r.AddExtent(grain, state) {
				state ^= nbd.StateHole
			}
			nbdtest.Complete(r, nbd.OK)
			got := get(t, c).Extents[c.Contexts["base:allocation"]]
			if len(got) != want {
				t.Fatalf("%s: %d extents, want %d", d.name, len(got), want)
			}
			for i, e := range got {
				if e.Length != grain || e.State != nbd.ExtentState(1-i%2) {
					t.Fatalf("%s: extent %d of %d is %+v", d.name, i, len(got), e)
				}
			}
			if want == enough {
				break
			}
		}
	}
}

// askStatus asks for the status of a range, in which m finds so many extents of so many bytes. It
// returns for how many there was room.
func askStatus(t *testing.T, m *nbdtest.Manual, c *nbdtest.Client, lengthBytes uint32, extents int, extentBytes uint64) (room int) {
	t.Helper()
	if err := c.Send(nbdtest.Command{Type: nbdtest.CmdBlockStatus, Length: lengthBytes}); err != nil {
		t.Fatal(err)
	}
	r := <-m.Requests
	room = len(r.Data) / 8
	if c.Extended() {
		room = len(r.Data) / 16
	}
	state := nbd.StateHole
	for i := 0; i < extents && r.AddExtent(extentBytes, state); i++ {
		state ^= nbd.StateHole
	}
	nbdtest.Complete(r, nbd.OK)
	if n := len(get(t, c).Extents[c.Contexts["base:allocation"]]); n != min(extents, room) {
		t.Fatalf("%d extents, want %d", n, min(extents, room))
	}
	return room
}

// TestBlockStatus_RoomAgain: the room that one reply with many extents has made is given up when
// the next ones leave nearly all of it empty, and kept when they do not.
func TestBlockStatus_RoomAgain(t *testing.T) {
	const grain, most = 512, 32 << 10
	for _, d := range dialects()[1:] {
		m := nbdtest.NewManual(1 << 30)
		c := newServer(t, m, nbd.Limits{}).speak("unix", d)
		ask := func(extents int) (room int) {
			t.Helper()
			return askStatus(t, m, c, 1<<30, extents, grain)
		}
		for range 2 { // it grows again
			for range 4 {
				ask(most)
			}
			for range 4 {
				if room := ask(most / 8); room != most {
					t.Errorf("%s: room for %d extents while %d are needed, want %d", d.name, room, most/8, most)
				}
			}
			for range 4 {
				ask(1)
			}
			if room := ask(1); room != 512 {
				t.Errorf("%s: room for %d extents when one has sufficed for a while, want 512", d.name, room)
			}
		}
	}
}

// TestBlockStatus_RoomShort: a range too short for all the room there may be says nothing of what
// longer ones need, however many extents it has.
func TestBlockStatus_RoomShort(t *testing.T) {
	const grain, most = 512, 8 << 10
	for _, d := range dialects()[1:] {
		m := nbdtest.NewManual(1 << 30)
		c := newServer(t, m, nbd.Limits{}).speak("unix", d)
		ask := func(lengthBytes uint32, extents int, extentBytes uint64) (room int) {
			t.Helper()
			return askStatus(t, m, c, lengthBytes, extents, extentBytes)
		}
		for range 2 { // it grows to most
			ask(1<<30, most, grain)
		}
		for range 4 {
			if room, want := ask(1<<20, 1, grain), 1<<20/grain+1; room != want {
				t.Errorf("%s: room for %d extents of a short range, want %d", d.name, room, want)
			}
		}
		if room := ask(1<<30, most, grain); room != most {
			t.Errorf("%s: room for %d extents after one extent of short ranges, want %d", d.name, room, most)
		}
		for range 4 {
			ask(4096, 4096, 1) // more than there is room for
		}
		if room := ask(1<<30, most, grain); room != most {
			t.Errorf("%s: room for %d extents after many of short ranges, want %d", d.name, room, most)
		}
	}
}

// TestBlockStatus_LittleMemory: with no memory for many extents there are few.
func TestBlockStatus_LittleMemory(t *testing.T) {
	m := nbdtest.NewManual(1 << 30)
	c := newServer(t, m, nbd.Limits{MaxBytesInFlight: 1 << 20}).speak("unix", dialects()[1])
	for range 8 {
		// A read is in flight, so that the limit holds.
		if err := c.Send(
			nbdtest.Command{Type: nbdtest.CmdRead, Cookie: 1, Length: 512 << 10},
			nbdtest.Command{Type: nbdtest.CmdBlockStatus, Cookie: 2, Length: 1 << 30},
		); err != nil {
			t.Fatal(err)
		}
		read, status := <-m.Requests, <-m.Requests
		for state := nbd.StateHole; status.AddExtent(512, state); {
			state ^= nbd.StateHole
		}
		nbdtest.Complete(status, nbd.OK)
		nbdtest.Complete(read, nbd.OK)
		for range 2 {
			if r := get(t, c); r.Errno != nbd.OK {
				t.Fatalf("%+v", r)
			}
		}
	}
}

// TestBlockStatus_WithoutExtent: a device that has nothing to say is wrong.
func TestBlockStatus_WithoutExtent(t *testing.T) {
	m := nbdtest.NewManual(4096)
	c := newServer(t, m, nbd.Limits{}).speak("unix", dialects()[1])
	if err := c.Send(nbdtest.Command{Type: nbdtest.CmdBlockStatus, Length: 512}); err != nil {
		t.Fatal(err)
	}
	r := <-m.Requests
	func() {
		defer func() {
			if recover() == nil {
				t.Error("it did not panic")
			}
		}()
		r.Complete(nbd.OK)
	}()
	nbdtest.Complete(r, nbd.EIO)
	if r := get(t, c); r.Errno != nbd.EIO {
		t.Errorf("%+v", r)
	}
}

// TestAddHole_Wrong: holes that overlap, go backwards or leave the read are the
// device's mistake.
func TestAddHole_Wrong(t *testing.T) {
	m := nbdtest.NewManual(4096)
	c := newServer(t, m, nbd.Limits{}).speak("unix", dialects()[1])
	if err := c.Send(nbdtest.Command{Type: nbdtest.CmdRead, Offset: 9, Length: 100}); err != nil {
		t.Fatal(err)
	}
	r := <-m.Requests
	if !r.AddHole(10, 10) {
		t.Fatal("no room for a hole")
	}
	for _, h := range [][2]int{{19, 1}, {0, 5}, {20, 0}, {20, -1}, {20, 81}, {101, 1}, {1 << 62, 1 << 62}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("a hole of %d bytes at %d did not panic", h[1], h[0])
				}
			}()
			r.AddHole(h[0], h[1])
		}()
	}
	nbdtest.Complete(r, nbd.OK)
	if got := get(t, c); got.Chunks != 3 || len(got.Holes) != 1 || got.Holes[0] != (nbdtest.Range{Offset: 19, Length: 10}) {
		t.Errorf("%+v", got)
	}
}

// TestAddHole_Room: neighbours join, and when there is no room for another hole
// the device is told so.
func TestAddHole_Room(t *testing.T) {
	const size, step = 1 << 20, 1 << 10
	for _, d := range dialects() {
		m := nbdtest.NewManual(size)
		c := newServer(t, m, nbd.Limits{}).speak("unix", d)
		for _, length := range []uint32{60 << 10, size} { // with and without room before the data
			if err := c.Send(nbdtest.Command{Type: nbdtest.CmdRead, Length: length}); err != nil {
				t.Fatal(err)
			}
			r := <-m.Requests
			want := pattern(int(length), 7)
			copy(r.Data, want)
			var holes []nbdtest.Range
			for at := step; at < int(length); at += 2 * step {
				clear(want[at : at+step/2+1])
				if !r.AddHole(at, step/2) {
					clear(r.Data[at : at+step/2+1])
					continue
				}
				if !r.AddHole(at+step/2, 1) {
					t.Fatal("a hole did not grow")
				}
				holes = append(holes, nbdtest.Range{Offset: uint64(at), Length: step/2 + 1})
			}
			if n := len(holes); (n > 0) != (d.name != "simple") {
				t.Fatalf("%s: room for %d holes", d.name, n)
			}
			nbdtest.Complete(r, nbd.OK)
			got := get(t, c)
			if !bytes.Equal(got.Data, want) || !slices.Equal(got.Holes, holes) {
				t.Fatalf("%s, %d bytes: holes %v, want %v; data equal: %v", d.name, length, got.Holes, holes, bytes.Equal(got.Data, want))
			}
		}
	}
}

// TestLiveSize: a connection that was there before sees a device grow and shrink.
func TestLiveSize(t *testing.T) {
	for _, d := range dialects() {
		m := nbdtest.NewMemory(8192)
		m.Sparse = true
		c := newServer(t, m, nbd.Limits{}).speak("unix", d)
		end := func(typ uint16, want nbd.Errno) nbdtest.Reply {
			t.Helper()
			cmd := nbdtest.Command{Type: typ, Offset: 8000, Length: 1000}
			if typ == nbdtest.CmdWrite {
				cmd.Payload = pattern(1000, 3)
			}
			return must(t, c, cmd, want)
		}
		end(nbdtest.CmdRead, nbd.EINVAL)
		end(nbdtest.CmdWrite, nbd.ENOSPC)
		m.Resize(1 << 20)
		end(nbdtest.CmdWrite, nbd.OK)
		if r := end(nbdtest.CmdRead, nbd.OK); !bytes.Equal(r.Data, pattern(1000, 3)) {
			t.Errorf("%s: other data than was written", d.name)
		}
		if d.name != "simple" {
			r := must(t, c, nbdtest.Command{Type: nbdtest.CmdBlockStatus, Length: 1 << 20}, nbd.OK)
			sum := uint64(0)
			for _, e := range r.Extents[c.Contexts["base:allocation"]] {
				sum += e.Length
			}
			if sum != 1<<20 {
				t.Errorf("%s: extents of %d bytes, want all of the new size", d.name, sum)
			}
		}
		m.Resize(4096)
		end(nbdtest.CmdRead, nbd.EINVAL)
		end(nbdtest.CmdWrite, nbd.ENOSPC)
		end(nbdtest.CmdTrim, nbd.EINVAL)
		must(t, c, nbdtest.Command{Type: nbdtest.CmdRead, Length: 4096}, nbd.OK)
	}
}

// TestLength64: effects beyond 4 GiB reach the device whole.
func TestLength64(t *testing.T) {
	const size = 1 << 62
	m := nbdtest.NewManual(size)
	c := newServer(t, m, nbd.Limits{}).speak("unix", dialects()[2])
	for _, typ := range []uint16{nbdtest.CmdTrim, nbdtest.CmdWriteZeroes, nbdtest.CmdCache, nbdtest.CmdBlockStatus} {
		if err := c.Send(nbdtest.Command{Type: typ, Offset: 5, Length64: size - 5}); err != nil {
			t.Fatal(err)
		}
		r := <-m.Requests
		if r.OffsetBytes != 5 || r.LengthBytes != size-5 {
			t.Errorf("type %d arrived with %d bytes at %d", typ, r.LengthBytes, r.OffsetBytes)
		}
		if typ == nbdtest.CmdBlockStatus {
			r.AddExtent(1<<40, nbd.StateZero)
			r.AddExtent(size, 0)
		}
		nbdtest.Complete(r, nbd.OK)
		got := get(t, c)
		if typ == nbdtest.CmdBlockStatus {
			want := []nbdtest.Extent{{Length: 1 << 40, State: nbd.StateZero}, {Length: size - 5 - 1<<40}}
			if !slices.Equal(got.Extents[c.Contexts["base:allocation"]], want) {
				t.Errorf("%+v, want %+v", got.Extents, want)
			}
		}
	}
}

// TestVanish_Chunks: what a device says of a request whose client is gone goes
// nowhere, and nobody else notices.
func TestVanish_Chunks(t *testing.T) {
	for _, tls := range []bool{false, true} {
		for _, d := range dialects()[1:] {
			m := nbdtest.NewManual(1 << 20)
			s := newServer(t, m, nbd.Limits{})
			if tls {
				d = s.secure(d, nbdtest.NewAuthority(t))
			}
			other, c := s.speak("unix", d), s.speak("unix", d)
			if err := c.Send(
				nbdtest.Command{Type: nbdtest.CmdRead, Cookie: 1, Length: 4096},
				nbdtest.Command{Type: nbdtest.CmdBlockStatus, Cookie: 2, Length: 4096},
				nbdtest.Command{Type: nbdtest.CmdTrim, Cookie: 3, Length: 4096},
			); err != nil {
				t.Fatal(err)
			}
			late := []*nbd.Request{<-m.Requests, <-m.Requests, <-m.Requests}
			_ = c.Conn.Close() // what the server has not taken is lost, as it should
			s.waitStats("vanished client", func(st nbd.Stats) bool {
				return len(st.Connections) == 2 && st.Connections[1].Closing
			})
			late[0].AddHole(0, 512)
			nbdtest.Complete(late[0], nbd.OK)
			late[1].AddExtent(4096, 0)
			nbdtest.Complete(late[1], nbd.OK)
			if conn := late[2].Conn(); late[2].Fail(nbd.EIO, 5) {
				conn.Flush()
			}
			<-m.Closed
			if err := other.Send(nbdtest.Command{Type: nbdtest.CmdFlush, Cookie: 2}); err != nil {
				t.Fatal(err)
			}
			nbdtest.Complete(<-m.Requests, nbd.OK)
			if r := get(t, other); r.Cookie != 2 || r.Errno != nbd.OK {
				t.Fatalf("%s: %+v", d.name, r)
			}
		}
	}
}

// TestCookieReuse: a cookie is the client's own affair, even if two requests in
// flight have the same.
func TestCookieReuse(t *testing.T) {
	m := nbdtest.NewManual(1 << 20)
	c := newServer(t, m, nbd.Limits{}).speak("unix", dialects()[1])
	var b []byte
	for i := range 3 {
		b = nbdtest.Command{Type: nbdtest.CmdRead, Cookie: 7, Offset: uint64(i), Length: uint32(i + 1)}.Append(b)
	}
	b = nbdtest.Command{Type: nbdtest.CmdTrim, Cookie: 7, Length: 1}.Append(b)
	if _, err := c.Conn.Write(b); err != nil {
		t.Fatal(err)
	}
	var got []*nbd.Request
	for range 4 {
		got = append(got, <-m.Requests)
	}
	for i := 3; i >= 0; i-- {
		for j := range got[i].Data {
			got[i].Data[j] = byte(i)
		}
		nbdtest.Complete(got[i], nbd.OK)
	}
	const seven = "0000000000000007"
	want := repMagic + "00000000" + seven
	for i := 2; i >= 0; i-- {
		want += chunkMagic + "0001" + "0001" + seven + fmt.Sprintf("%08x%016x", 8+i+1, i)
		for range i + 1 {
			want += fmt.Sprintf("%02x", i)
		}
	}
	expect(t, c.Conn, hx(want))
}

// TestDisconnect_Chunks: DISC waits for what was sent before it, and TLS ends in
// good order.
func TestDisconnect_Chunks(t *testing.T) {
	for _, tls := range []bool{false, true} {
		for _, d := range dialects()[1:] {
			m := nbdtest.NewManual(1 << 20)
			s := newServer(t, m, nbd.Limits{})
			if tls {
				d = s.secure(d, nbdtest.NewAuthority(t))
			}
			c := s.speak("unix", d)
			if err := c.Send(
				nbdtest.Command{Type: nbdtest.CmdRead, Cookie: 1, Length: 512},
				nbdtest.Command{Type: nbdtest.CmdBlockStatus, Cookie: 2, Length: 512},
				nbdtest.Command{Type: nbdtest.CmdDisc},
			); err != nil {
				t.Fatal(err)
			}
			nbdtest.Complete(<-m.Requests, nbd.OK)
			if r := get(t, c); r.Cookie != 1 || len(r.Data) != 512 {
				t.Fatalf("%s: %+v", d.name, r)
			}
			r := <-m.Requests
			r.AddExtent(512, nbd.StateZero)
			nbdtest.Complete(r, nbd.OK)
			if r := get(t, c); r.Cookie != 2 || len(r.Extents) != 1 {
				t.Fatalf("%s: %+v", d.name, r)
			}
			expectEnd(t, c.Conn)
			<-m.Closed
		}
	}
}

// TestTLS_SlowReader: a client that takes no replies for a while gets all of them
// in the end, and has held no more than its share meanwhile.
func TestTLS_SlowReader(t *testing.T) {
	const n, size = 64, 256 << 10
	m := nbdtest.NewMemory(size)
	data := pattern(size, 9)
	m.Fill(data)
	s := newServer(t, m, nbd.Limits{MaxBytesInFlight: 2 << 20})
	c := s.speak("unix", s.secure(dialects()[2], nbdtest.NewAuthority(t)))
	var cmds []nbdtest.Command
	for i := range n {
		cmds = append(cmds, nbdtest.Command{Type: nbdtest.CmdRead, Cookie: uint64(i), Length: size})
	}
	sent := make(chan error, 1)
	go func() { sent <- c.Send(cmds...) }()
	s.waitStats("back-pressure", func(st nbd.Stats) bool {
		return len(st.Connections) == 1 && st.Connections[0].HeldBytes >= 1<<20 && st.Connections[0].SentBytes > 0
	})
	for range n {
		if held := s.Snapshot().Connections[0].HeldBytes; held > 3<<20 {
			t.Fatalf("%d bytes held", held)
		}
		if r := get(t, c); !bytes.Equal(r.Data, data) {
			t.Fatalf("reply %d has other data", r.Cookie)
		}
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
}
