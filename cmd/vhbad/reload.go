package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vhbad/vhbad/client"
)

func newReload() *cobra.Command {
	var d daemonFlags
	cmd := &cobra.Command{
		Use:   "reload",
		Short: "Have a running daemon read its configuration again",
		Long: `Reload has the daemon read the file of serve --config again, as SIGHUP does, and
says what has changed. The command line of serve stays in force.

Disks and addresses that are new are served; those that are gone are not, and
clients of such disks get answers to what they have in flight. Of a disk that
stays, description, hidden, tls-only, allow and connections change for clients to
come, and its size may grow. Disks that were added by ` + "`vhbad disk add`" + ` stay. What
cannot change while the daemon runs is an error that names it.

All of it takes effect or nothing: after an error the last good configuration
stays in force. Exit code 2 means that the file is wrong, 4 that something in it
cannot change while the daemon runs.`,
		Example: "  vhbad config check /etc/vhbad/vhbad.yaml && vhbad reload",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return d.with(cmd, func(ctx context.Context, c *client.Client) error {
				r, err := c.Reload(ctx)
				if err != nil {
					return err
				}
				if d.asJSON {
					return printJSON(cmd.OutOrStdout(), r)
				}
				return printReload(cmd.OutOrStdout(), r)
			})
		},
	}
	d.addPatient(cmd)
	return cmd
}

func printReload(w io.Writer, r *client.Reload) error {
	var b strings.Builder
	for _, part := range []struct {
		what  string
		names []string
	}{
		{"disks added", r.DisksAdded},
		{"disks removed", r.DisksRemoved},
		{"disks changed", r.DisksChanged},
		{"listening on", r.ListenersAdded},
		{"not listening on", r.ListenersRemoved},
		{"warning", r.Warnings},
	} {
		if len(part.names) > 0 {
			fmt.Fprintf(&b, "%s: %s\n", part.what, strings.Join(part.names, ", "))
		}
	}
	if b.Len() == 0 {
		b.WriteString("nothing has changed\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}
