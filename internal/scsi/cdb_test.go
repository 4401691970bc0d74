package scsi_test

import (
	"bytes"
	"testing"

	"github.com/vhbad/vhbad/internal/scsi"
)

// cdbCases are CDBs byte for byte as in the standards' tables.
var cdbCases = []struct {
	name string
	put  func(cdb *[scsi.CDBMaxBytes]byte) int
	want []byte
}{
	{"test unit ready", scsi.PutTestUnitReady, []byte{0, 0, 0, 0, 0, 0}},
	{
		"request sense, descriptor format",
		func(c *[16]byte) int { return scsi.PutRequestSense(c, true, 252) },
		[]byte{0x03, 0x01, 0, 0, 252, 0},
	},
	{
		"inquiry, 16-bit allocation length",
		func(c *[16]byte) int { return scsi.PutInquiry(c, 0x1234) },
		[]byte{0x12, 0, 0, 0x12, 0x34, 0},
	},
	{
		"inquiry, block limits page",
		func(c *[16]byte) int { return scsi.PutInquiryVPD(c, scsi.VPDBlockLimits, 64) },
		[]byte{0x12, 0x01, 0xb0, 0, 64, 0},
	},
	{
		"mode sense 6, caching page without block descriptor",
		func(c *[16]byte) int { return scsi.PutModeSense6(c, scsi.ModePageCaching, true, 192) },
		[]byte{0x1a, 0x08, 0x08, 0, 192, 0},
	},
	{
		"mode sense 10, all pages",
		func(c *[16]byte) int { return scsi.PutModeSense10(c, scsi.ModePageAll, false, 0x0203) },
		[]byte{0x5a, 0, 0x3f, 0, 0, 0, 0, 0x02, 0x03, 0},
	},
	{
		"mode select 6",
		func(c *[16]byte) int { return scsi.PutModeSelect6(c, 24) },
		[]byte{0x15, 0x10, 0, 0, 24, 0},
	},
	{
		"mode select 10",
		func(c *[16]byte) int { return scsi.PutModeSelect10(c, 0x0203) },
		[]byte{0x55, 0x10, 0, 0, 0, 0, 0, 0x02, 0x03, 0},
	},
	{
		"start stop unit",
		func(c *[16]byte) int { return scsi.PutStartStopUnit(c, true, true) },
		[]byte{0x1b, 0x01, 0, 0, 0x01, 0},
	},
	{"read capacity 10", scsi.PutReadCapacity10, []byte{0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0}},
	{
		"read capacity 16",
		func(c *[16]byte) int { return scsi.PutReadCapacity16(c, 32) },
		[]byte{0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0},
	},
	{
		"get lba status",
		func(c *[16]byte) int { return scsi.PutGetLBAStatus(c, 0x0102030405060708, 0x0a0b0c0d) },
		[]byte{0x9e, 0x12, 1, 2, 3, 4, 5, 6, 7, 8, 0x0a, 0x0b, 0x0c, 0x0d, 0, 0},
	},
	{
		"report luns",
		func(c *[16]byte) int { return scsi.PutReportLUNs(c, 0x01020304) },
		[]byte{0xa0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 0, 0},
	},
	{
		"read 6, 21-bit address",
		func(c *[16]byte) int { return scsi.PutRead6(c, 0x1fabcd, 7) },
		[]byte{0x08, 0x1f, 0xab, 0xcd, 7, 0},
	},
	{
		"write 6",
		func(c *[16]byte) int { return scsi.PutWrite6(c, 0x010203, 0) },
		[]byte{0x0a, 0x01, 0x02, 0x03, 0, 0},
	},
	{
		"read 10, fua and dpo",
		func(c *[16]byte) int { return scsi.PutRead10(c, 0x01020304, 0x0506, true, true) },
		[]byte{0x28, 0x18, 1, 2, 3, 4, 0, 5, 6, 0},
	},
	{
		"write 10, fua",
		func(c *[16]byte) int { return scsi.PutWrite10(c, 0x01020304, 0x0506, true, false) },
		[]byte{0x2a, 0x08, 1, 2, 3, 4, 0, 5, 6, 0},
	},
	{
		"read 12, dpo",
		func(c *[16]byte) int { return scsi.PutRead12(c, 0x01020304, 0x05060708, false, true) },
		[]byte{0xa8, 0x10, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0},
	},
	{
		"write 12",
		func(c *[16]byte) int { return scsi.PutWrite12(c, 0x01020304, 0x05060708, false, false) },
		[]byte{0xaa, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0},
	},
	{
		"read 16",
		func(c *[16]byte) int { return scsi.PutRead16(c, 0x0102030405060708, 0x090a0b0c, false, false) },
		[]byte{0x88, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 0},
	},
	{
		"write 16, fua",
		func(c *[16]byte) int { return scsi.PutWrite16(c, 0x0102030405060708, 0x090a0b0c, true, false) },
		[]byte{0x8a, 0x08, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 0},
	},
	{
		"verify 10, compare all",
		func(c *[16]byte) int { return scsi.PutVerify10(c, 1, 2, scsi.BytchkAll) },
		[]byte{0x2f, 0x02, 0, 0, 0, 1, 0, 0, 2, 0},
	},
	{
		"verify 12, no compare",
		func(c *[16]byte) int { return scsi.PutVerify12(c, 1, 2, scsi.BytchkNone) },
		[]byte{0xaf, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0},
	},
	{
		"verify 16, compare with one block",
		func(c *[16]byte) int { return scsi.PutVerify16(c, 1, 2, scsi.BytchkSingle) },
		[]byte{0x8f, 0x06, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0},
	},
	{
		"synchronize cache 10, immediate",
		func(c *[16]byte) int { return scsi.PutSynchronizeCache10(c, 1, 2, true) },
		[]byte{0x35, 0x02, 0, 0, 0, 1, 0, 0, 2, 0},
	},
	{
		"synchronize cache 16",
		func(c *[16]byte) int { return scsi.PutSynchronizeCache16(c, 1, 2, false) },
		[]byte{0x91, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0},
	},
	{
		"pre-fetch 10",
		func(c *[16]byte) int { return scsi.PutPreFetch10(c, 1, 2, false) },
		[]byte{0x34, 0, 0, 0, 0, 1, 0, 0, 2, 0},
	},
	{
		"pre-fetch 16, immediate",
		func(c *[16]byte) int { return scsi.PutPreFetch16(c, 1, 2, true) },
		[]byte{0x90, 0x02, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0},
	},
	{
		"unmap, anchor",
		func(c *[16]byte) int { return scsi.PutUnmap(c, true, 0x0118) },
		[]byte{0x42, 0x01, 0, 0, 0, 0, 0, 0x01, 0x18, 0},
	},
	{
		"write same 10, unmap and anchor",
		func(c *[16]byte) int { return scsi.PutWriteSame10(c, 1, 2, true, true) },
		[]byte{0x41, 0x18, 0, 0, 0, 1, 0, 0, 2, 0},
	},
	{
		"write same 16, unmap without data",
		func(c *[16]byte) int { return scsi.PutWriteSame16(c, 1, 2, true, false, true) },
		[]byte{0x93, 0x09, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0},
	},
	{
		"compare and write, fua",
		func(c *[16]byte) int { return scsi.PutCompareAndWrite(c, 0x0102030405060708, 9, true, false) },
		[]byte{0x89, 0x08, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 9, 0, 0},
	},
}

func TestPutCDB(t *testing.T) {
	for _, tt := range cdbCases {
		t.Run(tt.name, func(t *testing.T) {
			cdb := [scsi.CDBMaxBytes]byte(bytes.Repeat([]byte{0xff}, scsi.CDBMaxBytes))
			n := tt.put(&cdb)
			if n != len(tt.want) || !bytes.Equal(cdb[:n], tt.want) {
				t.Errorf("got  %d bytes % x\nwant %d bytes % x", n, cdb[:n], len(tt.want), tt.want)
			}
			if want := scsi.CDBBytes(scsi.Opcode(cdb[0])); n != want {
				t.Errorf("length %d, but the group code says %d", n, want)
			}
			if rest := cdb[n:]; !bytes.Equal(rest, make([]byte, len(rest))) {
				t.Errorf("bytes behind the CDB: % x, want zeros", rest)
			}
		})
	}
}

func TestCDBBytes_NoLength(t *testing.T) {
	for _, o := range []scsi.Opcode{0x60, 0x7e, 0x7f, 0xc0, 0xff} {
		if n := scsi.CDBBytes(o); n != 0 {
			t.Errorf("CDBBytes(%#x) = %d, want 0", uint8(o), n)
		}
	}
}

func TestBlockRange(t *testing.T) {
	const big = 0x0102030405060708
	for _, tt := range []struct {
		name   string
		put    func(cdb *[scsi.CDBMaxBytes]byte) int
		lba    uint64
		blocks uint32
	}{
		{"read 6", func(c *[16]byte) int { return scsi.PutRead6(c, 0x1fabcd, 7) }, 0x1fabcd, 7},
		{"read 6, zero is 256", func(c *[16]byte) int { return scsi.PutRead6(c, 3, 0) }, 3, 256},
		{"read 10", func(c *[16]byte) int { return scsi.PutRead10(c, 1<<32-1, 1<<16-1, false, false) }, 1<<32 - 1, 1<<16 - 1},
		{"write 12", func(c *[16]byte) int { return scsi.PutWrite12(c, 1<<32-1, 1<<32-1, false, false) }, 1<<32 - 1, 1<<32 - 1},
		{"write 16", func(c *[16]byte) int { return scsi.PutWrite16(c, big, 1<<32-1, true, true) }, big, 1<<32 - 1},
		{"write same 16", func(c *[16]byte) int { return scsi.PutWriteSame16(c, big, 5, true, true, true) }, big, 5},
		{"compare and write", func(c *[16]byte) int { return scsi.PutCompareAndWrite(c, big, 255, false, false) }, big, 255},
		{"synchronize cache, zero stays", func(c *[16]byte) int { return scsi.PutSynchronizeCache16(c, 0, 0, false) }, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var cdb [scsi.CDBMaxBytes]byte
			tt.put(&cdb)
			lba, blocks, ok := scsi.BlockRange(&cdb)
			if !ok || lba != tt.lba || blocks != tt.blocks {
				t.Errorf("got %d, %d, %v; want %d, %d", lba, blocks, ok, tt.lba, tt.blocks)
			}
		})
	}
	cdb := [scsi.CDBMaxBytes]byte{byte(scsi.OpInquiry)}
	if _, _, ok := scsi.BlockRange(&cdb); ok {
		t.Error("INQUIRY has a block range")
	}
}

func TestAllocationBytes(t *testing.T) {
	for _, tt := range []struct {
		name string
		put  func(cdb *[scsi.CDBMaxBytes]byte) int
		want uint32
	}{
		{"inquiry", func(c *[16]byte) int { return scsi.PutInquiry(c, 0xfffe) }, 0xfffe},
		{"request sense", func(c *[16]byte) int { return scsi.PutRequestSense(c, false, 252) }, 252},
		{"mode sense 6", func(c *[16]byte) int { return scsi.PutModeSense6(c, 8, false, 4) }, 4},
		{"mode sense 10", func(c *[16]byte) int { return scsi.PutModeSense10(c, 8, false, 0x1234) }, 0x1234},
		{"mode select 6", func(c *[16]byte) int { return scsi.PutModeSelect6(c, 24) }, 24},
		{"mode select 10", func(c *[16]byte) int { return scsi.PutModeSelect10(c, 0x1234) }, 0x1234},
		{"unmap", func(c *[16]byte) int { return scsi.PutUnmap(c, false, 24) }, 24},
		{"read capacity 16", func(c *[16]byte) int { return scsi.PutReadCapacity16(c, 32) }, 32},
		{"report luns", func(c *[16]byte) int { return scsi.PutReportLUNs(c, 1<<32-1) }, 1<<32 - 1},
	} {
		var cdb [scsi.CDBMaxBytes]byte
		tt.put(&cdb)
		if n, ok := scsi.AllocationBytes(&cdb); !ok || n != tt.want {
			t.Errorf("%s: got %d, %v; want %d", tt.name, n, ok, tt.want)
		}
	}
	cdb := [scsi.CDBMaxBytes]byte{byte(scsi.OpRead16)}
	if _, ok := scsi.AllocationBytes(&cdb); ok {
		t.Error("READ(16) has an allocation length")
	}
}

func TestNames(t *testing.T) {
	for _, tt := range []struct{ got, want string }{
		{scsi.OpRead16.String(), "READ(16)"},
		{scsi.OpTestUnitReady.String(), "TEST UNIT READY"},
		{scsi.Opcode(0xc1).String(), "0xc1"},
		{scsi.StatusCheckCondition.String(), "CHECK CONDITION"},
		{scsi.Status(0x22).String(), "0x22"},
		{scsi.KeyDataProtect.String(), "DATA PROTECT"},
		{scsi.SenseKey(0x0c).String(), "0xc"},
		{scsi.SpaceAllocationFailed.String(), "SPACE ALLOCATION FAILED WRITE PROTECT"},
		{scsi.Additional(0x5d01).String(), "0x5d/0x1"},
	} {
		if tt.got != tt.want {
			t.Errorf("got %q, want %q", tt.got, tt.want)
		}
	}
}

func TestKnown(t *testing.T) {
	for op, want := range map[scsi.Opcode]bool{scsi.OpTestUnitReady: true, scsi.OpVerify12: true, 0x04: false, 0xc1: false} {
		if got := scsi.Known(op); got != want {
			t.Errorf("%v: %t, want %t", op, got, want)
		}
	}
}

func TestPutCDB_NoAllocs(t *testing.T) {
	var cdb [scsi.CDBMaxBytes]byte
	if n := testing.AllocsPerRun(100, func() {
		scsi.PutWrite16(&cdb, 1, 2, true, false)
		scsi.BlockRange(&cdb)
		scsi.PutUnmap(&cdb, false, 24)
	}); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

func FuzzCDB(f *testing.F) {
	for _, tt := range cdbCases {
		var cdb [scsi.CDBMaxBytes]byte
		tt.put(&cdb)
		f.Add(cdb[:])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var cdb [scsi.CDBMaxBytes]byte
		copy(cdb[:], b)
		o := scsi.Opcode(cdb[0])
		_, blocks, hasRange := scsi.BlockRange(&cdb)
		n, hasAllocation := scsi.AllocationBytes(&cdb)
		switch {
		case hasRange && hasAllocation:
			t.Errorf("%v has both a block range and an allocation length", o)
		case hasRange && scsi.CDBBytes(o) == 6 && (blocks == 0 || blocks > 256):
			t.Errorf("%v of %d blocks", o, blocks)
		case hasRange && scsi.CDBBytes(o) == 10 && blocks > 1<<16-1, hasAllocation && scsi.CDBBytes(o) == 6 && n > 1<<16-1:
			t.Errorf("%v: more than its fields hold: %d blocks, %d bytes", o, blocks, n)
		}
		// Bytes beyond the command's length mean nothing.
		short := cdb
		clear(short[scsi.CDBBytes(o):])
		if scsi.CDBBytes(o) > 0 {
			if lba, blocks2, _ := scsi.BlockRange(&short); hasRange && blocks2 != blocks {
				t.Errorf("%v: bytes behind the CDB change its range to %d, %d blocks", o, lba, blocks2)
			}
		}
	})
}
