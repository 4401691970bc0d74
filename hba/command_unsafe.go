package hba

import "unsafe"

var (
	_ [CommandBytes]byte    = [unsafe.Sizeof(Command{})]byte{}
	_ [CompletionBytes]byte = [unsafe.Sizeof(Completion{})]byte{}
	_ [SegmentBytes]byte    = [unsafe.Sizeof(Segment{})]byte{}
)
