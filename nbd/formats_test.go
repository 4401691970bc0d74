package nbd_test

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

const (
	extReqMagic = "21e41c71"
	chunkMagic  = "668e33ef"
	extRepMagic = "6e8a278c"
)

// holed is a disk of 64 KiB whose second KiB is a hole. Otherwise it is full of
// ones, behind "vhbad".
func holed() *nbdtest.Memory {
	d := nbdtest.NewMemory(64 << 10)
	d.Sparse = true
	b := make([]byte, 64<<10)
	for i := range b {
		if i < 1024 || i >= 2048 {
			b[i] = 0xff
		}
	}
	copy(b, "vhbad")
	d.Fill(b)
	return d
}

// exchange sends requests, expects replies and, after disc, the end.
func exchange(t *testing.T, nc net.Conn, send, want, disc []byte) {
	t.Helper()
	if _, err := nc.Write(send); err != nil {
		t.Fatal(err)
	}
	expect(t, nc, want)
	if len(disc) > 0 {
		if _, err := nc.Write(disc); err != nil {
			t.Fatal(err)
		}
	}
	expectEnd(t, nc)
}

// failure is the payload of an error chunk.
func failure(errno, text string) string {
	return errno + fmt.Sprintf("%04x", len(text)) + hxs(text)
}

// The words of errors that the package finds itself.
const (
	wordsCommand   = "the command is unknown or was not offered"
	wordsFlags     = "a command flag is unknown or was not offered"
	wordsReadOnly  = "the export is read-only"
	wordsBeyond    = "the range ends beyond the end of the device"
	wordsAlignment = "the range is not aligned to the minimum block size"
	wordsPayload   = "the length exceeds the maximum payload"
	wordsFragment  = "too long for a reply that is not fragmented"
	wordsEmpty     = "the range is empty"
	wordsNoPayload = "the command takes no payload"
	wordsContexts  = "the payload names no meta context that was negotiated"
)

// TestStructured_Wire fixes structured replies byte by byte, on the disk holed.
func TestStructured_Wire(t *testing.T) {
	chunk := func(flags, typ string, payload ...string) string {
		p := strings.Join(payload, "")
		return chunkMagic + flags + typ + cookie + fmt.Sprintf("%08x", len(p)/2) + p
	}
	fail := func(errno, text string) []byte { return hx(chunk("0001", "8001", failure(errno, text))) }
	req := func(flags, typ, offset, length string) string {
		return reqMagic + flags + typ + cookie + offset + length
	}
	const simpleOK = repMagic + "00000000" + cookie
	tests := []struct {
		name string
		info func(*nbd.Info)
		send []byte
		want []byte
	}{
		{
			name: "READ is one chunk",
			send: hx(req("0000", "0000", "0000000000000001", "00000004")),
			want: hx(chunk("0001", "0001", "0000000000000001", hxs("hbad"))),
		},
		{
			name: "READ of nothing",
			send: hx(req("0000", "0000", "0000000000000001", "00000000")),
			want: hx(chunk("0001", "0000")),
		},
		{
			name: "READ of a hole",
			send: hx(req("0000", "0000", "0000000000000400", "00000400")),
			want: hx(chunk("0001", "0002", "0000000000000400", "00000400")),
		},
		{
			name: "READ from data into a hole",
			send: hx(req("0000", "0000", "00000000000003ff", "00000003")),
			want: hx(chunk("0000", "0001", "00000000000003ff", "ff"), chunk("0001", "0002", "0000000000000400", "00000002")),
		},
		{
			name: "READ from a hole into data",
			send: hx(req("0000", "0000", "00000000000007fe", "00000003")),
			want: hx(chunk("0000", "0002", "00000000000007fe", "00000002"), chunk("0001", "0001", "0000000000000800", "ff")),
		},
		{
			name: "READ from a long hole into data",
			send: hx(req("0000", "0000", "0000000000000500", "00000301")),
			want: hx(chunk("0000", "0002", "0000000000000500", "00000300"), chunk("0001", "0001", "0000000000000800", "ff")),
		},
		{
			name: "READ with DF is one chunk, holes or not",
			send: hx(req("0004", "0000", "00000000000003ff", "00000003")),
			want: hx(chunk("0001", "0001", "00000000000003ff", "ff0000")),
		},
		{
			name: "READ beyond the end",
			send: hx(req("0000", "0000", "000000000000ffff", "00000002")),
			want: fail("00000016", wordsBeyond),
		},
		{
			name: "READ longer than a payload",
			send: hx(req("0000", "0000", "0000000000000000", "00100001")),
			want: fail("00000016", wordsPayload),
		},
		{
			name: "READ with DF longer than a payload",
			send: hx(req("0004", "0000", "0000000000000000", "00100001")),
			want: fail("0000004b", wordsFragment),
		},
		{
			name: "WRITE and FLUSH have simple replies",
			send: hx(req("0000", "0001", "0000000000000000", "00000001"), "56", req("0000", "0003", "0000000000000000", "00000000")),
			want: hx(simpleOK, simpleOK),
		},
		{
			name: "WRITE to a read-only export",
			info: func(i *nbd.Info) { i.ReadOnly = true },
			send: hx(req("0000", "0001", "0000000000000000", "00000001"), "56"),
			want: fail("00000001", wordsReadOnly),
		},
		{
			name: "WRITE beyond the end",
			send: hx(req("0000", "0001", "000000000000ffff", "00000002"), "5657"),
			want: fail("0000001c", wordsBeyond),
		},
		{
			name: "WRITE with DF",
			send: hx(req("0004", "0001", "0000000000000000", "00000001"), "56"),
			want: fail("00000016", wordsFlags),
		},
		{
			name: "WRITE with PAYLOAD_LEN, which needs extended headers",
			send: hx(req("0020", "0001", "0000000000000000", "00000001"), "56"),
			want: fail("00000016", wordsFlags),
		},
		{
			name: "FAST_ZERO where it is not offered",
			info: func(i *nbd.Info) { i.CanFastZero = false },
			send: hx(req("0010", "0006", "0000000000000000", "00000001")),
			want: fail("00000016", wordsFlags),
		},
		{
			name: "FAST_ZERO where it is offered",
			info: func(i *nbd.Info) { i.CanFastZero = true },
			send: hx(req("0010", "0006", "0000000000000000", "00000001")),
			want: hx(simpleOK),
		},
		{
			name: "FAST_ZERO of another command",
			info: func(i *nbd.Info) { i.CanFastZero = true },
			send: hx(req("0010", "0004", "0000000000000000", "00000001")),
			want: fail("00000016", wordsFlags),
		},
		{
			name: "unknown command",
			send: hx(req("0000", "0008", "0000000000000000", "00000001")),
			want: fail("00000016", wordsCommand),
		},
		{
			name: "misaligned",
			info: func(i *nbd.Info) { i.MinBlockBytes = 512 },
			send: hx(req("0000", "0005", "0000000000000001", "00000200")),
			want: fail("00000016", wordsAlignment),
		},
		{
			name: "BLOCK_STATUS",
			send: hx(req("0000", "0007", "0000000000000200", "00000c00")),
			want: hx(chunk("0001", "0005", "00000001", "00000200", "00000000", "00000400", "00000003", "00000600", "00000000")),
		},
		{
			name: "BLOCK_STATUS of one extent",
			send: hx(req("0008", "0007", "0000000000000500", "0000fb00")),
			want: hx(chunk("0001", "0005", "00000001", "00000300", "00000003")),
		},
		{
			name: "BLOCK_STATUS of nothing",
			send: hx(req("0000", "0007", "0000000000000000", "00000000")),
			want: fail("00000016", wordsEmpty),
		},
		{
			name: "BLOCK_STATUS beyond the end",
			send: hx(req("0000", "0007", "0000000000000001", "00010000")),
			want: fail("00000016", wordsBeyond),
		},
		{
			name: "BLOCK_STATUS with NO_HOLE",
			send: hx(req("0002", "0007", "0000000000000000", "00000001")),
			want: fail("00000016", wordsFlags),
		},
	}
	disc := hx(req("0000", "0002", "0000000000000000", "00000000"))
	for _, network := range []string{"unix", "pipe"} {
		for _, tt := range tests {
			t.Run(network+"/"+tt.name, func(t *testing.T) {
				d := holed()
				if tt.info != nil {
					tt.info(&d.Description)
				}
				nc := newServer(t, d, nbd.Limits{}).speak(network, dialects()[1]).Conn
				exchange(t, nc, tt.send, tt.want, disc)
			})
		}
	}
}

// TestExtended_Wire fixes extended requests and replies byte by byte, on the disk
// holed.
func TestExtended_Wire(t *testing.T) {
	chunk := func(offset, flags, typ string, payload ...string) string {
		p := strings.Join(payload, "")
		return extRepMagic + flags + typ + cookie + offset + fmt.Sprintf("%016x", len(p)/2) + p
	}
	fail := func(offset, errno, text string) []byte {
		return hx(chunk(offset, "0001", "8001", failure(errno, text)))
	}
	req := func(flags, typ, offset, length string) string {
		return extReqMagic + flags + typ + cookie + offset + length
	}
	const (
		at0  = "0000000000000000"
		at1  = "0000000000000001"
		none = at0
		len1 = at1
		huge = "ffffffffffffffff"
	)
	done := func(offset string) []byte { return hx(chunk(offset, "0001", "0000")) }
	tests := []struct {
		name string
		info func(*nbd.Info)
		send []byte
		want []byte
		end  bool
	}{
		{
			name: "READ",
			send: hx(req("0000", "0000", at1, "0000000000000004")),
			want: hx(chunk(at1, "0001", "0001", at1, hxs("hbad"))),
		},
		{
			name: "READ of nothing",
			send: hx(req("0000", "0000", at1, none)),
			want: done(at1),
		},
		{
			name: "READ of data, a hole and data",
			send: hx(req("0000", "0000", "00000000000003ff", "0000000000000402")),
			want: hx(chunk("00000000000003ff", "0000", "0001", "00000000000003ff", "ff"),
				chunk("00000000000003ff", "0000", "0002", "0000000000000400", "00000400"),
				chunk("00000000000003ff", "0001", "0001", "0000000000000800", "ff")),
		},
		{
			name: "READ of 4 GiB and a byte",
			send: hx(req("0000", "0000", at0, "0000000100000001")),
			want: fail(at0, "00000016", wordsPayload),
		},
		{
			name: "READ whose end overflows",
			send: hx(req("0000", "0000", huge, len1)),
			want: fail(huge, "00000016", wordsBeyond),
		},
		{
			name: "READ with a payload, which is skipped",
			send: hx(req("0020", "0000", at0, "0000000000000003"), "010203", req("0000", "0003", at0, none)),
			want: append(fail(at0, "00000016", wordsNoPayload), done(at0)...),
		},
		{
			name: "WRITE",
			send: hx(req("0020", "0001", at1, "0000000000000002"), "4142", req("0000", "0000", at0, "0000000000000004")),
			want: append(done(at1), hx(chunk(at0, "0001", "0001", at0, hxs("vABa")))...),
		},
		{
			name: "WRITE that forgot PAYLOAD_LEN",
			send: hx(req("0000", "0001", at1, "0000000000000002"), "4142", req("0000", "0000", at0, "0000000000000004")),
			want: append(done(at1), hx(chunk(at0, "0001", "0001", at0, hxs("vABa")))...),
		},
		{
			name: "WRITE of nothing",
			send: hx(req("0020", "0001", at1, none)),
			want: done(at1),
		},
		{
			name: "WRITE beyond the end",
			send: hx(req("0020", "0001", huge, "0000000000000002"), "4142"),
			want: fail(huge, "0000001c", wordsBeyond),
		},
		{
			name: "WRITE too long even to skip",
			send: hx(req("0020", "0001", at0, huge)),
			end:  true,
		},
		{
			name: "payload too long even to skip",
			send: hx(req("0020", "0003", at0, huge)),
			end:  true,
		},
		{
			name: "payload of an unknown command",
			send: hx(req("0020", "0063", at0, "0000000000000002"), "4142", req("0000", "0003", at0, none)),
			want: append(fail(at0, "00000016", wordsCommand), done(at0)...),
		},
		{
			name: "FLUSH with garbage in reserved fields",
			send: hx(req("0001", "0003", huge, huge)),
			want: done(huge),
		},
		{
			name: "TRIM, CACHE and WRITE_ZEROES",
			send: hx(req("0001", "0004", at0, len1), req("0001", "0005", at0, len1), req("0003", "0006", at0, len1)),
			want: append(append(done(at0), done(at0)...), done(at0)...),
		},
		{
			name: "TRIM of everything there could be",
			send: hx(req("0000", "0004", at1, huge)),
			want: fail(at1, "00000016", wordsBeyond),
		},
		{
			name: "WRITE_ZEROES of more than 4 GiB",
			send: hx(req("0000", "0006", at0, "0000000100000000")),
			want: fail(at0, "0000001c", wordsBeyond),
		},
		{
			name: "CACHE beyond the end",
			send: hx(req("0000", "0005", "0000000000010001", none)),
			want: fail("0000000000010001", "00000016", wordsBeyond),
		},
		{
			name: "BLOCK_STATUS",
			send: hx(req("0000", "0007", "0000000000000200", "0000000000000c00")),
			want: hx(chunk("0000000000000200", "0001", "0006", "00000001", "00000003",
				"0000000000000200", "0000000000000000", "0000000000000400", "0000000000000003", "0000000000000600", "0000000000000000")),
		},
		{
			name: "BLOCK_STATUS with a choice of contexts",
			send: hx(req("0028", "0007", "0000000000000200", "000000000000000c"), "0000000000000c00", "00000001"),
			want: hx(chunk("0000000000000200", "0001", "0006", "00000001", "00000001", "0000000000000200", "0000000000000000")),
		},
		{
			name: "BLOCK_STATUS with a choice of another context",
			send: hx(req("0020", "0007", at0, "000000000000000c"), "0000000000000c00", "00000002"),
			want: fail(at0, "00000016", wordsContexts),
		},
		{
			name: "BLOCK_STATUS with a choice of none",
			send: hx(req("0020", "0007", at0, "0000000000000008"), "0000000000000c00", req("0000", "0003", at0, none)),
			want: append(fail(at0, "00000016", wordsContexts), done(at0)...),
		},
		{
			name: "BLOCK_STATUS with a choice of too many",
			send: hx(req("0020", "0007", at0, "0000000000000010"), "0000000000000c00", "00000001", "00000001", req("0000", "0003", at0, none)),
			want: append(fail(at0, "00000016", wordsContexts), done(at0)...),
		},
		{
			name: "BLOCK_STATUS with a choice of contexts and a range beyond the end",
			send: hx(req("0020", "0007", at1, "000000000000000c"), huge, "00000001", req("0000", "0003", at0, none)),
			want: append(fail(at1, "00000016", wordsBeyond), done(at0)...),
		},
		{
			name: "compact request",
			send: hx(reqMagic, "0000", "0000", cookie, at0, "00000001", "00000000"),
			end:  true,
		},
		{
			name: "DISC is not validated",
			send: hx(req("ffff", "0002", huge, huge)),
			end:  true,
		},
	}
	disc := hx(req("0000", "0002", at0, none))
	for _, network := range []string{"unix", "pipe"} {
		for _, tt := range tests {
			t.Run(network+"/"+tt.name, func(t *testing.T) {
				d := holed()
				if tt.info != nil {
					tt.info(&d.Description)
				}
				nc := newServer(t, d, nbd.Limits{}).speak(network, dialects()[2]).Conn
				if tt.end {
					exchange(t, nc, tt.send, tt.want, nil)
					return
				}
				exchange(t, nc, tt.send, tt.want, disc)
			})
		}
	}
}

// TestBlockStatus_NotAgreed: without the meta context the command is unknown.
func TestBlockStatus_NotAgreed(t *testing.T) {
	for _, d := range dialects() {
		d.Meta = nil
		c := newServer(t, nbdtest.NewMemory(4096), nbd.Limits{}).speak("unix", d)
		if err := c.Send(nbdtest.Command{Type: nbdtest.CmdBlockStatus, Length: 512}); err != nil {
			t.Fatal(err)
		}
		if d.name == "simple" {
			expect(t, c.Conn, hx(repMagic, "00000016", "0000000000000000"))
			continue
		}
		if r, err := c.Receive(); err != nil || r.Errno != nbd.EINVAL || r.Message != wordsCommand {
			t.Errorf("%s: %+v, %v", d.name, r, err)
		}
	}
}
