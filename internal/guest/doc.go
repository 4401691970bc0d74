// Package guest boots a kernel of its own, User-Mode Linux, as an ordinary process:
// for tests and benchmarks that need a real /dev/nbd0 on a host without one. It needs
// no virtual machine, and no privileges.
//
// The guest's root is the host's file system, mounted read-only. Its process 1 is a
// program of the host, as a rule the one that boots the guest; environment variables tell
// it what to do there. It writes files to its own tmpfs under /run, and its reports, line
// by line, to Reports.
//
// # Two sides
//
//	host.go    on the host: Boot, Kill, Wait
//	inside.go  in the guest: Main, Enter, LoadModule, PowerOff
//
// Source: Documentation/virt/uml/user_mode_linux_howto_v2.rst of the kernel.
package guest
