package port

// A Miniport drives one adapter: the callbacks that the port calls. The value
// behind the interface is the adapter's device extension; it is made once for
// an adapter and kept across stop and restart.
//
// Every callback gets the Processor it runs on and must pass it to every
// support routine it calls. Each method states the level and the locks the
// port holds around it; the table is storport.md 1.3 of the vendor's pages
// named there. Callbacks return at the level and with the locks they were
// entered with.
//
// Further callbacks are optional interfaces, looked up once when the adapter
// is found: IoBuilder, IoCommitter, MessageInterrupter, PassiveInitializer,
// UnitController.
type Miniport interface {
	// FindAdapter claims the adapter and fills c: how the adapter is to be
	// synchronized, its limits and the size of its extensions.
	//
	// Level: Passive, no lock held. GetDeviceBase, GetUncachedExtension and
	// SetFeatureList are allowed here only.
	// Source: storport.h HW_FIND_ADAPTER.
	FindAdapter(p *Processor, a *Adapter, c *Config) FindResult

	// Initialize makes the adapter ready for I/O; interrupts may arrive as soon
	// as it returns. False means that the adapter does not work.
	//
	// Level: Device, interrupt lock held (all message locks).
	// Source: storport.h HW_INITIALIZE.
	Initialize(p *Processor, t SyncToken) bool

	// StartIo hands a built SRB to the hardware.
	//
	// Time may pass since BuildIo: the unit may have been busy, or even reset.
	// What BuildIo prepared is as it left it; if a reset made it stale, complete
	// with StatusBusy, and the port starts over with BuildIo.
	//
	// Level: Dispatch with the StartIo lock; in half duplex Device with the
	// interrupt lock too; with concurrent channels Dispatch and this SRB's
	// channel only (GetStartIoPerfParams). It must not wait or allocate.
	// Ownership: the SRB is the miniport's until Complete. False means that
	// the SRB could not be started and must have been completed.
	// Source: storport.h HW_STARTIO.
	StartIo(p *Processor, srb *SRB) bool

	// Interrupt services a line interrupt, or message 0 of an adapter without
	// a MessageInterrupter. True: the adapter raised it.
	//
	// Level: Device, interrupt lock held.
	// Source: storport.h HW_INTERRUPT.
	Interrupt(p *Processor, t SyncToken) bool

	// ResetBus resets one bus. Before it returns true, the hardware must have
	// stopped touching memory for every SRB of the bus, and each of them must
	// have been completed (StatusBusReset).
	//
	// Level: Dispatch with the StartIo lock and every channel; in half duplex
	// Device with the interrupt lock too.
	// Source: storport.h HW_RESET_BUS.
	ResetBus(p *Processor, pathID uint8) bool

	// AdapterControl handles life-cycle requests: see ControlType.
	//
	// Level: Dispatch, no lock held (the vendor's pages disagree: see
	// docs/storport.md). Before ControlStopAdapter the port has drained the
	// adapter; interrupts may still arrive until the miniport has turned them off
	// in its hardware.
	// Source: storport.h HW_ADAPTER_CONTROL.
	AdapterControl(p *Processor, t ControlType) ControlResult
}

// IoBuilder is implemented by a miniport that prepares SRBs ahead of StartIo.
type IoBuilder interface {
	// BuildIo translates srb into its extension.
	//
	// Level: Dispatch, no lock held, any number of calls at once on different
	// processors, in half duplex as well. It may touch srb, srb's extension and
	// what belongs to p alone; anything shared needs SynchronizeAccess or a
	// lock, and what the interrupt handler also uses needs SynchronizeAccess.
	// Ownership: true passes srb on to StartIo, perhaps later. False means that
	// the miniport has completed srb or will, and StartIo is not called.
	// Source: storport.h HW_BUILDIO; "Unsynchronized HwStorBuildIo Routine".
	BuildIo(p *Processor, srb *SRB) bool
}

// IoCommitter is vhbad's one addition to the vendor's interface, after Linux
// blk-mq's commit_rqs: StartIo may leave the doorbell alone and ring it here.
type IoCommitter interface {
	// CommitIo follows one or more calls of StartIo on a channel.
	//
	// Level: Dispatch, no lock held.
	CommitIo(p *Processor, channel int)
}

// MessageInterrupter is implemented by a miniport that uses interrupt messages.
type MessageInterrupter interface {
	// MessageInterrupt services one message. True: the adapter raised it.
	//
	// Level: Device, with that message's lock (InterruptSynchronizePerMessage)
	// or the one interrupt lock (InterruptSynchronizeAll).
	// Source: storport.h HW_MESSAGE_SIGNALED_INTERRUPT_ROUTINE.
	MessageInterrupt(p *Processor, t SyncToken, message uint16) bool
}

// PassiveInitializer is called after Initialize if that called
// EnablePassiveInitialization.
type PassiveInitializer interface {
	// PassiveInitialize finishes initialization where waiting is allowed;
	// InitializeDpc belongs here. False: the adapter does not work.
	//
	// Level: Passive, no lock held, interrupts enabled.
	// Source: storport.h HW_PASSIVE_INITIALIZE_ROUTINE.
	PassiveInitialize(p *Processor) bool
}

// UnitController is told about logical units.
type UnitController interface {
	// UnitControl announces the start or removal of a unit. It must not enumerate or
	// remove the adapter.
	//
	// Level: Passive, no lock held.
	// Source: storport.h HW_UNIT_CONTROL.
	UnitControl(p *Processor, t UnitControlType, lu *LogicalUnit) ControlResult
}

// FindResult is what FindAdapter returns.
type FindResult uint8

// Results of FindAdapter; the zero value is none of them, so that a forgotten
// result is noticed.
const (
	FoundNone     FindResult = iota
	Found                    // SP_RETURN_FOUND
	FindError                // SP_RETURN_ERROR
	FindBadConfig            // SP_RETURN_BAD_CONFIG
	FindNotFound             // SP_RETURN_NOT_FOUND
)

// ControlType says what AdapterControl is asked for.
// Source: storport.h SCSI_ADAPTER_CONTROL_TYPE.
type ControlType uint8

// Adapter control types.
const (
	ControlQuerySupported ControlType = iota // ScsiQuerySupportedControlTypes
	ControlStopAdapter                       // ScsiStopAdapter: nothing is outstanding
	ControlRestartAdapter                    // ScsiRestartAdapter: as Initialize, without FindAdapter's routines
	// ControlSurpriseRemoval (ScsiAdapterSurpriseRemoval) says that the hardware
	// is gone. It is sent to a miniport that asked for it with SetFeatureList.
	// The miniport touches no register any more, completes every SRB that it
	// holds (StatusNoHBA), and the same at once with whatever StartIo still
	// brings. Gone hardware does no DMA.
	ControlSurpriseRemoval
	controlTypes // number of control types
)

// UnitControlType says what UnitControl reports.
// Source: storport.h SCSI_UNIT_CONTROL_TYPE.
type UnitControlType uint8

// Unit control types.
const (
	UnitStart  UnitControlType = iota // ScsiUnitStart
	UnitRemove                        // ScsiUnitRemove
)

// ControlResult is what the control callbacks return.
type ControlResult uint8

// Control results.
const (
	ControlSuccess      ControlResult = iota // ScsiAdapterControlSuccess
	ControlUnsuccessful                      // ScsiAdapterControlUnsuccessful
)
