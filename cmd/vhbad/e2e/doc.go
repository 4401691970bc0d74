// Package e2e tests the vhbad command as its users meet it: a built binary, real
// clients and a real kernel. It has no code of its own, only tests.
//
// Two build tags keep the dear tests apart from `go test ./...`:
//
//   - interop: peers on this host (nbdinfo, nbdcopy, nbdsh, qemu-img, qemu-io,
//     fio) against a daemon started for the test, and what operators get wrong:
//     bad images, full disks, a second daemon, bad configuration, signals. And a
//     real Prometheus that asks all that dashboards and rules ask.
//   - kernel: a guest kernel with a real /dev/nbd0. User-Mode Linux runs as an
//     ordinary process, with this host's files as its root, so neither a virtual
//     machine nor an nbd module on the host is needed.
//
// `make interop` and `make kernel` run them. A test that is asked for never skips:
// when a tool is missing it fails and prints the apt-get command that brings it.
//
// # The guest
//
// The test binary itself is the guest's init: it is started a second time, as
// process 1 inside the guest, and told by its environment which scenario to run.
// A scenario is a list of named steps. The guest reports each step as one line on
// a console of its own, the host turns each line into a subtest, and a step the
// guest never reached is a failure. So scenarios are Go, on both sides the same.
//
// The guest's root is the host's file system, mounted read-only; it writes only to
// its own tmpfs under /run.
//
// # Flags
//
//	-vhbad FILE      test this binary instead of building one
//	-race-daemon     build the daemon with the race detector
//	-full            kernel: every file system in every pairing, for a long run
//	-crashes N       kernel: how many power cuts each load of the crash scenarios survives
//	-crash-seed N    kernel: their seed, to try a failure again
//	-server NAME     vhbad (default) or nbdkit, to tell a fault of the tests, of
//	                 the guest kernel or of nbd-client from one of ours
package e2e
