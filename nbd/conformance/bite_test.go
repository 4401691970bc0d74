package conformance

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// tampered is a connection whose bytes are changed on their way to the client. The
// client reads each part of a message by itself, so b is one part.
type tampered struct {
	net.Conn
	change func(b []byte)
}

func (c *tampered) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n == len(b) {
		c.change(b)
	}
	return n, err
}

// A liar is a device that does requests in its own way: lie says whether it did.
type liar struct {
	*nbdtest.Memory
	lie func(r *nbd.Request) (errno nbd.Errno, done bool)
}

type liarSession struct {
	nbd.Session
	l *liar
}

func (l *liar) Open(c *nbd.Conn) (nbd.Session, error) {
	s, err := l.Memory.Open(c)
	return &liarSession{s, l}, err
}

func (s *liarSession) Submit(batch []*nbd.Request) {
	for i, r := range batch {
		if errno, done := s.l.lie(r); done {
			r.Complete(errno)
			continue
		}
		s.Session.Submit(batch[i : i+1])
	}
}

// serveDevice serves the device as "disk0" until the end of the test.
func serveDevice(t *testing.T, d nbd.Device) Target {
	t.Helper()
	arena, err := dma.NewArena(8 << 20)
	if err != nil {
		t.Fatal(err)
	}
	set, err := nbd.NewExportSet(nbd.Export{Name: "disk0", Device: d})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &nbd.Server{Exports: set, Arena: arena, Limits: nbd.Limits{MaxPayloadBytes: 4 << 20}}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
			return
		}
		if err := <-served; !errors.Is(err, nbd.ErrServerClosed) {
			t.Errorf("Serve returned %v", err)
		}
	})
	return Target{Name: "a liar", Export: "disk0", Patience: 4 * time.Minute, Dial: func(ctx context.Context) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, "tcp", l.Addr().String())
	}}
}

// outcomeOf runs the row of that name.
func outcomeOf(t *testing.T, name string, target *Target, f *features) outcome {
	t.Helper()
	rows := Rows()
	i := slices.IndexFunc(rows, func(r Row) bool { return r.Name == name })
	if i < 0 {
		t.Fatalf("there is no row %s", name)
	}
	return rows[i].run(t.Context(), target, f)
}

// flip changes bit 0 of byte at in parts of n bytes.
func flip(n, at int) func(b []byte) {
	return func(b []byte) {
		if len(b) == n {
			b[at] ^= 1
		}
	}
}

// TestRows_Bite breaks rules on the wire, and wants the rows to see it.
func TestRows_Bite(t *testing.T) {
	d := nbdtest.NewMemory(minSizeBytes)
	clean := serveDevice(t, d)
	x := &probe{ctx: t.Context(), target: &clean}
	if o := x.run(discover); o.verdict.Bad() {
		t.Fatal(o.detail)
	}
	const simpleRest, chunkRest, extendedRest = 12, 16, 28
	for _, tt := range []struct {
		row    string
		change func(b []byte)
	}{
		{"handshake/greeting", flip(18, 0)},
		{"handshake/greeting", flip(18, 15)},
		{"option/unknown", flip(20, 0)},  // magic of the reply
		{"option/unknown", flip(20, 11)}, // option
		{"option/unknown", flip(20, 15)}, // type
		{"abort/ack", flip(20, 15)},
		{"go/enters", flip(20, 15)},
		{"transmission/cookie", flip(simpleRest, 11)},
		{"transmission/cookie", flip(simpleRest, 4)},
		{"read/beyond", func(b []byte) {
			if len(b) == simpleRest && binary.BigEndian.Uint32(b) == errInvalid {
				b[3] = errIO
			}
		}},
		{"transmission/error-values", func(b []byte) {
			if len(b) == simpleRest && binary.BigEndian.Uint32(b) == errInvalid {
				b[3] = 99
			}
		}},
		{"transmission/rare-errors", func(b []byte) {
			if len(b) == simpleRest && binary.BigEndian.Uint32(b) == errInvalid {
				b[3] = errNoMem
			}
		}},
		{"option/strings-short", func(b []byte) {
			if len(b) == 20 && binary.BigEndian.Uint32(b[12:]) == repUnsup {
				binary.BigEndian.PutUint32(b[16:], 300) // more than there is to come, too
			}
		}},
		{"info/known", func(b []byte) {
			if len(b) == 20 && binary.BigEndian.Uint32(b[8:]) == optInfo && binary.BigEndian.Uint32(b[12:]) == repAck {
				binary.BigEndian.PutUint32(b[12:], repUnsup)
			}
		}},
		{"list/known", func(b []byte) {
			if len(b) == 20 && binary.BigEndian.Uint32(b[8:]) == optList && binary.BigEndian.Uint32(b[12:]) == repAck {
				binary.BigEndian.PutUint32(b[12:], repUnsup)
			}
		}},
		{"meta/names", func(b []byte) {
			if i := bytes.Index(b, []byte("base:")); i == 4 {
				b[i] = 'c'
			}
		}},
		{"info/each-once", func(b []byte) {
			if len(b) == 14 && binary.BigEndian.Uint16(b) == infoBlockSize {
				b[1] = infoExport
			}
		}},
		{"read/data", flip(64<<10, 4711)},
		{"structured-read/flags", func(b []byte) {
			if len(b) == chunkRest {
				b[1] |= 2
			}
		}},
		{"structured-read/types", func(b []byte) {
			if len(b) == chunkRest && b[2] == 0 && b[3] == typeData {
				b[3] = 9
			}
		}},
		{"structured-read/bounds", flip(64<<10+8, 0)},
		{"structured-read/coverage", flip(64<<10+8, 5)},
		{"structured-read/error-layout", func(b []byte) {
			if len(b) > 6 && len(b) < 300 && binary.BigEndian.Uint32(b) == errInvalid {
				b[5]++
			}
		}},
		{"structured-read/error-message", func(b []byte) {
			if len(b) > 6 && len(b) < 300 && binary.BigEndian.Uint32(b) == errInvalid {
				b[7] = 0xff
			}
		}},
		{"extended/offset-echo", flip(extendedRest, 19)},
		{"block-status/layout", func(b []byte) {
			if len(b) == 4+8 && binary.BigEndian.Uint32(b) == 1 { // the context's id
				b[3]++
			}
		}},
	} {
		t.Run(tt.row, func(t *testing.T) {
			if o := outcomeOf(t, tt.row, &clean, x.f); o.verdict != Pass {
				t.Fatalf("untouched: %s: %s", o.verdict, o.detail)
			}
			broken := clean
			broken.Dial = func(ctx context.Context) (net.Conn, error) {
				nc, err := clean.Dial(ctx)
				return &tampered{nc, tt.change}, err
			}
			if o := outcomeOf(t, tt.row, &broken, x.f); o.verdict != Fail {
				t.Errorf("tampered with: %s: %s", o.verdict, o.detail)
			}
		})
	}
}

// TestRows_Liars has devices that break rules, and wants the rows to see it.
func TestRows_Liars(t *testing.T) {
	for _, tt := range []struct {
		row string
		lie func(r *nbd.Request) (nbd.Errno, bool)
	}{
		{"read/data", func(r *nbd.Request) (nbd.Errno, bool) {
			if r.Op == nbd.OpRead && r.LengthBytes > 4096 {
				clear(r.Data)
				return nbd.OK, true
			}
			return 0, false
		}},
		{"write/neighbours", func(r *nbd.Request) (nbd.Errno, bool) {
			if r.Op == nbd.OpWrite && r.LengthBytes == 1024 { // the write in the middle is lost
				return nbd.OK, true
			}
			return 0, false
		}},
		{"disc/finishes", func(r *nbd.Request) (nbd.Errno, bool) {
			return nbd.OK, r.Op == nbd.OpWrite && r.LengthBytes == 512 && r.Data[0] != pattern(0x40, 1)[0] && r.OffsetBytes >= place(2)
		}},
		{"flush/ok", func(r *nbd.Request) (nbd.Errno, bool) { return nbd.EIO, r.Op == nbd.OpFlush }},
		{"trim/ok", func(r *nbd.Request) (nbd.Errno, bool) {
			if r.Op == nbd.OpTrim {
				r.LengthBytes += 512 // and a block more
			}
			return 0, false
		}},
		{"write-zeroes/ok", func(r *nbd.Request) (nbd.Errno, bool) { return nbd.OK, r.Op == nbd.OpWriteZeroes }},
		{"write-zeroes/no-hole", func(r *nbd.Request) (nbd.Errno, bool) { return nbd.OK, r.Op == nbd.OpWriteZeroes && r.NoHole }},
		{"write-zeroes/never-enotsup-plain", func(r *nbd.Request) (nbd.Errno, bool) { return nbd.ENOTSUP, r.Op == nbd.OpWriteZeroes }},
		{"cache/ok", func() func(r *nbd.Request) (nbd.Errno, bool) {
			cached := false // and then reads are of something else
			return func(r *nbd.Request) (nbd.Errno, bool) {
				cached = cached || r.Op == nbd.OpCache
				if lie := cached && r.Op == nbd.OpRead; lie {
					clear(r.Data)
					return nbd.OK, true
				}
				return 0, false
			}
		}()},
		{"block-status/allocated-takes-writes", func(r *nbd.Request) (nbd.Errno, bool) {
			return nbd.ENOSPC, r.Op == nbd.OpWrite && r.Data[0] == pattern(0x78, 1)[0]
		}},
		{"block-status/aligned", func(r *nbd.Request) (nbd.Errno, bool) {
			if r.Op != nbd.OpBlockStatus {
				return 0, false
			}
			if r.AddExtent(511, 0) {
				r.AddExtent(r.LengthBytes, nbd.StateHole)
			}
			return nbd.OK, true
		}},
		{"structured-read/aligned", func(r *nbd.Request) (nbd.Errno, bool) {
			return nbd.OK, r.Op == nbd.OpRead && r.Sparse && r.LengthBytes > 4096 && r.AddHole(100, 1000)
		}},
		{"structured-read/one-chunk", func(r *nbd.Request) (nbd.Errno, bool) {
			return nbd.OK, r.Op == nbd.OpRead && r.Sparse && r.LengthBytes > 4096 && r.AddHole(0, 4096)
		}},
		{"multi-conn/fua", func(r *nbd.Request) (nbd.Errno, bool) { return nbd.OK, r.Op == nbd.OpWrite && r.FUA }},
		{"block-status/zero-is-zero", func(r *nbd.Request) (nbd.Errno, bool) {
			if r.Op != nbd.OpBlockStatus {
				return 0, false
			}
			r.AddExtent(r.LengthBytes, nbd.StateZero)
			return nbd.OK, true
		}},
		{"block-status/defined-bits", func(r *nbd.Request) (nbd.Errno, bool) {
			if r.Op != nbd.OpBlockStatus {
				return 0, false
			}
			r.AddExtent(r.LengthBytes, 1<<7)
			return nbd.OK, true
		}},
		{"block-status/blocks", func(r *nbd.Request) (nbd.Errno, bool) {
			if r.Op != nbd.OpBlockStatus {
				return 0, false
			}
			if r.AddExtent(511, 0) {
				r.AddExtent(r.LengthBytes, nbd.StateHole)
			}
			return nbd.OK, true
		}},
		{"structured-read/holes-are-zero", func(r *nbd.Request) (nbd.Errno, bool) {
			return nbd.OK, r.Op == nbd.OpRead && r.Sparse && r.LengthBytes > 4096 && r.AddHole(0, int(r.LengthBytes))
		}},
	} {
		t.Run(tt.row, func(t *testing.T) {
			d := nbdtest.NewMemory(minSizeBytes)
			d.Fill(pattern(1, minSizeBytes))
			if tt.row == "block-status/blocks" {
				d.Description.MinBlockBytes = 512
			}
			honest := serveDevice(t, d)
			x := &probe{ctx: t.Context(), target: &honest}
			if o := x.run(discover); o.verdict.Bad() {
				t.Fatal(o.detail)
			}
			if o := outcomeOf(t, tt.row, &honest, x.f); o.verdict != Pass {
				t.Fatalf("without the lie: %s: %s", o.verdict, o.detail)
			}
			target := serveDevice(t, &liar{d, tt.lie})
			if o := outcomeOf(t, tt.row, &target, x.f); o.verdict != Fail {
				t.Errorf("with it: %s: %s", o.verdict, o.detail)
			}
		})
	}
}

// TestRows_FastZero: ENOTSUP is right if nothing has changed, and wrong otherwise.
func TestRows_FastZero(t *testing.T) {
	for name, want := range map[string]Verdict{"unchanged": Pass, "changed": Fail} {
		t.Run(name, func(t *testing.T) {
			d := nbdtest.NewMemory(minSizeBytes)
			d.Description.CanFastZero = true
			refused := false
			target := serveDevice(t, &liar{d, func(r *nbd.Request) (nbd.Errno, bool) {
				switch {
				case r.Op == nbd.OpWriteZeroes && r.FastZero:
					refused = true
					return nbd.ENOTSUP, true
				case r.Op == nbd.OpRead && refused && want == Fail:
					clear(r.Data)
					return nbd.OK, true
				}
				return 0, false
			}})
			x := &probe{ctx: t.Context(), target: &target}
			if o := x.run(discover); o.verdict.Bad() {
				t.Fatal(o.detail)
			}
			if o := outcomeOf(t, "write-zeroes/fast-refused-unchanged", &target, x.f); o.verdict != want {
				t.Errorf("%s: %s, want %s", o.verdict, o.detail, want)
			}
		})
	}
}

// TestRows_Table checks the table itself.
func TestRows_Table(t *testing.T) {
	rows := Rows()
	seen := map[string]bool{}
	for _, r := range rows {
		if seen[r.Name] {
			t.Errorf("there are two rows %s", r.Name)
		}
		seen[r.Name] = true
		if r.cites() == "" || r.Rule == "" || r.check == nil || r.group() == r.Name {
			t.Errorf("row %s is not complete", r.Name)
		}
	}
	if len(rows) < 250 {
		t.Errorf("only %d rows", len(rows))
	}
}

// TestDocument: the rows that docs/protocol-support.md names exist.
func TestDocument(t *testing.T) {
	text, err := os.ReadFile("../../docs/protocol-support.md")
	if err != nil {
		t.Fatal(err)
	}
	document, _, _ := strings.Cut(string(text), "<!-- results begin")
	names, groups := map[string]bool{}, map[string]bool{}
	for _, r := range Rows() {
		names[r.Name], groups[r.group()+"/"] = true, true
	}
	found := 0
	for _, m := range regexp.MustCompile("`([a-z-]+/[A-Za-z0-9.-]*)`").FindAllStringSubmatch(document, -1) {
		switch {
		case m[1] == "group/" || m[1] == "group/rule":
		case strings.HasPrefix(m[1], "nbd/"), strings.HasPrefix(m[1], "doc/"), strings.HasPrefix(m[1], "internal/"): // folders
		case !names[m[1]] && !groups[m[1]]:
			t.Errorf("docs/protocol-support.md names a row %s that there is not", m[1])
		default:
			found++
		}
	}
	if found < 50 {
		t.Errorf("docs/protocol-support.md names only %d rows", found)
	}
}
