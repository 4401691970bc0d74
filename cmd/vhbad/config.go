package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
)

func newConfig() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Work with configuration files",
		Args:  usageArgs(cobra.NoArgs),
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newConfigCheck())
	return cmd
}

// configCheck is what `config check --json` prints about a good file.
type configCheck struct {
	File   string           `json:"file"`
	Listen []config.Address `json:"listen"`
	Disks  []string         `json:"disks"`
	HTTP   string           `json:"http,omitempty"`
	Admin  string           `json:"admin,omitempty"`
	TLS    config.TLSMode   `json:"tls"`
}

func newConfigCheck() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check FILE",
		Short: "Check a configuration file",
		Long: `Check reads a configuration file as serve would, and says what it means or
what is wrong with it and in which line. It touches no image, certificate,
address or running daemon. Exit code 2 means that the file is wrong.`,
		Example: "  vhbad config check /etc/vhbad.yaml",
		Args:    usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := config.Load(args[0])
			if err != nil {
				return usage(err)
			}
			c, err := f.Resolve(client.DefaultPath(), false)
			if err != nil {
				return usage(fmt.Errorf("%s: %w", args[0], err))
			}
			out := configCheck{File: args[0], Listen: c.Listen, HTTP: c.HTTP, Admin: c.Admin, TLS: c.TLS.Mode}
			for i := range c.Disks {
				out.Disks = append(out.Disks, c.Disks[i].Name)
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), out)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: good: disks %q, listen %v, http %q, admin %q, TLS %s\n", args[0], out.Disks, out.Listen, out.HTTP, out.Admin, out.TLS)
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
