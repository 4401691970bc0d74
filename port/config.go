package port

import "time"

// SynchronizationModel says whether StartIo and the interrupt handler may run
// at the same time.
// Source: storport.h STOR_SYNCHRONIZATION_MODEL.
type SynchronizationModel uint8

const (
	// HalfDuplex holds the interrupt lock across StartIo. It is the default.
	HalfDuplex SynchronizationModel = iota // StorSynchronizeHalfDuplex
	// FullDuplex holds only the StartIo lock there.
	FullDuplex // StorSynchronizeFullDuplex
)

func (m SynchronizationModel) String() string {
	if m == FullDuplex {
		return "full duplex"
	}
	return "half duplex"
}

// InterruptSynchronizationMode says what interrupts an adapter uses and how
// their handlers exclude each other.
// Source: storport.h INTERRUPT_SYNCHRONIZATION_MODE.
type InterruptSynchronizationMode uint8

const (
	// InterruptSupportNone uses the interrupt line.
	InterruptSupportNone InterruptSynchronizationMode = iota
	// InterruptSynchronizeAll runs all messages under one interrupt lock.
	InterruptSynchronizeAll
	// InterruptSynchronizePerMessage gives each message a lock of its own.
	InterruptSynchronizePerMessage
)

func (m InterruptSynchronizationMode) String() string {
	switch m {
	case InterruptSynchronizeAll:
		return "one lock for all messages"
	case InterruptSynchronizePerMessage:
		return "a lock per message"
	case InterruptSupportNone:
	}
	return "line"
}

// Feature is a bit set of adapter abilities.
type Feature uint32

const (
	// FeatureAbortCommand says that the miniport takes FunctionAbortCommand.
	// Source: storport.h STOR_ADAPTER_FEATURE_ABORT_COMMAND.
	FeatureAbortCommand Feature = 1 << iota
)

// Uninitialized marks a mandatory Config field that FindAdapter has not set.
// Source: storport.h SP_UNINITIALIZED_VALUE.
const Uninitialized = ^uint32(0)

// Config is what port and miniport agree on during FindAdapter.
// Source: storport.h PORT_CONFIGURATION_INFORMATION.
type Config struct {
	// SynchronizationModel is HalfDuplex unless FindAdapter says otherwise.
	SynchronizationModel         SynchronizationModel
	InterruptSynchronizationMode InterruptSynchronizationMode
	// InterruptMessages is how many messages to connect, from 1 to as many as the
	// function has. Ignored without messages. Default: all.
	InterruptMessages int

	// MaximumTransferLength is the longest data phase, bytes. Mandatory.
	MaximumTransferLength uint32
	// NumberOfPhysicalBreaks is the longest scatter/gather list less one.
	// Mandatory.
	NumberOfPhysicalBreaks uint32
	// AlignmentMask is the buffer alignment less one: 0, 1, 3, 7 and so on to
	// 0x1ff. An SRB with a buffer that begins elsewhere completes with
	// StatusInvalidRequest, unseen by the miniport.
	AlignmentMask uint32

	// MaxNumberOfIO bounds what is outstanding on the adapter. Default 1000.
	MaxNumberOfIO int
	// MaxIOsPerLun bounds what is outstanding on a unit. Default 255.
	MaxIOsPerLun int
	// InitialLunQueueDepth is a unit's depth until SetDeviceQueueDepth. Default
	// 20.
	InitialLunQueueDepth int

	// NumberOfBuses, MaximumNumberOfTargets and MaximumNumberOfLogicalUnits
	// bound the addresses that enumeration probes. Defaults 1, 1 and 255.
	NumberOfBuses, MaximumNumberOfTargets, MaximumNumberOfLogicalUnits int

	// SrbExtensionBytes is the size of SRB.Extension, in DMA-able memory.
	SrbExtensionBytes int
	// LuExtensionBytes is the size of LogicalUnit.Extension, zeroed.
	LuExtensionBytes int

	// CachesData asks for FunctionFlush and FunctionShutdown.
	CachesData bool
	// BusResetHoldTime is how long new SRBs are held back after ResetDetected.
	// Default 0: not at all.
	BusResetHoldTime time.Duration
	// Features says what else the adapter can do.
	Features Feature
}

// PerfFlags selects optimisations in PerfConfigurationData.
// Source: storport.h STOR_PERF_*.
type PerfFlags uint32

// Performance options.
const (
	PerfDpcRedirection                     PerfFlags = 1 << iota // spread completion DPCs; only with PerfDpcRedirectionCurrentCPU
	PerfConcurrentChannels                                       // up to ConcurrentChannels calls of StartIo at once; no StartIo lock
	PerfInterruptMessageRanges                                   // First/LastRedirectionMessageNumber are valid
	PerfAdvConfigLocality                                        // the port fills MessageTargets
	PerfOptimizeForCompletionDuringStartIo                       // the miniport also reaps in StartIo
	PerfDpcRedirectionCurrentCPU                                 // a DPC runs on the processor that asks for it
	PerfNoSGL                                                    // the port builds no scatter/gather lists
)

// PerfConfigurationData is negotiated by InitializePerfOpts.
// Source: storport.h PERF_CONFIGURATION_DATA.
type PerfConfigurationData struct {
	Flags              PerfFlags
	ConcurrentChannels int
	// FirstRedirectionMessageNumber and LastRedirectionMessageNumber are the range
	// of messages that complete I/O: channel c completes on message First + c modulo
	// the number of messages in the range.
	FirstRedirectionMessageNumber, LastRedirectionMessageNumber uint16
}

// StartIoPerfParams is what GetStartIoPerfParams returns.
// Source: storport.h STARTIO_PERFORMANCE_PARAMETERS.
type StartIoPerfParams struct {
	MessageNumber uint16 // best message for the SRB's completion, 0 without messages
	ChannelNumber int    // 0 without channels
}
