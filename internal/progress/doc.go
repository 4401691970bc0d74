// Package progress shows on a terminal how far a long task has come.
//
// A Bar draws one line over and over, a few times a second at most, and nothing for a
// task that ends at once. It is no log: a program whose output is no terminal
// (IsTerminal) does without.
package progress
