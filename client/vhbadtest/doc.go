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
// Package example beside this one has all of it, and docs/tutorial-go-test.md the
// story.
//
// The program is $VHBAD, or vhbad in the PATH. Each Daemon has its own, with sockets in
// a folder of its own, so that tests can run in parallel. When the test ends the
// daemon does, too, also if the test's process is killed; if the test has failed, its
// log has the daemon's. Methods fail the test when something goes wrong, so they are
// for the test's own goroutine, but for those of Conn, which return errors.
//
// The package needs Linux, and besides the standard library nothing but package client.
package vhbadtest
