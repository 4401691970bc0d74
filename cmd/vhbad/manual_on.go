//go:build manual

package main

import (
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// extraCommands are for people who build packages. The generator of the manual pages need
// not be in the program that is packaged.
func extraCommands() []*cobra.Command {
	return []*cobra.Command{{
		Use:    "manual FOLDER",
		Short:  "Write the manual pages of all commands into FOLDER",
		Hidden: true,
		Args:   wantArgs(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			date := time.Unix(0, 0) // so that the same source gives the same pages
			root := cmd.Root()
			root.DisableAutoGenTag = true
			header := doc.GenManHeader{Title: "VHBAD", Section: "1", Source: "vhbad " + buildVersion(), Manual: "User Commands", Date: &date}
			return doc.GenManTree(root, &header, args[0])
		},
	}}
}
