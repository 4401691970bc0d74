package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
)

func newStatus() *cobra.Command {
	var d daemonFlags
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Ask a running daemon about itself",
		Example: `  vhbad status
  vhbad status --json --admin /run/vhbad.sock`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return d.with(cmd, func(ctx context.Context, c *client.Client) error {
				st, err := c.Status(ctx)
				if err != nil {
					return err
				}
				if d.asJSON {
					return printJSON(cmd.OutOrStdout(), st)
				}
				return printStatus(cmd.OutOrStdout(), st)
			})
		},
	}
	d.add(cmd)
	return cmd
}

func printStatus(w io.Writer, st *client.Status) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(t, format+"\n", args...) } // Flush reports
	line("vhbad %s, process %d, %s for %s", st.Version, st.PID, st.State,
		time.Duration(st.UptimeSeconds*float64(time.Second)).Round(time.Second))
	for _, l := range st.Listeners {
		line("listening on %s", l)
	}
	if t := st.TLS; t != nil {
		verified := ""
		if t.VerifyPeer {
			verified = ", clients with a certificate"
		}
		line("TLS %s%s; the certificate ends on %s", t.Mode, verified, t.NotAfter.Format(time.DateOnly))
	}
	if st.Configuration.ReloadError != "" {
		line("the configuration could not be reloaded; that of %s is in force: %s", st.Configuration.LoadedAt.Local().Format(time.DateTime), st.Configuration.ReloadError)
	}
	if st.HTTP != "" {
		line("metrics on http://%s/metrics", st.HTTP)
	}
	line("")
	if len(st.Disks) == 0 {
		line("no disks")
	} else {
		line("DISK\tSIZE\tBACKEND\tMODE\tADDRESS\tCLIENTS\tDEPTH\tBUSY\tREADS\tWRITES\tERRORS")
	}
	for i := range st.Disks {
		d := &st.Disks[i]
		mode := "rw"
		if d.ReadOnly {
			mode = "ro"
		}
		var reads, writes, errors uint64
		for _, o := range d.Operations {
			errors += o.Errors
			switch o.Op {
			case "read":
				reads = o.Requests
			case "write":
				writes = o.Requests
			}
		}
		line("%s\t%s\t%s\t%s\t%s\t%d\t%d\t%d\t%d\t%d\t%d", word(d.Name), config.Size(d.SizeBytes), d.Backend, mode, d.Address,
			d.Connections, d.Depth, d.Outstanding+d.Queued, reads, writes, errors)
	}
	if len(st.Connections) > 0 {
		line("")
		line("CLIENT\tFROM\tDISK\tSTATE\tFOR\tBUSY\tREPLIES\tTLS")
		for i := range st.Connections {
			c := &st.Connections[i]
			line("%d\t%s\t%s\t%s\t%s\t%d\t%s\t%s", c.ID, cmp.Or(c.Remote, "unix"), cmp.Or(word(c.Export), "-"), c.State,
				time.Since(c.Since).Round(time.Second), c.InFlight, cmp.Or(c.Replies, "-"), cmp.Or(c.TLS, "no"))
		}
	}
	line("")
	line("QUEUE\tCOMMANDS\tCOMPLETIONS\tINTERRUPTS\tDOORBELLS\tBUSY")
	for i := range st.Adapter.Queues {
		q := &st.Adapter.Queues[i]
		line("%d\t%d\t%d\t%d\t%d\t%d", q.Queue, q.Commands, q.Completions, q.Interrupts, q.Doorbells, q.InFlight)
	}
	line("")
	line("adapter: %s, interrupts: %s, %d resets, %d timeouts, %d DMA faults", st.Adapter.Synchronization, st.Adapter.Interrupts,
		st.Adapter.Resets, st.Adapter.Timeouts, st.Adapter.DMAFaults)
	if st.Adapter.Verify {
		line("verifier: %d violations", st.Adapter.Violations)
	}
	line("memory: %s of %s, at most %s", config.Size(st.Memory.InUseBytes), config.Size(st.Memory.SizeBytes), config.Size(st.Memory.PeakBytes))
	return t.Flush()
}
