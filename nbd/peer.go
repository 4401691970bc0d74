package nbd

import (
	"net"
	"net/netip"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A peer is where connections come from, as Limits.MaxConnectionsPerPeer counts
// them: an IP address, a user on this machine, or a virtual machine. The zero
// value means that the peer is unknown.
type peer struct {
	addr  netip.Addr
	user  uint32 // plus one, so that root is not the zero value
	other string
}

// peerOf finds out who nc comes from.
func peerOf(nc net.Conn) peer {
	remote := nc.RemoteAddr()
	if remote == nil {
		return peer{}
	}
	if tcp, ok := remote.(*net.TCPAddr); ok {
		return peer{addr: tcp.AddrPort().Addr().Unmap().WithZone("")}
	}
	switch remote.Network() {
	case "unix":
		return peerOfUnix(nc)
	case "vsock": // vm(3):1024: the context and its port
		text := remote.String()
		if at := strings.LastIndexByte(text, ':'); at >= 0 {
			text = text[:at]
		}
		return peer{other: text}
	}
	return peer{}
}

// peerOfUnix asks the kernel for the user at the other end of a unix socket.
func peerOfUnix(nc net.Conn) (p peer) {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return p
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return p
	}
	// A socket that is closed already, or has no peer, leaves p as it is.
	_ = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			p.user = cred.Uid + 1
		}
	})
	return p
}
