package scsi

import "testing"

// SetLBA, SetBlocks and SetGroup change what they say, and nothing else, in every
// CDB that has it.
func TestSet(t *testing.T) {
	var cdb [CDBMaxBytes]byte
	for name, put := range map[string]func(){
		"READ(6)":           func() { PutRead6(&cdb, 5, 7) },
		"WRITE(10)":         func() { PutWrite10(&cdb, 5, 7, true, true) },
		"READ(12)":          func() { PutRead12(&cdb, 5, 7, true, false) },
		"WRITE(16)":         func() { PutWrite16(&cdb, 5, 7, true, false) },
		"WRITE SAME(16)":    func() { PutWriteSame16(&cdb, 5, 7, true, false, true) },
		"UNMAP":             func() { PutUnmap(&cdb, false, 24) },
		"SYNCHRONIZE CACHE": func() { PutSynchronizeCache16(&cdb, 5, 7, false) },
		"GET LBA STATUS":    func() { PutGetLBAStatus(&cdb, 5, 7) },
		"TEST UNIT READY":   func() { PutTestUnitReady(&cdb) },
	} {
		put()
		before := cdb
		SetGroup(&cdb, 41)
		has := groupByte[cdb[0]] != 0
		if got := Group(&cdb); has && got != 41 || !has && (got != 0 || cdb != before) {
			t.Errorf("%s: group %d, CDB % x", name, got, cdb)
		}
		SetGroup(&cdb, 0)
		if cdb != before {
			t.Errorf("%s: CDB % x after the group was set and cleared, want % x", name, cdb, before)
		}
		if _, _, ok := BlockRange(&cdb); !ok {
			continue
		}
		SetLBA(&cdb, 0x12345)
		if lba, blocks, _ := BlockRange(&cdb); lba != 0x12345 || blocks != 7 {
			t.Errorf("%s: block %#x, %d blocks, want 0x12345 and 7", name, lba, blocks)
		}
		SetLBA(&cdb, 5)
		SetBlocks(&cdb, 3)
		if lba, blocks, _ := BlockRange(&cdb); lba != 5 || blocks != 3 {
			t.Errorf("%s: block %d, %d blocks, want 5 and 3", name, lba, blocks)
		}
		SetBlocks(&cdb, 7)
		if cdb != before {
			t.Errorf("%s: CDB % x after changes and back, want % x", name, cdb, before)
		}
	}
}
