package target_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/hba/target"
	"github.com/vhbad/vhbad/internal/scsi"
)

func TestNewUnit_Refused(t *testing.T) {
	for _, tt := range []struct {
		name      string
		sizeBytes int64
		config    target.Config
		want      string
	}{
		{"no serial", 1 << 20, target.Config{}, "serial number"},
		{"long serial", 1 << 20, target.Config{Serial: strings.Repeat("x", 33)}, "1 to 32"},
		{"long product", 1 << 20, target.Config{Serial: "1", Product: strings.Repeat("x", 17)}, "1 to 16"},
		{"binary vendor", 1 << 20, target.Config{Serial: "1", Vendor: "a\n"}, "printable"},
		{"block length", 1 << 20, target.Config{Serial: "1", BlockBytes: 1024}, "512 or 4096"},
		{"physical block length", 1 << 20, target.Config{Serial: "1", PhysicalBlockBytes: 1536}, "power of two"},
		{"smaller physical block", 1 << 20, target.Config{Serial: "1", BlockBytes: 4096, PhysicalBlockBytes: 512}, "power of two"},
		{"odd size", 1<<20 + 512, target.Config{Serial: "1", BlockBytes: 4096}, "multiple of the block length"},
		{"less than a block", 100, target.Config{Serial: "1"}, "multiple of the block length"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, err := media.NewMemory(media.MemoryConfig{SizeBytes: tt.sizeBytes})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := target.NewUnit(m, tt.config); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one about %q", err, tt.want)
			}
		})
	}
}

func TestExecute_UnknownCommands(t *testing.T) {
	u, _ := newMemoryUnit(t, 1<<20, target.Config{})
	for _, op := range []byte{0x01, 0x16, 0x4d, 0x5f, 0x7f, 0x83, 0xa3, 0xc0, 0xff} {
		task := newTask(raw(op, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), target.NoData)
		if !u.Execute(task, false) {
			t.Fatalf("%#x: not done", op)
		}
		wantSense(t, task, illegal(scsi.InvalidCommandOperationCode))
	}
	wantSense(t, run(t, u, raw(0x9e, 0x13, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0), target.NoData), field(1))
	wantSense(t, run(t, u, raw(0x12, 0, 0, 0, 36), target.DataIn, make([]byte, 36)), field(5))
	wantSense(t, run(t, u, raw(0, 0, 0, 0, 0, 4), target.NoData), field(5))
}

func TestInquiry(t *testing.T) {
	u, _ := newMemoryUnit(t, 1<<20, target.Config{Product: "Test Disk", Revision: "9"})
	inquire := func(n int) put { return func(c *[16]byte) int { return scsi.PutInquiry(c, uint16(n)) } }
	buf := filled(128, 0xee)
	task := wantGood(t, u, inquire(128), target.DataIn, buf[:10], buf[10:])
	if task.TransferredBytes != 96 || buf[96] != 0xee {
		t.Errorf("%d bytes transferred", task.TransferredBytes)
	}
	got, ok := scsi.ParseInquiryData(buf)
	want := scsi.Inquiry{Vendor: "VHBAD", Product: "Test Disk", Revision: "9", CommandQueuing: true}
	if !ok || got != want || !got.Disk() {
		t.Error(cmp.Diff(want, got))
	}
	clear(buf)
	if task := wantGood(t, u, inquire(5), target.DataIn, buf); task.TransferredBytes != 5 || buf[5] != 0 || buf[4] != 91 {
		t.Errorf("allocation length of 5: %d bytes transferred, % x", task.TransferredBytes, buf[:8])
	}
	if task := wantGood(t, u, inquire(96), target.DataIn, buf[:20]); task.TransferredBytes != 20 {
		t.Errorf("buffer of 20: %d bytes transferred", task.TransferredBytes)
	}
	if task := wantGood(t, u, inquire(96), target.DataOut, buf); task.TransferredBytes != 0 {
		t.Error("data-out was written to")
	}
	wantSense(t, run(t, u, raw(0x12, 0, 0x80, 0, 36, 0), target.DataIn, buf), field(2))
	wantSense(t, run(t, u, raw(0x12, 2, 0, 0, 36, 0), target.DataIn, buf), field(1))
	wantSense(t, run(t, u, raw(0x12, 1, 0x84, 0, 36, 0), target.DataIn, buf), field(2))
}

func vpd(t *testing.T, u *target.Unit, page scsi.VPDPage) []byte {
	t.Helper()
	b := make([]byte, 255)
	task := wantGood(t, u, func(c *[16]byte) int { return scsi.PutInquiryVPD(c, page, 255) }, target.DataIn, b)
	return b[:task.TransferredBytes]
}

func TestInquiry_VPD(t *testing.T) {
	u, _ := newMemoryUnit(t, 1<<20, target.Config{
		Serial: "S123", BlockBytes: 512, PhysicalBlockBytes: 4096, Rotational: true,
	})
	pages := vpd(t, u, scsi.VPDSupportedPages)
	if !bytes.Equal(pages, []byte{0, 0, 0, 6, 0, 0x80, 0x83, 0xb0, 0xb1, 0xb2}) {
		t.Errorf("supported pages % x", pages)
	}
	for _, p := range pages[4:] {
		if b := vpd(t, u, scsi.VPDPage(p)); b[1] != p {
			t.Errorf("page %#x came back as %#x", p, b[1])
		}
	}
	if s, ok := scsi.ParseVPDSerial(vpd(t, u, scsi.VPDUnitSerialNumber)); !ok || s != "S123" {
		t.Errorf("serial %q", s)
	}
	id, ok := scsi.ParseVPDIdentification(vpd(t, u, scsi.VPDDeviceIdentification))
	if !ok || id.NAA>>60 != 3 || id.Vendor != "VHBAD" || id.Unique != "Virtual Disk S123" {
		t.Errorf("identification %+v", id)
	}
	l, ok := scsi.ParseVPDBlockLimits(vpd(t, u, scsi.VPDBlockLimits))
	if want := (scsi.BlockLimits{
		WriteSameNonZero: true, MaxCompareAndWrite: 64, OptimalGranularity: 8, MaxTransfer: 65536,
		MaxUnmap: 1<<32 - 1, MaxUnmapDescriptors: 256, OptimalUnmap: 8, UnmapAlignmentValid: true, MaxWriteSame: 8 << 20,
	}); !ok || l != want {
		t.Error(cmp.Diff(want, l))
	}
	if c, ok := scsi.ParseVPDBlockCharacteristics(vpd(t, u, scsi.VPDBlockCharacteristics)); !ok || c.RotationRate != 7200 {
		t.Errorf("characteristics %+v", c)
	}
	p, ok := scsi.ParseVPDProvisioning(vpd(t, u, scsi.VPDLogicalBlockProvisioning))
	if want := (scsi.Provisioning{
		Unmap: true, WriteSame16: true, WriteSame10: true, ReadZeros: true, Anchor: true, Thin: true,
	}); !ok || p != want {
		t.Error(cmp.Diff(want, p))
	}
}

func TestInquiry_OtherUnitOtherNames(t *testing.T) {
	a, _ := newMemoryUnit(t, 1<<20, target.Config{Serial: "A"})
	b, _ := newMemoryUnit(t, 1<<20, target.Config{Serial: "B"})
	same, _ := newMemoryUnit(t, 1<<30, target.Config{Serial: "A"})
	first := vpd(t, a, scsi.VPDDeviceIdentification)
	if bytes.Equal(first, vpd(t, b, scsi.VPDDeviceIdentification)) {
		t.Error("two units have one name")
	}
	if !bytes.Equal(first, vpd(t, same, scsi.VPDDeviceIdentification)) {
		t.Error("the name depends on more than the names")
	}
}

// TestThick: what a medium without abilities claims and does.
func TestThick(t *testing.T) {
	u, _ := newFakeUnit(t, 1<<20, target.Config{},
		media.AbilityDiscard|media.AbilityZero|media.AbilityExtents|media.AbilityCompareAndWrite|media.AbilityPrefetch)
	if pages := vpd(t, u, scsi.VPDSupportedPages); scsi.VPDSupports(pages, scsi.VPDLogicalBlockProvisioning) {
		t.Error("a provisioning page without provisioning")
	}
	buf := make([]byte, 2*blockBytes)
	wantSense(t, run(t, u, raw(0x12, 1, 0xb2, 0, 36, 0), target.DataIn, buf), field(2))
	l, _ := scsi.ParseVPDBlockLimits(vpd(t, u, scsi.VPDBlockLimits))
	if l.MaxUnmap != 0 || l.MaxUnmapDescriptors != 0 || l.MaxCompareAndWrite != 0 || l.MaxWriteSame == 0 {
		t.Errorf("block limits %+v", l)
	}
	if c := capacity16(t, u); c.Provisioned || c.ReadZeros {
		t.Errorf("capacity %+v", c)
	}
	wantSense(t, run(t, u, func(c *[16]byte) int { return scsi.PutUnmap(c, false, 24) }, target.DataOut, buf),
		illegal(scsi.InvalidCommandOperationCode))
	wantSense(t, run(t, u, func(c *[16]byte) int { return scsi.PutCompareAndWrite(c, 0, 1, false, false) }, target.DataOut, buf),
		illegal(scsi.InvalidCommandOperationCode))
	wantSense(t, run(t, u, func(c *[16]byte) int { return scsi.PutWriteSame16(c, 0, 1, true, false, true) }, target.NoData),
		field(1))
	wantGood(t, u, write16(0, 2), target.DataOut, filled(1024, 1))
	wantGood(t, u, func(c *[16]byte) int { return scsi.PutWriteSame16(c, 1, 1, false, false, true) }, target.NoData)
	if b := mustRead(t, u, 0, 2); b[511] != 1 || b[512] != 0 {
		t.Error("WRITE SAME did not write zeros")
	}
	if got := lbaStatus(t, u, 5, 256); !cmp.Equal(got, []scsi.LBAStatus{{LBA: 5, Blocks: 2043}}) {
		t.Errorf("LBA status %+v", got)
	}
	wantGood(t, u, func(c *[16]byte) int { return scsi.PutPreFetch10(c, 0, 1, false) }, target.NoData)
}

func capacity16(t *testing.T, u executor) scsi.Capacity {
	t.Helper()
	b := make([]byte, 32)
	wantGood(t, u, func(c *[16]byte) int { return scsi.PutReadCapacity16(c, 32) }, target.DataIn, b)
	c, ok := scsi.ParseReadCapacity16Data(b)
	if !ok {
		t.Fatalf("capacity data % x", b)
	}
	return c
}

func TestReadCapacity(t *testing.T) {
	u, _ := newMemoryUnit(t, 1<<30, target.Config{BlockBytes: 512, PhysicalBlockBytes: 4096})
	want := scsi.Capacity{Blocks: 1 << 21, BlockBytes: 512, PhysicalExponent: 3, Provisioned: true, ReadZeros: true}
	if got := capacity16(t, u); got != want {
		t.Error(cmp.Diff(want, got))
	}
	b := make([]byte, 8)
	wantGood(t, u, scsi.PutReadCapacity10, target.DataIn, b)
	if got, tooBig, _ := scsi.ParseReadCapacity10Data(b); tooBig || got.Blocks != 1<<21 || got.BlockBytes != 512 {
		t.Errorf("READ CAPACITY(10): %+v", got)
	}
	wantSense(t, run(t, u, raw(0x25, 0, 0, 0, 0, 1, 0, 0, 0, 0), target.DataIn, b), field(2))

	huge, _ := newMemoryUnit(t, 64<<40, target.Config{BlockBytes: 4096})
	if got := capacity16(t, huge); got.Blocks != 1<<34 || got.BlockBytes != 4096 {
		t.Errorf("64 TiB: %+v", got)
	}
	wantGood(t, huge, scsi.PutReadCapacity10, target.DataIn, b)
	if _, tooBig, _ := scsi.ParseReadCapacity10Data(b); !tooBig {
		t.Errorf("64 TiB fit READ CAPACITY(10): % x", b)
	}
}

func TestModeSense(t *testing.T) {
	for _, c := range []target.Config{{}, {WriteCache: true}, {ReadOnly: true}} {
		u, _ := newMemoryUnit(t, 1<<20, c)
		want := scsi.Mode{
			WriteProtected: c.ReadOnly, DPOFUA: true, WriteCache: c.WriteCache, CachingPage: true, ControlPage: true,
		}
		b := make([]byte, 200)
		task := wantGood(t, u, func(c *[16]byte) int { return scsi.PutModeSense6(c, scsi.ModePageAll, false, 200) }, target.DataIn, b)
		if got, ok := scsi.ParseModeSense6Data(b[:task.TransferredBytes]); !ok || got != want || b[3] != 8 {
			t.Error(cmp.Diff(want, got))
		}
		task = wantGood(t, u, func(c *[16]byte) int { return scsi.PutModeSense10(c, scsi.ModePageAll, true, 200) }, target.DataIn, b)
		if got, ok := scsi.ParseModeSense10Data(b[:task.TransferredBytes]); !ok || got != want || b[7] != 0 {
			t.Error(cmp.Diff(want, got))
		}
	}
	u, _ := newMemoryUnit(t, 1<<20, target.Config{})
	b := make([]byte, 64)
	for _, tt := range []struct {
		name string
		cdb  []byte
		want scsi.Sense
	}{
		{"no such page", []byte{0x1a, 0, 0x1c, 0, 64, 0}, field(2)},
		{"no such sub-page", []byte{0x1a, 0, 0x08, 1, 64, 0}, field(3)},
		{"saved values", []byte{0x5a, 0, 0xc8, 0, 0, 0, 0, 0, 64, 0}, illegal(scsi.SavingParametersNotSupported)},
	} {
		wantSense(t, run(t, u, raw(tt.cdb...), target.DataIn, b), tt.want)
	}
	big, _ := newMemoryUnit(t, 4<<40, target.Config{})
	task := wantGood(t, big, func(c *[16]byte) int { return scsi.PutModeSense10(c, scsi.ModePageControl, true, 64) }, target.DataIn, b)
	if got, _ := scsi.ParseModeSense10Data(b[:task.TransferredBytes]); !got.DescriptorSense {
		t.Error("D_SENSE is not told for a unit beyond 2^32 blocks")
	}
}

func TestRequestSense(t *testing.T) {
	u, _ := newMemoryUnit(t, 1<<20, target.Config{})
	b := make([]byte, 64)
	ask := func(descriptor bool) scsi.Sense {
		t.Helper()
		task := wantGood(t, u, func(c *[16]byte) int { return scsi.PutRequestSense(c, descriptor, 64) }, target.DataIn, b)
		s, ok := scsi.ParseSense(b[:task.TransferredBytes])
		if !ok || (b[0] == 0x72) != descriptor {
			t.Fatalf("sense data % x", b[:task.TransferredBytes])
		}
		return s
	}
	if s := ask(false); s != (scsi.Sense{}) {
		t.Errorf("%+v, want nothing", s)
	}
	u.Reset()
	if s := ask(true); s.Key != scsi.KeyUnitAttention || s.Additional != scsi.BusDeviceResetFunctionOccurred {
		t.Errorf("%+v, want the reset", s)
	}
	if s := ask(true); s != (scsi.Sense{}) {
		t.Errorf("%+v, want nothing any more", s)
	}
	wantGood(t, u, func(c *[16]byte) int { return scsi.PutStartStopUnit(c, false, false) }, target.NoData)
	if s := ask(false); s.Key != scsi.KeyNotReady || s.Additional != scsi.NotReadyInitializingRequired {
		t.Errorf("%+v, want not ready", s)
	}
}

func TestStartStop(t *testing.T) {
	u, m := newFakeUnit(t, 1<<20, target.Config{WriteCache: true}, 0)
	stop := func(c *[16]byte) int { return scsi.PutStartStopUnit(c, false, true) }
	m.setFail("flush", errBroken)
	wantSense(t, run(t, u, stop, target.NoData), scsi.Sense{Key: scsi.KeyMediumError, Additional: scsi.WriteError})
	mustRead(t, u, 0, 1) // it has not stopped
	m.setFail("flush", nil)
	wantGood(t, u, stop, target.NoData)
	if m.count("flush") != 2 {
		t.Errorf("%d flushes, want 2", m.count("flush"))
	}
	notReady := scsi.Sense{Key: scsi.KeyNotReady, Additional: scsi.NotReadyInitializingRequired}
	buf := make([]byte, 512)
	wantSense(t, run(t, u, scsi.PutTestUnitReady, target.NoData), notReady)
	wantSense(t, run(t, u, read16(0, 1), target.DataIn, buf), notReady)
	wantSense(t, run(t, u, write16(0, 1), target.DataOut, buf), notReady)
	wantGood(t, u, func(c *[16]byte) int { return scsi.PutInquiry(c, 36) }, target.DataIn, buf)
	wantGood(t, u, func(c *[16]byte) int { return scsi.PutModeSense6(c, scsi.ModePageAll, true, 64) }, target.DataIn, buf)
	wantGood(t, u, func(c *[16]byte) int { return scsi.PutStartStopUnit(c, true, false) }, target.NoData)
	wantGood(t, u, scsi.PutTestUnitReady, target.NoData)
	wantSense(t, run(t, u, raw(0x1b, 0, 0, 0, 0x02, 0), target.NoData), field(4))
	wantSense(t, run(t, u, raw(0x1b, 0, 0, 0, 0x20, 0), target.NoData), field(4))
	wantGood(t, u, raw(0x1b, 0, 0, 0, 0x04, 0), target.NoData)
	if m.count("flush") != 2 {
		t.Error("NO_FLUSH flushed")
	}
}

func TestSynchronizeCache(t *testing.T) {
	var told []error
	u, m := newFakeUnit(t, 1<<20, target.Config{WriteCache: true, MediumFailed: func(err error) { told = append(told, err) }}, 0)
	for _, immediate := range []bool{false, true} {
		wantGood(t, u, func(c *[16]byte) int { return scsi.PutSynchronizeCache10(c, 0, 0, immediate) }, target.NoData)
		wantGood(t, u, func(c *[16]byte) int { return scsi.PutSynchronizeCache16(c, 2047, 1, immediate) }, target.NoData)
	}
	if m.count("flush") != 4 {
		t.Errorf("%d flushes, want 4", m.count("flush"))
	}
	wantSense(t, run(t, u, func(c *[16]byte) int { return scsi.PutSynchronizeCache16(c, 2047, 2, false) }, target.NoData),
		illegal(scsi.LBAOutOfRange))
	m.setFail("flush", media.ErrNoSpace)
	wantSense(t, run(t, u, func(c *[16]byte) int { return scsi.PutSynchronizeCache16(c, 0, 0, false) }, target.NoData),
		scsi.Sense{Key: scsi.KeyDataProtect, Additional: scsi.SpaceAllocationFailed})
	m.setFail("flush", errBroken)
	wantSense(t, run(t, u, func(c *[16]byte) int { return scsi.PutSynchronizeCache16(c, 0, 0, false) }, target.NoData),
		scsi.Sense{Key: scsi.KeyMediumError, Additional: scsi.WriteError})
	if len(told) != 2 || !errors.Is(told[0], media.ErrNoSpace) || !errors.Is(told[1], errBroken) {
		t.Errorf("told of the failures %v, want %v and %v", told, media.ErrNoSpace, errBroken)
	}
}

// TestSynchronizeCache_AfterFailedFlush: a medium tells of lost writes once; if
// another command was told, the next SYNCHRONIZE CACHE fails too, and then no more.
func TestSynchronizeCache_AfterFailedFlush(t *testing.T) {
	synchronize := func(c *[16]byte) int { return scsi.PutSynchronizeCache16(c, 0, 0, false) }
	lost := scsi.Sense{Key: scsi.KeyMediumError, Additional: scsi.WriteError}
	for name, told := range map[string]struct {
		put  put
		way  target.Direction
		data [][]byte
	}{
		"write through, in pieces": {
			func(c *[16]byte) int { return scsi.PutWrite16(c, 5, 2, true, false) },
			target.DataOut,
			[][]byte{filled(blockBytes, 1), filled(blockBytes, 1)},
		},
		"read with FUA": {
			func(c *[16]byte) int { return scsi.PutRead16(c, 0, 1, true, false) },
			target.DataIn,
			[][]byte{make([]byte, blockBytes)},
		},
		"stop": {func(c *[16]byte) int { return scsi.PutStartStopUnit(c, false, true) }, target.NoData, nil},
	} {
		t.Run(name, func(t *testing.T) {
			u, m := newFakeUnit(t, 1<<20, target.Config{WriteCache: true}, 0)
			m.setFail("flush", errBroken)
			wantSense(t, run(t, u, told.put, told.way, told.data...), lost)
			m.setFail("flush", nil)
			wantSense(t, run(t, u, synchronize, target.NoData), lost)
			wantGood(t, u, synchronize, target.NoData)
		})
	}
}

func TestPreFetch(t *testing.T) {
	u, m := newFakeUnit(t, 1<<20, target.Config{}, 0)
	for _, p := range []put{
		func(c *[16]byte) int { return scsi.PutPreFetch10(c, 1, 2, false) },
		func(c *[16]byte) int { return scsi.PutPreFetch16(c, 1, 0, true) },
	} {
		if task := run(t, u, p, target.NoData); task.Status != scsi.StatusConditionMet {
			t.Errorf("%v, want CONDITION MET", task)
		}
	}
	if m.count("prefetch") != 2 {
		t.Errorf("%d hints, want 2", m.count("prefetch"))
	}
	wantSense(t, run(t, u, func(c *[16]byte) int { return scsi.PutPreFetch16(c, 2048, 1, false) }, target.NoData),
		illegal(scsi.LBAOutOfRange))
	m.setFail("prefetch", &media.Error{Kind: media.ErrMedium, OffsetBytes: 20 * blockBytes})
	for _, tt := range []struct {
		blocks   uint32
		lba, bad uint64
	}{
		{0, 1, 20},
		{20, 1, 20},
		{19, 1, 1},
		{0, 21, 21},
	} {
		wantSense(t, run(t, u, func(c *[16]byte) int { return scsi.PutPreFetch16(c, tt.lba, tt.blocks, false) }, target.NoData), scsi.Sense{
			Key: scsi.KeyMediumError, Additional: scsi.UnrecoveredReadError, Information: tt.bad, InformationValid: true,
		})
	}
	memory, _ := newMemoryUnit(t, 1<<20, target.Config{})
	if task := run(t, memory, func(c *[16]byte) int { return scsi.PutPreFetch10(c, 1, 2, false) }, target.NoData); task.Status != scsi.StatusConditionMet {
		t.Errorf("%v, want CONDITION MET", task)
	}
}

func TestVerify(t *testing.T) {
	u, m := newFakeUnit(t, 1<<21, target.Config{}, 0)
	data := make([]byte, 300*blockBytes) // more than a scratch buffer
	for i := range data {
		data[i] = byte(i / blockBytes)
	}
	wantGood(t, u, write16(10, 300), target.DataOut, data)
	verify := func(blocks uint32, check scsi.Bytchk) put {
		return func(c *[16]byte) int { return scsi.PutVerify16(c, 10, blocks, check) }
	}
	wantGood(t, u, verify(300, scsi.BytchkNone), target.NoData)
	wantGood(t, u, verify(0, scsi.BytchkAll), target.NoData)
	if task := wantGood(t, u, verify(300, scsi.BytchkAll), target.DataOut, data[:7], data[7:]); task.TransferredBytes != len(data) {
		t.Errorf("%d bytes transferred", task.TransferredBytes)
	}
	wantGood(t, u, func(c *[16]byte) int { return scsi.PutVerify10(c, 11, 1, scsi.BytchkSingle) }, target.DataOut, filled(512, 1))
	bad := bytes.Clone(data)
	bad[250*blockBytes+3]++
	differs := scsi.Sense{Key: scsi.KeyMiscompare, Additional: scsi.MiscompareDuringVerify, InformationValid: true}
	differs.Information = 260
	wantSense(t, run(t, u, verify(300, scsi.BytchkAll), target.DataOut, bad), differs)
	differs.Information = 11
	wantSense(t, run(t, u, verify(2, scsi.BytchkSingle), target.DataOut, make([]byte, 512)), differs)
	wantSense(t, run(t, u, verify(2, scsi.BytchkAll), target.DataOut, make([]byte, 512)),
		illegal(scsi.InvalidFieldInInformationUnit))
	wantSense(t, run(t, u, verify(2, 2), target.DataOut, data), field(1))
	wantSense(t, run(t, u, verify(1<<20, scsi.BytchkNone), target.NoData), illegal(scsi.LBAOutOfRange))
	m.setFail("read", &media.Error{Kind: media.ErrMedium, OffsetBytes: 20 * blockBytes})
	wantSense(t, run(t, u, verify(300, scsi.BytchkNone), target.NoData), scsi.Sense{
		Key: scsi.KeyMediumError, Additional: scsi.UnrecoveredReadError, Information: 20, InformationValid: true,
	})
	big, _ := newMemoryUnit(t, 1<<30, target.Config{})
	wantSense(t, run(t, big, func(c *[16]byte) int { return scsi.PutVerify12(c, 0, 65537, 0) }, target.NoData), field(6))
}

func TestCompareAndWrite(t *testing.T) {
	u, m := newFakeUnit(t, 1<<20, target.Config{WriteCache: true}, 0)
	caw := func(blocks uint8, fua bool) put {
		return func(c *[16]byte) int { return scsi.PutCompareAndWrite(c, 126, blocks, fua, false) }
	}
	wantGood(t, u, caw(0, false), target.NoData)
	// Blocks 126 to 129 lie across two chunks of memory.
	both := append(make([]byte, 4*blockBytes), filled(4*blockBytes, 'n')...)
	if task := wantGood(t, u, caw(4, false), target.DataOut, both[:100], both[100:]); task.TransferredBytes != len(both) {
		t.Errorf("%d bytes transferred", task.TransferredBytes)
	}
	if b := mustRead(t, u, 126, 4); !bytes.Equal(b, filled(4*blockBytes, 'n')) {
		t.Error("equal blocks were not written")
	}
	both[4*blockBytes] = 'x'
	task := run(t, u, caw(4, false), target.DataOut, both)
	wantSense(t, task, scsi.Sense{
		Key: scsi.KeyMiscompare, Additional: scsi.MiscompareDuringVerify, Information: 0, InformationValid: true,
	})
	copy(both, filled(4*blockBytes, 'n'))
	both[3*blockBytes+9] = 'm'
	wantSense(t, run(t, u, caw(4, false), target.DataOut, both), scsi.Sense{
		Key: scsi.KeyMiscompare, Additional: scsi.MiscompareDuringVerify, Information: 3*blockBytes + 9, InformationValid: true,
	})
	if b := mustRead(t, u, 126, 4); !bytes.Equal(b, filled(4*blockBytes, 'n')) {
		t.Error("unequal blocks were written")
	}
	wantSense(t, run(t, u, caw(65, false), target.DataOut, make([]byte, 130*blockBytes)), field(13))
	wantSense(t, run(t, u, caw(4, false), target.DataOut, both[1:]), illegal(scsi.InvalidFieldInInformationUnit))
	if m.count("flush") != 0 {
		t.Error("flushed without FUA")
	}
	wantGood(t, u, caw(1, true), target.DataOut, filled(2*blockBytes, 'n'))
	if m.count("flush") != 1 {
		t.Error("not flushed with FUA")
	}
}

func lbaStatus(t *testing.T, u executor, lba uint64, allocation uint32) []scsi.LBAStatus {
	t.Helper()
	b := make([]byte, allocation)
	task := wantGood(t, u, func(c *[16]byte) int { return scsi.PutGetLBAStatus(c, lba, allocation) }, target.DataIn, b)
	b = b[:task.TransferredBytes]
	n, ok := scsi.ParseLBAStatusHeader(b)
	if !ok {
		t.Fatalf("LBA status % x", b)
	}
	var list []scsi.LBAStatus
	for i := range n {
		if at := 8 + 16*i; at+16 <= len(b) {
			s, _ := scsi.ParseLBAStatusDescriptor(b[at:])
			list = append(list, s)
		}
	}
	return list
}

func TestGetLBAStatus(t *testing.T) {
	u, _ := newMemoryUnit(t, 4<<40, target.Config{})
	// Data on pages 2 and 3 and in the middle of the next leaf of the table.
	wantGood(t, u, write16(17, 8), target.DataOut, filled(8*blockBytes, 1))
	far := uint64(300 << 20 / blockBytes)
	wantGood(t, u, write16(far, 1), target.DataOut, filled(blockBytes, 1))
	hole, data := scsi.StatusDeallocated, scsi.StatusMapped
	want := []scsi.LBAStatus{
		{LBA: 0, Blocks: 16, Status: hole},
		{LBA: 16, Blocks: 16, Status: data},
		{LBA: 32, Blocks: uint32(far - 32), Status: hole},
		{LBA: far, Blocks: 8, Status: data},
		{LBA: far + 8, Blocks: 1<<32 - 1, Status: hole},
		{LBA: far + 8 + 1<<32 - 1, Blocks: uint32(1<<33 - far - 8 - 1<<32 + 1), Status: hole},
	}
	if got := lbaStatus(t, u, 0, 4096); !cmp.Equal(got, want) {
		t.Error(cmp.Diff(want, got))
	}
	if got := lbaStatus(t, u, 20, 24); !cmp.Equal(got, []scsi.LBAStatus{{LBA: 20, Blocks: 12, Status: data}}) {
		t.Errorf("from the middle, one descriptor: %+v", got)
	}
	wantSense(t, run(t, u, func(c *[16]byte) int { return scsi.PutGetLBAStatus(c, 1<<33, 24) }, target.DataIn, make([]byte, 24)),
		illegal(scsi.LBAOutOfRange))
}

func unmapList(ranges ...uint64) []byte {
	b := make([]byte, 8+8*len(ranges))
	n := scsi.PutUnmapHeader(b, len(ranges)/2)
	for i := 0; i < len(ranges); i += 2 {
		n += scsi.PutUnmapDescriptor(b[n:], ranges[i], uint32(ranges[i+1]))
	}
	return b
}

func unmap(n int, anchor bool) put {
	return func(c *[16]byte) int { return scsi.PutUnmap(c, anchor, uint16(n)) }
}

func TestUnmap(t *testing.T) {
	u, m := newMemoryUnit(t, 1<<22, target.Config{})
	wantGood(t, u, write16(0, 8192), target.DataOut, filled(1<<22, 7))
	list := unmapList(0, 256, 500, 3, 0, 0, 8191, 1)
	if task := wantGood(t, u, unmap(len(list), false), target.DataOut, list[:9], list[9:]); task.TransferredBytes != len(list) {
		t.Errorf("%d bytes transferred", task.TransferredBytes)
	}
	want := filled(1<<22, 7)
	clear(want[:256*blockBytes])
	clear(want[500*blockBytes : 503*blockBytes])
	clear(want[8191*blockBytes:])
	if !bytes.Equal(mustRead(t, u, 0, 8192), want) {
		t.Error("what was unmapped does not read as zeros, or more does")
	}
	if m.AllocatedBytes() != 1<<22-2<<16 {
		t.Errorf("%d bytes allocated, want two chunks less than all", m.AllocatedBytes())
	}
	list = unmapList(0, 256)
	wantGood(t, u, unmap(len(list), true), target.DataOut, list)
	if m.AllocatedBytes() != 1<<22 {
		t.Errorf("%d bytes allocated after ANCHOR, want all", m.AllocatedBytes())
	}
	wantGood(t, u, unmap(0, false), target.NoData)
	wantGood(t, u, unmap(8, false), target.DataOut, unmapList())
}

func TestUnmap_Refused(t *testing.T) {
	u, m := newMemoryUnit(t, 4<<40, target.Config{})
	wantGood(t, u, write16(0, 1), target.DataOut, filled(blockBytes, 7))
	many := unmapList(make([]uint64, 2*257)...)
	badHeader := unmapList(0, 1)
	badHeader[3] = 32
	for _, tt := range []struct {
		name string
		list []byte
		n    int
		want scsi.Sense
	}{
		{"second range is out of range", unmapList(0, 1, 1<<33, 1), 40, illegal(scsi.LBAOutOfRange)},
		{"header too short", unmapList(0, 1), 7, illegal(scsi.ParameterListLengthError)},
		{"descriptors cut off", unmapList(0, 1), 20, illegal(scsi.ParameterListLengthError)},
		{"lengths contradict", badHeader, 24, illegal(scsi.ParameterListLengthError)},
		{"no data", nil, 24, illegal(scsi.InvalidFieldInInformationUnit)},
		{
			"too many ranges", many, len(many),
			scsi.Sense{Key: scsi.KeyIllegalRequest, Additional: scsi.InvalidFieldInParameterList, FieldValid: true, Field: 2},
		},
		{
			"too many blocks", unmapList(0, 1<<32-1, 0, 1), 40,
			scsi.Sense{Key: scsi.KeyIllegalRequest, Additional: scsi.InvalidFieldInParameterList, FieldValid: true, Field: 32},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			wantSense(t, run(t, u, unmap(tt.n, false), target.DataOut, tt.list), tt.want)
			if m.AllocatedBytes() == 0 {
				t.Error("something was unmapped")
			}
		})
	}
	noZero, _ := newFakeUnit(t, 1<<20, target.Config{}, media.AbilityZero)
	wantSense(t, run(t, noZero, unmap(24, true), target.DataOut, unmapList(0, 1)), field(1))
}

func TestUnmap_MediumErrors(t *testing.T) {
	u, m := newFakeUnit(t, 1<<20, target.Config{WriteCache: true}, 0)
	m.setFail("discard", errBroken)
	wantSense(t, run(t, u, unmap(24, false), target.DataOut, unmapList(5, 1)), scsi.Sense{
		Key: scsi.KeyMediumError, Additional: scsi.WriteError, Information: 5, InformationValid: true,
	})
	m.setFail("flush", errBroken)
	wantGood(t, u, unmap(24, false), target.DataOut, unmapList(5, 1))
	through, m2 := newFakeUnit(t, 1<<20, target.Config{}, 0)
	m2.setFail("flush", errBroken)
	wantSense(t, run(t, through, unmap(24, false), target.DataOut, unmapList(5, 1)),
		scsi.Sense{Key: scsi.KeyMediumError, Additional: scsi.WriteError})
}

func TestWriteSame(t *testing.T) {
	const blocks = 1024
	for _, tt := range []struct {
		name          string
		put           put
		data          []byte
		want          byte
		wantAllocated int64
		wantDiscards  int
		wantZeros     int
	}{
		{
			"pattern", func(c *[16]byte) int { return scsi.PutWriteSame16(c, 0, blocks, false, false, false) },
			filled(512, 9), 9, blocks * 512, 0, 0,
		},
		{
			"pattern, 10", func(c *[16]byte) int { return scsi.PutWriteSame10(c, 0, blocks, false, false) },
			filled(512, 9), 9, blocks * 512, 0, 0,
		},
		{
			"pattern that may be unmapped", func(c *[16]byte) int { return scsi.PutWriteSame16(c, 0, blocks, true, false, false) },
			filled(512, 9), 9, blocks * 512, 0, 0,
		},
		{
			"zeros", func(c *[16]byte) int { return scsi.PutWriteSame10(c, 0, blocks, false, false) },
			make([]byte, 512), 0, blocks * 512, 0, 1,
		},
		{
			"no data", func(c *[16]byte) int { return scsi.PutWriteSame16(c, 0, blocks, false, false, true) },
			nil, 0, blocks * 512, 0, 1,
		},
		{
			"zeros, unmap", func(c *[16]byte) int { return scsi.PutWriteSame10(c, 0, blocks, true, false) },
			make([]byte, 512), 0, 0, 1, 0,
		},
		{
			"no data, unmap", func(c *[16]byte) int { return scsi.PutWriteSame16(c, 0, blocks, true, false, true) },
			nil, 0, 0, 1, 0,
		},
		{
			"no data, unmap, anchor", func(c *[16]byte) int { return scsi.PutWriteSame16(c, 0, blocks, true, true, true) },
			nil, 0, blocks * 512, 0, 1,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u, m := newFakeUnit(t, 1<<20, target.Config{WriteCache: true}, 0)
			wantGood(t, u, write16(0, blocks+1), target.DataOut, filled((blocks+1)*512, 5))
			task := wantGood(t, u, tt.put, target.DataOut, tt.data)
			if task.TransferredBytes != len(tt.data) {
				t.Errorf("%d bytes transferred, want %d", task.TransferredBytes, len(tt.data))
			}
			if b := mustRead(t, u, 0, blocks+1); !bytes.Equal(b[:blocks*512], filled(blocks*512, tt.want)) || b[blocks*512] != 5 {
				t.Error("wrong bytes")
			}
			if got := m.AllocatedBytes(); got != tt.wantAllocated+64<<10 { // and the block behind
				t.Errorf("%d bytes allocated, want %d", got, tt.wantAllocated+64<<10)
			}
			if m.count("discard") != tt.wantDiscards || m.count("zero") != tt.wantZeros {
				t.Errorf("%d discards, %d zeros; want %d, %d", m.count("discard"), m.count("zero"), tt.wantDiscards, tt.wantZeros)
			}
		})
	}
}

func TestWriteSame_Refused(t *testing.T) {
	u, _ := newMemoryUnit(t, 1<<40, target.Config{})
	block := make([]byte, 512)
	for _, tt := range []struct {
		name string
		put  put
		data []byte
		want scsi.Sense
	}{
		{"no blocks", func(c *[16]byte) int { return scsi.PutWriteSame16(c, 0, 0, false, false, true) }, nil, field(10)},
		{"no blocks, 10", func(c *[16]byte) int { return scsi.PutWriteSame10(c, 0, 0, false, false) }, block, field(7)},
		{"too many blocks", func(c *[16]byte) int { return scsi.PutWriteSame16(c, 0, 8<<20+1, true, false, true) }, nil, field(10)},
		{
			"out of range", func(c *[16]byte) int { return scsi.PutWriteSame16(c, 1<<31, 1, true, false, true) }, nil,
			illegal(scsi.LBAOutOfRange),
		},
		{"anchor without unmap", func(c *[16]byte) int { return scsi.PutWriteSame16(c, 0, 1, false, true, true) }, nil, field(1)},
		{"LBDATA", raw(0x41, 0x02, 0, 0, 0, 0, 0, 0, 1, 0), block, field(1)},
		{"NDOB in the short one", raw(0x41, 0x01, 0, 0, 0, 0, 0, 0, 1, 0), block, field(1)},
		{
			"short block", func(c *[16]byte) int { return scsi.PutWriteSame10(c, 0, 1, false, false) }, block[1:],
			illegal(scsi.InvalidFieldInInformationUnit),
		},
	} {
		t.Run(tt.name, func(t *testing.T) { wantSense(t, run(t, u, tt.put, target.DataOut, tt.data), tt.want) })
	}
}

func TestWrite_NoSpace(t *testing.T) {
	m, err := media.NewMemory(media.MemoryConfig{SizeBytes: 1 << 20, LimitBytes: 128 << 10})
	if err != nil {
		t.Fatal(err)
	}
	u := newUnit(t, m, target.Config{})
	full := func(lba uint64) scsi.Sense {
		return scsi.Sense{Key: scsi.KeyDataProtect, Additional: scsi.SpaceAllocationFailed, Information: lba, InformationValid: true}
	}
	wantSense(t, run(t, u, write16(0, 512), target.DataOut, filled(256<<10, 1)), full(256))
	if b := mustRead(t, u, 0, 256); !bytes.Equal(b, filled(128<<10, 1)) {
		t.Error("what fitted is lost")
	}
	wantSense(t, run(t, u, func(c *[16]byte) int { return scsi.PutWriteSame16(c, 0, 2048, false, false, true) }, target.NoData), full(0))
	wantGood(t, u, func(c *[16]byte) int { return scsi.PutWriteSame16(c, 0, 2048, true, false, true) }, target.NoData)
	wantGood(t, u, write16(1024, 256), target.DataOut, filled(128<<10, 1))
}
