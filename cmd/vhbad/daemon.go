package main

import (
	"errors"

	"github.com/spf13/pflag"

	"github.com/vhbad/vhbad/client"
)

// addAdminFlag adds the flag of every command that asks a running daemon.
func addAdminFlag(f *pflag.FlagSet, path *string) {
	f.StringVar(path, "admin", "", "admin socket of the daemon (default "+client.DefaultPath()+")")
}

// withDaemon calls fn with a client of the daemon at path. What the daemon calls
// invalid is wrong usage.
func withDaemon(path string, fn func(c *client.Client) error) error {
	c := client.New(path)
	defer c.Close()
	err := fn(c)
	if errors.Is(err, client.ErrInvalid) {
		return usage(err)
	}
	return err
}
