package fault

import (
	"fmt"
	"math/bits"
	"slices"
	"strings"

	"github.com/vhbad/vhbad/internal/scsi"
)

// An Op is a kind of command, or a set of kinds, a bit each.
type Op uint32

// Kinds of commands. Those up to OpStatus are what a block device's users cause, and
// what a rule that names none applies to.
const (
	OpRead         Op = 1 << iota // READ
	OpWrite                       // WRITE
	OpFlush                       // SYNCHRONIZE CACHE
	OpTrim                        // UNMAP
	OpZero                        // WRITE SAME
	OpCache                       // PRE-FETCH
	OpStatus                      // GET LBA STATUS
	OpVerify                      // VERIFY
	OpCompareWrite                // COMPARE AND WRITE
	OpReady                       // TEST UNIT READY
	OpInquiry                     // INQUIRY
	OpLuns                        // REPORT LUNS
	OpCapacity                    // READ CAPACITY
	OpMode                        // MODE SENSE, MODE SELECT
	OpSense                       // REQUEST SENSE
	OpStartStop                   // START STOP UNIT
	OpOther                       // commands that no disk has
	OpAbort                       // abort of one command
	OpResetLun                    // logical unit reset
	OpResetTarget                 // target reset
	OpResetBus                    // reset of the whole adapter
	OpTime                        // no command: time has come
	OpMark                        // no command: somebody has set a mark
	OpHandshake                   // no command: a client wants the disk

	opEnd
)

// Sets of kinds.
const (
	opsOfUsers = OpRead | OpWrite | OpFlush | OpTrim | OpZero | OpCache | OpStatus
	opsOfScsi  = OpAbort - 1
	opsResets  = OpResetLun | OpResetTarget | OpResetBus
	opsControl = OpAbort | opsResets
	opsEvents  = OpTime | OpMark
	opsWriting = OpWrite | OpTrim | OpZero | OpCompareWrite
	opsRanged  = OpRead | OpWrite | OpTrim | OpZero | OpCache | OpVerify | OpCompareWrite
)

var opNames = [...]string{
	"read", "write", "flush", "trim", "zero", "cache", "status", "verify", "compare-write", "ready", "inquiry", "luns",
	"capacity", "mode", "sense", "start-stop", "other", "abort", "reset-lun", "reset-target", "reset-bus", "time", "mark", "handshake",
}

// opSets are names for several kinds at once.
var opSets = map[string]Op{"io": opsOfUsers, "any": opsOfScsi, "reset": opsResets}

// OpNames are the kinds of commands that a rule may name.
func OpNames() []string { return append(slices.Clone(opNames[:]), "io", "any", "reset") }

// String is the names of the set's kinds, with commas.
func (o Op) String() string {
	var names []string
	for rest := o & (opEnd - 1); rest != 0; rest &= rest - 1 {
		names = append(names, opNames[bits.TrailingZeros32(uint32(rest))])
	}
	return strings.Join(names, ",")
}

// parseOp returns the kind, or the kinds, that a name stands for.
func parseOp(name string) (Op, error) {
	if o, ok := opSets[name]; ok {
		return o, nil
	}
	if i := slices.Index(opNames[:], name); i >= 0 {
		return 1 << i, nil
	}
	return 0, fmt.Errorf("%q: want %s", name, oneOf(OpNames()))
}

// Ops are the names of kinds of commands. In a file or request, a single name needs no
// list.
type Ops []string

// set is what the names mean.
func (o Ops) set() (Op, error) {
	var set Op
	for _, name := range o {
		op, err := parseOp(name)
		if err != nil {
			return 0, err
		}
		set |= op
	}
	return set, nil
}

// opsByCode is the kind of each operation code.
var opsByCode = [256]Op{
	scsi.OpTestUnitReady: OpReady, scsi.OpRequestSense: OpSense,
	scsi.OpRead6: OpRead, scsi.OpRead10: OpRead, scsi.OpRead12: OpRead, scsi.OpRead16: OpRead,
	scsi.OpWrite6: OpWrite, scsi.OpWrite10: OpWrite, scsi.OpWrite12: OpWrite, scsi.OpWrite16: OpWrite,
	scsi.OpInquiry: OpInquiry, scsi.OpModeSense6: OpMode, scsi.OpModeSense10: OpMode, scsi.OpModeSelect6: OpMode, scsi.OpModeSelect10: OpMode,
	scsi.OpStartStopUnit: OpStartStop, scsi.OpReadCapacity10: OpCapacity, scsi.OpReportLUNs: OpLuns,
	scsi.OpVerify10: OpVerify, scsi.OpVerify12: OpVerify, scsi.OpVerify16: OpVerify,
	scsi.OpPreFetch10: OpCache, scsi.OpPreFetch16: OpCache,
	scsi.OpSynchronizeCache10: OpFlush, scsi.OpSynchronizeCache16: OpFlush,
	scsi.OpWriteSame10: OpZero, scsi.OpWriteSame16: OpZero,
	scsi.OpUnmap: OpTrim, scsi.OpCompareAndWrite: OpCompareWrite,
}

// OpOf is the kind of a command.
func OpOf(cdb *[scsi.CDBMaxBytes]byte) Op {
	code := scsi.Opcode(cdb[0])
	if code == scsi.OpServiceActionIn16 {
		switch scsi.ServiceAction(cdb[1] & 0x1f) {
		case scsi.ActionReadCapacity16:
			return OpCapacity
		case scsi.ActionGetLBAStatus:
			return OpStatus
		}
	}
	if op := opsByCode[code]; op != 0 {
		return op
	}
	return OpOther
}
