// Command bench measures vhbad beside other NBD servers and writes
// docs/benchmarks.md with its plots. `make bench` runs it.
//
// It is a module of its own, so that what it needs for plots and for go-nbd's
// server is no business of the daemon's.
//
// # Method
//
// A row of the table (table.go) is one load against several servers. All
// servers of a row are started, filled and warmed up; then in each round every
// server gets the same load in turn, in an order that changes with the round.
// The others sleep meanwhile. A ratio compares two servers within one round, and
// the row's result is the median of the rounds' ratios: the machine may be slow
// or fast, or change, and both halves of a ratio feel it.
//
// # Parts
//
//	table.go     what is measured and what is aimed at
//	server.go    the servers, each a child process
//	bare.go      the bare loop: NBD and memory and nothing else
//	gonbd.go     the server of github.com/pojntfx/go-nbd
//	load.go      the clients: fio and nbdcopy
//	measure.go   processor time, system calls and memory of a process
//	rounds.go    interleaved rounds and their medians
//	special.go   rows that are no fio run: copies and system calls
//	idle.go      what idle connections cost
//	growth.go    one thing grows at a time
//	inprocess.go benchmarks without a socket, on one and two processors
//	guest.go     rows of a guest kernel's /dev/nbd0; guestinit.go is its inside
//	work.go      how far the run is
//	report.go    docs/benchmarks.md
//	results.go   what was measured, kept between runs
//	plot.go      its pictures
package main
