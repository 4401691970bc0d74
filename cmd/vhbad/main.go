package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
)

// Exit codes. They are part of the interface: scripts depend on them.
const (
	exitOK      = 0
	exitFailure = 1 // something went wrong at run time
	exitUsage   = 2 // wrong command line or configuration
	// What a running daemon answered.
	exitNotFound = 3 // there is no such disk
	exitConflict = 4 // the daemon's state does not allow it: a name is taken, clients use the disk
)

// version is set by the linker: -X main.version=v1.2.3.
var version string

// buildVersion is the version, from the linker or else from the module's build
// information.
func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

// A usageError is the caller's mistake, not the program's failure.
type usageError struct {
	err error
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usage(err error) error {
	if err == nil {
		return nil
	}
	return &usageError{err}
}

// usageArgs turns the errors of check into usage errors.
func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error { return usage(check(cmd, args)) }
}

// wantArgs wants from least to most arguments, whose names are in cmd.Use.
func wantArgs(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) >= least && len(args) <= most {
			return nil
		}
		_, want, _ := strings.Cut(cmd.Use, " ")
		return usage(fmt.Errorf("%s: want %s", count(len(args), "argument"), want))
	}
}

// noArgs wants no arguments. Where there are subcommands it takes one for an unknown
// command.
func noArgs(cmd *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return nil
	case cmd.HasSubCommands():
		return unknownCommand(cmd, args[0])
	}
	return usage(fmt.Errorf("%q: want no argument but flags", args[0]))
}

// unknownCommand suggests what may have been meant by name.
func unknownCommand(parent *cobra.Command, name string) error {
	parent.SuggestionsMinimumDistance = 2 // letters that are wrong
	meant := parent.SuggestionsFor(name)
	if len(meant) == 0 {
		return usage(fmt.Errorf("unknown command %q for %q", name, parent.CommandPath()))
	}
	for i := range meant {
		meant[i] = fmt.Sprintf("`%s %s`", parent.CommandPath(), meant[i])
	}
	return usage(fmt.Errorf("unknown command %q for %q: is %s meant?", name, parent.CommandPath(), strings.Join(meant, " or ")))
}

// unknownFlag adds to the error about an unknown flag the flag that may have been meant.
func unknownFlag(cmd *cobra.Command, err error) error {
	unknown, ok := errors.AsType[*pflag.NotExistError](err)
	if !ok || len(unknown.GetSpecifiedName()) < 2 {
		return err
	}
	var flags []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			flags = append(flags, f.Name)
		}
	})
	meant := config.Alike(unknown.GetSpecifiedName(), flags)
	if len(meant) == 0 {
		return err
	}
	return fmt.Errorf("%w: is --%s meant?", err, strings.Join(meant, " or --"))
}

// wantOfFlag says what flags of pflag's own types want; pflag's errors would name Go
// functions.
var wantOfFlag = map[string]string{
	"bool": "true or false", "int": "a whole number", "uint": "a whole number from 0", "uint64": "a whole number from 0",
	"duration": "numbers with a unit of ns, us, ms, s, m or h, as in 5ms or 1m30s",
}

// wrongValue makes the error about a flag's value say what is wanted.
func wrongValue(err error) error {
	wrong, ok := errors.AsType[*pflag.InvalidValueError](err)
	if !ok {
		return err
	}
	want := wantOfFlag[wrong.GetFlag().Value.Type()]
	if want == "" {
		return fmt.Errorf("--%s: %w", wrong.GetFlag().Name, wrong.Unwrap()) // which says so itself
	}
	return fmt.Errorf("--%s %q: want %s", wrong.GetFlag().Name, wrong.GetValue(), want)
}

// count returns n with the name of what is counted.
func count(n int, thing string) string {
	switch n {
	case 0:
		return "no " + thing
	case 1:
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// addCobrasOwn adds the commands that cobra would add, but has them treat wrong usage as
// ours do.
func addCobrasOwn(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		switch cmd.Name() {
		case "help":
			cmd.Args = func(_ *cobra.Command, args []string) error {
				about, rest, err := root.Find(args)
				if err != nil || len(rest) == 0 {
					return usage(err)
				}
				return unknownCommand(about, rest[0])
			}
		case "completion":
			cmd.Args, cmd.RunE = noArgs, wantOneOf("bash, fish, powershell or zsh")
			for _, shell := range cmd.Commands() {
				shell.Args = noArgs
			}
		}
	}
}

// wantOneOf returns the RunE of a command that does nothing without a subcommand.
func wantOneOf(what string) func(cmd *cobra.Command, args []string) error {
	return func(cmd *cobra.Command, _ []string) error {
		cmd.SetOut(cmd.ErrOrStderr())
		return errors.Join(cmd.Help(), usage(errors.New("want "+what)))
	}
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "vhbad",
		Short: "A virtual host bus adapter, served as block devices over NBD",
		Long: `vhbad serves block devices over NBD from a virtual host bus adapter: every
request becomes a SCSI request block and travels through a port driver, a
miniport driver and a device with rings, DMA and interrupts.

Exit codes: 0 success, 1 failure at run time, 2 wrong usage or configuration;
of commands that control a running daemon also 3, there is no such thing, and
4, the daemon's state stands against it.`,
		Example: `  vhbad serve
  vhbad serve --listen unix:///run/nbd.sock --disk db=file:/var/lib/db.img,size=10GiB
  sudo vhbad attach --export db unix:///run/nbd.sock /dev/nbd0
  vhbad status`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          noArgs,
		RunE:          wantOneOf("a command"),
	}
	v := currentVersion()
	root.Version = v.Version
	root.SetVersionTemplate(v.String() + "\n")
	root.Flags().Bool("version", false, "print what this program was built from") // cobra's own would take -v
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usage(wrongValue(unknownFlag(cmd, err))) })
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	root.AddCommand(newServe(), newRun(), newAttach(), newDetach(), newStatus(), newEvents(), newDisk(), newPower(), newTrace(), newFault(), newMark(), newReset(), newReload(), newConfig(), newVersion())
	root.AddCommand(extraCommands()...)
	addCobrasOwn(root)
	return root
}

// watchHelp returns where the error of writing a help text will be, which cobra drops.
func watchHelp(root *cobra.Command) *error {
	var failed error
	help := root.HelpFunc()
	root.SetHelpFunc(func(cmd *cobra.Command, args []string) {
		out := cmd.OutOrStdout()
		var text bytes.Buffer
		cmd.SetOut(&text)
		help(cmd, args)
		_, failed = out.Write(text.Bytes())
	})
	return &failed
}

// run executes one command line and returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	notWritten := watchHelp(root)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		err = *notWritten
	}
	if err == nil {
		return exitOK
	}
	if ee, ok := errors.AsType[*exitError](err); ok {
		if ee.why != nil {
			_, _ = fmt.Fprintf(stderr, "vhbad: %v\n", ee.why)
		}
		return ee.code
	}
	_, _ = fmt.Fprintf(stderr, "vhbad: %v\n", err)
	if _, ok := errors.AsType[*usageError](err); ok {
		_, _ = fmt.Fprintf(stderr, "See `%s --help`.\n", cmd.CommandPath())
		return exitUsage
	}
	switch {
	case errors.Is(err, client.ErrNotFound):
		return exitNotFound
	case errors.Is(err, client.ErrConflict):
		return exitConflict
	}
	return exitFailure
}

func main() {
	os.Exit(profiled(func() int { return run(context.Background(), os.Args[1:], os.Stdout, os.Stderr) }))
}
