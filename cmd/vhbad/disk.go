package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/daemon"
)

func newDisk() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "disk",
		Short: "Add, remove and grow disks of a running daemon",
		Long: `Disk changes what a running daemon serves. Everything else is served on
meanwhile. What it changes is not written to the configuration file: the daemon
forgets it when it ends.`,
		Example: `  vhbad disk list
  vhbad disk add scratch=memory:1GiB
  vhbad disk add 'db=file:/srv/db.img,size=10GiB,description=a database'
  vhbad disk grow db 20GiB
  vhbad disk remove scratch`,
		Args: noArgs,
		RunE: wantOneOf("list, add, remove or grow"),
	}
	cmd.AddCommand(newDiskList(), newDiskAdd(), newDiskRemove(), newDiskGrow())
	return cmd
}

func newDiskList() *cobra.Command {
	var d daemonFlags
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the disks",
		Example: "  vhbad disk list --json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return d.with(cmd, func(ctx context.Context, c *client.Client) error {
				disks, err := c.Disks(ctx)
				if err != nil {
					return err
				}
				if d.asJSON {
					return printJSON(cmd.OutOrStdout(), client.DiskList{Disks: disks})
				}
				return printDisks(cmd.OutOrStdout(), disks)
			})
		},
	}
	d.add(cmd)
	return cmd
}

func printDisks(w io.Writer, disks []client.Disk) error {
	if len(disks) == 0 {
		_, err := fmt.Fprintln(w, "no disks")
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "DISK\tSIZE\tBLOCK\tMODE\tSTATE\tFROM\tADDRESS\tCLIENTS\tBACKEND") // Flush reports
	for i := range disks {
		d := &disks[i]
		mode, medium := "rw", d.Backend
		if d.ReadOnly {
			mode = "ro"
		}
		if d.Path != "" {
			medium += ":" + word(d.Path)
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%s\t%s\t%s\t%d\t%s\n", word(d.Name), config.Size(d.SizeBytes), d.BlockBytes, mode,
			d.State, d.Origin, d.Address, d.Connections, medium)
	}
	return t.Flush()
}

func newDiskAdd() *cobra.Command {
	var d daemonFlags
	cmd := &cobra.Command{
		Use:   "add SPEC",
		Short: "Add a disk",
		Long: `Add makes a disk and serves it. SPEC is that of serve --disk: NAME=memory:SIZE or
NAME=file:PATH[,size=SIZE], with options after commas.

The disk is there until it is removed or the daemon ends: to have it the next
time too, write it into the configuration file. If there is one with the same
name and SPEC, nothing changes.`,
		Example: `  vhbad disk add scratch=memory:1GiB
  vhbad disk add db=file:/srv/db.img,size=10GiB`,
		Args: wantArgs(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			spec, err := config.ParseDisk(args[0])
			if err != nil {
				return usage(err)
			}
			if err := rootPaths(&spec); err != nil { // the daemon has another working directory
				return err
			}
			return d.with(cmd, func(ctx context.Context, c *client.Client) error {
				disk, err := c.AddDisk(ctx, spec.Name, daemon.DiskSpec(&spec))
				if err != nil {
					return err
				}
				if d.asJSON {
					return printJSON(cmd.OutOrStdout(), disk)
				}
				note := ""
				if disk.Origin == client.OriginAPI {
					note = "; it is not in the configuration: the daemon forgets it when it ends"
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "disk %s: %s, %s, at %s%s\n", word(disk.Name), config.Size(disk.SizeBytes), disk.Backend, disk.Address, note)
				return err
			})
		},
	}
	cmd.ValidArgsFunction = anyFiles // SPEC may end with one
	d.addPatient(cmd)
	return cmd
}

// rootPaths makes the paths of a disk absolute.
func rootPaths(d *config.Disk) (err error) {
	for _, file := range []*string{&d.File, &d.Trace} {
		if *file == "" {
			continue
		}
		if *file, err = filepath.Abs(*file); err != nil {
			return err
		}
	}
	return nil
}

func newDiskRemove() *cobra.Command {
	var d daemonFlags
	var o client.RemoveOptions
	cmd := &cobra.Command{
		Use:     "remove NAME",
		Aliases: []string{"rm"},
		Short:   "Remove a disk",
		Long: `Remove takes a disk away: nobody new can use it, it is flushed through the whole
stack, its unit leaves the adapter, and its medium is closed. Its file stays; the
content of a memory disk is lost.

A disk that clients use stays (exit code 4) unless --force is given. Then each
client gets answers to what it has in flight, and its connection is closed.
--force also removes a disk that cannot be flushed.`,
		Example: `  vhbad disk remove scratch
  vhbad disk remove db --force --drain-timeout 10s`,
		Args: wantArgs(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			least, most := config.MinDrainTimeout.Std(), config.MaxTimeout.Std()
			if t := o.DrainTimeout; cmd.Flags().Changed("drain-timeout") && (t < least || t > most) {
				return usage(fmt.Errorf("--drain-timeout %s: want %s to %s, or nothing for the daemon's", t, least, most))
			}
			return d.with(cmd, func(ctx context.Context, c *client.Client) error {
				r, err := c.RemoveDisk(ctx, args[0], o)
				if err != nil {
					return err
				}
				if d.asJSON {
					return printJSON(cmd.OutOrStdout(), r)
				}
				if r.FlushError != "" {
					_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "vhbad: disk %s: what was written last may not be durable: %s\n", word(r.Name), r.FlushError)
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "disk %s: removed; %d connections closed, %d of them not in time\n", word(r.Name), r.ConnectionsClosed, r.ConnectionsKilled)
				return err
			})
		},
		ValidArgsFunction: diskNames(&d.path),
	}
	f := cmd.Flags()
	f.BoolVar(&o.Force, "force", false, "end connections of clients, and go on though the disk cannot be flushed")
	f.DurationVar(&o.DrainTimeout, "drain-timeout", 0, "how long clients may take to finish, and then the flush (default the daemon's --drain-timeout)")
	d.addPatient(cmd)
	return cmd
}

func newDiskGrow() *cobra.Command {
	var d daemonFlags
	cmd := &cobra.Command{
		Use:   "grow NAME SIZE",
		Short: "Make a disk larger",
		Long: `Grow makes a disk larger, its file too. Clients that are connected can use the
new part at once, and learn of it when they ask for the size. Disks do not
shrink; the present size is a success that changes nothing.

The new size is not written to the configuration file: if the disk has a size
there, change it, or the next start refuses the file.`,
		Example: "  vhbad disk grow db 20GiB",
		Args:    wantArgs(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			size, err := config.ParseSize(args[1])
			if err != nil {
				return usage(err)
			}
			return d.with(cmd, func(ctx context.Context, c *client.Client) error {
				disk, err := c.GrowDisk(ctx, args[0], int64(size))
				if err != nil {
					return err
				}
				if d.asJSON {
					return printJSON(cmd.OutOrStdout(), disk)
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "disk %s: %s\n", word(disk.Name), config.Size(disk.SizeBytes))
				return err
			})
		},
		ValidArgsFunction: diskNames(&d.path),
	}
	d.addPatient(cmd)
	return cmd
}
