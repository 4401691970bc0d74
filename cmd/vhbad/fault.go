package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/hba/fault"
)

func newFault() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "fault",
		Short: "Make disks misbehave, by rules",
		Long: `Fault shows and changes the rules by which the disks of a running daemon
misbehave. A rule has a name, says which commands it is about, and what becomes
of them. ` + "`vhbad fault kinds`" + ` lists what there is; docs/faults.md explains it.

Rules of a kind that no correct drive shows are hostile. They need
hostile=true, and a daemon that was started with --hostile.`,
		Args: noArgs,
		RunE: wantOneOf("add, list, show, remove, release or kinds"),
	}
	cmd.AddCommand(newFaultAdd(), newFaultList(), newFaultShow(), newFaultRemove(), newFaultRelease(), newFaultKinds())
	return cmd
}

func newFaultAdd() *cobra.Command {
	var d daemonFlags
	var files []string
	cmd := &cobra.Command{
		Use:   "add {NAME KIND [FIELD=VALUE]... | --file FILE}",
		Short: "Put a rule into force, or change it",
		Long: `Add puts a rule into force, in place of the one of its name if there is one. The
same rule again changes nothing.

FIELD is the name of a field of the rule as in a file, where it may stand alone
if that is clear: op=read is match.op=read, mean=5ms is action.latency.mean=5ms.
"for" and "period" are both the match's and the action's: say which. Lists have
commas. With --file, which may be - for standard input, the rules are in YAML or
JSON: one rule, a list of them, or a configuration with "faults:".`,
		Example: `  vhbad fault add slow latency disk=db op=read mean=5ms
  vhbad fault add tail latency distribution=bimodal low=1ms high=500ms high-share=0.01
  vhbad fault add bad medium-error disk=db offset=1MiB length=4KiB
  vhbad fault add stuck hang op=flush every=100 budget=1
  vhbad fault add dead hang match.start=10s
  vhbad fault add noise errno errno=EIO probability=0.001 seed=7
  vhbad fault add liar lie-about-flush hostile=true
  vhbad fault add --file rules.yaml`,
		Args: usageArgs(func(_ *cobra.Command, args []string) error {
			if len(files) > 0 && len(args) > 0 {
				return fmt.Errorf("a rule on the command line and --file: want one of them")
			}
			if len(files) == 0 && len(args) < 2 {
				return fmt.Errorf("want NAME KIND [FIELD=VALUE]..., or --file FILE")
			}
			return nil
		}),
		ValidArgsFunction: completeFaultAdd,
		RunE: func(cmd *cobra.Command, args []string) error {
			rules, err := rulesToAdd(cmd.InOrStdin(), files, args)
			if err != nil {
				return usage(err)
			}
			return d.with(cmd, func(ctx context.Context, c *client.Client) error {
				return addRules(ctx, cmd.OutOrStdout(), c, rules, d.asJSON)
			})
		},
	}
	cmd.Flags().StringArrayVarP(&files, "file", "f", nil, "file with rules, - for standard input; again for more")
	offerFiles(cmd, "file")
	d.addPatient(cmd)
	return cmd
}

// rulesToAdd returns the rules of files, and that of the words NAME KIND [FIELD=VALUE]...
func rulesToAdd(stdin io.Reader, files, words []string) (rules []client.FaultRule, err error) {
	for _, path := range files {
		some, err := readRules(stdin, path)
		if err != nil {
			return nil, err
		}
		rules = append(rules, some...)
	}
	if len(words) > 0 {
		r, err := ruleOfWords(words[0], words[1], words[2:])
		if err != nil {
			return nil, err
		}
		rules = append(rules, r)
	}
	return rules, nil
}

// addRules puts rules into force, up to the first that is refused.
func addRules(ctx context.Context, w io.Writer, c *client.Client, rules []client.FaultRule, asJSON bool) error {
	for i := range rules {
		f, err := c.PutFault(ctx, rules[i])
		if err != nil {
			return err
		}
		if asJSON {
			err = printJSON(w, f)
		} else {
			_, err = fmt.Fprintf(w, "fault %s: %s, %s\n", f.Rule.Name, f.Rule.Action.Kind, f.State)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// completeFaultAdd offers the kinds, and after that the fields.
func completeFaultAdd(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		return nil, cobra.ShellCompDirectiveNoFileComp
	case 1:
		var kinds []string
		for _, k := range fault.Kinds() {
			kinds = append(kinds, cobra.CompletionWithDesc(string(k.Kind), k.Summary))
		}
		return kinds, cobra.ShellCompDirectiveNoFileComp
	}
	var fields []string
	for _, f := range ruleFields() {
		fields = append(fields, f.shortest+"=")
	}
	return fields, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
}

func newFaultList() *cobra.Command {
	var d daemonFlags
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the rules in force",
		Long: `List shows the rules in force, in the order in which they decide. OP are the
commands that a rule names, - if it names none; BUDGET is how often it may fire, - if
there is no limit. What else a rule says is in ` + "`vhbad fault show`" + `.`,
		Example: "  vhbad fault list\n  vhbad fault list --json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return d.with(cmd, func(ctx context.Context, c *client.Client) error {
				fs, err := c.Faults(ctx)
				if err != nil {
					return err
				}
				if d.asJSON {
					return printJSON(cmd.OutOrStdout(), fs)
				}
				return printFaults(cmd.OutOrStdout(), fs)
			})
		},
	}
	d.add(cmd)
	return cmd
}

func printFaults(w io.Writer, fs *client.Faults) error {
	if len(fs.Faults) == 0 {
		_, err := fmt.Fprintln(w, "no faults")
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "NAME\tKIND\tDISK\tOP\tSTATE\tCLASS\tMATCHED\tFIRED\tBUDGET\tHELD") // Flush reports
	for i := range fs.Faults {
		f := &fs.Faults[i]
		disk, class, budget := cmp.Or(word(f.Rule.Disk), "(all)"), "legal", "-"
		if f.Hostile {
			class = "hostile"
		}
		if f.Rule.Budget != 0 {
			budget = strconv.FormatUint(f.Rule.Budget, 10)
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%d\t%s\t%d\n", f.Rule.Name, f.Rule.Action.Kind, disk,
			cmp.Or(strings.Join(f.Rule.Match.Op, ","), "-"), f.State, class, f.Matched, f.Fired, budget, f.Held)
	}
	return t.Flush()
}

// faultByName makes a command about one rule.
func faultByName(use, short, example string, d *daemonFlags, run func(ctx context.Context, cmd *cobra.Command, c *client.Client, name string) error) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Example: example,
		Args:              wantArgs(1, 1),
		ValidArgsFunction: ruleNames(&d.path),
		RunE: func(cmd *cobra.Command, args []string) error {
			return d.with(cmd, func(ctx context.Context, c *client.Client) error { return run(ctx, cmd, c, args[0]) })
		},
	}
	return cmd
}

func newFaultShow() *cobra.Command {
	d := &daemonFlags{}
	cmd := faultByName("show NAME", "Show a rule, as a file would have it, and its counters", "  vhbad fault show slow", d,
		func(ctx context.Context, cmd *cobra.Command, c *client.Client, name string) error {
			f, err := c.Fault(ctx, name)
			if err != nil {
				return err
			}
			if d.asJSON {
				return printJSON(cmd.OutOrStdout(), f)
			}
			text, err := ruleText(&f.Rule)
			if err != nil {
				return err
			}
			class := "legal"
			if f.Hostile {
				class = "hostile"
			}
			leftOut := ""
			if f.LeftOut != 0 {
				leftOut = fmt.Sprintf(", %d left out", f.LeftOut)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s# %s, %s: %d matched, %d fired, %d held%s\n", text, f.State, class, f.Matched, f.Fired, f.Held, leftOut)
			return err
		})
	d.add(cmd)
	return cmd
}

func newFaultRemove() *cobra.Command {
	d := &daemonFlags{}
	var all bool
	cmd := faultByName("remove {NAME | --all}", "End a rule; what it holds goes on, what it has lost is answered",
		"  vhbad fault remove slow\n  vhbad fault remove --all", d,
		func(ctx context.Context, cmd *cobra.Command, c *client.Client, name string) error {
			if err := c.RemoveFault(ctx, name); err != nil {
				return err
			}
			return printRemoved(cmd, d, name)
		})
	one := cmd.RunE
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if all && len(args) > 0 {
			return usage(fmt.Errorf("%q with --all: want one of them", args[0]))
		}
		if all {
			return nil
		}
		return wantArgs(1, 1)(cmd, args)
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !all {
			return one(cmd, args)
		}
		return d.with(cmd, func(ctx context.Context, c *client.Client) error {
			fs, err := c.Faults(ctx)
			if err != nil {
				return err
			}
			if len(fs.Faults) == 0 && !d.asJSON {
				return printFaults(cmd.OutOrStdout(), fs)
			}
			return removeAll(ctx, cmd, c, d, fs.Faults)
		})
	}
	cmd.Flags().BoolVar(&all, "all", false, "end every rule")
	d.addPatient(cmd)
	return cmd
}

// removeAll ends rules. A rule that comes after another is ended before that one.
func removeAll(ctx context.Context, cmd *cobra.Command, c *client.Client, d *daemonFlags, fs []client.Fault) error {
	for len(fs) > 0 {
		var left []client.Fault
		for i := range fs {
			name := fs[i].Rule.Name
			isAwaited := false
			for j := range fs {
				isAwaited = isAwaited || fs[j].Rule.Match.AfterRule == name
			}
			if isAwaited {
				left = append(left, fs[i])
				continue
			}
			if err := c.RemoveFault(ctx, name); err != nil {
				return err
			}
			if err := printRemoved(cmd, d, name); err != nil {
				return err
			}
		}
		if len(left) == len(fs) {
			return fmt.Errorf("fault %q: rules wait for each other in a circle: give one of them another match first", fs[0].Rule.Name)
		}
		fs = left
	}
	return nil
}

func printRemoved(cmd *cobra.Command, d *daemonFlags, name string) (err error) {
	if d.asJSON {
		return printJSON(cmd.OutOrStdout(), map[string]string{"removed": name})
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "fault %s: removed\n", name)
	return err
}

func newFaultRelease() *cobra.Command {
	d := &daemonFlags{}
	var count int
	cmd := faultByName("release NAME", "Let commands go that a rule holds", "  vhbad fault release stuck\n  vhbad fault release stuck --count 1", d,
		func(ctx context.Context, cmd *cobra.Command, c *client.Client, name string) error {
			if cmd.Flags().Changed("count") && count == 0 {
				return usage(errors.New("--count 0: want at least 1, or nothing for all"))
			}
			n, err := c.ReleaseFault(ctx, name, count)
			if err != nil {
				return err
			}
			if d.asJSON {
				return printJSON(cmd.OutOrStdout(), client.FaultReleased{Released: n})
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "fault %s: %d released\n", name, n)
			return err
		})
	d.addPatient(cmd)
	cmd.Flags().IntVar(&count, "count", 0, "how many, the longest held first (default all)")
	return cmd
}

func newFaultKinds() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "kinds",
		Short: "List the kinds of faults and their fields",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if asJSON {
				return printJSON(cmd.OutOrStdout(), fault.Kinds())
			}
			t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			_, _ = fmt.Fprintln(t, "KIND\tCLASS\tFIELDS\tWHAT IT DOES") // Flush reports
			for _, k := range fault.Kinds() {
				class := "legal"
				if k.Hostile {
					class = "hostile"
				}
				_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", k.Kind, class, strings.Join(k.Fields, ", "), k.Summary)
			}
			return t.Flush()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newMark() *cobra.Command {
	var d daemonFlags
	cmd := &cobra.Command{
		Use:   "mark TEXT",
		Short: "Set a mark, which fault rules may wait for",
		Long: `Mark sets a mark: rules with match.at-mark of that text come into force, and
those about it (op=mark) happen. It is an event, too, so that others see when.`,
		Example: "  vhbad mark after-mkfs",
		Args:    wantArgs(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return d.with(cmd, func(ctx context.Context, c *client.Client) error {
				n, err := c.SetMark(ctx, args[0])
				if err != nil {
					return err
				}
				if d.asJSON {
					return printJSON(cmd.OutOrStdout(), client.MarkSet{Rules: n})
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "mark %s: %s\n", word(args[0]), waited(n))
				return err
			})
		},
		ValidArgsFunction: markTexts(&d.path),
	}
	d.addPatient(cmd)
	return cmd
}

// waited says how many rules have waited for a mark.
func waited(rules int) string {
	if rules > 1 {
		return count(rules, "rule") + " have waited for it"
	}
	return count(rules, "rule") + " has waited for it"
}

func newReset() *cobra.Command {
	var d daemonFlags
	level := string(client.ResetLun)
	cmd := &cobra.Command{
		Use:   "reset DISK",
		Short: "Reset a disk's logical unit, its target or the bus",
		Long: `Reset has the port reset a logical unit as if a command had run out of time, and
waits until that is done. What the disk was doing is aborted and sent again.`,
		Example: "  vhbad reset db\n  vhbad reset db --level bus",
		Args:    wantArgs(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return d.with(cmd, func(ctx context.Context, c *client.Client) error {
				if err := c.ResetDisk(ctx, args[0], client.ResetLevel(level)); err != nil {
					return err
				}
				if d.asJSON {
					return printJSON(cmd.OutOrStdout(), map[string]string{"disk": args[0], "level": level})
				}
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "disk %s: %s reset done\n", word(args[0]), level)
				return err
			})
		},
		ValidArgsFunction: diskNames(&d.path),
	}
	levels := []string{string(client.ResetLun), string(client.ResetTarget), string(client.ResetBus)}
	cmd.Flags().StringVar(&level, "level", level, strings.Join(levels, ", "))
	offer(cmd, "level", levels...)
	d.addPatient(cmd)
	return cmd
}
