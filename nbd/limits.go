package nbd

import (
	"fmt"
	"time"

	"github.com/vhbad/vhbad/internal/dma"
)

// Limits bound what clients can take from the server. A zero field means its
// default, which is no limit where it says so.
type Limits struct {
	// MaxConnections is how many connections there may be, those that still negotiate
	// included. More are closed at once. Default 1024.
	MaxConnections int
	// MaxConnectionsPerPeer is how many connections there may be from one IP address,
	// from one user on unix sockets (SO_PEERCRED), or from one context id on vsock;
	// more are closed at once. Default: no limit.
	MaxConnectionsPerPeer int
	// MaxConnectionRate is how many connections are accepted per second, after the
	// first few; more wait in the listeners' backlogs. So clients that come and go
	// without end leave time for connected ones. Default 500.
	MaxConnectionRate int
	// MaxRequests is how many requests of one connection are in flight at most,
	// 1 to 4096. Default 256: Linux keeps up to 128 per connection.
	MaxRequests int
	// MaxBytesInFlight bounds the arena memory that one connection has for its requests
	// and ready for the next ones. A single request may exceed it when nothing else is in
	// flight. Default 68 MiB, or a quarter of the arena if that is less: one client that
	// takes no replies must leave memory for others.
	MaxBytesInFlight int
	// MaxPayloadBytes is the longest read or write, 4 KiB to 64 MiB. The arena
	// must hold two. Default 64 MiB: old clients send almost 50 MB at once.
	MaxPayloadBytes int
	// HandshakeTimeout bounds the time from connect to transmission. Default 10 s.
	HandshakeTimeout time.Duration
	// ReplyTimeout is how long a client may take nothing of a reply, or send
	// nothing more of a request that it has begun, before its connection is closed.
	// While memory is short the client has to take or send as much as is held for it
	// in that time. Default 60 s.
	ReplyTimeout time.Duration
	// IdleTimeout is how long a connection may receive no requests, with none in
	// flight, before it is closed. Default: for ever.
	IdleTimeout time.Duration
	// MaxOptions is how many options a client may send in its handshake. After a
	// LIST it may send two more for each export listed, to learn more about it.
	// Default 64.
	//
	// MaxOptionBytes bounds the data of one option. Longer data is refused, and
	// beyond 64 KiB the connection is closed. Default 64 KiB.
	MaxOptions     int
	MaxOptionBytes int
}

const (
	maxIdleTimeout  = 365 * 24 * time.Hour
	maxSlots        = 4096
	maxPayloadLimit = 64 << 20
	minPayloadLimit = 4 << 10

	// skipFactor times MaxPayloadBytes, or minSkipBytes if that is more, is the
	// longest payload that is read and thrown away for the sake of an error
	// reply. Source of the latter: proto.md, "Block size constraints".
	skipFactor   = 2
	minSkipBytes = 32 << 20

	// optionsPerListed is how many more options a client may send for each export
	// listed: clients that show everything ask for each one's INFO and meta contexts.
	optionsPerListed = 2
)

// withDefaults returns l with its zero fields filled in.
//
// Errors: a value out of its range, by name.
func (l Limits) withDefaults(arena *dma.Arena) (Limits, error) {
	ints := []struct {
		name          string
		value         *int
		def, min, max int
	}{
		{"MaxConnections", &l.MaxConnections, 1024, 1, 1 << 20},
		{"MaxConnectionRate", &l.MaxConnectionRate, 500, 1, 1 << 20},
		{"MaxRequests", &l.MaxRequests, 256, 1, maxSlots},
		{"MaxBytesInFlight", &l.MaxBytesInFlight, max(4<<10, min(68<<20, arena.SizeBytes()/4)), 4 << 10, 1 << 40},
		{"MaxPayloadBytes", &l.MaxPayloadBytes, maxPayloadLimit, minPayloadLimit, maxPayloadLimit},
		{"MaxOptions", &l.MaxOptions, 64, 1, 1 << 16},
		{"MaxOptionBytes", &l.MaxOptionBytes, 64 << 10, maxStringBytes + 4 + 2, 1 << 20},
	}
	for _, f := range ints {
		if *f.value == 0 {
			*f.value = f.def
		}
		if *f.value < f.min || *f.value > f.max {
			return l, fmt.Errorf("nbd: limit %s is %d: want %d to %d", f.name, *f.value, f.min, f.max)
		}
	}
	if l.MaxConnectionsPerPeer < 0 {
		return l, fmt.Errorf("nbd: limit MaxConnectionsPerPeer is %d: want 0 (none) or more", l.MaxConnectionsPerPeer)
	}
	if l.IdleTimeout != 0 && (l.IdleTimeout < time.Millisecond || l.IdleTimeout > maxIdleTimeout) {
		return l, fmt.Errorf("nbd: limit IdleTimeout is %v: want 0 (none), or 1ms to %v", l.IdleTimeout, maxIdleTimeout)
	}
	times := []struct {
		name  string
		value *time.Duration
		def   time.Duration
	}{
		{"HandshakeTimeout", &l.HandshakeTimeout, 10 * time.Second},
		{"ReplyTimeout", &l.ReplyTimeout, 60 * time.Second},
	}
	for _, f := range times {
		if *f.value == 0 {
			*f.value = f.def
		}
		if *f.value < time.Millisecond || *f.value > 24*time.Hour {
			return l, fmt.Errorf("nbd: limit %s is %v: want 1ms to 24h", f.name, *f.value)
		}
	}
	if arena.SizeBytes() < 2*l.MaxPayloadBytes {
		return l, fmt.Errorf("nbd: arena of %d bytes holds fewer than two payloads of limit MaxPayloadBytes %d",
			arena.SizeBytes(), l.MaxPayloadBytes)
	}
	return l, nil
}
