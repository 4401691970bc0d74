package transcript

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"github.com/vhbad/vhbad/hba"
	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/hba/target"
	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/miniport"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/port"
	"github.com/vhbad/vhbad/port/disk"
)

// A road is the whole stack with one queue pair and one connection.
type road struct {
	t      *testing.T
	r      *recorder
	medium *tracedMedium
	system *port.System
	conn   net.Conn
	cookie uint64
}

const diskBytes = 1 << 20

func newRoad(t *testing.T, queues, ringEntries int, strict bool) *road {
	t.Helper()
	w := &road{t: t, r: &recorder{}}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	memory, err := media.NewMemory(media.MemoryConfig{SizeBytes: diskBytes})
	must(err)
	w.medium = &tracedMedium{Memory: memory, r: w.r}
	arena, err := dma.NewArena(256 << 20)
	must(err)
	iommu := dma.NewIOMMU(arena)
	device, err := hba.New(hba.Config{QueuePairs: queues, Workers: 1, IOMMU: iommu})
	must(err)
	unit, err := target.NewUnit(w.medium, target.Config{Serial: "disk0", BlockBytes: 512, WriteCache: true})
	must(err)
	must(device.AddUnit(0, 0, unit))
	w.system = port.NewSystem(port.SystemConfig{IOMMU: iommu, Verify: true})
	p, err := w.system.NewProcessor("start")
	must(err)
	driver := &tracedDriver{miniport.New(miniport.Options{Queues: queues, RingEntries: ringEntries}), w.r}
	adapter, err := w.system.AddAdapter(p, &tracedFunction{device, w.r}, driver, port.AdapterOptions{StrictSegments: strict})
	must(err)
	must(adapter.Enumerate(p))
	d, err := disk.Attach(p, adapter.LogicalUnits()[0], disk.Options{Arena: arena})
	must(err)
	exports, err := nbd.NewExportSet(nbd.Export{Name: "disk0", Device: &tracedDevice{d, w.r}})
	must(err)
	server := &nbd.Server{Exports: exports, Arena: arena}
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "nbd"))
	must(err)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	w.conn, err = net.Dial("unix", l.Addr().String())
	must(err)
	w.negotiate()
	t.Cleanup(func() {
		_ = w.conn.Close()
		if err := server.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		if err := <-served; !errors.Is(err, nbd.ErrServerClosed) {
			t.Error(err)
		}
		adapter.Remove(p)
		p.Close()
		device.Close()
		if err := memory.Close(); err != nil {
			t.Error(err)
		}
		for _, v := range w.system.Verifier().Violations() {
			t.Errorf("violation: %s", v)
		}
		if n := iommu.WindowsInUse(); n != 0 {
			t.Errorf("%d IOMMU windows left", n)
		}
		if err := arena.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *road) read(n int) []byte {
	w.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(w.conn, b); err != nil {
		w.t.Fatal(err)
	}
	return b
}

func (w *road) write(b []byte) {
	w.t.Helper()
	if _, err := w.conn.Write(b); err != nil {
		w.t.Fatal(err)
	}
}

// negotiate asks for the default export with NBD_OPT_EXPORT_NAME.
func (w *road) negotiate() {
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
func (w *road) send(commands []command) {
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
	datadriven.Walk(t, "testdata", func(outer *testing.T, path string) {
		var w *road
		datadriven.RunTest(outer, path, func(t *testing.T, d *datadriven.TestData) string {
			if d.Cmd == "machine" {
				queues, ring := 1, 64
				scan(t, d, "queues", &queues)
				scan(t, d, "ring", &ring)
				w = newRoad(outer, queues, ring, d.HasArg("strict"))
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
