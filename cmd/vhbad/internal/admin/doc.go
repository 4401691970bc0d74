// Package admin is the daemon's side of package client: HTTP with JSON on a
// unix socket, and what it shares with every listener on a unix socket, which
// is taking a path over safely.
//
// Paths begin with a version. GET /v1/status is all there is so far; control
// comes here and never to the TCP listener of metrics.
//
// A path is owned by whoever holds the lock on PATH.lock (ListenUnix): a second
// daemon fails at once with an error that says who has it, and the socket of a
// daemon that died is replaced.
package admin
