package port

// Level is a processor's interrupt request level, as far as it matters here.
// Source: "Managing Hardware Priorities" (IRQL).
type Level uint8

const (
	// Passive is ordinary code: it may wait.
	Passive Level = iota
	// Dispatch is where BuildIo, StartIo and DPCs run: no waiting. DPCs of this
	// processor are held back.
	Dispatch
	// Device is where interrupt handlers and SynchronizeAccess routines run:
	// interrupts that arrive on this processor stay pending.
	Device
)

func (l Level) String() string {
	switch l {
	case Dispatch:
		return "Dispatch"
	case Device:
		return "Device"
	case Passive:
	}
	return "Passive"
}

// Callback says which miniport or port routine a processor is in.
type Callback uint8

// Callbacks, in the order of the vendor's lock table.
const (
	inNone Callback = iota
	inFindAdapter
	inInitialize
	inPassiveInitialize
	inBuildIo
	inStartIo
	inCommitIo
	inInterrupt
	inSynchronized
	inDpc
	inTimer
	inStateChange
	inResetBus
	inAdapterControl
	inUnitControl
	inWorkItem
	inCompleteSRB
	inUnitsChanged
	callbackCount
)

var callbackNames = [callbackCount]string{
	"no callback", "FindAdapter", "Initialize", "PassiveInitialize", "BuildIo", "StartIo", "CommitIo", "Interrupt",
	"SynchronizeAccess routine", "DPC", "Timer", "StateChange", "ResetBus", "AdapterControl", "UnitControl", "WorkItem", "CompleteSRB",
	"OnUnitsChanged function",
}

func (c Callback) String() string { return callbackNames[c] }
