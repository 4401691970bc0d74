package nbd_test

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// Option types.
const (
	exportName    = 1
	abort         = 2
	list          = 3
	startTLS      = 5
	info          = 6
	goTo          = 7
	structured    = 8
	listContexts  = 9
	setContexts   = 10
	extended      = 11
	unknownOption = 4711
)

// A haggler is a client in the option phase.
type haggler struct {
	t  *testing.T
	nc net.Conn
}

// haggle connects to s and exchanges the first flags.
func (s *testServer) haggle(t *testing.T, network string) *haggler {
	t.Helper()
	h := &haggler{t: t, nc: s.dial(network)}
	expect(t, h.nc, hello)
	h.write(hx(fixedNoZer))
	return h
}

func (h *haggler) write(b []byte) {
	h.t.Helper()
	if _, err := h.nc.Write(b); err != nil {
		h.t.Fatal(err)
	}
}

// option returns an option as it goes over the wire.
func option(id uint32, data []byte) []byte {
	b := hx(opt)
	b = binary.BigEndian.AppendUint32(b, id)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// ask sends an option and returns all replies in words: see replyInWords.
func (h *haggler) ask(id uint32, data []byte) string {
	h.t.Helper()
	h.write(option(id, data))
	var words []string
	for {
		typ, data := readReply(h.t, h.nc, id)
		words = append(words, replyInWords(h.t, typ, data))
		if typ < 2 || typ >= 1<<31 {
			return strings.Join(words, "; ")
		}
	}
}

// want is ask with an expectation.
func (h *haggler) want(id uint32, data []byte, want string) {
	h.t.Helper()
	if got := h.ask(id, data); got != want {
		h.t.Errorf("option %d % x:\n got %s\nwant %s", id, data, got, want)
	}
}

// ended checks that the server hangs up.
func (h *haggler) ended() {
	h.t.Helper()
	expectEnd(h.t, h.nc)
}

// replyInWords writes an option reply down. Errors must come with a message for
// people, which is left out.
func replyInWords(t *testing.T, typ uint32, data []byte) string {
	t.Helper()
	switch typ {
	case 1:
		if len(data) != 0 {
			t.Errorf("ACK with data % x", data)
		}
		return "ACK"
	case 2:
		n := 4 + be32(data)
		return fmt.Sprintf("SERVER %s (%s)", data[4:n], data[n:])
	case 3:
		switch kind := binary.BigEndian.Uint16(data); {
		case kind == 0 && len(data) == 12:
			return fmt.Sprintf("EXPORT %d %#x", binary.BigEndian.Uint64(data[2:]), binary.BigEndian.Uint16(data[10:]))
		case kind == 1:
			return fmt.Sprintf("NAME %s", data[2:])
		case kind == 2:
			return fmt.Sprintf("DESCRIPTION %s", data[2:])
		case kind == 3 && len(data) == 14:
			return fmt.Sprintf("BLOCK_SIZE %d %d %d", be32(data[2:]), be32(data[6:]), be32(data[10:]))
		}
		return fmt.Sprintf("INFO % x", data)
	case 4:
		return fmt.Sprintf("META %d %s", be32(data), data[4:])
	}
	names := map[uint32]string{
		1: "ERR_UNSUP", 2: "ERR_POLICY", 3: "ERR_INVALID", 5: "ERR_TLS_REQD", 6: "ERR_UNKNOWN", 7: "ERR_SHUTDOWN",
		8: "ERR_BLOCK_SIZE_REQD", 9: "ERR_TOO_BIG", 10: "ERR_EXT_HEADER_REQD",
	}
	name, ok := names[typ-1<<31]
	if !ok {
		return fmt.Sprintf("reply type %#x", typ)
	}
	if len(data) == 0 || len(data) > 4096 {
		t.Errorf("%s with a message of %d bytes", name, len(data))
	}
	return name
}

// infoData is the data of INFO and GO.
func infoData(name string, kinds ...uint16) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(name)))
	b = append(b, name...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(kinds)))
	for _, k := range kinds {
		b = binary.BigEndian.AppendUint16(b, k)
	}
	return b
}

// contextData is the data of LIST_META_CONTEXT and SET_META_CONTEXT.
func contextData(name string, queries ...string) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(name)))
	b = append(b, name...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(queries)))
	for _, q := range queries {
		b = binary.BigEndian.AppendUint32(b, uint32(len(q)))
		b = append(b, q...)
	}
	return b
}

// chunkType sends a BLOCK_STATUS on a connection with structured replies and
// returns the type of the chunk that comes back.
func (h *haggler) chunkType() uint16 {
	h.t.Helper()
	h.write(nbdtest.Command{Type: nbdtest.CmdBlockStatus, Cookie: 7, Length: 512}.Append(nil))
	header := make([]byte, 20)
	if _, err := io.ReadFull(h.nc, header); err != nil {
		h.t.Fatal(err)
	}
	if be32(header) != 0x668e33ef {
		h.t.Fatalf("no structured reply: % x", header)
	}
	if _, err := io.CopyN(io.Discard, h.nc, int64(be32(header[16:]))); err != nil {
		h.t.Fatal(err)
	}
	return binary.BigEndian.Uint16(header[6:])
}

// failed checks that exactly one connection failed to negotiate, for reason.
func (s *testServer) failed(t *testing.T, reason nbd.NegotiationFailure) {
	t.Helper()
	st := s.waitStats("end", func(st nbd.Stats) bool { return st.ConnectionsOpen == 0 })
	for i, n := range st.NegotiationFailures {
		if want := uint64(b2i(nbd.NegotiationFailure(i) == reason)); n != want {
			t.Errorf("failures with reason %v: got %d, want %d", nbd.NegotiationFailure(i), n, want)
		}
	}
}
