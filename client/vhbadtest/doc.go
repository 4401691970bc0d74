// Package vhbadtest gives a test a disk that fails on demand: a daemon of its own,
// started before it is needed and ended with the test.
//
//	func TestLedger(t *testing.T) {
//		d := vhbadtest.Start(t, vhbadtest.Disk{SizeBytes: 1 << 20, Cache: vhbadtest.Writeback})
//		c := d.Dial()
//		l := ledger.New(c) // writes by c.WriteAt, makes durable by c.Sync
//		l.Add("coffee")
//		d.CutPower(client.PowerCutOptions{Seed: new(uint64(1)), DropConnections: true})
//		if got := ledger.New(d.Dial()).Entries(); len(got) != 1 { ...
//
// Package example beside this one has the complete program; docs/tutorial-go-test.md
// explains it.
//
// The program is $VHBAD, or vhbad in the PATH. Each Daemon runs its own, with sockets in
// a folder of its own, so tests can run in parallel. The daemon ends when the test does,
// even if the test's process is killed; if the test has failed, its log includes the
// daemon's. Methods fail the test when something goes wrong, so they must be called from
// the test's own goroutine, except those of Conn, which return errors.
//
// The package needs Linux and, besides the standard library, only package client.
package vhbadtest
