// Package progress shows on a terminal how far a long task has come.
//
// A Bar redraws one line, at most a few times a second, and draws nothing for a task that
// ends at once. It is not a log: a program whose output is not a terminal (IsTerminal) does
// without.
package progress
