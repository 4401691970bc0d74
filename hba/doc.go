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
//     the new tail.
//  3. The engine fetches commands, gathers their buffers through the IOMMU and
//     runs them against the logical unit while they do not block. One that
//     would block goes to a worker.
//  4. A Completion (64 bytes, sense data inside) is posted to the completion
//     ring with the ring's phase bit, and one interrupt is raised for the batch.
//  5. The driver consumes completions and writes the new head into the second
//     doorbell.
//
// The device never has more commands in flight on a queue than its completion
// ring can hold, so a completion is never dropped.
package hba
