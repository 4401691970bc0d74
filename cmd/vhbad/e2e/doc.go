// Package e2e tests the vhbad command as its users meet it: a built binary, real
// clients and a real kernel. It has no code of its own, only tests.
//
// Two build tags keep these slow tests apart from `go test ./...`:
//
//   - interop: peers on this host (nbdinfo, nbdcopy, nbdsh, qemu-img, qemu-io,
//     fio) against a daemon started for the test, and what operators get wrong:
//     bad images, full disks, a second daemon, bad configuration, signals. A real
//     Prometheus runs every query of the dashboards and rules.
//   - kernel: a guest kernel with a real /dev/nbd0. User-Mode Linux runs as an
//     ordinary process, with this host's files as its root, so neither a virtual
//     machine nor an nbd module on the host is needed.
//
// `make interop` and `make kernel` run them. No test skips: when a tool is missing
// it fails, and prints the apt-get command that installs it.
//
// # The guest
//
// The test binary itself is the guest's init: it is started a second time, as
// process 1 inside the guest, and told by its environment which scenario to run.
// A scenario is a list of named steps, in Go, and the same on both sides. The guest
// reports each step as a line on a console of its own, and the host makes each line
// a subtest; a step that the guest never reached is a failure.
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
