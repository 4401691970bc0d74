// Package conformance holds any NBD server to the protocol's specification: one
// Row for each MUST and SHOULD that can be seen from a client's end of the wire.
//
//	go test -v ./nbd/conformance -uri nbd://localhost:10809/disk0
//	go test -v ./nbd/conformance -uri 'nbd+unix:///disk0?socket=/run/nbd.sock' -results ours.json
//	go test -v ./nbd/conformance -uri 'nbds://localhost/disk0?tls-certificates=/etc/pki/nbd'
//
// The table comes on standard output, which go test shows with -v or if a MUST is
// broken. Without -uri the package tests the server of package nbd, in all transports.
// THE EXPORT IS WRITTEN TO unless it is read-only: give it a scratch disk of at
// least 4 MiB. Rows about read-only exports need one, rows about lengths near
// 4 GiB a larger disk: -uri takes several targets of one server, separated by
// spaces, and a row is as good as its worst run.
//
// # Parts
//
//	Target        where the server is, and how to speak TLS to it
//	Check         runs the rows against targets, and makes a Report
//	Run           the same as subtests: what must hold fails the test
//	Row           a rule: section, level, the rule in our words, the check
//	probe         what a check works with; it ends the row with a verdict
//	wire          one connection, raw: it can say what is illegal
//	features      what the server offers, found out first
//	Report        the results, as a table, JSON or Markdown
//
// # Rules of the rows
//
// A row judges by what it reads, never by how long it took: every wait has the
// same long deadline, and a wait that meets it is the verdict "hang". That nothing
// superfluous was sent is seen by the next reply, not by waiting. What a server
// does not offer it cannot do wrongly: such a row is not applicable.
//
// The client here shares nothing with package nbd, not even constants: a wrong
// value in one is not excused by the other.
//
// Sections are those of doc/proto.md of https://github.com/NetworkBlockDevice/nbd,
// and of its branch extension-ext-header for extended headers.
package conformance
