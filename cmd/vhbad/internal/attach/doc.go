// Package attach makes an export a block device of this machine, /dev/nbdN, and
// undoes that: what nbd-client does, with several connections, timeouts and a
// careful choice of the device, and without its surprises.
//
// Attach negotiates N connections with the server in user space (handshake.go),
// hands the sockets to the kernel by generic netlink (netlink.go) and waits until
// the device is usable (sysfs.go). From then on the kernel speaks to the server
// itself: no process of ours is needed any more, and the sockets live until
// Detach or until the server goes away.
//
// Hold and Attachment.Keep stay instead, and replace connections that end by new
// ones (keep.go). They keep a descriptor of each socket (sockets.go): it tells of
// the connection's end, and whether the kernel took a new one over, which
// NBD_CMD_RECONFIGURE does not. A device whose keeper has ended can be taken over
// (adopt.go); of its sockets only the kernel's LINK_DEAD tells.
//
// The kernel reuses a device's slot before it has finished with the last user;
// two programs that pick "the first free one" at once meet there. So a device is
// taken only when its pid, size, requests in flight and holders are all gone, and
// a lost race moves on to the next.
package attach
