// Package miniport is the driver of package hba's device: it turns SRBs into
// commands of the device and completions of the device back into SRBs. It is
// written as a real driver is, against the contract of package port, and knows
// the device by its registers and its memory layout only.
//
// # A request's way
//
//	BuildIo    no lock, any number at once. The whole command is built in the
//	           SRB's extension: CDB, scatter/gather list, tag.
//	StartIo    StartIo lock, or one of n channels. Copies the command (64 bytes)
//	           into the submission ring. The device does not know yet.
//	CommitIo   no lock. One doorbell for everything started since the last one.
//	Interrupt  interrupt lock, or that of one message. Drains the completion
//	           ring, gives tags back, puts the SRBs on the reaped list, tells the
//	           device how far it has read, issues the DPC.
//	DPC        no lock. Takes the list, and tags for SRBs to come, holding the
//	           message's lock for a moment, and completes the SRBs.
//
// # Synchronized access inside an unsynchronized routine
//
// A command needs a tag. Tags are given out by BuildIo, which runs with no lock
// on any number of processors, and come back in the interrupt handler. The pool
// (tags.go) is therefore a port.Guarded value: without the token that
// SynchronizeAccess or the handler has, there is no way to reach it, and two
// BuildIo calls can never get the same tag.
//
// The synchronized part is kept short and rare: each processor has a magazine
// of tags that only it touches. The DPC fills it while it holds a lock that it
// needs anyway, so that BuildIo goes to the pool only if other processors complete
// what this one sends, or if batches are larger than a magazine.
//
// # Tags
//
// A tag is an index into the queue's table and a generation, which changes each
// time the tag has been to the device. A completion counts only if its tag is
// exactly the one that the table has for a command on the hardware. A late one, of a
// command from before a reset for example, is counted and dropped, and can never
// complete somebody else's SRB.
//
// # Resets
//
// A reset of a unit or target is a command of the device, which aborts what it
// has and answers last. Its SRB is completed only after the DPC of every queue
// has run once more, so that all the SRBs it aborted go first. ResetBus resets
// the device and hands SRBs back only once the device says that its DMA has
// stopped.
package miniport
