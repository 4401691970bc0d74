// Package quantity has the numbers with a unit that people write in files, flags
// and requests: sizes such as 64MiB and spans of time such as 5ms. One spelling
// serves YAML, JSON and the command line, and what String writes, the parsers
// read back.
package quantity
