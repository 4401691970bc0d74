package scsi_test

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vhbad/vhbad/internal/scsi"
)

func TestInquiryData(t *testing.T) {
	q := scsi.Inquiry{Vendor: "VHBAD", Product: "Virtual Disk of ours", Revision: "1.0", CommandQueuing: true}
	var b [128]byte
	n := scsi.PutInquiryData(b[:], &q)
	if n != scsi.StandardInquiryBytes || int(b[4]) != n-5 {
		t.Errorf("%d bytes, additional length %d", n, b[4])
	}
	// device type, RMB, version, format, additional length, flags, names
	want := append([]byte{0, 0, 6, 0x12, 91, 0, 0, 2}, "VHBAD   Virtual Disk of 1.0 "...)
	if !bytes.Equal(b[:36], want) {
		t.Errorf("got  %q\nwant %q", b[:36], want)
	}
	got, ok := scsi.ParseInquiryData(b[:36])
	q.Product = "Virtual Disk of"
	if !ok || got != q || !got.Disk() || !got.Present() {
		t.Errorf("parsed %+v, want %+v", got, q)
	}
	if _, ok := scsi.ParseInquiryData(b[:35]); ok {
		t.Error("35 bytes were enough")
	}
	absent := scsi.Inquiry{Peripheral: scsi.PeripheralAbsent}
	if absent.Present() || absent.Disk() {
		t.Error("a unit that is not there is present")
	}
	scsi.PutInquiryData(b[:], &scsi.Inquiry{Vendor: "a\x00b\xff"})
	if got := string(b[8:16]); got != "a?b?    " {
		t.Errorf("vendor of strange bytes: %q", got)
	}
}

func TestVPD_Bytes(t *testing.T) {
	var b [256]byte
	for _, tt := range []struct {
		name string
		n    int
		want string
	}{
		{"supported pages", scsi.PutVPDSupportedPages(b[:], []scsi.VPDPage{0, 0x80, 0xb0}), "00 00 0003 00 80 b0"},
		{"serial", scsi.PutVPDSerial(b[64:], "AB12"), "00 80 0004 41423132"},
		{
			"identification",
			scsi.PutVPDIdentification(b[128:], &scsi.Identification{Vendor: "VHBAD", Unique: "x1", NAA: 0x3123456789abcdef}),
			"00 83 001a 01030008 3123456789abcdef 0201000a 5648424144202020 7831",
		},
		{
			"provisioning",
			scsi.PutVPDProvisioning(b[192:], &scsi.Provisioning{
				Unmap: true, WriteSame16: true, WriteSame10: true, ReadZeros: true, Anchor: true, Thin: true,
			}),
			"00 b2 0004 00 e6 02 00",
		},
	} {
		at := map[string]int{"supported pages": 0, "serial": 64, "identification": 128, "provisioning": 192}[tt.name]
		want, err := hex.DecodeString(strings.ReplaceAll(tt.want, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		if got := b[at : at+tt.n]; !bytes.Equal(got, want) {
			t.Errorf("%s:\ngot  % x\nwant % x", tt.name, got, want)
		}
	}
}

func TestVPD_RoundTrip(t *testing.T) {
	b := make([]byte, 256)
	n := scsi.PutVPDSupportedPages(b, []scsi.VPDPage{scsi.VPDSupportedPages, scsi.VPDBlockLimits})
	if !scsi.VPDSupports(b[:n], scsi.VPDBlockLimits) || scsi.VPDSupports(b[:n], scsi.VPDLogicalBlockProvisioning) {
		t.Error("supported pages are read wrongly")
	}
	n = scsi.PutVPDSerial(b, strings.Repeat("S", 40))
	if s, ok := scsi.ParseVPDSerial(b[:n]); !ok || s != strings.Repeat("S", 32) {
		t.Errorf("serial %q", s)
	}
	id := scsi.Identification{Vendor: "VHBAD", Unique: "Virtual Disk 0001", NAA: 3<<60 | 5}
	n = scsi.PutVPDIdentification(b, &id)
	if got, ok := scsi.ParseVPDIdentification(b[:n]); !ok || got != id {
		t.Errorf("identification %s", cmp.Diff(id, got))
	}
	l := scsi.BlockLimits{
		WriteSameNonZero: true, MaxCompareAndWrite: 64, OptimalGranularity: 8, MaxTransfer: 65536, OptimalTransfer: 2048,
		MaxUnmap: 1<<32 - 1, MaxUnmapDescriptors: 256, OptimalUnmap: 8, UnmapAlignment: 3, UnmapAlignmentValid: true,
		MaxWriteSame: 1 << 33, MaxPrefetch: 7,
	}
	n = scsi.PutVPDBlockLimits(b, &l)
	if got, ok := scsi.ParseVPDBlockLimits(b[:n]); !ok || got != l {
		t.Errorf("block limits %s", cmp.Diff(l, got))
	}
	if got, ok := scsi.ParseVPDBlockLimits(b[:16]); !ok || got.MaxTransfer != l.MaxTransfer || got.MaxUnmap != 0 {
		t.Errorf("block limits of SBC-2 length: %+v", got)
	}
	c := scsi.BlockCharacteristics{RotationRate: 7200}
	n = scsi.PutVPDBlockCharacteristics(b, &c)
	if got, ok := scsi.ParseVPDBlockCharacteristics(b[:n]); !ok || got != c {
		t.Errorf("characteristics %+v", got)
	}
	p := scsi.Provisioning{Unmap: true, ReadZeros: true, Thin: true}
	n = scsi.PutVPDProvisioning(b, &p)
	if got, ok := scsi.ParseVPDProvisioning(b[:n]); !ok || got != p {
		t.Errorf("provisioning %s", cmp.Diff(p, got))
	}
	if _, ok := scsi.ParseVPDBlockLimits(b[:n]); ok {
		t.Error("a provisioning page was read as block limits")
	}
}

func TestReadCapacity(t *testing.T) {
	b := make([]byte, 32)
	c := scsi.Capacity{Blocks: 1 << 33, BlockBytes: 4096, PhysicalExponent: 3, Provisioned: true, ReadZeros: true}
	if n := scsi.PutReadCapacity16Data(b, &c); n != scsi.ReadCapacity16Bytes {
		t.Errorf("%d bytes", n)
	}
	if want := []byte{0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0, 0, 0x10, 0, 0, 3, 0xc0, 0}; !bytes.Equal(b[:16], want) {
		t.Errorf("got % x, want % x", b[:16], want)
	}
	if got, ok := scsi.ParseReadCapacity16Data(b); !ok || got != c {
		t.Errorf("parsed %s", cmp.Diff(c, got))
	}
	if _, ok := scsi.ParseReadCapacity16Data(b[:11]); ok {
		t.Error("11 bytes were enough")
	}
	if _, ok := scsi.ParseReadCapacity16Data(bytes.Repeat([]byte{0xff}, 32)); ok {
		t.Error("2^64 blocks do not fit")
	}
	scsi.PutReadCapacity10Data(b, &c)
	if _, tooBig, ok := scsi.ParseReadCapacity10Data(b); !ok || !tooBig {
		t.Errorf("2^33 blocks in READ CAPACITY(10): tooBig %v", tooBig)
	}
	small := scsi.Capacity{Blocks: 2048, BlockBytes: 512}
	scsi.PutReadCapacity10Data(b, &small)
	if got, tooBig, ok := scsi.ParseReadCapacity10Data(b); !ok || tooBig || got != small {
		t.Errorf("parsed %+v %v", got, tooBig)
	}
}

func TestModeSense(t *testing.T) {
	m := scsi.Mode{WriteProtected: true, DPOFUA: true, WriteCache: true, DescriptorSense: true}
	r := scsi.ModeRequest{Page: scsi.ModePageAll, Descriptor: true, Blocks: 1 << 33, BlockBytes: 512}
	var b [scsi.ModeSenseMaxBytes]byte
	n, ok := scsi.PutModeSenseData(b[:], &m, &r)
	want := []byte{
		43, 0, 0x90, 8, // header: length, medium type, WP and DPOFUA, block descriptor length
		0xff, 0xff, 0xff, 0xff, 0, 0, 2, 0, // block descriptor: too many blocks, 512 bytes
		0x08, 0x12, 0x04, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // caching: WCE
		0x0a, 0x0a, 0x04, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, // control: D_SENSE, reordering
	}
	if !ok || !bytes.Equal(b[:n], want) {
		t.Errorf("\ngot  % x\nwant % x", b[:n], want)
	}
	got, ok := scsi.ParseModeSense6Data(b[:n])
	full := m
	full.CachingPage, full.ControlPage = true, true
	if !ok || got != full {
		t.Errorf("parsed %s", cmp.Diff(full, got))
	}
	for _, long := range []bool{false, true} {
		r.Ten, r.LongLBA = true, long
		if n, ok = scsi.PutModeSenseData(b[:], &m, &r); !ok {
			t.Fatal("no pages")
		}
		if got, ok := scsi.ParseModeSense10Data(b[:n]); !ok || got != full {
			t.Errorf("long %v: parsed %s", long, cmp.Diff(full, got))
		}
	}
	r = scsi.ModeRequest{Page: scsi.ModePageCaching, Control: scsi.PageControlChangeable}
	n, _ = scsi.PutModeSenseData(b[:], &m, &r)
	if got, _ := scsi.ParseModeSense6Data(b[:n]); !got.WriteCache || got.ReadCacheDisable || !got.CachingPage || got.ControlPage {
		t.Errorf("changeable values: %+v", got)
	}
	if _, ok := scsi.PutModeSenseData(b[:], &m, &scsi.ModeRequest{Page: 0x1c}); ok {
		t.Error("a page that is not there was written")
	}
	// A page in sub-page format is stepped over.
	if got, ok := scsi.ParseModeSense10Data([]byte{
		0, 20, 0, 0x80, 0, 0, 0, 0, 0x4a, 1, 0, 2, 9, 9, 0x08, 6, 0x04, 0, 0, 0, 0, 0,
	}); !ok || !got.WriteCache || !got.WriteProtected {
		t.Errorf("behind a sub-page: %v %+v", ok, got)
	}
}

func TestReportLUNs(t *testing.T) {
	b := make([]byte, 64)
	n := scsi.PutReportLUNsHeader(b, 3)
	for _, lun := range []uint8{0, 7, 255} {
		n += scsi.PutLUN(b[n:], lun)
	}
	var luns [256]bool
	if count, ok := scsi.ParseReportLUNs(b[:n], &luns); !ok || count != 3 || !luns[0] || !luns[7] || !luns[255] {
		t.Errorf("%d units, %v", count, ok)
	}
	// Flat addressing, a duplicate, a second level and a cut entry.
	list := []byte{
		0, 0, 0, 40, 0, 0, 0, 0,
		0x40, 1, 0, 0, 0, 0, 0, 0,
		0, 1, 0, 0, 0, 0, 0, 0,
		0, 1, 0, 0, 0, 0, 0, 0,
		0, 2, 0, 1, 0, 0, 0, 0,
		0, 3, 0,
	}
	if count, ok := scsi.ParseReportLUNs(list, &luns); !ok || count != 1 || !luns[1] || luns[7] {
		t.Errorf("%d units, %v", count, ok)
	}
	if _, ok := scsi.ParseReportLUNs(list[:7], &luns); ok {
		t.Error("7 bytes were enough")
	}
}

func TestUnmapList(t *testing.T) {
	b := make([]byte, 64)
	n := scsi.PutUnmapHeader(b, 2)
	n += scsi.PutUnmapDescriptor(b[n:], 1<<40, 1<<31)
	n += scsi.PutUnmapDescriptor(b[n:], 5, 6)
	if want := []byte{0, 38, 0, 32, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0}; !bytes.Equal(b[:24], want) {
		t.Errorf("\ngot  % x\nwant % x", b[:24], want)
	}
	if d, ok := scsi.ParseUnmapHeader(b[:n]); !ok || d != 32 {
		t.Errorf("%d bytes of descriptors, %v", d, ok)
	}
	if lba, blocks, ok := scsi.ParseUnmapDescriptor(b[8:]); !ok || lba != 1<<40 || blocks != 1<<31 {
		t.Errorf("%d, %d, %v", lba, blocks, ok)
	}
	for _, bad := range [][]byte{{0, 38, 0, 32, 0, 0, 0}, {0, 5, 0, 0, 0, 0, 0, 0}, {0, 21, 0, 16, 0, 0, 0, 0}} {
		if d, ok := scsi.ParseUnmapHeader(bad); ok {
			t.Errorf("% x: %d bytes of descriptors", bad, d)
		}
	}
	if _, _, ok := scsi.ParseUnmapDescriptor(b[:15]); ok {
		t.Error("15 bytes were enough")
	}
}

func TestLBAStatus(t *testing.T) {
	b := make([]byte, 64)
	n := scsi.PutLBAStatusHeader(b, 1)
	want := scsi.LBAStatus{LBA: 1 << 33, Blocks: 77, Status: scsi.StatusDeallocated}
	n += scsi.PutLBAStatusDescriptor(b[n:], want)
	if d, ok := scsi.ParseLBAStatusHeader(b[:n]); !ok || d != 1 {
		t.Errorf("%d descriptors, %v", d, ok)
	}
	if got, ok := scsi.ParseLBAStatusDescriptor(b[8:n]); !ok || got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if _, ok := scsi.ParseLBAStatusHeader([]byte{0, 0, 0, 3, 0, 0, 0, 0}); ok {
		t.Error("a length of 3 is none")
	}
}

// FuzzData gives every parser of parameter data any bytes.
func FuzzData(f *testing.F) {
	f.Add([]byte{0, 0xb0, 0, 0x3c, 1, 2, 3, 4, 5, 6, 7, 8})
	f.Add([]byte{0, 0x83, 0, 6, 1, 3, 0, 8, 1, 2})
	f.Add([]byte{43, 0, 0x90, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0x48, 1, 0xff, 0xff})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if q, ok := scsi.ParseInquiryData(b); ok && q.Disk() && !q.Present() {
			t.Error("a disk that is not present")
		}
		if s, ok := scsi.ParseVPDSerial(b); ok && len(s) > len(b) {
			t.Errorf("serial of %d bytes out of %d", len(s), len(b))
		}
		if id, ok := scsi.ParseVPDIdentification(b); ok && len(id.Vendor)+len(id.Unique) > len(b) {
			t.Errorf("identification %+v out of %d bytes", id, len(b))
		}
		if l, ok := scsi.ParseVPDBlockLimits(b); ok && l.UnmapAlignment>>31 != 0 {
			t.Errorf("block limits %+v", l)
		}
		if _, ok := scsi.ParseVPDBlockCharacteristics(b); ok && len(b) < 6 {
			t.Error("characteristics of a short page")
		}
		if _, ok := scsi.ParseVPDProvisioning(b); ok && len(b) < 7 {
			t.Error("provisioning of a short page")
		}
		if c, ok := scsi.ParseReadCapacity16Data(b); ok && c.Blocks == 0 {
			t.Error("no blocks")
		}
		if c, _, ok := scsi.ParseReadCapacity10Data(b); ok && c.Blocks == 0 {
			t.Error("no blocks")
		}
		if m, ok := scsi.ParseModeSense6Data(b); ok && m.WriteCache && !m.CachingPage {
			t.Error("a write cache without its page")
		}
		if m, ok := scsi.ParseModeSense10Data(b); ok && m.DescriptorSense && !m.ControlPage {
			t.Error("descriptor sense without its page")
		}
		var luns [256]bool
		if n, ok := scsi.ParseReportLUNs(b, &luns); ok && n*scsi.LUNBytes > len(b) {
			t.Errorf("%d units out of %d bytes", n, len(b))
		}
		if n, ok := scsi.ParseUnmapHeader(b); ok && n > 1<<16 {
			t.Errorf("%d bytes of descriptors", n)
		}
		if n, ok := scsi.ParseLBAStatusHeader(b); ok && n > 1<<28 {
			t.Errorf("%d descriptors", n)
		}
		if s, ok := scsi.ParseLBAStatusDescriptor(b); ok && s.Status > 15 {
			t.Errorf("status %d", s.Status)
		}
	})
}
