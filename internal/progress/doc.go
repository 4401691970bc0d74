// Package progress shows on a terminal how far something has come that takes long.
//
// A Bar draws one line, over and over, a few times a second at most, and not at
// all for what ends at once. It is no log: whoever writes to something else than a
// terminal leaves it out (IsTerminal).
package progress
