package nbd_test

import (
	"bytes"
	"fmt"
	"io"
	"testing"

	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

const (
	reqMagic = "25609513"
	repMagic = "67446698"
	cookie   = "0123456789abcdef"
)

// TestTransmission_Wire fixes requests and replies byte by byte, on a disk of
// 64 KiB whose first bytes are "vhbad".
func TestTransmission_Wire(t *testing.T) {
	reply := func(errno string) []byte { return hx(repMagic, errno, cookie) }
	const (
		ok     = "00000000"
		eperm  = "00000001"
		einval = "00000016"
		enospc = "0000001c"
	)
	tests := []struct {
		name string
		info func(*nbd.Info)
		send []byte
		want []byte
		end  bool // the server closes afterwards
	}{
		{
			name: "READ",
			send: hx(reqMagic, "0000", "0000", cookie, "0000000000000000", "00000005"),
			want: hx(repMagic, ok, cookie, hxs("vhbad")),
		},
		{
			name: "READ with FUA",
			send: hx(reqMagic, "0001", "0000", cookie, "0000000000000001", "00000002"),
			want: hx(repMagic, ok, cookie, hxs("hb")),
		},
		{
			name: "READ of nothing",
			send: hx(reqMagic, "0000", "0000", cookie, "0000000000010000", "00000000"),
			want: reply(ok),
		},
		{
			name: "READ beyond the end",
			send: hx(reqMagic, "0000", "0000", cookie, "000000000000ffff", "00000002"),
			want: reply(einval),
		},
		{
			name: "READ whose end overflows",
			send: hx(reqMagic, "0000", "0000", cookie, "ffffffffffffffff", "00000002"),
			want: reply(einval),
		},
		{
			name: "READ longer than a payload may be",
			send: hx(reqMagic, "0000", "0000", cookie, "0000000000000000", "00100001"),
			want: reply(einval),
		},
		{
			name: "READ with DF, which was not negotiated",
			send: hx(reqMagic, "0004", "0000", cookie, "0000000000000000", "00000005"),
			want: reply(einval),
		},
		{
			name: "WRITE",
			send: hx(reqMagic, "0000", "0001", cookie, "0000000000000000", "00000003", "414243",
				reqMagic, "0000", "0000", cookie, "0000000000000000", "00000005"),
			want: hx(repMagic, ok, cookie, repMagic, ok, cookie, hxs("ABCad")),
		},
		{
			name: "WRITE of nothing",
			send: hx(reqMagic, "0001", "0001", cookie, "0000000000000000", "00000000"),
			want: reply(ok),
		},
		{
			name: "WRITE beyond the end, payload consumed",
			send: hx(reqMagic, "0000", "0001", cookie, "000000000000fffe", "00000003", "256095",
				reqMagic, "0000", "0000", cookie, "0000000000000000", "00000005"),
			want: hx(repMagic, enospc, cookie, repMagic, ok, cookie, hxs("vhbad")),
		},
		{
			name: "WRITE to a read-only disk, payload consumed",
			info: func(i *nbd.Info) { i.ReadOnly = true },
			send: hx(reqMagic, "0000", "0001", cookie, "0000000000000000", "00000001", "00",
				reqMagic, "0000", "0000", cookie, "0000000000000000", "00000005"),
			want: hx(repMagic, eperm, cookie, repMagic, ok, cookie, hxs("vhbad")),
		},
		{
			name: "WRITE with an unknown flag, payload consumed",
			send: hx(reqMagic, "8000", "0001", cookie, "0000000000000000", "00000002", "ffff",
				reqMagic, "0000", "0000", cookie, "0000000000000000", "00000005"),
			want: hx(repMagic, einval, cookie, repMagic, ok, cookie, hxs("vhbad")),
		},
		{
			name: "WRITE with NO_HOLE, which is not its flag",
			send: hx(reqMagic, "0002", "0001", cookie, "0000000000000000", "00000001", "00"),
			want: reply(einval),
		},
		{
			name: "WRITE too long even to skip",
			send: hx(reqMagic, "0000", "0001", cookie, "0000000000000000", "02000001"),
			end:  true,
		},
		{
			name: "FUA that was not advertised",
			info: func(i *nbd.Info) { i.CanFUA = false },
			send: hx(reqMagic, "0001", "0001", cookie, "0000000000000000", "00000001", "00"),
			want: reply(einval),
		},
		{
			name: "FLUSH",
			send: hx(reqMagic, "0000", "0003", cookie, "0000000000000000", "00000000"),
			want: reply(ok),
		},
		{
			name: "FLUSH with FUA and garbage in reserved fields",
			send: hx(reqMagic, "0001", "0003", cookie, "ffffffffffffffff", "ffffffff"),
			want: reply(ok),
		},
		{
			name: "FLUSH that was not advertised",
			info: func(i *nbd.Info) { i.CanFlush = false },
			send: hx(reqMagic, "0000", "0003", cookie, "0000000000000000", "00000000"),
			want: reply(einval),
		},
		{
			name: "TRIM",
			send: hx(reqMagic, "0001", "0004", cookie, "0000000000000000", "00010000"),
			want: reply(ok),
		},
		{
			name: "TRIM of nothing",
			send: hx(reqMagic, "0000", "0004", cookie, "0000000000000000", "00000000"),
			want: reply(ok),
		},
		{
			name: "TRIM beyond the end",
			send: hx(reqMagic, "0000", "0004", cookie, "0000000000000001", "00010000"),
			want: reply(einval),
		},
		{
			name: "TRIM of a read-only disk",
			info: func(i *nbd.Info) { i.ReadOnly = true },
			send: hx(reqMagic, "0000", "0004", cookie, "0000000000000000", "00000001"),
			want: reply(eperm),
		},
		{
			name: "TRIM that was not advertised",
			info: func(i *nbd.Info) { i.CanTrim = false },
			send: hx(reqMagic, "0000", "0004", cookie, "0000000000000000", "00000001"),
			want: reply(einval),
		},
		{
			name: "CACHE",
			send: hx(reqMagic, "0001", "0005", cookie, "0000000000000000", "00010000"),
			want: reply(ok),
		},
		{
			name: "CACHE beyond the end",
			send: hx(reqMagic, "0000", "0005", cookie, "0000000000010001", "00000000"),
			want: reply(einval),
		},
		{
			name: "CACHE with an unknown flag",
			send: hx(reqMagic, "0010", "0005", cookie, "0000000000000000", "00000001"),
			want: reply(einval),
		},
		{
			name: "CACHE that was not advertised",
			info: func(i *nbd.Info) { i.CanCache = false },
			send: hx(reqMagic, "0000", "0005", cookie, "0000000000000000", "00000001"),
			want: reply(einval),
		},
		{
			name: "WRITE_ZEROES with FUA and NO_HOLE",
			send: hx(reqMagic, "0003", "0006", cookie, "0000000000000001", "00000002",
				reqMagic, "0000", "0000", cookie, "0000000000000000", "00000005"),
			want: hx(repMagic, ok, cookie, repMagic, ok, cookie, "7600006164"),
		},
		{
			name: "WRITE_ZEROES beyond the end",
			send: hx(reqMagic, "0000", "0006", cookie, "000000000000ffff", "ffffffff"),
			want: reply(enospc),
		},
		{
			name: "WRITE_ZEROES with FAST_ZERO, which was not advertised",
			send: hx(reqMagic, "0010", "0006", cookie, "0000000000000000", "00000001"),
			want: reply(einval),
		},
		{
			name: "WRITE_ZEROES to a read-only disk",
			info: func(i *nbd.Info) { i.ReadOnly = true },
			send: hx(reqMagic, "0000", "0006", cookie, "0000000000000000", "00000001"),
			want: reply(eperm),
		},
		{
			name: "unknown commands have no payload",
			send: hx(reqMagic, "0000", "0007", cookie, "0000000000000000", "00000005", // BLOCK_STATUS
				reqMagic, "0000", "0008", cookie, "0000000000000000", "00000005", // RESIZE
				reqMagic, "0000", "ffff", cookie, "0000000000000000", "00000005",
				reqMagic, "0000", "0000", cookie, "0000000000000000", "00000005"),
			want: hx(repMagic, einval, cookie, repMagic, einval, cookie, repMagic, einval, cookie,
				repMagic, ok, cookie, hxs("vhbad")),
		},
		{
			name: "misaligned to the advertised block size",
			info: func(i *nbd.Info) { i.MinBlockBytes = 512 },
			send: hx(reqMagic, "0000", "0000", cookie, "0000000000000001", "00000200",
				reqMagic, "0000", "0000", cookie, "0000000000000000", "000001ff",
				reqMagic, "0000", "0001", cookie, "0000000000000000", "00000001", "00"),
			want: hx(repMagic, einval, cookie, repMagic, einval, cookie, repMagic, einval, cookie),
		},
		{
			name: "DISC is not validated",
			send: hx(reqMagic, "ffff", "0002", cookie, "fffffffffffffe00", "ffffffff"),
			end:  true,
		},
		{
			name: "bad magic",
			send: hx("25609514", "0000", "0000", cookie, "0000000000000000", "00000005"),
			end:  true,
		},
	}
	for _, network := range []string{"unix", "pipe"} {
		for _, tt := range tests {
			t.Run(network+"/"+tt.name, func(t *testing.T) {
				d := nbdtest.NewMemory(64 << 10)
				d.Fill([]byte("vhbad"))
				if tt.info != nil {
					tt.info(&d.Description)
				}
				s := newServer(t, d, nbd.Limits{})
				nc := s.dial(network)
				expect(t, nc, hello)
				// EXPORT_NAME gets in whatever the block size.
				if _, err := nc.Write(hx(fixedNoZer, opt, "00000001", "00000000")); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(nc, make([]byte, 10)); err != nil {
					t.Fatal(err)
				}
				if _, err := nc.Write(tt.send); err != nil {
					t.Fatal(err)
				}
				expect(t, nc, tt.want)
				if tt.end {
					expectEnd(t, nc)
					return
				}
				if _, err := nc.Write(nbdtest.Command{Type: nbdtest.CmdDisc}.Append(nil)); err != nil {
					t.Fatal(err)
				}
				expectEnd(t, nc)
				s.waitStats("disconnect", func(st nbd.Stats) bool { return st.Closes[nbd.CloseDisconnect] == 1 })
			})
		}
	}
}

// TestTransmission_ByteByByte sends requests as slowly as a stream allows.
func TestTransmission_ByteByByte(t *testing.T) {
	for _, network := range []string{"unix", "pipe"} {
		t.Run(network, func(t *testing.T) {
			d := nbdtest.NewMemory(4096)
			c := newServer(t, d, nbd.Limits{}).client(network)
			var stream []byte
			stream = nbdtest.Command{Type: nbdtest.CmdWrite, Cookie: 1, Offset: 3, Length: 4, Payload: []byte("drip")}.Append(stream)
			stream = nbdtest.Command{Type: nbdtest.CmdWrite, Cookie: 2, Flags: 1 << 9, Offset: 3, Length: 4, Payload: []byte("skip")}.Append(stream)
			for i := range stream {
				if _, err := c.Conn.Write(stream[i : i+1]); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 {
				r, err := c.Receive()
				if want := map[uint64]nbd.Errno{1: nbd.OK, 2: nbd.EINVAL}[r.Cookie]; err != nil || r.Errno != want {
					t.Fatalf("got %v, %v, want %v", r, err, want)
				}
			}
			if got := d.Bytes()[3:7]; string(got) != "drip" {
				t.Errorf("disk has %q, want drip", got)
			}
		})
	}
}

// TestTransmission_Sizes writes and reads back transfers around every threshold
// of the block handling, alone and with a neighbour in the same stream.
func TestTransmission_Sizes(t *testing.T) {
	sizes := []int{
		1, 511, 4096, 32<<10 - 29, 32<<10 - 28, 32<<10 - 27, 32 << 10, 64<<10 - 17, 64<<10 - 16, 64<<10 - 15,
		64 << 10, 64<<10 + 1, 100_000, 128 << 10, 256<<10 - 28, 256 << 10, 1<<20 + 1, 5 << 20,
	}
	for _, async := range []bool{false, true} {
		for _, network := range []string{"unix", "tcp", "pipe"} {
			t.Run(fmt.Sprintf("%s/async=%v", network, async), func(t *testing.T) {
				d := nbdtest.NewMemory(6 << 20)
				d.Async = async
				c := newServer(t, d, nbd.Limits{MaxPayloadBytes: 8 << 20}).client(network)
				for _, size := range sizes {
					a, b := pattern(size, 1), pattern(4096, 2)
					sent := make(chan error, 1)
					go func() {
						sent <- c.Send(
							nbdtest.Command{Type: nbdtest.CmdWrite, Cookie: 1, Offset: 7, Length: uint32(size), Payload: a},
							nbdtest.Command{Type: nbdtest.CmdWrite, Cookie: 2, Offset: uint64(7 + size), Length: 4096, Payload: b},
						)
					}()
					for range 2 {
						if r, err := c.Receive(); err != nil || r.Errno != nbd.OK {
							t.Fatalf("size %d: %+v, %v", size, r, err)
						}
					}
					if err := <-sent; err != nil {
						t.Fatal(err)
					}
					if err := c.Send(
						nbdtest.Command{Type: nbdtest.CmdRead, Cookie: 3, Offset: 7, Length: uint32(size)},
						nbdtest.Command{Type: nbdtest.CmdRead, Cookie: 4, Offset: uint64(7 + size), Length: 4096},
					); err != nil {
						t.Fatal(err)
					}
					for range 2 {
						r, err := c.Receive()
						if err != nil || r.Errno != nbd.OK {
							t.Fatalf("size %d: %v, %v", size, r.Errno, err)
						}
						want := a
						if r.Cookie == 4 {
							want = b
						}
						if !bytes.Equal(r.Data, want) {
							t.Fatalf("size %d: read %d returned other data than was written", size, r.Cookie)
						}
					}
				}
			})
		}
	}
}

// TestTransmission_LargestPayload moves 64 MiB in one request each way.
func TestTransmission_LargestPayload(t *testing.T) {
	const size = 64 << 20
	d := nbdtest.NewMemory(size)
	c := newServer(t, d, nbd.Limits{MaxPayloadBytes: size}).client("unix")
	data := pattern(size, 3)
	must(t, c, nbdtest.Command{Type: nbdtest.CmdWrite, Cookie: 1, Length: size, Payload: data}, nbd.OK)
	r := must(t, c, nbdtest.Command{Type: nbdtest.CmdRead, Cookie: 2, Length: size}, nbd.OK)
	if !bytes.Equal(r.Data, data) {
		t.Error("64 MiB read back differ from what was written")
	}
}

// TestTransmission_SkipLargePayload: a write of twice what a payload may be is
// refused without needing memory or ending the connection.
func TestTransmission_SkipLargePayload(t *testing.T) {
	const size = 2 * payloadBytes
	c := newServer(t, nbdtest.NewMemory(4096), nbd.Limits{}).client("unix")
	must(t, c, nbdtest.Command{Type: nbdtest.CmdWrite, Cookie: 1, Length: size, Payload: make([]byte, size)}, nbd.EINVAL)
	must(t, c, nbdtest.Command{Type: nbdtest.CmdFlush, Cookie: 2}, nbd.OK)
}

// TestTransmission_SkipSmallLimit: 32 MiB are skipped whatever the limit, and a
// byte more ends the connection.
func TestTransmission_SkipSmallLimit(t *testing.T) {
	const size = 32 << 20
	c := newServer(t, nbdtest.NewMemory(4096), nbd.Limits{MaxPayloadBytes: 64 << 10}).client("unix")
	must(t, c, nbdtest.Command{Type: nbdtest.CmdWrite, Cookie: 1, Length: size, Payload: make([]byte, size)}, nbd.EINVAL)
	must(t, c, nbdtest.Command{Type: nbdtest.CmdFlush, Cookie: 2}, nbd.OK)
	if err := c.Send(nbdtest.Command{Type: nbdtest.CmdWrite, Cookie: 3, Length: size + 1}); err != nil {
		t.Fatal(err)
	}
	if r, err := c.Receive(); err == nil {
		t.Errorf("a payload of more than 32 MiB got a reply: %v", r.Errno)
	}
}

// TestTransmission_OutOfOrder completes requests backwards: replies must follow
// completion, with the data of their own request.
func TestTransmission_OutOfOrder(t *testing.T) {
	d := nbdtest.NewManual(1 << 20)
	c := newServer(t, d, nbd.Limits{}).client("unix")
	const n = 200
	var cmds []nbdtest.Command
	for i := range n {
		cmds = append(cmds, nbdtest.Command{Type: nbdtest.CmdRead, Cookie: uint64(i), Offset: uint64(i), Length: uint32(i + 1)})
	}
	if err := c.Send(cmds...); err != nil {
		t.Fatal(err)
	}
	var got []*nbd.Request
	for range n {
		got = append(got, <-d.Requests)
	}
	for i := n - 1; i >= 0; i-- {
		r := got[i]
		errno := nbd.OK
		if i%10 == 0 {
			errno = nbd.EIO
		}
		for j := range r.Data {
			r.Data[j] = byte(i)
		}
		nbdtest.Complete(r, errno)
	}
	for i := n - 1; i >= 0; i-- {
		r, err := c.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if r.Cookie != uint64(i) {
			t.Fatalf("reply has cookie %d, want %d", r.Cookie, i)
		}
		if i%10 == 0 {
			if r.Errno != nbd.EIO || r.Data != nil {
				t.Fatalf("reply %d: %v with %d bytes, want EIO with none", i, r.Errno, len(r.Data))
			}
			continue
		}
		if want := bytes.Repeat([]byte{byte(i)}, i+1); r.Errno != nbd.OK || !bytes.Equal(r.Data, want) {
			t.Fatalf("reply %d: %v % x", i, r.Errno, r.Data)
		}
	}
}

// TestTransmission_Fields checks what a session sees.
func TestTransmission_Fields(t *testing.T) {
	d := nbdtest.NewManual(1 << 40)
	c := newServer(t, d, nbd.Limits{}).client("unix")
	tests := []struct {
		cmd  nbdtest.Command
		want nbd.Request
	}{
		{nbdtest.Command{Type: nbdtest.CmdRead, Flags: nbdtest.FlagFUA, Offset: 1 << 39, Length: 9}, nbd.Request{Op: nbd.OpRead, OffsetBytes: 1 << 39, LengthBytes: 9}},
		{nbdtest.Command{Type: nbdtest.CmdWrite, Flags: nbdtest.FlagFUA, Offset: 3, Length: 2, Payload: []byte("hi")}, nbd.Request{Op: nbd.OpWrite, FUA: true, OffsetBytes: 3, LengthBytes: 2}},
		{nbdtest.Command{Type: nbdtest.CmdFlush, Offset: 77, Length: 88}, nbd.Request{Op: nbd.OpFlush}},
		{nbdtest.Command{Type: nbdtest.CmdTrim, Flags: nbdtest.FlagFUA, Offset: 4096, Length: 1<<32 - 1}, nbd.Request{Op: nbd.OpTrim, FUA: true, OffsetBytes: 4096, LengthBytes: 1<<32 - 1}},
		{nbdtest.Command{Type: nbdtest.CmdCache, Length: 1<<32 - 1}, nbd.Request{Op: nbd.OpCache, LengthBytes: 1<<32 - 1}},
		{nbdtest.Command{Type: nbdtest.CmdWriteZeroes, Flags: nbdtest.FlagNoHole, Offset: 1, Length: 1<<32 - 1}, nbd.Request{Op: nbd.OpWriteZeroes, NoHole: true, OffsetBytes: 1, LengthBytes: 1<<32 - 1}},
	}
	for _, tt := range tests {
		if err := c.Send(tt.cmd); err != nil {
			t.Fatal(err)
		}
		r := <-d.Requests
		if r.Op != tt.want.Op || r.FUA != tt.want.FUA || r.NoHole != tt.want.NoHole ||
			r.OffsetBytes != tt.want.OffsetBytes || r.LengthBytes != tt.want.LengthBytes {
			t.Errorf("%+v arrived as op %v, FUA %v, NoHole %v, offset %d, length %d", tt.cmd, r.Op, r.FUA, r.NoHole, r.OffsetBytes, r.LengthBytes)
		}
		if r.Slot < 0 || r.Slot >= r.Conn().MaxRequests() {
			t.Errorf("slot %d, want 0 to %d", r.Slot, r.Conn().MaxRequests()-1)
		}
		switch r.Op {
		case nbd.OpRead:
			if len(r.Data) != int(r.LengthBytes) {
				t.Errorf("read has room for %d bytes, want %d", len(r.Data), r.LengthBytes)
			}
		case nbd.OpWrite:
			if string(r.Data) != "hi" {
				t.Errorf("payload %q, want hi", r.Data)
			}
		case nbd.OpFlush, nbd.OpTrim, nbd.OpWriteZeroes, nbd.OpCache, nbd.OpCount:
			if r.Data != nil {
				t.Errorf("%v has data", r.Op)
			}
		}
		nbdtest.Complete(r, nbd.OK)
		if rep, err := c.Receive(); err != nil || rep.Errno != nbd.OK {
			t.Fatalf("%+v, %v", rep, err)
		}
	}
}

func TestComplete_TwicePanics(t *testing.T) {
	d := nbdtest.NewManual(4096)
	c := newServer(t, d, nbd.Limits{}).client("unix")
	if err := c.Send(nbdtest.Command{Type: nbdtest.CmdFlush}); err != nil {
		t.Fatal(err)
	}
	r := <-d.Requests
	nbdtest.Complete(r, nbd.OK)
	if _, err := c.Receive(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if recover() == nil {
			t.Error("a second Complete did not panic")
		}
	}()
	r.Complete(nbd.OK)
}

// pattern is reproducible data of n bytes.
func pattern(n int, seed byte) []byte {
	b := make([]byte, n)
	x := uint32(seed)*2654435761 + 1
	const period = 65_521 // prime, so that blocks in the wrong place are seen
	for i := range min(n, period) {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	for i := period; i < n; i += period {
		copy(b[i:], b[:period])
	}
	return b
}

// batches tells how many requests of each kind came together.
type batches struct {
	*nbdtest.Memory
	longest [nbd.OpCount]int
}

func (d *batches) Open(c *nbd.Conn) (nbd.Session, error) {
	s, err := d.Memory.Open(c)
	return &batchesSession{s, d}, err
}

type batchesSession struct {
	nbd.Session
	d *batches
}

func (s *batchesSession) Submit(batch []*nbd.Request) {
	var n [nbd.OpCount]int
	for _, r := range batch {
		n[r.Op]++
		s.d.longest[r.Op] = max(s.d.longest[r.Op], n[r.Op])
	}
	s.Session.Submit(batch)
}

// TestTransmission_Batches: commands that may be much work for a device come to it a
// few at a time, so that the other connections have their turns.
func TestTransmission_Batches(t *testing.T) {
	const each = 200
	d := &batches{Memory: nbdtest.NewMemory(1 << 20)}
	s := newServer(t, d, nbd.Limits{})
	c := s.client("unix")
	var b []byte
	for i := range uint64(each) {
		b = nbdtest.Command{Type: nbdtest.CmdTrim, Cookie: i, Length: 512}.Append(b)
	}
	for i := range uint64(each) {
		b = nbdtest.Command{Type: nbdtest.CmdFlush, Cookie: each + i}.Append(b)
	}
	if _, err := c.Conn.Write(b); err != nil {
		t.Fatal(err)
	}
	head := make([]byte, 16)
	for range 2 * each {
		if _, err := io.ReadFull(c.Conn, head); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	s.waitStats("end", func(st nbd.Stats) bool { return st.ConnectionsOpen == 0 })
	if n := d.longest[nbd.OpTrim]; n < 1 || n > 8 {
		t.Errorf("%d trims in one batch, want at most 8", n)
	}
	if n := d.longest[nbd.OpFlush]; n < 1 || n > 64 {
		t.Errorf("%d flushes in one batch, want at most 64", n)
	}
}
