package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/vhbad/vhbad/cmd/vhbad/internal/attach"
)

func newDetach() *cobra.Command {
	var force, asJSON bool
	wait := defaultWait
	cmd := &cobra.Command{
		Use:   "detach /dev/nbdN",
		Short: "Take a block device of attach away again",
		Long: `Detach disconnects a device and waits until nothing of it is left, so that it
can be attached again at once. It refuses a device that is mounted or held by
another, unless forced; requests in flight then fail.`,
		Example:           "  sudo vhbad detach /dev/nbd0",
		Args:              wantArgs(1, 1),
		ValidArgsFunction: deviceAt(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := attach.CheckDevice(args[0]); err != nil {
				return usage(err)
			}
			if wait == 0 {
				return usage(errWait)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), wait.Std())
			defer cancel()
			if err := attach.Detach(ctx, args[0], force); err != nil || !asJSON {
				return err
			}
			return printJSON(cmd.OutOrStdout(), struct {
				Device string `json:"device"`
			}{args[0]})
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "detach even if it is in use")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().Var(&wait, "wait", "give up if it is not gone by then")
	return cmd
}
