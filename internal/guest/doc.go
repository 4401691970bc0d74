// Package guest boots a kernel of its own, User-Mode Linux, as an ordinary process:
// for tests and benchmarks that need a real /dev/nbd0 on a host without one. No
// virtual machine is needed, and no right beyond those of its user.
//
// The guest's root is the host's file system, mounted read-only. Its process 1 is a
// program of the host, the one that boots it as a rule, told by its environment
// what to do there. It writes to its own tmpfs under /run, and what it has to
// report, line by line, to Reports.
//
// # Two sides
//
//	host.go    on the host: Boot, Kill, Wait
//	inside.go  in the guest: Main, Enter, LoadModule, PowerOff
//
// Source: Documentation/virt/uml/user_mode_linux_howto_v2.rst of the kernel.
package guest
