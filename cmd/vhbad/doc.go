// Command vhbad serves block devices over NBD from a virtual host bus adapter, attaches
// them to this machine's kernel and tells how they are doing.
//
// Each command has a file of its own; the work is done by the packages under internal.
// This is the only package that knows all layers.
//
//	serve    run the daemon                         internal/daemon
//	run      run a command with a daemon of its own internal/daemon
//	attach   make an export /dev/nbdN               internal/attach
//	detach   undo that                              internal/attach
//	status   ask a running daemon about itself      client
//	events   watch what happens in one              client
//	disk     add, remove, grow and list its disks   client
//	fault    make its disks misbehave, by rules     client
//	mark     set a mark that rules may wait for     client
//	power    cut the power of a disk                client
//	reset    reset a unit, its target or the bus    client
//	reload   have it read its configuration again   client
//	trace    show and replay a disk's trace         hba/trace
//	config   check and print configuration files    internal/config
//	version  say what this was built from
//
// Exit codes are 0 for success, 1 for a failure at run time and 2 for wrong usage or
// configuration. Commands that control a running daemon also exit with 3 if what they
// name does not exist there, and with 4 if the daemon's state does not allow it. Output
// is for people, or with --json for programs; only the latter and the lines that serve
// prints when it is ready are stable.
package main
