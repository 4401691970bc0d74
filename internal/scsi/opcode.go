package scsi

import "strconv"

// An Opcode is the operation code, byte 0 of a CDB.
type Opcode uint8

// Operation codes, in order of value, with the section that defines each.
const (
	OpTestUnitReady      Opcode = 0x00 // SPC-4 6.47
	OpRequestSense       Opcode = 0x03 // SPC-4 6.39
	OpRead6              Opcode = 0x08 // SBC-2 5.7
	OpWrite6             Opcode = 0x0a // SBC-2 5.29
	OpInquiry            Opcode = 0x12 // SPC-4 6.6
	OpModeSelect6        Opcode = 0x15 // SPC-4 6.11
	OpModeSense6         Opcode = 0x1a // SPC-4 6.13
	OpStartStopUnit      Opcode = 0x1b // SBC-3 5.25
	OpReadCapacity10     Opcode = 0x25 // SBC-3 5.15
	OpRead10             Opcode = 0x28 // SBC-3 5.11
	OpWrite10            Opcode = 0x2a // SBC-3 5.35
	OpVerify10           Opcode = 0x2f // SBC-3 5.31
	OpPreFetch10         Opcode = 0x34 // SBC-3 5.8
	OpSynchronizeCache10 Opcode = 0x35 // SBC-3 5.26
	OpWriteSame10        Opcode = 0x41 // SBC-3 5.47
	OpUnmap              Opcode = 0x42 // SBC-3 5.28
	OpModeSelect10       Opcode = 0x55 // SPC-4 6.12
	OpModeSense10        Opcode = 0x5a // SPC-4 6.14
	OpRead16             Opcode = 0x88 // SBC-3 5.13
	OpCompareAndWrite    Opcode = 0x89 // SBC-3 5.2
	OpWrite16            Opcode = 0x8a // SBC-3 5.37
	OpVerify16           Opcode = 0x8f // SBC-3 5.33
	OpPreFetch16         Opcode = 0x90 // SBC-3 5.9
	OpSynchronizeCache16 Opcode = 0x91 // SBC-3 5.27
	OpWriteSame16        Opcode = 0x93 // SBC-3 5.48
	OpServiceActionIn16  Opcode = 0x9e // SPC-4 table E.3; see ServiceAction
	OpReportLUNs         Opcode = 0xa0 // SPC-4 6.33
	OpRead12             Opcode = 0xa8 // SBC-3 5.12
	OpWrite12            Opcode = 0xaa // SBC-3 5.36
	OpVerify12           Opcode = 0xaf // SBC-3 5.32
)

// A ServiceAction tells commands with one operation code apart; byte 1, bits 0
// to 4 of their CDB.
type ServiceAction uint8

// Service actions of OpServiceActionIn16.
const (
	ActionReadCapacity16 ServiceAction = 0x10 // SBC-3 5.16
	ActionGetLBAStatus   ServiceAction = 0x12 // SBC-3 5.5
)

// String is the command's name in the standards, or the number in hexadecimal.
func (o Opcode) String() string {
	if name := opcodeNames[o]; name != "" {
		return name
	}
	return "0x" + strconv.FormatUint(uint64(o), 16)
}

// Known reports whether o is one of the operation codes above.
func Known(o Opcode) bool { return opcodeNames[o] != "" }

var opcodeNames = [256]string{
	OpTestUnitReady:      "TEST UNIT READY",
	OpRequestSense:       "REQUEST SENSE",
	OpRead6:              "READ(6)",
	OpWrite6:             "WRITE(6)",
	OpInquiry:            "INQUIRY",
	OpModeSelect6:        "MODE SELECT(6)",
	OpModeSense6:         "MODE SENSE(6)",
	OpStartStopUnit:      "START STOP UNIT",
	OpReadCapacity10:     "READ CAPACITY(10)",
	OpRead10:             "READ(10)",
	OpWrite10:            "WRITE(10)",
	OpVerify10:           "VERIFY(10)",
	OpPreFetch10:         "PRE-FETCH(10)",
	OpSynchronizeCache10: "SYNCHRONIZE CACHE(10)",
	OpWriteSame10:        "WRITE SAME(10)",
	OpUnmap:              "UNMAP",
	OpModeSelect10:       "MODE SELECT(10)",
	OpModeSense10:        "MODE SENSE(10)",
	OpRead16:             "READ(16)",
	OpCompareAndWrite:    "COMPARE AND WRITE",
	OpWrite16:            "WRITE(16)",
	OpVerify16:           "VERIFY(16)",
	OpPreFetch16:         "PRE-FETCH(16)",
	OpSynchronizeCache16: "SYNCHRONIZE CACHE(16)",
	OpWriteSame16:        "WRITE SAME(16)",
	OpServiceActionIn16:  "SERVICE ACTION IN(16)",
	OpReportLUNs:         "REPORT LUNS",
	OpRead12:             "READ(12)",
	OpWrite12:            "WRITE(12)",
	OpVerify12:           "VERIFY(12)",
}
