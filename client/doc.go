// Package client talks to a running vhbad over its admin socket.
//
// The API is HTTP with JSON bodies on a unix socket of mode 0600; paths begin
// with a version, /v1. The types here are that API: the daemon's own handlers
// encode them. Within a version fields are only added, so a decoder must ignore
// what it does not know, as encoding/json does.
//
//	c := client.New("/run/vhbad.sock")
//	defer c.Close()
//	st, err := c.Status(ctx)
package client
