// Package admin is the daemon's side of package client: HTTP with JSON on a unix socket. It
// also has what that shares with every other listener on a unix socket, which is taking a
// path over safely.
//
// # The API
//
// One table of Routes defines the API; the multiplexer, the answers 404 and 405 and the
// OpenAPI document all come from it. Paths begin with a version, /v1. Requests that control
// the daemon come here and never to the TCP listener of metrics.
//
// What a handler takes and returns are types of package client. Bodies are read strictly: a
// field that is unknown, missing or of another kind is refused, by name. Every answer that
// is not a success is a client.Problem; handlers return errors made by Invalid, NotFound,
// Conflict and Unavailable, and any other error is an internal one.
//
// The API wants little of the daemon: an interface for each concern, which are the fields
// of Sources. To add routes, write a file with the interface of the concern and the
// function that makes its routes, add both to Sources, and run `go generate` for
// openapi.json. Tests check every route against the document and require a method of
// client.Client for it.
//
// # Unix sockets
//
// A path is owned by whoever holds the lock on PATH.lock (ListenUnix): a second daemon
// fails at once with an error that says who has it, and the socket of a daemon that died is
// replaced. Socket and lock can be shared with another process (Adopt), which then keeps
// them.
package admin
