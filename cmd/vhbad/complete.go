package main

import (
	"context"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/vhbad/vhbad/client"
)

// What a shell offers on <TAB>. Names of files are offered only where a file is wanted: the
// root command's default is none.

// completionPatience is how long a shell's completion waits for a daemon.
const completionPatience = time.Second

// completeFlag has fn complete the value of a flag.
func completeFlag(cmd *cobra.Command, flag string, fn cobra.CompletionFunc) {
	if err := cmd.RegisterFlagCompletionFunc(flag, fn); err != nil {
		panic(err) // the flag does not exist
	}
}

// offer has values offered for a flag.
func offer(cmd *cobra.Command, flag string, values ...string) {
	completeFlag(cmd, flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
}

// offerFiles has names of files offered for flags.
func offerFiles(cmd *cobra.Command, flags ...string) {
	for _, flag := range flags {
		completeFlag(cmd, flag, anyFiles)
	}
}

// anyFiles completes with names of files.
func anyFiles(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveDefault
}

// oneFile completes the first argument with names of files.
func oneFile(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return nil, cobra.ShellCompDirectiveDefault
}

// deviceAt completes the argument of that number with the kernel's NBD devices.
func deviceAt(n int) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) (devices []cobra.Completion, _ cobra.ShellCompDirective) {
		if len(args) == n {
			devices, _ = filepath.Glob("/dev/nbd*[0-9]") // the pattern is good
		}
		return devices, cobra.ShellCompDirectiveNoFileComp
	}
}

// namesOf completes the first argument with names that the running daemon is asked for.
func namesOf(path *string, ask func(ctx context.Context, c *client.Client) ([]cobra.Completion, error)) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		c := client.New(*path)
		defer c.Close()
		ctx, cancel := context.WithTimeout(cmd.Context(), completionPatience)
		defer cancel()
		names, err := ask(ctx, c)
		if err != nil {
			names = nil // ShellCompDirectiveError would have the shell offer files
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// diskNames completes the first argument with the running daemon's disks.
func diskNames(path *string) cobra.CompletionFunc {
	return namesOf(path, func(ctx context.Context, c *client.Client) (names []cobra.Completion, err error) {
		disks, err := c.Disks(ctx)
		for i := range disks {
			names = append(names, cobra.CompletionWithDesc(disks[i].Name, disks[i].Description))
		}
		return names, err
	})
}

// ruleNames completes the first argument with the rules in force.
func ruleNames(path *string) cobra.CompletionFunc {
	return ofRules(path, func(r *client.FaultRule) (name, kind string) { return r.Name, string(r.Action.Kind) })
}

// markTexts completes the first argument with the marks that rules wait for.
func markTexts(path *string) cobra.CompletionFunc {
	return ofRules(path, func(r *client.FaultRule) (mark, rule string) { return r.Match.AtMark, "rule " + r.Name })
}

// ofRules completes the first argument with something that rules in force have, or not.
func ofRules(path *string, of func(r *client.FaultRule) (text, description string)) cobra.CompletionFunc {
	return namesOf(path, func(ctx context.Context, c *client.Client) (texts []cobra.Completion, err error) {
		fs, err := c.Faults(ctx)
		if err != nil {
			return nil, err
		}
		for i := range fs.Faults {
			if text, description := of(&fs.Faults[i].Rule); text != "" {
				texts = append(texts, cobra.CompletionWithDesc(text, description))
			}
		}
		return texts, nil
	})
}
