// Package admin is the daemon's side of package client: HTTP with JSON on a
// unix socket, and what it shares with every listener on a unix socket, which
// is taking a path over safely.
//
// Paths begin with a version: GET /v1/status, and POST /v1/handover, by which a
// new daemon asks for this one's place. Control comes here and never to the TCP
// listener of metrics.
//
// A path is owned by whoever holds the lock on PATH.lock (ListenUnix): a second
// daemon fails at once with an error that says who has it, and the socket of a
// daemon that died is replaced. Socket and lock can be shared with another
// process (Adopt), which then keeps them.
package admin
