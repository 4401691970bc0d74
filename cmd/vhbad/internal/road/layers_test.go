package road

import (
	"fmt"
	"sync"

	"github.com/vhbad/vhbad/hba"
	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/internal/pci"
	"github.com/vhbad/vhbad/miniport"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/port"
)

// A recorder collects what the layers do while it is on.
type recorder struct {
	mu    sync.Mutex
	on    bool
	lines []string
	tags  map[uint32]int // SRB tags in order of appearance
}

func (r *recorder) addf(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.on {
		r.lines = append(r.lines, fmt.Sprintf(format, args...))
	}
}

// srb numbers SRBs from 1 in the order in which a transcript shows them.
func (r *recorder) srb(tag uint32) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tags == nil {
		r.tags = map[uint32]int{}
	}
	if r.on && r.tags[tag] == 0 {
		r.tags[tag] = len(r.tags) + 1
	}
	return fmt.Sprintf("SRB %d", r.tags[tag])
}

// start forgets what was and records.
func (r *recorder) start() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.on, r.lines, r.tags = true, nil, nil
}

func (r *recorder) stop() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.on = false
	return r.lines
}

// tracedDevice shows what crosses the border between nbd and port/disk.
type tracedDevice struct {
	nbd.Device
	r *recorder
}

func (d *tracedDevice) Open(c *nbd.Conn) (nbd.Session, error) {
	s, err := d.Device.Open(c)
	return &tracedSession{s, d.r}, err
}

type tracedSession struct {
	nbd.Session
	r *recorder
}

var opNames = [nbd.OpCount]string{"read", "write", "flush", "trim", "write zeroes", "cache", "block status"}

func (s *tracedSession) Submit(batch []*nbd.Request) {
	for _, q := range batch {
		flags := ""
		if q.FUA {
			flags += " FUA"
		}
		if q.NoHole {
			flags += " NO_HOLE"
		}
		s.r.addf("nbd:      submit slot %d: %s %d bytes at %d%s", q.Slot, opNames[q.Op], q.LengthBytes, q.OffsetBytes, flags)
	}
	s.Session.Submit(batch)
}

// tracedDriver shows what crosses the border between port and miniport.
type tracedDriver struct {
	*miniport.Driver
	r      *recorder
	events uint16 // the message for what is no completion
}

func (d *tracedDriver) BuildIo(p *port.Processor, srb *port.SRB) bool {
	n := d.r.srb(srb.Tag)
	d.r.addf("port:     BuildIo %s at %s: cdb % x, %d bytes in %d segments", n, p.Level(), srb.CDB[:srb.CDBBytes], srb.DataTransferBytes, len(srb.SGL))
	ok := d.Driver.BuildIo(p, srb)
	if !ok {
		d.r.addf("miniport: BuildIo %s: %s", n, srb.Status)
	}
	return ok
}

func (d *tracedDriver) StartIo(p *port.Processor, srb *port.SRB) bool {
	n := d.r.srb(srb.Tag)
	d.r.addf("port:     StartIo %s at %s", n, p.Level())
	ok := d.Driver.StartIo(p, srb)
	if !ok {
		d.r.addf("miniport: StartIo %s refused", n)
	}
	if srb.Status.Code() == port.StatusBusy {
		d.r.addf("miniport: StartIo %s: %s, scsi status %s", n, srb.Status, srb.ScsiStatus)
	}
	return ok
}

func (d *tracedDriver) CommitIo(p *port.Processor, channel int) {
	d.r.addf("port:     CommitIo channel %d at %s", channel, p.Level())
	d.Driver.CommitIo(p, channel)
}

func (d *tracedDriver) MessageInterrupt(p *port.Processor, t port.SyncToken, message uint16) bool {
	if message == d.events {
		// It tells of the unit that was added, whenever the device comes to it:
		// it is on no SRB's way.
		return d.Driver.MessageInterrupt(p, t, message)
	}
	d.r.addf("port:     MessageInterrupt %d at %s", message, p.Level())
	return d.Driver.MessageInterrupt(p, t, message)
}

// tracedFunction shows what crosses the bus: doorbells and interrupts.
type tracedFunction struct {
	pci.Function
	r      *recorder
	events uint16
}

func (f *tracedFunction) BAR(n int) pci.Registers {
	b := f.Function.BAR(n)
	if b == nil {
		return nil
	}
	return &tracedRegisters{b, f.r}
}

func (f *tracedFunction) ConnectInterrupt(mode pci.InterruptMode, raise pci.InterruptFunc, newRunner func(string) pci.Runner) error {
	return f.Function.ConnectInterrupt(mode, func(r pci.Runner, m pci.Message) {
		if m != pci.Message(f.events) { // as above
			f.r.addf("hba:      raise message %d", m)
		}
		raise(r, m)
	}, newRunner)
}

type tracedRegisters struct {
	pci.Registers
	r *recorder
}

func (g *tracedRegisters) Write32(r pci.Runner, offset, value uint32) {
	if offset >= hba.RegDoorbells {
		q, what := (offset-hba.RegDoorbells)/hba.DoorbellStride, "submission tail"
		if offset%hba.DoorbellStride != 0 {
			what = "completion head"
		}
		g.r.addf("miniport: doorbell of queue pair %d: %s", q, what)
	}
	g.Registers.Write32(r, offset, value)
}

// tracedMedium shows what reaches the medium, and fails on demand.
type tracedMedium struct {
	*media.Memory
	r *recorder

	mu       sync.Mutex
	failures int // how many reads fail yet
}

// Supports implements media.Supporter: nothing is read that ReadAt does not see.
func (*tracedMedium) Supports(a media.Ability) bool { return a != media.AbilityRefer }

func (m *tracedMedium) fail() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failures == 0 {
		return false
	}
	m.failures--
	return true
}

func (m *tracedMedium) ReadAt(p []byte, off int64) (int, error) {
	if m.fail() {
		m.r.addf("media:    read %d bytes at %d fails", len(p), off)
		return 0, &media.Error{Op: "read", Name: "test", OffsetBytes: off, LengthBytes: int64(len(p)), Kind: media.ErrMedium}
	}
	m.r.addf("media:    read %d bytes at %d", len(p), off)
	return m.Memory.ReadAt(p, off)
}

func (m *tracedMedium) TryReadAt(p []byte, off int64) (bool, error) {
	_, err := m.ReadAt(p, off)
	return true, err
}

func (m *tracedMedium) WriteAt(p []byte, off int64) (int, error) {
	m.r.addf("media:    write %d bytes at %d", len(p), off)
	return m.Memory.WriteAt(p, off)
}

func (m *tracedMedium) TryWriteAt(p []byte, off int64) (bool, error) {
	_, err := m.WriteAt(p, off)
	return true, err
}

func (m *tracedMedium) Flush() error {
	m.r.addf("media:    flush")
	return m.Memory.Flush()
}

func (m *tracedMedium) Discard(off, n int64) error {
	m.r.addf("media:    discard %d bytes at %d", n, off)
	return m.Memory.Discard(off, n)
}

func (m *tracedMedium) Zero(off, n int64, allocate bool) error {
	m.r.addf("media:    zero %d bytes at %d, allocate %v", n, off, allocate)
	return m.Memory.Zero(off, n, allocate)
}
