// Package daemon puts the layers together and takes them apart: media, device, driver,
// port, disks, NBD server, and the listeners around them.
//
// # Life
//
//	Start    1 admin socket and HTTP, which say "starting"
//	         2 media, one for each disk
//	         3 memory, IOMMU, device, units
//	         4 processors, adapter with its driver, enumeration
//	         5 a disk for each unit that answered; its serial number, which is
//	           the export's name or a hash of it, connects the two
//	         6 NBD listeners
//	Stop     the same backwards: stop accepting, finish what is in flight, flush
//	         every disk through the whole stack, stop the adapter, close device,
//	         memory and media, and the admin socket last.
//
// Each step of Start pushes its undo, so a failure in the middle and an orderly stop walk
// the same list. If clients' requests cannot be finished in time, Stop goes no further:
// taking memory away from under a device that still uses it would be worse than exiting.
//
// # Taking over
//
// TakeOver gets the listening sockets of the running daemon, and Start with that
// Predecessor replaces it. Whatever can fail is tried before the predecessor is told to go,
// and its images are not touched before it has let go of them. The protocol between the two
// is in handover.go, the reasons in docs/adr.
//
// # Changes
//
// AddDisk, RemoveDisk and GrowDisk (change.go) change what is served, one change at a time,
// each completely or not at all. The disks themselves are in disks.go. Reload (reload.go)
// brings what is served into line with the configuration.
//
// # Where to read on
//
//	daemon.go machine.go                      Start and Stop; everything between media and NBD server
//	listen.go stdio.go                        sockets: opened, inherited, or standard input
//	tls.go revocation.go                      files of certificates, read again when they change
//	takeover.go handover.go                   the new daemon's side, and the protocol of both
//	disks.go change.go spec.go                disks, and what changes them
//	reload.go                                 all of that for a new configuration
//	faults.go power.go plug.go trace.go       rules, power cuts, units pulled out, traces
//	events.go status.go                       what happened, and how it is now
//
// # Concurrency
//
// Start and Stop are for one goroutine; everything else is for any.
package daemon
