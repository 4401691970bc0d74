package target_test

import (
	"testing"

	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/hba/target"
	"github.com/vhbad/vhbad/internal/scsi"
)

// TestProvisioning_ReadOnly: a unit that cannot be written to has holes all the
// same, but nothing that makes them.
func TestProvisioning_ReadOnly(t *testing.T) {
	u, _ := newMemoryUnit(t, 1<<20, target.Config{ReadOnly: true})
	if c := capacity16(t, u); !c.Provisioned || !c.ReadZeros {
		t.Errorf("capacity %+v", c)
	}
	p, ok := scsi.ParseVPDProvisioning(vpd(t, u, scsi.VPDLogicalBlockProvisioning))
	if want := (scsi.Provisioning{ReadZeros: true, Thin: true}); !ok || p != want {
		t.Errorf("provisioning page %+v", p)
	}
	got := lbaStatus(t, u, 0, 64)
	if len(got) != 1 || got[0] != (scsi.LBAStatus{Blocks: 2048, Status: scsi.StatusDeallocated}) {
		t.Errorf("LBA status %+v", got)
	}
}

// A slowMedium writes the zeros that it is to allocate.
type slowMedium struct{ *media.Memory }

func (slowMedium) ZeroIsFast() bool { return false }

// TestAnchor_OnlyIfFast: ANCHOR is a promise that zeros are not written.
func TestAnchor_OnlyIfFast(t *testing.T) {
	_, m := newMemoryUnit(t, 1<<20, target.Config{})
	u := newUnit(t, slowMedium{m}, target.Config{})
	p, ok := scsi.ParseVPDProvisioning(vpd(t, u, scsi.VPDLogicalBlockProvisioning))
	if !ok || p.Anchor || !p.Unmap {
		t.Errorf("provisioning page %+v", p)
	}
	wantSense(t, run(t, u, func(c *[16]byte) int { return scsi.PutWriteSame16(c, 0, 1, true, true, true) }, target.NoData), field(1))
}

// A longMedium is all data, told in extents of a GiB.
type longMedium struct {
	*media.Memory
	asked int
}

func (m *longMedium) ExtentAt(off int64) (media.Extent, error) {
	m.asked++
	return media.Extent{OffsetBytes: off, LengthBytes: min(1<<30, m.Size()-off), Data: true}, nil
}

// TestGetLBAStatus_Bounded: one command does not look through a disk of any
// size, and those that follow go on where it ended.
func TestGetLBAStatus_Bounded(t *testing.T) {
	_, memory := newMemoryUnit(t, 100<<30, target.Config{})
	m := &longMedium{Memory: memory}
	u := newUnit(t, m, target.Config{})
	at, commands := uint64(0), 0
	for ; at < u.Blocks(); commands++ {
		asked := m.asked
		for _, d := range lbaStatus(t, u, at, 4096) {
			if d.LBA != at || d.Blocks == 0 || d.Status != scsi.StatusMapped {
				t.Fatalf("descriptor %+v, want data from %d", d, at)
			}
			at += uint64(d.Blocks)
		}
		if m.asked-asked > 16 {
			t.Errorf("%d GiB looked through by one command", m.asked-asked)
		}
	}
	if at != u.Blocks() || commands != 7 {
		t.Errorf("%d commands to block %d", commands, at)
	}
}

// TestUnmap_OtherBlocksFail: an error of other blocks, which a cache was to make room by, is
// told of the range that was being unmapped.
func TestUnmap_OtherBlocksFail(t *testing.T) {
	for at, want := range map[int64]uint64{3: 64, 63: 64, 64: 64, 71: 71, 72: 64} {
		u, m := newFakeUnit(t, 1<<20, target.Config{WriteCache: true}, 0)
		m.setFail("discard", &media.Error{OffsetBytes: at * blockBytes, Kind: media.ErrMedium})
		wantSense(t, run(t, u, unmap(24, false), target.DataOut, unmapList(64, 8)), scsi.Sense{
			Key: scsi.KeyMediumError, Additional: scsi.WriteError, Information: want, InformationValid: true,
		})
	}
}
