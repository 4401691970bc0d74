// Package conformance checks any NBD server against the protocol's specification. It has
// a table of every MUST and SHOULD of the text, and rows, each of which checks one rule,
// for all that can be seen from a client's end of the wire.
//
//	go test -v ./nbd/conformance -uri nbd://localhost:10809/disk0
//	go test -v ./nbd/conformance -uri 'nbd+unix:///disk0?socket=/run/nbd.sock' -results ours.json
//	go test -v ./nbd/conformance -uri 'nbds://localhost/disk0?tls-certificates=/etc/pki/nbd'
//
// The results go to standard output as a table, which go test shows with -v or if a MUST is
// broken. Without -uri the package tests the server of package nbd, over all transports.
// THE EXPORT IS WRITTEN TO unless it is read-only: use a scratch disk of at least 4 MiB.
// Rows about read-only exports need such an export, and rows about lengths near 4 GiB
// need a larger disk: -uri takes several targets of one server, separated by spaces, and a
// row is as good as its worst run.
//
// # Parts
//
//	Target        where the server is, and how to speak TLS to it
//	Check         runs the rows against targets, and makes a Report
//	Run           the same as subtests: what must hold fails the test
//	Row           a rule: level, the rule in our words, the check
//	Requirement   a key word of the text: where it is, whom it binds, the rows that
//	              show that it is heeded, or why none does (requirements.tsv)
//	Specification the parts of the text that the table is compared with
//	probe         what a check works with; it ends the row with a verdict
//	wire          one raw connection: it can send what is illegal
//	features      what the server offers, found out first
//	Report        the results, as a table, JSON or Markdown
//
// # Rules of the rows
//
// A row judges by what it reads, never by how long that took: every wait has the same
// long deadline, and a wait that hits it gives the verdict "hang". Whether anything
// superfluous was sent shows in the next reply, not by waiting. A row about something
// that the server does not offer is not applicable.
//
// The client here shares nothing with package nbd, not even constants, so that a wrong
// value in one cannot hide behind the other.
//
// # The table of requirements
//
// Sections are the headings, and in lists of definitions the names defined, of
// doc/proto.md of https://github.com/NetworkBlockDevice/nbd, in the version
// SpecificationVersion; requirements are numbered within them. Requirement 0 is what
// a section says without a key word. The rows for extended headers cite sections of
// the branch extension-ext-header, whose key words are not in the table. The text is
// not in this tree. Given another version of it,
//
//	go test -v ./nbd/conformance -spec nbd/doc/proto.md
//
// says which key words are new in it, gone, moved or worded differently.
//
// A row that shows a MUST has level Must; one that shows SHOULDs alone is a Should,
// unless text without a key word, such as a layout, makes it stronger.
package conformance
