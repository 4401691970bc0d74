// Package target is the SCSI side of the device: targets, and the direct access
// logical units behind them, which execute commands on a medium.
//
// A Target holds logical units by number, and answers itself for addresses without one.
// A Unit executes a Task, the form in which the device hands a command over: the CDB,
// the direction and the translated data buffers; status, sense data and the number of
// bytes transferred come back in it.
//
//	Target.Execute -> Unit.Execute -> one function for each command -> media.Media
//
//	task.go        Task, data-in and data-out, sense
//	target.go      the table of units, REPORT LUNS, addresses without a unit
//	unit.go        a unit's making, size, unit attentions; the switch over commands
//	transfer.go    READ and WRITE, the way that must be short
//	mode.go        MODE SENSE, MODE SELECT
//	power.go       power off and on
//	flush.go       writes that the medium has lost, and who is told
//	scratch.go     buffers for commands that need one of their own
//	primary.go     INQUIRY, REQUEST SENSE, TEST UNIT READY, START STOP UNIT
//	block.go       READ CAPACITY, SYNCHRONIZE CACHE, PRE-FETCH, VERIFY, COMPARE AND WRITE
//	provision.go   UNMAP, WRITE SAME, GET LBA STATUS
//	errors.go      what of the medium becomes which sense data
//
// # Blocking
//
// Execute with mayBlock false does what needs no waiting and reports whether the command
// is done. If it is not, nothing has been reported and the caller executes the same Task
// again where it may wait; doing a part of a command twice is harmless. Nothing waits on
// memory, but a command that would zero more than 8 MiB is put off all the same, as it
// takes long.
//
// # Unit attentions
//
// There is one I_T nexus, so a unit keeps one set of conditions. A unit comes up without
// any: nobody has seen an earlier state of it, so there is no loss that a power-on
// condition would warn of. PowerOn and Reset set one, a change of size another. Adding
// or removing a unit sets one on the target's other units, once the list of units has
// been read. INQUIRY, REPORT LUNS and REQUEST SENSE are executed while one is pending;
// the latter two clear what they report.
//
// # Concurrency
//
// Any number of Execute may run on a unit, each with its own Task. Reads and writes
// share no lock and no counter; whether their effects meet is the medium's business.
//
// Lock order: Unit.flushingMu, shared by commands that flush, comes before
// Unit.cycleMu, which guards what a power cycle resets. Unit.sizeMu is held while the
// medium is resized, and Target.mu for changes of its table only; both are leaves here.
//
// Sections in comments are those of SPC-4 and SBC-3, as in package scsi.
package target
