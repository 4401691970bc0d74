package mutants

import (
	"time"

	"github.com/vhbad/vhbad/internal/pci"
	"github.com/vhbad/vhbad/port"
)

// A mutant is the specimen, or the port around it, with one thing wrong.
type mutant struct {
	name   string
	source string // public bug, or section of the vendor's contract
	change string // what is wrong
	// check or oracle is what must notice it.
	check    port.Check
	oracle   oracle
	scenario scenario

	gene        gene
	hooks       hooks
	early       bool // wrong from FindAdapter on
	synchronize synchronizer
	port        func(m *specimen) port.Miniport
	bus         func(d *device) pci.Function
	wallClock   bool // it waits for a clock that does not stand still
}

// The usual ways to run.
var (
	all        = options{model: port.FullDuplex, interrupts: port.InterruptSynchronizeAll}
	perMessage = options{model: port.FullDuplex, interrupts: port.InterruptSynchronizePerMessage, queues: 2}
	half       = options{model: port.HalfDuplex, interrupts: port.InterruptSynchronizeAll}
)

var mutants = []mutant{
	// Ids, slots and rings.
	{
		name: "id_outside_sync", source: "vw#1453, #1466, PR#1467; 9.2", gene: idOutsideSync, scenario: pairs(all, windowID, windowClaimed), oracle: oracleDuplicateID,
		change: "BuildIo reads a counter of ids and increases it a moment later, without SynchronizeAccess",
	},
	{
		name: "ring_without_lock", source: "PR#103; vw#1453", gene: ringWithoutLock, scenario: pairs(perMessage, windowRing), oracle: oracleLost,
		change: "StartIo of two channels writes into one ring without a lock of its own",
	},
	{
		name: "ring_full_unchecked", source: "PR#922; 3.3", gene: ringFullUnchecked, scenario: overfull, oracle: oracleLost,
		change: "StartIo writes over the oldest entry of a full ring instead of completing BUSY with QUEUE FULL",
	},
	{
		name: "no_generation", source: "PR#1295, #1296; 10.16", gene: noGeneration, scenario: lateAnswer, oracle: oracleData,
		change: "an id has no generation: the late answer to a request that a reset ended completes the next one in its slot",
	},
	// Completion.
	{
		name: "complete_twice", source: "7.1 0x2004", gene: completeTwice, scenario: one, check: port.CheckDoubleCompletion,
		change: "the DPC completes each SRB twice",
	},
	{
		name: "complete_after_false", source: "2.8 phase 3a; 10.8", gene: completeAfterFalse, scenario: refused, check: port.CheckDoubleCompletion,
		change: "BuildIo completes an SRB that it has completed before it returns false",
	},
	{
		name: "true_after_complete", source: "7.3 V5", gene: trueAfterComplete, scenario: refused, check: port.CheckBuildIoCompleted,
		change: "BuildIo returns true for an SRB that it has completed",
	},
	{
		name: "false_without_complete", source: "PR#1595; 7.3 V4", gene: falseWithoutComplete, scenario: refused, check: port.CheckBuildIoFalse,
		change: "BuildIo sets a status and returns false without completing",
	},
	{
		name: "start_without_complete", source: "vioscsi SendSRB; #907", gene: startWithoutComplete, scenario: one, check: port.CheckBuildIoFalse,
		change: "StartIo returns false without completing",
	},
	{
		name: "permanent_as_busy", source: "PR#1595; 10.11", gene: permanentAsBusy, scenario: refused, oracle: oracleStatus,
		change: "a request that can never succeed is completed as BUSY",
	},
	{
		name: "status_pending", source: "SDV StorPortStatusPending", gene: statusPending, scenario: one, check: port.CheckStatus,
		change: "an SRB is completed with status PENDING",
	},
	{
		name: "status_frozen", source: "2.5; 10.28", gene: statusFrozen, scenario: one, check: port.CheckStatus,
		change: "the miniport sets QUEUE_FROZEN",
	},
	{
		name: "status_unknown", source: "SCSI verifier 0x1004", gene: statusUnknown, scenario: one, check: port.CheckStatus,
		change: "an SRB is completed with a status that does not exist",
	},
	{
		name: "extension_after_complete", source: "vioscsi unit removal; 8.2", gene: extensionAfterComplete, scenario: one, check: port.CheckUseAfterComplete,
		change: "a list entry in the SRB extension is unlinked after the SRB was completed",
	},
	{
		name: "result_after_complete", source: "viostor fua; 10.17", gene: resultAfterComplete, scenario: one, check: port.CheckUseAfterComplete,
		change: "a field of the SRB is changed after the SRB was completed",
	},
	{
		name: "list_after_complete", source: "4; 10.17", gene: listAfterComplete, scenario: one, check: port.CheckUseAfterComplete,
		change: "the scatter/gather list is changed after the SRB was completed",
	},
	{
		name: "extension_assumed_zero", source: "10.25", gene: extensionAssumedZero, scenario: one, oracle: oracleStatus,
		change: "BuildIo takes the SRB extension for zeroed",
	},
	{
		name: "length_touched_on_busy", source: "hw_startio page; 2.2", gene: lengthTouchedOnBusy, scenario: overfull, oracle: oracleData,
		change: "DataTransferLength is changed in a BUSY completion",
	},
	{
		name: "busy_after_doorbell", source: "2.8; 10.10", gene: busyAfterDoorbell, scenario: one, check: port.CheckBusyAfterDevice,
		change: "StartIo completes BUSY after the device has been told of the request",
	},
	{
		name: "shared_sense", source: "viostor sense_info; 10.32", gene: sharedSense, scenario: senses, oracle: oracleSense,
		change: "one place in the device extension holds the sense data of all requests",
	},
	{
		name: "capacity_outside_sync", source: "viostor lastLBA; 8.2", gene: capacityOutsideSync, scenario: capacityChange(), oracle: oracleTorn,
		change: "BuildIo reads the capacity, which the handler is changing, without SynchronizeAccess",
	},
	// Interrupts and DPCs.
	{
		name: "one_answer_per_interrupt", source: "1.11; 10.23", gene: oneAnswerPerInterrupt, scenario: several, oracle: oracleLost,
		change: "the handler takes one answer for each interrupt",
	},
	{
		name: "no_recheck", source: "10.23; 4", gene: noRecheck, scenario: lateEdge, oracle: oracleLost,
		change: "interrupts are turned on again without another look at the ring",
	},
	{
		name: "dpc_argument", source: "1.10; 10.22", gene: dpcArgument, scenario: several, oracle: oracleLost,
		change: "the handler hands the DPC one request, as if each IssueDpc had its own run",
	},
	{
		name: "interrupt_denied", source: "hw_interrupt page", gene: interruptDenied, scenario: line, oracle: oracleLost,
		change: "the handler says that its own interrupt is another device's",
	},
	{
		name: "kick_decided_early", source: "PR#1150; #756, #623", gene: kickDecidedEarly, scenario: idleDevice, oracle: oracleLost,
		change: "whether the doorbell must ring is decided before the ring entry is there",
	},
	{
		name: "doorbell_before_entry", source: "PR#1150; 4", gene: doorbellBeforeEntry, scenario: one, oracle: oracleLost,
		change: "the doorbell rings before the ring entry is there, and not again",
	},
	{
		name: "build_order_assumed", source: "10.9; hw_buildio page", gene: buildOrderAssumed, scenario: parked, oracle: oracleData,
		change: "StartIo takes commands in the order in which BuildIo has prepared them",
	},
	{
		name: "pause_in_milliseconds", source: "10.13; 3.2", scenario: twice, oracle: oracleLost,
		change: "PauseDevice is given milliseconds, and nobody resumes",
		hooks: hooks{startIo: func(m *specimen, p *port.Processor, srb *port.SRB) {
			m.a.PauseDevice(p, srb.PathID, srb.TargetID, srb.Lun, 60_000)
			m.r.undo = append(m.r.undo, func() { m.a.ResumeDevice(m.r.p, 0, 0, 0) })
		}},
	},
	{
		name: "timer_without_routine", source: "SDV StorPortTimer; V19", scenario: one, check: port.CheckNotification,
		change: "the adapter's timer is asked for without a routine",
		hooks:  hooks{startIo: func(m *specimen, p *port.Processor, _ *port.SRB) { m.a.RequestTimerCall(p, nil, time.Second) }},
	},
	// Resets.
	{
		name: "reset_bus_keeps_dma", source: "PR#1295, #1326, #1370, #1493; 10.16", gene: resetBusKeepsDMA, scenario: resets(port.ResetBus), check: port.CheckDMA,
		change: "ResetBus completes the SRBs while the device still writes to their memory",
	},
	{
		name: "reset_bus_forgets", source: "7.3 V13", gene: resetBusForgets, scenario: resets(port.ResetBus), check: port.CheckResetOutstanding,
		change: "ResetBus returns true with SRBs outstanding",
	},
	{
		name: "reset_bus_in_bulk", source: "ZFSin#211; 10.30", gene: resetBusInBulk, scenario: resetBeforeDpc(), check: port.CheckDoubleCompletion,
		change: "ResetBus completes all SRBs at once, those included that the DPC is about to complete",
	},
	{
		name: "reset_unit_forgets", source: "7.3 V13; SCSI verifier 0x1007", gene: resetUnitForgets, scenario: resets(port.ResetUnit), check: port.CheckResetOutstanding,
		change: "a logical unit reset succeeds with SRBs of the unit outstanding",
	},
	{
		name: "reset_unit_hits_target", source: "lsi LUN reset; 8.2", gene: resetUnitHitsTarget, scenario: resets(port.ResetUnit), oracle: oracleStatus,
		change: "a logical unit reset completes the SRBs of every unit of the target",
	},
	{
		name: "flag_after_sync", source: "vioscsi tmf_infly; 8.2, A14", gene: flagAfterSync, scenario: stuck, oracle: oracleLost,
		change: "a flag that the handler tests is set after SynchronizeAccess has returned, so that the answer to the reset is not looked for",
	},
	{
		name: "reset_never_answered", source: "7.3 V14", gene: resetNeverAnswered, scenario: keptReset, check: port.CheckStopOutstanding,
		change: "a reset SRB is kept for good, and the adapter is stopped with it",
	},
	{
		name: "complete_request", source: "SDV StorPortCompleteRequest; 3.5", scenario: one, check: port.CheckCallingPlace,
		change: "CompleteRequest is called to complete everything that is outstanding",
		hooks: hooks{dpc: func(m *specimen, p *port.Processor) {
			m.a.CompleteRequest(p, 0, 0, 0, port.StatusBusReset)
		}},
	},
	// Configuration.
	{
		name: "breaks_unset", source: "SDV StorPortFindAdapter; V20", gene: breaksUnset, early: true, scenario: one, check: port.CheckFindAdapter,
		change: "FindAdapter leaves NumberOfPhysicalBreaks unset",
	},
	{
		name: "depth_too_large", source: "3.1", gene: depthTooLarge, early: true, scenario: one, oracle: oracleDepth,
		change: "SetDeviceQueueDepth asks for more than MaxIOsPerLun and does not look at the answer",
	},
	{
		name: "uncached_extension_late", source: "verifier 0x2002; V7", scenario: one, check: port.CheckCallingPlace,
		change: "GetUncachedExtension is called from BuildIo",
		hooks: hooks{buildIo: func(m *specimen, p *port.Processor, _ *port.SRB) {
			m.a.GetUncachedExtension(p, &port.Config{SrbExtensionBytes: 64}, 64)
		}},
	},
	{
		name: "uncached_extension_early", source: "verifier 0x2002", early: true, scenario: one, check: port.CheckCallingPlace,
		change: "GetUncachedExtension is called before SrbExtensionSize is set",
		hooks: hooks{findAdapter: func(m *specimen, p *port.Processor, _ *port.Config) {
			m.a.GetUncachedExtension(p, &port.Config{}, 64)
		}},
	},
	{
		name: "device_base_late", source: "1.4; V7", scenario: one, check: port.CheckCallingPlace,
		change: "GetDeviceBase is called from StartIo",
		hooks:  hooks{startIo: func(m *specimen, p *port.Processor, _ *port.SRB) { m.a.GetDeviceBase(p, 0) }},
	},
	{
		name: "perf_opts_late", source: "1.9; SDV StorPortPerfOpts", scenario: one, check: port.CheckCallingPlace,
		change: "InitializePerfOpts is called from StartIo",
		hooks: hooks{startIo: func(m *specimen, p *port.Processor, _ *port.SRB) {
			var d port.PerfConfigurationData
			if err := m.a.InitializePerfOpts(p, true, &d); err == nil {
				m.r.fail(oracleStatus, "InitializePerfOpts took it")
			}
		}},
	},
	{
		name: "passive_init_late", source: "SDV StorPortEnablePassive", scenario: one, check: port.CheckCallingPlace,
		change: "EnablePassiveInitialization is called from a DPC",
		hooks:  hooks{dpc: func(m *specimen, p *port.Processor) { m.a.EnablePassiveInitialization(p) }},
	},
	{
		name: "msi_info_in_handler", source: "1.4; V7", scenario: one, check: port.CheckCallingPlace,
		change: "GetMSIInfo is called from the interrupt handler",
		hooks:  hooks{interrupt: func(m *specimen, p *port.Processor, _ port.SyncToken, _ int) { m.a.GetMSIInfo(p, 0) }},
	},
	{
		name: "work_item_at_device_level", source: "PR#533; 1.4", scenario: one, check: port.CheckCallingPlace,
		change: "the interrupt handler calls a routine that is for Dispatch at most",
		hooks: hooks{interrupt: func(m *specimen, p *port.Processor, _ port.SyncToken, _ int) {
			m.a.QueueWorkItem(p, &port.WorkItem{Routine: func(*port.Processor) {}})
		}},
	},
	{
		name: "pool_in_half_duplex_start", source: "hw_startio page; 1.2", scenario: halfDuplex, check: port.CheckCallingPlace,
		change: "StartIo allocates from the pool in half duplex",
		hooks: hooks{startIo: func(m *specimen, p *port.Processor, _ *port.SRB) {
			if m.a.AllocatePool(p, 64) != nil {
				m.r.fail(oracleStatus, "AllocatePool at Device level")
			}
		}},
	},
	{
		name: "event_wait_in_dpc", source: "1.4; V7", scenario: one, check: port.CheckCallingPlace,
		change: "a DPC waits for an event",
		hooks: hooks{dpc: func(m *specimen, p *port.Processor) {
			var e port.Event
			m.a.InitializeEvent(p, &e, port.SynchronizationEvent, false)
			m.a.WaitForSingleObject(p, &e, time.Second)
		}},
	},
	{
		name: "register_outside_range", source: "verifier 0x2005; V16", scenario: one, check: port.CheckRegisterRange,
		change: "a register beyond the range that was mapped is written",
		hooks: hooks{startIo: func(m *specimen, p *port.Processor, _ *port.SRB) {
			m.a.WriteRegisterUlong(p, m.bar, barBytes, 0)
		}},
	},
	{
		name: "register_misaligned", source: "verifier 0x2005; V16", scenario: one, check: port.CheckRegisterRange,
		change: "a register is read at an odd offset",
		hooks:  hooks{dpc: func(m *specimen, p *port.Processor) { m.a.ReadRegisterUlong(p, m.bar, 2) }},
	},
	// Locks and levels.
	{
		name: "lock_order", source: "1.5; SDV StorPortSpinLock3", scenario: one, check: port.CheckLockRules,
		change: "BuildIo takes the StartIo lock while it holds the interrupt lock",
		hooks: hooks{buildIo: func(m *specimen, p *port.Processor, _ *port.SRB) {
			h := m.a.AcquireSpinLock(p, port.InterruptLock, nil)
			m.a.ReleaseSpinLock(p, m.a.AcquireSpinLock(p, port.StartIoLock, nil))
			m.a.ReleaseSpinLock(p, h)
		}},
	},
	{
		name: "lock_again", source: "1.5; SDV StorPortSpinLock", scenario: one, check: port.CheckLockRules,
		change: "StartIo takes the StartIo lock, which the port holds for it",
		hooks: hooks{startIo: func(m *specimen, p *port.Processor, _ *port.SRB) {
			m.a.ReleaseSpinLock(p, m.a.AcquireSpinLock(p, port.StartIoLock, nil))
		}},
	},
	{
		name: "lock_in_handler", source: "1.3; PR#1293", scenario: one, check: port.CheckLockRules,
		change: "the interrupt handler takes the interrupt lock, which it was called with",
		hooks: hooks{interrupt: func(m *specimen, p *port.Processor, _ port.SyncToken, _ int) {
			m.a.ReleaseSpinLock(p, m.a.AcquireSpinLock(p, port.InterruptLock, nil))
		}},
	},
	{
		name: "lock_leaked", source: "PR#1175; SDV StorPortSpinLock", scenario: one, check: port.CheckLockRules,
		change: "a DPC returns with a DPC lock",
		hooks: hooks{dpc: func(m *specimen, p *port.Processor) {
			if h := m.a.AcquireSpinLock(p, port.DpcLock, &m.queues[0].dpc); h != (port.LockHandle{}) {
				m.r.undo = append(m.r.undo, func() { m.a.ReleaseSpinLock(p, h) })
			}
		}},
	},
	{
		name: "lock_released_twice", source: "SDV StorPortSpinLock4", scenario: one, check: port.CheckLockRules,
		change: "a lock is released that is not held any more",
		hooks: hooks{dpc: func(m *specimen, p *port.Processor) {
			h := m.a.AcquireSpinLock(p, port.InterruptLock, nil)
			m.a.ReleaseSpinLock(p, h)
			m.a.ReleaseSpinLock(p, h)
		}},
	},
	{
		name: "lock_released_early", source: "1.6", scenario: one, check: port.CheckLockRules,
		change: "BuildIo releases the StartIo lock before the interrupt lock, which it took last",
		hooks: hooks{buildIo: func(m *specimen, p *port.Processor, _ *port.SRB) {
			start := m.a.AcquireSpinLock(p, port.StartIoLock, nil)
			interrupt := m.a.AcquireSpinLock(p, port.InterruptLock, nil)
			m.a.ReleaseSpinLock(p, start)
			m.a.ReleaseSpinLock(p, interrupt)
		}},
	},
	{
		name: "level_leaked", source: "PR#1175; SDV SpChangeIrql", scenario: one, check: port.CheckLockRules,
		change: "BuildIo releases a lock handle that no acquisition has filled, and returns at another level",
		hooks: hooks{buildIo: func(m *specimen, p *port.Processor, _ *port.SRB) {
			m.a.ReleaseMSISpinLock(p, port.MSILock{})
		}},
	},
	{
		name: "second_dpc_lock", source: "1.5", scenario: messages, check: port.CheckLockRules,
		change: "two DPC locks are held at once",
		hooks: hooks{buildIo: func(m *specimen, p *port.Processor, _ *port.SRB) {
			h := m.a.AcquireSpinLock(p, port.DpcLock, &m.queues[0].dpc)
			m.a.ReleaseSpinLock(p, m.a.AcquireSpinLock(p, port.DpcLock, &m.queues[1].dpc))
			m.a.ReleaseSpinLock(p, h)
		}},
	},
	{
		name: "dpc_before_start_lock", source: "1.5; 10.6", scenario: one, check: port.CheckLockRules,
		change: "the StartIo lock is taken under a DPC lock, which others take under the StartIo lock",
		hooks: hooks{dpc: func(m *specimen, p *port.Processor) {
			h := m.a.AcquireSpinLock(p, port.DpcLock, &m.queues[0].dpc)
			m.a.ReleaseSpinLock(p, m.a.AcquireSpinLock(p, port.StartIoLock, nil))
			m.a.ReleaseSpinLock(p, h)
		}},
	},
	{
		name: "message_locks_descending", source: "1.5; 10.4", scenario: messages, check: port.CheckLockRules,
		change: "the lock of message 0 is taken under the lock of message 1",
		hooks: hooks{dpc: func(m *specimen, p *port.Processor) {
			upper := m.a.AcquireMSISpinLock(p, 1)
			m.a.ReleaseMSISpinLock(p, m.a.AcquireMSISpinLock(p, 0))
			m.a.ReleaseMSISpinLock(p, upper)
		}},
	},
	{
		name: "message_lock_without_mode", source: "SDV StorPortMSILock; V10", scenario: one, check: port.CheckMSILock,
		change: "AcquireMSISpinLock is used although one lock serves all messages",
		hooks: hooks{dpc: func(m *specimen, p *port.Processor) {
			m.a.ReleaseMSISpinLock(p, m.a.AcquireMSISpinLock(p, 0))
		}},
	},
	{
		name: "sync_from_handler", source: "lsi ScheduleReinit; V8", scenario: one, check: port.CheckSynchronizeAccess,
		change: "the interrupt handler calls SynchronizeAccess",
		hooks:  hooks{interrupt: func(m *specimen, p *port.Processor, _ port.SyncToken, _ int) { nothing(m, p) }},
	},
	{
		name: "sync_from_initialize", source: "A5; V8", early: true, scenario: one, check: port.CheckSynchronizeAccess,
		change: "Initialize calls SynchronizeAccess",
		hooks:  hooks{initialize: func(m *specimen, p *port.Processor, _ port.SyncToken) { nothing(m, p) }},
	},
	{
		name: "sync_nested", source: "1.7; V8", scenario: one, check: port.CheckSynchronizeAccess,
		change: "a SynchronizeAccess routine calls SynchronizeAccess",
		hooks: hooks{buildIo: func(m *specimen, p *port.Processor, _ *port.SRB) {
			port.SynchronizeAccess(m.a, p, func(t port.SyncToken, m *specimen) bool { nothing(m, t.Processor()); return true }, m)
		}},
	},
	{
		name: "sync_takes_start_lock", source: "1.7; A5", scenario: one, check: port.CheckLockRules,
		change: "a SynchronizeAccess routine takes the StartIo lock",
		hooks: hooks{buildIo: func(m *specimen, p *port.Processor, _ *port.SRB) {
			port.SynchronizeAccess(m.a, p, func(t port.SyncToken, m *specimen) bool {
				p := t.Processor()
				m.a.ReleaseSpinLock(p, m.a.AcquireSpinLock(p, port.StartIoLock, nil))
				return true
			}, m)
		}},
	},
	{
		name: "token_leaked", source: "A16", scenario: one, check: port.CheckLockRules,
		change: "the token of a SynchronizeAccess routine is kept and used after it has returned",
		hooks: hooks{buildIo: func(m *specimen, p *port.Processor, _ *port.SRB) {
			port.SynchronizeAccess(m.a, p, func(t port.SyncToken, m *specimen) bool { m.leakedToken = t; return true }, m)
			m.queues[0].shared.Open(m.leakedToken)
		}},
	},
	{
		name: "stall_in_start", wallClock: true, source: "SDV SpNoWait; V9", scenario: one, check: port.CheckHoldTime,
		change: "StartIo stalls",
		hooks: hooks{startIo: func(m *specimen, p *port.Processor, _ *port.SRB) {
			m.a.StallExecution(p, time.Microsecond)
		}},
	},
	{
		name: "stall_too_long", wallClock: true, source: "verifier 0x2001", scenario: one, check: port.CheckHoldTime,
		change: "a DPC stalls for more than a millisecond",
		hooks:  hooks{dpc: func(m *specimen, p *port.Processor) { m.a.StallExecution(p, 2*time.Millisecond) }},
	},
	{
		name: "wait_in_start", source: "SDV StorPortStartIo; V9", scenario: one, check: port.CheckHoldTime,
		change: "StartIo waits for a second",
		hooks:  hooks{startIo: func(*specimen, *port.Processor, *port.SRB) { linger(1) }},
	},
	{
		name: "wait_in_sync", source: "1.7; V9", scenario: one, check: port.CheckHoldTime,
		change: "a SynchronizeAccess routine waits for a second",
		hooks: hooks{buildIo: func(m *specimen, p *port.Processor, _ *port.SRB) {
			port.SynchronizeAccess(m.a, p, func(port.SyncToken, *specimen) bool { linger(1); return true }, m)
		}},
	},
	{
		name: "wait_in_initialize", source: "SCSI verifier 0x1002; V9", early: true, scenario: one, check: port.CheckHoldTime,
		change: "Initialize waits for six seconds",
		hooks:  hooks{initialize: func(*specimen, *port.Processor, port.SyncToken) { linger(6) }},
	},
	{
		name: "lock_held_long", source: "1.5; V9", scenario: one, check: port.CheckHoldTime,
		change: "BuildIo holds the interrupt lock for a second",
		hooks: hooks{buildIo: func(m *specimen, p *port.Processor, _ *port.SRB) {
			h := m.a.AcquireSpinLock(p, port.InterruptLock, nil)
			linger(1)
			m.a.ReleaseSpinLock(p, h)
		}},
	},
	// The port.
	{
		name: "port_sync_plain_call", source: "A13; ros storport.c", scenario: exclusion(all), oracle: oracleOverlap, synchronize: plainCall,
		change: "port: SynchronizeAccess calls its routine and takes no lock",
	},
	{
		name: "port_sync_by_model", source: "A13; 10.2", scenario: exclusion(half), oracle: oracleOverlap, synchronize: callByModel,
		change: "port: SynchronizeAccess takes no lock in half duplex, although BuildIo holds none",
	},
	{
		name: "port_sync_one_message", source: "A13; 1.7, 10.4", scenario: exclusion(perMessage), oracle: oracleOverlap, synchronize: callWithOneLock,
		change: "port: SynchronizeAccess takes the lock of message 0 alone",
	},
	{
		name: "port_start_without_lock", source: "ros pdo.c; 10.1", scenario: starts(), oracle: oracleStartIo,
		port:   func(m *specimen) port.Miniport { return &startsAtOnce{m} },
		change: "port: StartIo follows BuildIo at once, without the StartIo lock",
	},
	{
		name: "port_start_after_false", source: "SDV StorPortBuildIo; 10.8", scenario: refused, check: port.CheckDoubleCompletion,
		port:   func(m *specimen) port.Miniport { return &startsRefused{m} },
		change: "port: StartIo is called although BuildIo returned false",
	},
	{
		name: "port_busy_skips_build", source: "10.10", scenario: overfull, oracle: oracleExtension,
		port:   func(m *specimen) port.Miniport { return &buildsOnce{specimen: m} },
		change: "port: a BUSY request is started again without BuildIo",
	},
	{
		name: "port_reset_skips_build", source: "2.3; 10.29", scenario: resets(port.ResetUnit), oracle: oracleExtension,
		port:   func(m *specimen) port.Miniport { return &startsResets{m} },
		change: "port: a reset goes to StartIo without BuildIo",
	},
	{
		name: "port_early_interrupt_lost", source: "10.31", scenario: earlyInterrupt(), oracle: oracleLost,
		bus:    func(d *device) pci.Function { return &dropsEarly{device: d} },
		change: "port: an interrupt that arrives while Initialize runs is dropped",
	},
	{
		name: "port_edge_lost", source: "A8; 10.23", scenario: lateInterrupt(), oracle: oracleLost,
		bus:    func(d *device) pci.Function { return &dropsEdges{device: d} },
		change: "port: an interrupt that arrives while its handler runs is dropped",
	},
	{
		name: "port_completes_on_timeout", source: "3.4; 10.15", scenario: stuck, check: port.CheckDMA,
		port:   func(m *specimen) port.Miniport { return &completesOnTimeout{specimen: m} },
		change: "port: when a unit's timer runs out its SRBs are completed without a reset of the device",
	},
}
