package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/vhbad/vhbad/cmd/vhbad/internal/attach"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
)

// defaultWait bounds attach and detach.
const defaultWait = config.Duration(30 * time.Second)

func newAttach() *cobra.Command {
	o := attach.Options{Connections: 1}
	var export string
	var timeout, deadConn config.Duration
	var block config.Size
	var asJSON bool
	wait := defaultWait
	cmd := &cobra.Command{
		Use:   "attach URI [/dev/nbdN]",
		Short: "Make an export a block device of this machine",
		Long: `Attach connects an NBD export to the kernel and waits until the device is
usable. Without a device it takes one that is free, and prints which. It needs
root and the nbd module; the server may be any NBD server. The device stays
until detach, or until the server goes away.

URI is one of
  unix:///PATH                       tcp://HOST:PORT
  nbd+unix:///EXPORT?socket=PATH     nbd://HOST[:PORT][/EXPORT]

Without --timeout and --dead-conn-timeout the kernel waits for answers for
ever, and fails requests at once when the last connection is gone.`,
		Example: `  sudo vhbad attach unix:///run/nbd.sock
  sudo vhbad attach --export disk0 --connections 4 tcp://127.0.0.1:10809 /dev/nbd0
  sudo vhbad attach --timeout 30s --dead-conn-timeout 1m nbd://host/disk0`,
		Args: usageArgs(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if o.Server, err = attach.ParseURI(args[0], export); err != nil {
				return usage(err)
			}
			if len(args) == 2 {
				o.Device = args[1]
			}
			if block > 1<<30 {
				return usage(fmt.Errorf("block size %s: want 512, 1024, 2048 or 4096", block))
			}
			o.BlockBytes, o.Timeout, o.DeadConnTimeout = uint32(block), timeout.Std(), deadConn.Std()
			if err := o.Check(); err != nil {
				return usage(err)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), wait.Std())
			defer cancel()
			d, err := attach.Attach(ctx, o)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), d)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), d.Path)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&export, "export", "", "name of the export (default: the URI's, or else the server's default)")
	f.IntVar(&o.Connections, "connections", o.Connections, "sockets to use; more than one needs a server with NBD_FLAG_CAN_MULTI_CONN")
	f.Var(&timeout, "timeout", "give a connection up after this time without an answer; the kernel counts whole seconds")
	f.Var(&deadConn, "dead-conn-timeout", "hold requests back this long when no connection is left")
	f.Var(&block, "block-size", "logical block of the device, 512 to 4096 (default: the server's smallest, at least 512)")
	f.Var(&wait, "wait", "give up if the device is not usable by then")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
