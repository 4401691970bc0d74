package disk

import (
	"testing"

	"github.com/vhbad/vhbad/internal/scsi"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/port"
)

func TestJudge(t *testing.T) {
	const ok = 4096
	sense := func(flags port.Flags, key scsi.SenseKey, a scsi.Additional) *port.SRB {
		s := &port.SRB{Status: port.StatusError | port.StatusAutosenseValid, ScsiStatus: scsi.StatusCheckCondition, Flags: flags}
		s.SenseBytes = uint8(scsi.PutFixedSense(s.Sense[:], &scsi.Sense{Key: key, Additional: a}))
		return s
	}
	status := func(s port.Status) *port.SRB { return &port.SRB{Status: s, DataTransferBytes: ok} }
	scsiStatus := func(s scsi.Status) *port.SRB { return &port.SRB{Status: port.StatusError, ScsiStatus: s} }
	met := scsiStatus(scsi.StatusConditionMet)
	met.DataTransferBytes = ok
	recovered := sense(0, scsi.KeyRecoveredError, 0)
	recovered.DataTransferBytes = ok
	zeroes := sense(0, scsi.KeyIllegalRequest, scsi.LBAOutOfRange)
	scsi.PutWriteSame16(&zeroes.CDB, 0, 1, false, false, true)
	short := status(port.StatusSuccess)
	short.DataTransferBytes = 512
	for _, tt := range []struct {
		name  string
		srb   *port.SRB
		want  verdict
		errno nbd.Errno
	}{
		{"success", status(port.StatusSuccess), verdictDone, nbd.OK},
		{"success with flags", status(port.StatusSuccess | port.StatusQueueFrozen), verdictDone, nbd.OK},
		{"short transfer", short, verdictFail, nbd.EIO},
		{"underrun", status(port.StatusDataOverrun), verdictFail, nbd.EIO},
		{"busy", status(port.StatusBusy), verdictRetry, nbd.EIO},
		{"bus reset", status(port.StatusBusReset), verdictRetry, nbd.EIO},
		{"aborted", status(port.StatusAborted), verdictRetry, nbd.EIO},
		{"timeout", status(port.StatusCommandTimeout), verdictRetry, nbd.EIO},
		{"no device", status(port.StatusNoDevice), verdictFail, nbd.ESHUTDOWN},
		{"no HBA", status(port.StatusNoHBA), verdictFail, nbd.ESHUTDOWN},
		{"invalid request", status(port.StatusInvalidRequest), verdictFail, nbd.EINVAL},
		{"internal error", status(port.StatusInternalError), verdictFail, nbd.EIO},
		{"error without sense", scsiStatus(scsi.StatusCheckCondition), verdictFail, nbd.EIO},
		{"scsi busy", scsiStatus(scsi.StatusBusy), verdictRetry, nbd.EIO},
		{"task set full", scsiStatus(scsi.StatusTaskSetFull), verdictRetry, nbd.EIO},
		{"condition met", met, verdictDone, nbd.OK},
		{"condition met in part", scsiStatus(scsi.StatusConditionMet), verdictFail, nbd.EIO},
		{"reservation conflict", scsiStatus(scsi.StatusReservationConflict), verdictFail, nbd.EPERM},
		{"recovered", recovered, verdictDone, nbd.OK},
		{"recovered in part", sense(0, scsi.KeyRecoveredError, 0), verdictFail, nbd.EIO},
		{"unit attention", sense(0, scsi.KeyUnitAttention, scsi.PowerOnResetOccurred), verdictRetry, nbd.EIO},
		{"aborted command", sense(0, scsi.KeyAbortedCommand, 0), verdictRetry, nbd.EIO},
		{"not ready", sense(0, scsi.KeyNotReady, 0), verdictFail, nbd.EIO},
		{"medium error", sense(0, scsi.KeyMediumError, scsi.UnrecoveredReadError), verdictFail, nbd.EIO},
		{"hardware error", sense(0, scsi.KeyHardwareError, 0), verdictFail, nbd.EIO},
		{"write protected", sense(port.FlagDataOut, scsi.KeyDataProtect, scsi.WriteProtected), verdictFail, nbd.EPERM},
		{"no space", sense(port.FlagDataOut, scsi.KeyDataProtect, scsi.SpaceAllocationFailed), verdictFail, nbd.ENOSPC},
		{"read past the end", sense(port.FlagDataIn, scsi.KeyIllegalRequest, scsi.LBAOutOfRange), verdictFail, nbd.EINVAL},
		{"write past the end", sense(port.FlagDataOut, scsi.KeyIllegalRequest, scsi.LBAOutOfRange), verdictFail, nbd.ENOSPC},
		{"zeroes past the end", zeroes, verdictFail, nbd.ENOSPC},
		{"no such unit", sense(0, scsi.KeyIllegalRequest, scsi.LogicalUnitNotSupported), verdictFail, nbd.ESHUTDOWN},
		{"bad field", sense(0, scsi.KeyIllegalRequest, scsi.InvalidFieldInCDB), verdictFail, nbd.EINVAL},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if v, errno := judge(tt.srb, ok); v != tt.want || errno != tt.errno {
				t.Errorf("judge(%s) = %v, %s, want %v, %s", tt.srb, v, errno, tt.want, tt.errno)
			}
		})
	}
}

// TestBlame: requests ended by resets and aborts are told apart from those that fail.
func TestBlame(t *testing.T) {
	aborted := &port.SRB{Status: port.StatusError | port.StatusAutosenseValid, ScsiStatus: scsi.StatusCheckCondition}
	aborted.SenseBytes = uint8(scsi.PutFixedSense(aborted.Sense[:], &scsi.Sense{Key: scsi.KeyAbortedCommand}))
	failed := &port.SRB{Status: port.StatusError | port.StatusAutosenseValid, ScsiStatus: scsi.StatusCheckCondition}
	failed.SenseBytes = uint8(scsi.PutFixedSense(failed.Sense[:], &scsi.Sense{Key: scsi.KeyMediumError}))
	for _, tt := range []struct {
		srb  *port.SRB
		want nbd.Blame
	}{
		{&port.SRB{Status: port.StatusBusReset}, nbd.BlameAborted},
		{&port.SRB{Status: port.StatusAborted}, nbd.BlameAborted},
		{&port.SRB{Status: port.StatusNoDevice}, nbd.BlameAborted},
		{&port.SRB{Status: port.StatusError, ScsiStatus: scsi.StatusTaskAborted}, nbd.BlameAborted},
		{aborted, nbd.BlameAborted},
		{failed, nbd.BlameNone},
		{&port.SRB{Status: port.StatusInvalidRequest}, nbd.BlameNone},
		{&port.SRB{Status: port.StatusError}, nbd.BlameNone},
		{&port.SRB{Status: port.StatusError, Injected: true}, nbd.BlameInjected},
		{&port.SRB{Status: port.StatusNoDevice, Injected: true}, nbd.BlameInjected},
	} {
		if got := blame(tt.srb); got != tt.want {
			t.Errorf("%s: blame %d, want %d", tt.srb, got, tt.want)
		}
	}
}
