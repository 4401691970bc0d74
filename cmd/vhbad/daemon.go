package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
)

// askTimeout bounds commands that only ask.
const askTimeout = config.Duration(10 * time.Second)

// daemonFlags are the flags of commands that talk to a daemon.
type daemonFlags struct {
	path    string
	asJSON  bool
	timeout config.Duration // zero means never
	late    string          // what to do once it has passed
}

// add adds the flags of a command that only asks.
func (d *daemonFlags) add(cmd *cobra.Command) {
	d.timeout = askTimeout
	d.addFlags(cmd, "print JSON", "give up if the daemon has not answered by then",
		"the daemon is stopped, stuck or very busy: look at its log and the state of its process, or wait longer with --timeout")
}

// addPatient adds the flags of a command that waits until what it asked for is done,
// however long that takes.
func (d *daemonFlags) addPatient(cmd *cobra.Command) {
	d.addFlags(cmd, "print JSON", "give up if the daemon has not answered by then; it may do what it was asked to all the same (default never)",
		"it may be done all the same: see `vhbad status` and `vhbad events --since 0 --no-follow`, or wait longer with --timeout")
}

func (d *daemonFlags) addFlags(cmd *cobra.Command, asJSON, timeout, late string) {
	f := cmd.Flags()
	f.BoolVar(&d.asJSON, "json", false, asJSON)
	f.StringVar(&d.path, "admin", "", "admin socket of the daemon (default "+client.DefaultPath()+")")
	offerFiles(cmd, "admin")
	f.Var(&d.timeout, "timeout", timeout)
	if d.timeout == 0 {
		f.Lookup("timeout").DefValue = "" // pflag would show "0s"
	}
	d.late = late
}

// with calls fn with a client of the daemon, within --timeout. A request that the daemon
// calls invalid is wrong usage.
func (d *daemonFlags) with(cmd *cobra.Command, fn func(ctx context.Context, c *client.Client) error) error {
	ctx := cmd.Context()
	if cmd.Flags().Changed("timeout") && d.timeout == 0 {
		return usage(errors.New("--timeout 0s: want more, as 10s"))
	}
	if d.timeout != 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d.timeout.Std())
		defer cancel()
	}
	c := client.New(d.path)
	defer c.Close()
	if c.Path() == client.NoAdmin {
		from := "--admin "
		if d.path == "" {
			from = client.AdminVariable + "="
		}
		return usage(fmt.Errorf("%s%s: this command asks the daemon at its admin socket: want the socket's path", from, client.NoAdmin))
	}
	err := fn(ctx, c)
	switch {
	case errors.Is(err, client.ErrInvalid):
		return usage(err)
	case errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil:
		return fmt.Errorf("admin socket %s: not done within %s: %s", c.Path(), d.timeout, d.late)
	}
	return err
}
