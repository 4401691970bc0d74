package nbd_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// Parts of the handshake on the wire.
var (
	hello = hx(
		"4e42444d41474943", // NBDMAGIC
		"49484156454f5054", // IHAVEOPT
		"0003",             // FIXED_NEWSTYLE | NO_ZEROES
	)
	fixedOnly  = "00000001"
	fixedNoZer = "00000003"
)

const (
	opt = "49484156454f5054" // option magic
	rep = "0003e889045565a9" // option reply magic
)

// 64 KiB disk with everything: HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES,
// CAN_MULTI_CONN, CACHE.
const diskFlags = "056d"

// readReply reads one option reply and returns its type and data.
func readReply(t *testing.T, r io.Reader, id uint32) (typ uint32, data []byte) {
	t.Helper()
	h := make([]byte, 20)
	if _, err := io.ReadFull(r, h); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(h[:8], hx(rep)) {
		t.Fatalf("option reply magic % x", h[:8])
	}
	if got := be32(h[8:]); got != id {
		t.Fatalf("reply to option %d, want %d", got, id)
	}
	data = make([]byte, be32(h[16:]))
	if _, err := io.ReadFull(r, data); err != nil {
		t.Fatal(err)
	}
	return be32(h[12:]), data
}

func be32(b []byte) uint32 {
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

// step is one exchange: bytes sent, then bytes or an error reply expected.
type step struct {
	send []byte
	want []byte
	// wantErr, if set, is an error reply of this type to option errOf.
	wantErr uint32
	errOf   uint32
}

const (
	errUnsup    = 0x80000001
	errInvalid  = 0x80000003
	errUnknown  = 0x80000006
	errSizeReqd = 0x80000008
)

func TestHandshake(t *testing.T) {
	ack := func(id string) []byte { return hx(rep, id, "00000001", "00000000") }
	exportInfo := hx(rep, "00000007", "00000003", "0000000c", // INFO reply to GO, 12 bytes
		"0000", "0000000000010000", diskFlags) // EXPORT: 64 KiB, flags
	goDefault := hx(opt, "00000007", "00000006", "00000000", "0000")
	goDisk0 := hx(opt, "00000007", "0000000b", "00000005", hxs("disk0"), "0000")
	longName := strings.Repeat("x", 4097)
	tests := []struct {
		name  string
		flags string
		steps []step
		// then says what follows: "transmission", "end" or "option" (still haggling).
		then   string
		reason nbd.NegotiationFailure
	}{
		{name: "EXPORT_NAME with zeroes", flags: fixedOnly, then: "transmission", steps: []step{{
			send: hx(opt, "00000001", "00000005", hxs("disk0")),
			want: hx("0000000000010000", diskFlags, strings.Repeat("00", 124)),
		}}},
		{name: "EXPORT_NAME without zeroes", flags: fixedNoZer, then: "transmission", steps: []step{{
			send: hx(opt, "00000001", "00000005", hxs("disk0")),
			want: hx("0000000000010000", diskFlags),
		}}},
		{name: "EXPORT_NAME old client", flags: "00000000", then: "transmission", steps: []step{{
			send: hx(opt, "00000001", "00000000"),
			want: hx("0000000000010000", diskFlags, strings.Repeat("00", 124)),
		}}},
		{name: "EXPORT_NAME unknown", flags: fixedNoZer, then: "end", reason: nbd.NegotiationNoExport, steps: []step{{
			send: hx(opt, "00000001", "00000003", hxs("nix")),
		}}},
		{name: "EXPORT_NAME NUL", flags: fixedNoZer, then: "end", reason: nbd.NegotiationNoExport, steps: []step{{
			send: hx(opt, "00000001", "00000003", "610062"),
		}}},
		{name: "EXPORT_NAME too long", flags: fixedNoZer, then: "end", reason: nbd.NegotiationNoExport, steps: []step{{
			send: hx(opt, "00000001", "00001001", hxs(longName)),
		}}},
		{name: "unknown client flag", flags: "00000005", then: "end", reason: nbd.NegotiationClientFlags},
		{name: "ABORT", flags: fixedNoZer, then: "end", reason: nbd.NegotiationFailureCount, steps: []step{{
			send: hx(opt, "00000002", "00000000"), want: ack("00000002"),
		}}},
		{name: "ABORT with data", flags: fixedNoZer, then: "end", reason: nbd.NegotiationFailureCount, steps: []step{{
			send: hx(opt, "00000002", "00000003", "010203"), want: ack("00000002"),
		}}},
		{name: "LIST", flags: fixedNoZer, then: "option", steps: []step{{
			send: hx(opt, "00000003", "00000000"),
			want: hx(
				rep, "00000003", "00000002", "00000011", "00000005", hxs("disk0"), hxs("the disk"), // SERVER
				rep, "00000003", "00000002", "00000008", "00000004", hxs("tiny"), // no description
				rep, "00000003", "00000001", "00000000", // ACK
			),
		}}},
		{name: "LIST with data", flags: fixedNoZer, then: "option", steps: []step{{
			send: hx(opt, "00000003", "00000001", "00"), wantErr: errInvalid, errOf: 3,
		}}},
		{name: "GO default export", flags: fixedNoZer, then: "transmission", steps: []step{{
			send: goDefault, want: append(bytes.Clone(exportInfo), ack("00000007")...),
		}}},
		{name: "GO without NO_ZEROES sends none", flags: fixedOnly, then: "transmission", steps: []step{{
			send: goDisk0, want: append(bytes.Clone(exportInfo), ack("00000007")...),
		}}},
		{name: "GO with all information", flags: fixedNoZer, then: "transmission", steps: []step{{
			send: hx(opt, "00000007", "00000012", "00000000", // the default name
				"0006", "0000", "0001", "0002", "0003", "0003", "7777"), // EXPORT NAME DESCRIPTION BLOCK_SIZE twice, unknown
			want: hx(
				hxb(exportInfo),
				rep, "00000007", "00000003", "00000007", "0001", hxs("disk0"), // the canonical name
				rep, "00000007", "00000003", "0000000a", "0002", hxs("the disk"),
				rep, "00000007", "00000003", "0000000e", "0003", "00000001", "00001000", "00100000", // 1, 4 KiB, 1 MiB
				rep, "00000007", "00000001", "00000000",
			),
		}}},
		{name: "INFO then GO", flags: fixedNoZer, then: "transmission", steps: []step{
			{
				send: hx(opt, "00000006", "00000006", "00000000", "0000"),
				want: hx(rep, "00000006", "00000003", "0000000c", "0000", "0000000000010000", diskFlags,
					rep, "00000006", "00000001", "00000000"),
			},
			{send: goDisk0, want: append(bytes.Clone(exportInfo), ack("00000007")...)},
		}},
		{name: "INFO of one, GO of none", flags: fixedNoZer, then: "option", steps: []step{
			{
				send: hx(opt, "00000006", "00000006", "00000000", "0000"),
				want: hx(rep, "00000006", "00000003", "0000000c", "0000", "0000000000010000", diskFlags,
					rep, "00000006", "00000001", "00000000"),
			},
			{send: hx(opt, "00000007", "00000009", "00000003", hxs("nix"), "0000"), wantErr: errUnknown, errOf: 7},
		}},
		{name: "GO too short", flags: fixedNoZer, then: "option", steps: []step{
			{send: hx(opt, "00000007", "00000000"), wantErr: errInvalid, errOf: 7},
			{send: hx(opt, "00000007", "00000005", "0000000000"), wantErr: errInvalid, errOf: 7},
		}},
		{name: "GO name beyond the option", flags: fixedNoZer, then: "option", steps: []step{
			{send: hx(opt, "00000007", "00000006", "00000001", "0000"), wantErr: errInvalid, errOf: 7},
			{send: hx(opt, "00000007", "00000006", "ffffffff", "0000"), wantErr: errInvalid, errOf: 7},
		}},
		{name: "GO wrong count of requests", flags: fixedNoZer, then: "option", steps: []step{
			{send: hx(opt, "00000007", "00000006", "00000000", "0001"), wantErr: errInvalid, errOf: 7},
			{send: hx(opt, "00000007", "00000008", "00000000", "0000", "0003"), wantErr: errInvalid, errOf: 7},
		}},
		{name: "GO bad names", flags: fixedNoZer, then: "option", steps: []step{
			{send: hx(opt, "00000007", "00000009", "00000003", "610062", "0000"), wantErr: errInvalid, errOf: 7},
			{send: hx(opt, "00000007", "00000008", "00000002", "c328", "0000"), wantErr: errInvalid, errOf: 7},
			{send: hx(opt, "00000007", "00001007", "00001001", hxs(longName), "0000"), wantErr: errInvalid, errOf: 7},
		}},
		{name: "GO that cannot open", flags: fixedNoZer, then: "option", steps: []step{
			{send: hx(opt, "00000007", "0000000a", "00000004", hxs("shut"), "0000"), wantErr: errUnknown, errOf: 7},
		}},
		{name: "EXPORT_NAME that cannot open", flags: fixedNoZer, then: "end", reason: nbd.NegotiationOpenFailed, steps: []step{
			{send: hx(opt, "00000001", "00000004", hxs("shut"))},
		}},
		{name: "unsupported options stay in step", flags: fixedNoZer, then: "option", steps: []step{
			{send: hx(opt, "00000004", "00000000"), wantErr: errUnsup, errOf: 4},                 // PEEK_EXPORT
			{send: hx(opt, "00000005", "00000000"), wantErr: errUnsup, errOf: 5},                 // STARTTLS
			{send: hx(opt, "7fffffff", "00000002", "ffff"), wantErr: errUnsup, errOf: 1<<31 - 1}, // nobody's
		}},
		{name: "bad option magic", flags: fixedNoZer, then: "end", reason: nbd.NegotiationBadMagic, steps: []step{
			{send: hx("49484156454f5055", "00000003", "00000000")},
		}},
		{name: "option too long", flags: fixedNoZer, then: "end", reason: nbd.NegotiationOptionTooLong, steps: []step{
			{send: hx(opt, "00000003", "00010001")},
		}},
		{name: "block size required", flags: fixedNoZer, then: "transmission", steps: []step{
			{
				send: hx(opt, "00000007", "0000000a", "00000004", hxs("tiny"), "0000"),
				want: hx(rep, "00000007", "00000003", "0000000e", "0003", "00000200", "00001000", "00100000"),
			},
			{wantErr: errSizeReqd, errOf: 7},
			{ // asking by INFO is enough
				send: hx(opt, "00000006", "0000000c", "00000004", hxs("tiny"), "0001", "0003"),
				want: hx(rep, "00000006", "00000003", "0000000c", "0000", "0000000000001000", diskFlags,
					rep, "00000006", "00000003", "0000000e", "0003", "00000200", "00001000", "00100000",
					rep, "00000006", "00000001", "00000000"),
			},
			{
				send: hx(opt, "00000007", "0000000a", "00000004", hxs("tiny"), "0000"),
				want: hx(rep, "00000007", "00000003", "0000000c", "0000", "0000000000001000", diskFlags,
					rep, "00000007", "00000001", "00000000"),
			},
		}},
	}
	for _, network := range []string{"unix", "pipe"} {
		for _, tt := range tests {
			t.Run(fmt.Sprintf("%s/%s", network, tt.name), func(t *testing.T) {
				disk := nbdtest.NewMemory(64 << 10)
				disk.Description.Description = "the disk"
				tiny := nbdtest.NewMemory(4 << 10)
				tiny.Description.MinBlockBytes = 512
				shut := nbdtest.NewManual(4 << 10)
				shut.OpenErr = errors.New("closed for repairs")
				exports := []nbd.Export{{Name: "disk0", Device: disk}, {Name: "tiny", Device: tiny}}
				if strings.Contains(tt.name, "cannot open") {
					exports = append(exports, nbd.Export{Name: "shut", Device: shut})
				}
				s := newServerOf(t, nbd.Limits{MaxPayloadBytes: payloadBytes}, arenaBytes, exports...)
				nc := s.dial(network)
				expect(t, nc, hello)
				send := func(b []byte) {
					if _, err := nc.Write(b); err != nil {
						t.Fatal(err)
					}
				}
				send(hx(tt.flags))
				for _, st := range tt.steps {
					if len(st.send) > 0 {
						send(st.send)
					}
					expect(t, nc, st.want)
					if st.wantErr != 0 {
						if typ, msg := readReply(t, nc, st.errOf); typ != st.wantErr || len(msg) == 0 {
							t.Fatalf("reply type %#x %q, want %#x and a message", typ, msg, st.wantErr)
						}
					}
				}
				switch tt.then {
				case "transmission":
					send(nbdtest.Command{Type: nbdtest.CmdFlush, Cookie: 0xabcdef}.Append(nil))
					expect(t, nc, hx("67446698", "00000000", "0000000000abcdef"))
				case "option":
					send(hx(opt, "00000002", "00000000"))
					expect(t, nc, ack("00000002"))
					expectEnd(t, nc)
				case "end":
					expectEnd(t, nc)
					st := s.waitStats("end", func(st nbd.Stats) bool { return st.ConnectionsOpen == 0 })
					for i, n := range st.NegotiationFailures {
						if want := uint64(b2i(nbd.NegotiationFailure(i) == tt.reason)); n != want {
							t.Errorf("failures with reason %v: got %d, want %d", nbd.NegotiationFailure(i), n, want)
						}
					}
				}
			})
		}
	}
}

func hxb(b []byte) string { return hxs(string(b)) }

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func TestHandshake_TooManyOptions(t *testing.T) {
	s := newServer(t, nbdtest.NewMemory(4096), nbd.Limits{MaxOptions: 3})
	nc := s.dial("unix")
	expect(t, nc, hello)
	if _, err := nc.Write(hx(fixedNoZer)); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := nc.Write(hx(opt, "00000004", "00000000")); err != nil {
			t.Fatal(err)
		}
		if typ, _ := readReply(t, nc, 4); typ != errUnsup {
			t.Fatalf("reply type %#x", typ)
		}
	}
	if _, err := nc.Write(hx(opt, "00000004", "00000000")); err != nil {
		t.Fatal(err)
	}
	expectEnd(t, nc)
	s.waitStats("failure", func(st nbd.Stats) bool { return st.NegotiationFailures[nbd.NegotiationTooManyOptions] == 1 })
}

func TestHandshake_Flags(t *testing.T) {
	d := nbdtest.NewMemory(4096)
	d.Description = nbd.Info{SizeBytes: 4096, ReadOnly: true, Rotational: true}
	c := newServer(t, d, nbd.Limits{}).client("unix")
	if want := uint16(1<<0 | 1<<1 | 1<<4); c.Flags != want {
		t.Errorf("flags %#x, want HAS_FLAGS, READ_ONLY, ROTATIONAL (%#x)", c.Flags, want)
	}
}

func TestHandshake_ProbeIsSilent(t *testing.T) {
	s := newServer(t, nbdtest.NewMemory(4096), nbd.Limits{})
	nc := s.dial("unix")
	if err := nc.Close(); err != nil {
		t.Fatal(err)
	}
	s.waitStats("probe", func(st nbd.Stats) bool {
		return st.NegotiationFailures[nbd.NegotiationProbe] == 1 && st.ConnectionsOpen == 0
	})
}

func TestServer_TooManyConnections(t *testing.T) {
	s := newServer(t, nbdtest.NewMemory(4096), nbd.Limits{MaxConnections: 2})
	a, b := s.client("unix"), s.client("unix")
	expectEnd(t, s.dial("unix"))
	for _, c := range []*nbdtest.Client{a, b} { // those inside are not disturbed
		must(t, c, nbdtest.Command{Type: nbdtest.CmdFlush, Cookie: 1}, nbd.OK)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	s.waitStats("room", func(st nbd.Stats) bool { return st.ConnectionsOpen == 1 })
	must(t, s.client("unix"), nbdtest.Command{Type: nbdtest.CmdFlush, Cookie: 1}, nbd.OK)
	if n := s.Snapshot().NegotiationFailures[nbd.NegotiationTooManyConnections]; n != 1 {
		t.Errorf("%d connections refused, want 1", n)
	}
}
