package target_test

import (
	"bytes"
	"testing"

	"github.com/vhbad/vhbad/hba/cache"
	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/hba/target"
	"github.com/vhbad/vhbad/internal/scsi"
)

var notPowered = scsi.Sense{Key: scsi.KeyNotReady, Additional: scsi.NotReadyCauseNotReportable}

func TestUnit_Power(t *testing.T) {
	u, _ := newMemoryUnit(t, 1<<20, target.Config{WriteCache: true})
	wantGood(t, u, func(c *[16]byte) int { return scsi.PutStartStopUnit(c, false, false) }, target.NoData)
	u.PowerOff()
	buf := make([]byte, 512)
	for _, p := range []put{
		scsi.PutTestUnitReady, read16(0, 1), func(c *[16]byte) int { return scsi.PutInquiry(c, 36) },
		func(c *[16]byte) int { return scsi.PutRequestSense(c, false, 64) },
	} {
		wantSense(t, run(t, u, p, target.DataIn, buf), notPowered)
	}
	wantGood(t, u, func(c *[16]byte) int { return scsi.PutReportLUNs(c, 512) }, target.DataIn, buf)
	u.PowerOn()
	wantGood(t, u, func(c *[16]byte) int { return scsi.PutInquiry(c, 36) }, target.DataIn, buf)
	wantSense(t, run(t, u, read16(0, 1), target.DataIn, buf),
		scsi.Sense{Key: scsi.KeyUnitAttention, Additional: scsi.PowerOnOccurred})
	wantGood(t, u, read16(0, 1), target.DataIn, buf) // it runs again, too
}

// powered cuts the power in the middle of a flush, which then works.
type powered struct {
	*fakeMedium
	u *target.Unit
}

func (p *powered) Flush() error {
	p.u.PowerOff()
	p.u.PowerOn()
	return nil
}

func TestUnit_PowerGoesDuringAFlush(t *testing.T) {
	_, fake := newFakeUnit(t, 1<<20, target.Config{WriteCache: true}, 0)
	m := &powered{fakeMedium: fake}
	u := newUnit(t, m, target.Config{WriteCache: true})
	m.u = u
	sync := func(c *[16]byte) int { return scsi.PutSynchronizeCache16(c, 0, 0, false) }
	task := newTask(sync, target.NoData)
	if !u.Execute(task, true) {
		t.Fatal("not done")
	}
	wantSense(t, task, notPowered)
}

// TestUnit_PowerGoesDuringAChange: what the power goes in the middle of does not outlive
// it: WCE has its default value again, and a unit that was to be stopped runs.
func TestUnit_PowerGoesDuringAChange(t *testing.T) {
	_, fake := newFakeUnit(t, 1<<20, target.Config{WriteCache: true}, 0)
	m := &powered{fakeMedium: fake}
	u := newUnit(t, m, target.Config{WriteCache: true})
	m.u = u
	list := make([]byte, 24)
	list[4], list[5] = 0x08, 0x12 // the caching page, with WCE clear
	wantSense(t, run(t, u, func(c *[16]byte) int { return scsi.PutModeSelect6(c, 24) }, target.DataOut, list), notPowered)
	if !u.WriteCache() {
		t.Error("WCE is clear after the power has come back")
	}
	powerOn := scsi.Sense{Key: scsi.KeyUnitAttention, Additional: scsi.PowerOnOccurred}
	wantSense(t, run(t, u, read16(0, 1), target.DataIn, make([]byte, 512)), powerOn)
	wantSense(t, run(t, u, func(c *[16]byte) int { return scsi.PutStartStopUnit(c, false, true) }, target.NoData), notPowered)
	wantSense(t, run(t, u, read16(0, 1), target.DataIn, make([]byte, 512)), powerOn)
	wantGood(t, u, read16(0, 1), target.DataIn, make([]byte, 512))
}

// midway does something in the middle of a write that does not wait.
type midway struct {
	*fakeMedium
	do func()
}

func (m *midway) TryWriteAt(p []byte, off int64) (bool, error) {
	m.do()
	return m.fakeMedium.TryWriteAt(p, off)
}

// TestUnit_PowerGoesDuringAnInlineWrite: nor is a write answered that the engine
// runs itself.
func TestUnit_PowerGoesDuringAnInlineWrite(t *testing.T) {
	_, fake := newFakeUnit(t, 1<<20, target.Config{WriteCache: true}, 0)
	fake.ready = 1
	m := &midway{fakeMedium: fake}
	u := newUnit(t, m, target.Config{WriteCache: true})
	m.do = func() {
		u.PowerOff()
		u.PowerOn()
	}
	task := newTask(write16(0, 1), target.DataOut, filled(512, 1))
	if !u.Execute(task, false) {
		t.Fatal("not done")
	}
	wantSense(t, task, notPowered)
}

// TestModeSelect_DuringAWrite: a write that was under way when WCE was cleared is
// durable when it is done, whatever MODE SELECT's own flush has covered.
func TestModeSelect_DuringAWrite(t *testing.T) {
	_, fake := newFakeUnit(t, 1<<20, target.Config{WriteCache: true}, 0)
	fake.ready = 1
	m := &midway{fakeMedium: fake}
	u := newUnit(t, m, target.Config{WriteCache: true})
	m.do = func() {
		list := make([]byte, 24)
		list[4], list[5] = 0x08, 0x12
		wantGood(t, u, func(c *[16]byte) int { return scsi.PutModeSelect6(c, 24) }, target.DataOut, list)
	}
	task := newTask(write16(0, 1), target.DataOut, filled(512, 1))
	if u.Execute(task, false) {
		t.Fatal("done without a flush")
	}
	flushes := fake.count("flush")
	if !u.Execute(task, true) || task.Status != scsi.StatusGood {
		t.Fatalf("%v", task)
	}
	if fake.count("flush") == flushes && fake.count("fua") == 0 {
		t.Error("the write was not made durable")
	}
}

// TestUnit_PowerLostBelow: a medium whose power was cut is no medium error.
func TestUnit_PowerLostBelow(t *testing.T) {
	u, fake := newFakeUnit(t, 1<<20, target.Config{WriteCache: true}, 0)
	lost := &media.Error{Op: "write", Kind: media.ErrPowerLost}
	fake.setFail("write", lost)
	wantSense(t, run(t, u, write16(0, 1), target.DataOut, make([]byte, 512)), notPowered)
	fake.setFail("flush", lost)
	sync := func(c *[16]byte) int { return scsi.PutSynchronizeCache16(c, 0, 0, false) }
	wantSense(t, run(t, u, sync, target.NoData), notPowered)
}

// modes reads the caching page's WCE.
func modes(t *testing.T, u executor, control scsi.PageControl) bool {
	t.Helper()
	b := make([]byte, 64)
	p := func(c *[16]byte) int {
		n := scsi.PutModeSense6(c, scsi.ModePageCaching, true, 64)
		c[2] |= uint8(control) << 6
		return n
	}
	task := wantGood(t, u, p, target.DataIn, b)
	m, ok := scsi.ParseModeSense6Data(b[:task.TransferredBytes])
	if !ok || !m.CachingPage {
		t.Fatalf("mode data % x", b[:task.TransferredBytes])
	}
	return m.WriteCache
}

// TestModeSelect_WCE: the write cache can be switched off and on, and off means
// that writes are durable when they are done.
func TestModeSelect_WCE(t *testing.T) {
	under, err := media.NewMemory(media.MemoryConfig{SizeBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	m, err := cache.New(under, cache.Config{})
	if err != nil {
		t.Fatal(err)
	}
	u := newUnit(t, m, target.Config{WriteCache: true})
	durable := func(lba int64) byte {
		t.Helper()
		p := make([]byte, 1)
		if _, err := under.ReadAt(p, lba*512); err != nil {
			t.Fatal(err)
		}
		return p[0]
	}
	page := func(wce byte) []byte {
		list := make([]byte, 24)
		list[4], list[5], list[6] = 0x08, 0x12, wce
		return list
	}
	select6 := func(c *[16]byte) int { return scsi.PutModeSelect6(c, 24) }
	if !modes(t, u, scsi.PageControlCurrent) || !modes(t, u, scsi.PageControlDefault) || !modes(t, u, scsi.PageControlChangeable) {
		t.Error("WCE is not set, or cannot be changed")
	}
	wantGood(t, u, write16(0, 1), target.DataOut, filled(512, 1))
	if durable(0) != 0 {
		t.Error("a write is durable with WCE set")
	}
	wantGood(t, u, select6, target.DataOut, page(0))
	if durable(0) != 1 {
		t.Error("clearing WCE left something in the cache")
	}
	if modes(t, u, scsi.PageControlCurrent) || !modes(t, u, scsi.PageControlDefault) || u.WriteCache() {
		t.Error("WCE is set after it was cleared, or its default has changed")
	}
	wantGood(t, u, write16(1, 1), target.DataOut, filled(512, 2))
	if durable(1) != 2 {
		t.Error("a write is not durable with WCE clear")
	}
	select10 := func(c *[16]byte) int { return scsi.PutModeSelect10(c, 28) }
	wantGood(t, u, select10, target.DataOut, append(make([]byte, 4), page(4)...))
	if !modes(t, u, scsi.PageControlCurrent) {
		t.Error("WCE is clear after it was set")
	}
	wantGood(t, u, select6, target.DataOut, page(0))
	u.PowerOff()
	u.PowerOn()
	run(t, u, scsi.PutTestUnitReady, target.NoData)
	if !modes(t, u, scsi.PageControlCurrent) {
		t.Error("WCE is not at its default after a power cut")
	}
}

// TestModeSelect_NoCache: a unit without a cache says so, and does not let hosts have
// one. Flushes are as good as ever.
func TestModeSelect_NoCache(t *testing.T) {
	u, _ := newMemoryUnit(t, 1<<20, target.Config{WriteCache: true, NoCache: true})
	for _, control := range []scsi.PageControl{scsi.PageControlCurrent, scsi.PageControlDefault, scsi.PageControlChangeable} {
		if modes(t, u, control) {
			t.Errorf("WCE is set in values of kind %d", control)
		}
	}
	for _, wce := range []byte{0, 4} {
		list := make([]byte, 24)
		list[4], list[5], list[6] = 0x08, 0x12, wce
		task := run(t, u, func(c *[16]byte) int { return scsi.PutModeSelect6(c, 24) }, target.DataOut, list)
		if good := task.Status == scsi.StatusGood; good != (wce == 0) {
			t.Errorf("MODE SELECT with WCE %d: %v", wce, task.Status)
		}
	}
	u.PowerOff()
	u.PowerOn()
	run(t, u, scsi.PutTestUnitReady, target.NoData)
	if u.WriteCache() {
		t.Error("WCE is set after the power was off")
	}
	wantGood(t, u, func(c *[16]byte) int { return scsi.PutSynchronizeCache16(c, 0, 0, false) }, target.NoData, nil)
}

func TestModeSelect_Refused(t *testing.T) {
	u, fake := newFakeUnit(t, 1<<20, target.Config{WriteCache: true}, 0)
	listField := func(n uint16) scsi.Sense {
		return scsi.Sense{Key: scsi.KeyIllegalRequest, Additional: scsi.InvalidFieldInParameterList, FieldValid: true, Field: n}
	}
	caching := []byte{0, 0, 0, 0, 0x08, 0x12, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	with := func(at int, b byte) []byte {
		list := append([]byte(nil), caching...)
		list[at] = b
		return list
	}
	for _, tt := range []struct {
		name string
		cdb  []byte
		list []byte
		want scsi.Sense
	}{
		{"save pages", []byte{0x15, 0x11, 0, 0, 24, 0}, caching, field(1)},
		{"no page format", []byte{0x15, 0, 0, 0, 24, 0}, caching, field(1)},
		{"half a header", []byte{0x15, 0x10, 0, 0, 3, 0}, caching[:3], illegal(scsi.ParameterListLengthError)},
		{"half a page", []byte{0x15, 0x10, 0, 0, 20, 0}, caching[:20], illegal(scsi.ParameterListLengthError)},
		{"too long", []byte{0x55, 0x10, 0, 0, 0, 0, 0, 1, 0, 0}, make([]byte, 256), illegal(scsi.ParameterListLengthError)},
		{"RCD", []byte{0x15, 0x10, 0, 0, 24, 0}, with(6, 5), listField(6)},
		{"prefetch", []byte{0x15, 0x10, 0, 0, 24, 0}, with(9, 1), listField(9)},
		{"page length", []byte{0x15, 0x10, 0, 0, 24, 0}, with(5, 0x0a), listField(5)},
		{"other page", []byte{0x15, 0x10, 0, 0, 24, 0}, with(4, 0x1c), listField(4)},
		{"descriptor length", []byte{0x15, 0x10, 0, 0, 24, 0}, with(3, 4), listField(3)},
		{"block length", []byte{0x15, 0x10, 0, 0, 12, 0}, []byte{0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0x10, 0}, listField(9)},
		{"blocks", []byte{0x15, 0x10, 0, 0, 12, 0}, []byte{0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 2, 0}, listField(4)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			wantSense(t, run(t, u, raw(tt.cdb...), target.DataOut, tt.list), tt.want)
		})
	}
	wantGood(t, u, raw(0x15, 0x10, 0, 0, 0, 0), target.NoData)
	wantGood(t, u, raw(0x15, 0x10, 0, 0, 12, 0), target.DataOut, []byte{0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 2, 0}) // the block length as it is
	fake.setFail("flush", media.ErrMedium)
	wantSense(t, run(t, u, raw(0x15, 0x10, 0, 0, 24, 0), target.DataOut, with(6, 0)),
		scsi.Sense{Key: scsi.KeyMediumError, Additional: scsi.WriteError})
	if !u.WriteCache() {
		t.Error("WCE was cleared although the flush failed")
	}
}

// TestWrite_IsOneWrite: the buffers that a command comes in do not show in the
// write cache, even if they end inside of a sector.
func TestWrite_IsOneWrite(t *testing.T) {
	for _, mayBlock := range []bool{false, true} {
		for _, fua := range []bool{false, mayBlock} { // what is durable may have to wait
			m, err := media.NewMemory(media.MemoryConfig{SizeBytes: 1 << 20})
			if err != nil {
				t.Fatal(err)
			}
			c, err := cache.New(m, cache.Config{})
			if err != nil {
				t.Fatal(err)
			}
			u := newUnit(t, c, target.Config{WriteCache: true})
			data := filled(4096, 7)
			task := newTask(func(b *[16]byte) int { return scsi.PutWrite16(b, 8, 8, fua, false) }, target.DataOut,
				data[:100], data[100:2048], data[2048:], filled(99, 1))
			if !u.Execute(task, mayBlock) || task.Status != scsi.StatusGood || task.TransferredBytes != 4096 {
				t.Fatal(task)
			}
			if fua {
				if p := c.Stats().PendingBytes; p != 0 || c.Stats().Flushes != 0 {
					t.Errorf("with FUA %d bytes are pending, or others were flushed", p)
				}
			} else if s := c.Stats(); s.PendingWrites != 1 || s.PendingBytes != 4096 {
				t.Errorf("%d writes of %d bytes are pending, want one", s.PendingWrites, s.PendingBytes)
			}
			if got := mustRead(t, u, 7, 10); !bytes.Equal(got[512:4608], data) || got[0] != 0 || got[4608] != 0 {
				t.Error("what was written was not read")
			}
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}
