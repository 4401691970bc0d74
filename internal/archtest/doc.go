// Package archtest tests the repository itself: which packages may import which, and house
// rules that no linter knows. It has no code of its own, only tests; package pages is
// shared with other tests.
//
// Every rule here says why it exists and what to do instead. The picture of the layers is
// in docs/ARCHITECTURE.md; imports_test.go has the same as a table.
package archtest
