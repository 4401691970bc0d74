// Package hba is the device: a host bus adapter with registers, queue pairs in
// host memory, a DMA engine, interrupt messages and SCSI targets behind it.
//
// It imports no driver and no protocol. A driver finds it as a pci.Function,
// reaches it through registers and memory alone, and gets interrupts from it;
// hbatest plays that driver, so the device is tested by itself.
//
// # A command's way through the device
//
//  1. The driver writes a Command (64 bytes, command.go) into a submission ring
//     and the ring's new tail into the queue's doorbell register.
//  2. Whoever rings may execute: the ringing goroutine tries to become the
//     queue's engine. If another goroutine is the engine already, that one sees
//     the new tail. After some turns the event goroutine takes its place.
//  3. The engine fetches commands, gathers their buffers through the IOMMU and
//     runs them against the logical unit while they do not block. One that
//     would block goes to a worker.
//  4. A Completion (64 bytes, sense data inside) is posted to the completion
//     ring with the ring's phase bit, and one interrupt is raised for the batch:
//     on the goroutine that posted, once it is no engine any more and holds no lock.
//  5. The driver consumes completions and writes the new head into the second
//     doorbell.
//
// The device never has more commands in flight on a queue than its completion
// ring can hold, so a completion is never dropped; a full ring stops fetching,
// and the second doorbell resumes it.
//
// # How a driver brings it up
//
//	RegControl       ControlReset, then poll until it reads back 0
//	RegQueueSelect   for each queue pair: its index,
//	RegQueueSize       entries of both rings, powers of two,
//	RegQueueSubmit     DMA addresses, aligned to 64 bytes and mapped for as long
//	RegQueueComplete   as the queue pair exists; the completion ring is zeroed
//	RegQueueMessage    interrupt message
//	RegQueueEnable     1, which reads back 0 if the device does not like it
//	RegControl       ControlEnable
//
// The queue registers are one set, which the driver uses from one goroutine at a
// time. Doorbells may be rung from any number of goroutines at once.
//
// # Stopping
//
// A reset, the deletion of a queue pair, an abort and RemoveUnit all promise that
// certain commands will no longer touch host memory. None of them makes a goroutine
// wait: they mark those commands, drop the ones that wait for a worker, and finish when
// the last engine or worker that still executes one is done with it. A command that
// hangs in its medium is waited for, as its DMA may still happen.
//
// # Power
//
// A unit that has lost its power executes nothing that arrived before the power came
// back. The record of a waiting command holds the unit's power cycle, so that such a
// command is recognized; Settle waits for whatever was being executed when the power
// went. If the machine that sends the commands went down, too, the commands it had sent
// are recognized by Command.Nexus and refused, however late they arrive.
//
// # Faults
//
// SetFaults puts rules of package fault into force. The device carries out their
// decisions: before, instead of and after the execution of a command, and on its data,
// on rings, completions and interrupts, on aborts and resets, and on units as a whole. A
// command that a fault holds back is parked with its record and occupies neither engine
// nor worker; an abort or reset ends it like any other. Without rules, commands pay
// nothing: the bit that announces rules is in a word that the engine reads anyway.
//
// # Where to read on
//
//	registers.go command.go   what a driver sees
//	bar.go config.go          register accesses, configuration space
//	queue.go ring.go          rings and doorbells
//	engine.go execute.go      fetching, the data path
//	worker.go lane.go         commands that block; quick writes on one worker
//	control.go reset.go       aborts, resets
//	faults.go parking.go      carrying out faults; what they hold
//	trigger.go                faults of a unit as a whole
//	interrupt.go              messages, line, masks
//
// Goroutines of the device: Config.Workers workers and one that raises events.
// The locks and their order are in the comment of Device.
package hba
