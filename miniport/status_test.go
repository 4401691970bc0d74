package miniport

import (
	"testing"

	"github.com/vhbad/vhbad/hba"
	"github.com/vhbad/vhbad/internal/scsi"
	"github.com/vhbad/vhbad/port"
)

func TestOutcome(t *testing.T) {
	const asked = 4096
	for _, tt := range []struct {
		name     string
		function port.Function
		opcode   scsi.Opcode
		flags    port.Flags
		c        hba.Completion
		want     port.Status
		bytes    uint32
		scsi     scsi.Status
	}{
		{name: "read", opcode: scsi.OpRead16, c: hba.Completion{DataBytes: asked}, want: port.StatusSuccess, bytes: asked},
		{name: "short read", opcode: scsi.OpRead16, c: hba.Completion{DataBytes: 512}, want: port.StatusDataOverrun, bytes: 512},
		{name: "short write", opcode: scsi.OpWrite10, c: hba.Completion{}, want: port.StatusDataOverrun},
		{name: "short inquiry", opcode: scsi.OpInquiry, c: hba.Completion{DataBytes: 96}, want: port.StatusSuccess, bytes: 96},
		{name: "more than asked", opcode: scsi.OpRead16, c: hba.Completion{DataBytes: asked + 1}, want: port.StatusPhaseSequenceFailure, bytes: asked},
		{name: "condition met", opcode: scsi.OpPreFetch16, c: hba.Completion{ScsiStatus: 4, DataBytes: asked}, want: port.StatusSuccess, bytes: asked, scsi: scsi.StatusConditionMet},
		{name: "condition met, short read", opcode: scsi.OpRead16, c: hba.Completion{ScsiStatus: 4}, want: port.StatusDataOverrun, scsi: scsi.StatusConditionMet},
		{name: "check condition", opcode: scsi.OpRead16, c: hba.Completion{ScsiStatus: 2, SenseBytes: 18, DataBytes: 512}, want: port.StatusError | port.StatusAutosenseValid, bytes: 512, scsi: scsi.StatusCheckCondition},
		{name: "check condition without sense", opcode: scsi.OpRead16, c: hba.Completion{ScsiStatus: 2}, want: port.StatusError, scsi: scsi.StatusCheckCondition},
		{name: "autosense disabled", opcode: scsi.OpRead16, flags: port.FlagDisableAutosense, c: hba.Completion{ScsiStatus: 2, SenseBytes: 18}, want: port.StatusError, scsi: scsi.StatusCheckCondition},
		{name: "busy", opcode: scsi.OpRead16, c: hba.Completion{ScsiStatus: 8}, want: port.StatusError, bytes: asked, scsi: scsi.StatusBusy},
		{name: "task set full", opcode: scsi.OpRead16, c: hba.Completion{ScsiStatus: 0x28}, want: port.StatusError, bytes: asked, scsi: scsi.StatusTaskSetFull},
		{name: "reservation conflict", opcode: scsi.OpRead16, c: hba.Completion{ScsiStatus: 0x18}, want: port.StatusError, bytes: asked, scsi: scsi.StatusReservationConflict},
		{name: "task aborted", opcode: scsi.OpRead16, c: hba.Completion{ScsiStatus: 0x40}, want: port.StatusAborted, bytes: asked, scsi: scsi.StatusTaskAborted},
		{name: "unknown SCSI status", opcode: scsi.OpRead16, c: hba.Completion{ScsiStatus: 0x7e}, want: port.StatusError, bytes: asked, scsi: 0x7e},
		{name: "bad command", c: hba.Completion{Code: hba.CodeBadCommand}, want: port.StatusInvalidRequest, bytes: asked},
		{name: "no device", c: hba.Completion{Code: hba.CodeNoDevice}, want: port.StatusNoDevice, bytes: asked},
		{name: "DMA fault", c: hba.Completion{Code: hba.CodeDMAFault}, want: port.StatusParityError, bytes: asked},
		{name: "aborted", c: hba.Completion{Code: hba.CodeAborted}, want: port.StatusAborted, bytes: asked},
		{name: "reset done", function: port.FunctionResetLogicalUnit, want: port.StatusSuccess, bytes: asked},
		{name: "abort done", function: port.FunctionAbortCommand, want: port.StatusSuccess, bytes: asked},
		{name: "abort of a finished command", function: port.FunctionAbortCommand, c: hba.Completion{Code: hba.CodeAbortUnknown}, want: port.StatusSuccess, bytes: asked},
		{name: "abort unknown for a read", c: hba.Completion{Code: hba.CodeAbortUnknown}, want: port.StatusPhaseSequenceFailure, bytes: asked},
		{name: "unknown code", c: hba.Completion{Code: 77}, want: port.StatusPhaseSequenceFailure, bytes: asked},
	} {
		t.Run(tt.name, func(t *testing.T) {
			srb := &port.SRB{Function: tt.function, Flags: tt.flags, DataTransferBytes: asked}
			srb.CDB[0] = uint8(tt.opcode)
			for i := range tt.c.Sense {
				tt.c.Sense[i] = uint8(i + 1)
			}
			got := New(Options{}).outcome(srb, &tt.c)
			if got != tt.want || srb.DataTransferBytes != tt.bytes || srb.ScsiStatus != tt.scsi {
				t.Errorf("got %s, %d bytes, SCSI %s; want %s, %d bytes, SCSI %s",
					got, srb.DataTransferBytes, srb.ScsiStatus, tt.want, tt.bytes, tt.scsi)
			}
			if valid := got&port.StatusAutosenseValid != 0; valid != (srb.SenseBytes > 0) {
				t.Errorf("autosense valid is %t with %d bytes of sense", valid, srb.SenseBytes)
			}
			for i := range srb.SenseBytes {
				if srb.Sense[i] != i+1 {
					t.Fatalf("sense byte %d is %#x", i, srb.Sense[i])
				}
			}
		})
	}
}
