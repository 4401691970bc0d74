// Package attach makes an export a block device of this machine, /dev/nbdN, and undoes
// that. It does what nbd-client does, with several connections, timeouts and a careful
// choice of the device, but without nbd-client's surprises.
//
// Attach negotiates N connections with the server in user space (handshake.go), hands the
// sockets to the kernel by generic netlink (netlink.go) and waits until the device is
// usable (sysfs.go). From then on the kernel speaks to the server itself: no process of
// ours is needed any more, and the sockets live until Detach or until the server goes away.
//
// Hold and Attachment.Keep, in contrast, stay and replace connections that end (keep.go).
// They keep a descriptor of each socket (sockets.go). It tells when the connection has
// ended and whether the kernel has accepted a new one, which NBD_CMD_RECONFIGURE does not
// report. A device whose keeper has ended can be taken over (adopt.go); only the kernel's
// LINK_DEAD tells the end of its connections.
//
// The kernel reuses a device's slot before it has finished with the last user, and two
// programs that pick "the first free one" at the same time collide. So a device is taken
// only when its pid, size, requests in flight and holders are all gone, and losing a race
// means moving on to the next device.
package attach
