// Package archtest tests the repository itself: who may import whom, and house
// rules that no linter knows. It has no code of its own, only tests;
// pages is what they share with others.
//
// A rule here says why it exists and what to do instead. The picture of the layers
// is in docs/ARCHITECTURE.md; imports_test.go is the same picture as a table.
package archtest
