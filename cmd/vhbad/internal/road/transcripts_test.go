package road

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/internal/pci"
	"github.com/vhbad/vhbad/miniport"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/port"
)

// A traced is a road whose borders are watched, and one connection on it.
type traced struct {
	*road
	r      *recorder
	medium *tracedMedium
	conn   net.Conn
	cookie uint64
}

func newTraced(t *testing.T, queues, ringEntries int, strict bool) *traced {
	t.Helper()
	w := &traced{r: &recorder{}}
	w.road = newRoad(t, shape{
		queues: queues, ringEntries: ringEntries, strict: strict, sizeBytes: 1 << 20,
		medium: func(m *media.Memory) media.Media {
			w.medium = &tracedMedium{Memory: m, r: w.r}
			return w.medium
		},
		function: func(f pci.Function) pci.Function { return &tracedFunction{f, w.r, uint16(queues)} },
		miniport: func(d *miniport.Driver) port.Miniport { return &tracedDriver{d, w.r, uint16(queues)} },
		device:   func(d nbd.Device) nbd.Device { return &tracedDevice{d, w.r} },
	})
	w.conn = w.dial()
	w.negotiate()
	return w
}

func (w *traced) read(n int) []byte {
	w.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(w.conn, b); err != nil {
		w.t.Fatal(err)
	}
	return b
}

func (w *traced) write(b []byte) {
	w.t.Helper()
	if _, err := w.conn.Write(b); err != nil {
		w.t.Fatal(err)
	}
}

// negotiate asks for the default export with NBD_OPT_EXPORT_NAME.
func (w *traced) negotiate() {
	w.read(18)
	w.write([]byte("\x00\x00\x00\x03IHAVEOPT\x00\x00\x00\x01\x00\x00\x00\x00"))
	w.read(10)
}

// A command of the wire.
type command struct {
	flags, kind    uint16
	offset, length int
}

// send sends commands in one write and waits for every reply.
func (w *traced) send(commands []command) {
	w.t.Helper()
	var msg []byte
	asked := map[uint64]command{}
	for _, c := range commands {
		w.cookie++
		asked[w.cookie] = c
		be := binary.BigEndian
		msg = be.AppendUint32(msg, 0x25609513)
		msg = be.AppendUint16(msg, c.flags)
		msg = be.AppendUint16(msg, c.kind)
		msg = be.AppendUint64(msg, w.cookie)
		msg = be.AppendUint64(msg, uint64(c.offset))
		msg = be.AppendUint32(msg, uint32(c.length))
		if c.kind == 1 {
			msg = append(msg, make([]byte, c.length)...)
		}
	}
	w.write(msg)
	for range commands {
		head := w.read(16)
		errno := nbd.Errno(binary.BigEndian.Uint32(head[4:]))
		c, ok := asked[binary.BigEndian.Uint64(head[8:])]
		if !ok {
			w.t.Fatalf("reply % x to nothing that was asked", head)
		}
		data := ""
		if c.kind == 0 && errno == nbd.OK {
			data = fmt.Sprintf(" and %d bytes", len(w.read(c.length)))
		}
		w.r.addf("nbd:      reply %s%s", errno, data)
	}
}

// scan reads an argument if it is there.
func scan(t *testing.T, d *datadriven.TestData, key string, value *int) {
	t.Helper()
	if d.HasArg(key) {
		d.ScanArgs(t, key, value)
	}
}

var kinds = map[string]uint16{"read": 0, "write": 1, "flush": 3, "trim": 4, "cache": 5, "zero": 6}

func TestTranscripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		var w *traced
		whole := t // a machine lives as long as its file
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			if d.Cmd == "machine" {
				queues, ring := 1, 64
				scan(t, d, "queues", &queues)
				scan(t, d, "ring", &ring)
				w = newTraced(whole, queues, ring, d.HasArg("strict"))
				return ""
			}
			if d.Cmd == "fail" {
				d.ScanArgs(t, "reads", &w.medium.failures)
				return ""
			}
			kind, ok := kinds[d.Cmd]
			if !ok {
				t.Fatalf("%s: unknown command %q", d.Pos, d.Cmd)
			}
			c := command{kind: kind}
			count := 1
			scan(t, d, "offset", &c.offset)
			scan(t, d, "length", &c.length)
			scan(t, d, "count", &count)
			if d.HasArg("fua") {
				c.flags |= 1
			}
			if d.HasArg("no-hole") {
				c.flags |= 2
			}
			var all []command
			for range count {
				all = append(all, c)
				c.offset += c.length
			}
			w.r.start()
			w.send(all)
			return strings.Join(w.r.stop(), "\n") + "\n"
		})
	})
}
