// Package config says what the daemon is to do: the shapes of a configuration file and of
// the values on the command line, with one parser for both.
//
// A file is YAML and read strictly: an unknown key, a value that does not fit or a name
// given twice is an error that carries its line and says what is allowed. Load returns a
// File; Resolve fills in defaults, checks the whole and returns a Config, which nothing
// changes any more.
//
// Values have one spelling everywhere: sizes are "64MiB" (Size), durations "5ms"
// (Duration), addresses "tcp://HOST:PORT" or "unix:///PATH" (Address), disks
// "NAME=memory:SIZE" or "NAME=file:PATH" on the command line (ParseDisk).
//
// The package imports no other layer, so that `vhbad config check` needs none.
package config
