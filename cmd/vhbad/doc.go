// Command vhbad serves block devices over NBD from a virtual host bus adapter,
// attaches them to this machine's kernel and tells how they are doing.
//
// Each command has a file of its own; what they do is in the packages under
// internal. This is the only package that knows all layers.
//
//	serve    run the daemon                        internal/daemon
//	attach   make an export /dev/nbdN              internal/attach
//	detach   undo that                             internal/attach
//	status   ask a running daemon about itself     client
//	events   watch what happens in one             client
//	disk     add, remove and grow disks of one     client
//	reload   have one read its configuration again  client
//	config   check a configuration file            internal/config
//	version  say what this was built from
//
// Exit codes are 0 for success, 1 for a failure at run time and 2 for wrong
// usage or configuration; commands that control a running daemon have 3 for what it
// does not know and 4 for what its state stands against. Output is for people; with --json it is for programs,
// and only such output is stable besides serve's ready lines.
package main
