// Package porttest tests both sides of the interface between package port and
// miniports.
//
// TestMiniport is a conformance suite: any port.Miniport with its device must
// pass it, in every mode that it has. Miniport is a small miniport with its own
// hardware behind it, for tests of the port: it can be run in every
// synchronization model, calls hooks from inside each callback, and holds,
// refuses or fails requests as a script says. It passes the suite as well.
//
// RAMDevice is a simple device to write a first miniport for; port's example does.
//
// Machine is what all of them run on: memory, IOMMU and a system with the verifier
// on, which fails the test at its end if anything was left behind or any rule of the
// contract was broken.
package porttest
