package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
)

func newConfig() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Work with configuration files",
		Long: `Config checks configuration files, shows what they mean, and describes them for
editors. It needs no running daemon.

Of one setting, the command line of serve comes before the file, and the file
before the default. No environment variable takes part, but $` + client.AdminVariable + `, or
else $XDG_RUNTIME_DIR if it is a path from the root, in the default of admin. Disks,
addresses and sandbox paths of the command line come after those of the file.`,
		Example: `  vhbad config check /etc/vhbad/vhbad.yaml
  vhbad config print --comments > vhbad.yaml
  vhbad config schema > vhbad.schema.json`,
		Args: noArgs,
		RunE: wantOneOf("check, print or schema"),
	}
	cmd.AddCommand(newConfigCheck(), newConfigPrint(), newConfigSchema())
	return cmd
}

// configCheck is what `config check --json` prints about a valid file.
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
address or running daemon: of faults it cannot tell whether they fit an image whose
size is not in the file. Exit code 2 means that the file is wrong.`,
		Example:           "  vhbad config check /etc/vhbad/vhbad.yaml",
		Args:              wantArgs(1, 1),
		ValidArgsFunction: oneFile,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := resolveFile(args)
			if err != nil {
				return err
			}
			if err := c.CheckFaults(); err != nil {
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

// resolveFile returns the configuration that the file means; without a file, the
// defaults.
func resolveFile(args []string) (*config.Config, error) {
	f := &config.File{}
	if len(args) > 0 {
		var err error
		if f, err = config.Load(args[0]); err != nil {
			return nil, usage(err)
		}
	}
	c, err := f.Resolve(client.DefaultPath(), false)
	if err != nil && len(args) > 0 {
		err = fmt.Errorf("%s: %w", args[0], err)
	}
	return c, usage(err)
}

func newConfigPrint() *cobra.Command {
	var asJSON, comments bool
	cmd := &cobra.Command{
		Use:   "print [FILE]",
		Short: "Print what a configuration file means, with all defaults",
		Long: `Print reads a configuration file as serve would and prints the whole of what it
means, as a configuration file with nothing left to defaults. Without FILE it
prints the defaults alone.`,
		Example: `  vhbad config print /etc/vhbad/vhbad.yaml
  vhbad config print --comments
  vhbad config print --json | jq .limits`,
		Args:              wantArgs(0, 1),
		ValidArgsFunction: oneFile,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := resolveFile(args)
			if err != nil {
				return err
			}
			if asJSON && comments {
				return usage(errors.New("--json with --comments: JSON has none"))
			}
			if asJSON {
				m, err := c.File().JSON()
				if err != nil {
					return err
				}
				return printJSON(cmd.OutOrStdout(), m)
			}
			text, err := c.File().YAML(comments)
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(text)
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, with the keys of YAML")
	cmd.Flags().BoolVar(&comments, "comments", false, "say of each key what it is")
	return cmd
}

func newConfigSchema() *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of configuration files",
		Long: `Schema prints a JSON Schema, by which editors complete and check configuration
files. With the YAML language server, begin a file with a line
# yaml-language-server: $schema=/usr/share/doc/vhbad/vhbad.schema.json

What it refuses serve refuses; rules between values are known to config check
alone.`,
		Example: "  vhbad config schema > vhbad.schema.json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := cmd.OutOrStdout().Write(config.Schema)
			return err
		},
	}
}
