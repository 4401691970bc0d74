// Package daemon puts the layers together and takes them apart: media, device,
// driver, port, disks, NBD server, and the listeners around them.
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
// Each step of Start pushes how to undo it, so a failure in the middle and an
// orderly stop walk the same list. When clients' requests cannot be finished in
// time, Stop goes no further: taking memory away under a device that still uses
// it would be worse than exiting.
//
// # Taking over
//
// TakeOver gets the listening sockets of the daemon that runs, and Start with
// that Predecessor replaces it: what can fail is tried before the other is told
// to go, and nothing of its images is touched before it has let go of them. The
// talk between the two is in handover.go, the reasons in docs/adr.
//
// # Changes
//
// AddDisk, RemoveDisk and GrowDisk change what is served, one at a time and each
// whole or not at all: change.go. Disks that there are are in disks.go. Reload makes
// what is served the same as what the configuration says: reload.go.
//
// # Where to read on
//
//	daemon.go machine.go                      Start and Stop; everything between media and NBD server
//	listen.go stdio.go                        sockets: opened, inherited, or standard input
//	tls.go revocation.go                      files of certificates, read again when they change
//	takeover.go handover.go                   the new daemon's side, and the talk of both
//	disks.go change.go spec.go                disks, and what changes them
//	reload.go                                 all of that for a new configuration
//	faults.go power.go plug.go trace.go       rules, power cuts, units pulled out, traces
//	events.go status.go                       what happened, and how it is now
//
// # Concurrency
//
// Start and Stop are for one goroutine; all else is for any.
package daemon
