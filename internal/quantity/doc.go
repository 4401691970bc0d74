// Package quantity has the numbers with units that people write in files, flags and
// requests: sizes such as 64MiB and spans of time such as 5ms. They are spelled the same
// way in YAML, JSON and on the command line, and the parsers read back what String writes.
package quantity
