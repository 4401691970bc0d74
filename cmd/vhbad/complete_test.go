package main

import (
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

const (
	filesOffered   = ":0" // cobra.ShellCompDirectiveDefault
	noFilesOffered = ":4" // cobra.ShellCompDirectiveNoFileComp
)

// complete returns what a shell is to offer for the last of words.
func complete(t *testing.T, words ...string) (offered []string, directive string) {
	t.Helper()
	var out strings.Builder
	if code := run(t.Context(), append([]string{"__complete"}, words...), &out, io.Discard); code != exitOK {
		t.Fatalf("%q: exit code %d", words, code)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	return lines[:len(lines)-1], lines[len(lines)-1]
}

// TestComplete_Files: a shell offers names of files where a file is wanted, and only there.
func TestComplete_Files(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir()) // no daemon is there
	wantFile := []string{"config check", "config print", "trace show", "trace replay", "run", "disk add"}
	fileFlags := []string{"config", "disk", "admin", "tls-certificates", "sandbox-path", "file", "image", "base"}
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		for _, sub := range c.Commands() {
			walk(sub)
		}
		path := strings.Fields(c.CommandPath())[1:]
		if !c.HasSubCommands() && c.Name() != "help" {
			want := noFilesOffered
			if slices.Contains(wantFile, strings.Join(path, " ")) {
				want = filesOffered
			}
			if _, got := complete(t, append(slices.Clone(path), "")...); got != want {
				t.Errorf("%q: directive %s, want %s", path, got, want)
			}
		}
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Value.Type() == "bool" {
				return
			}
			want := noFilesOffered
			if slices.Contains(fileFlags, f.Name) {
				want = filesOffered
			}
			if _, got := complete(t, append(slices.Clone(path), "--"+f.Name, "")...); got != want {
				t.Errorf("%q --%s: directive %s, want %s", path, f.Name, got, want)
			}
		})
	}
	walk(newRoot())
	if _, got := complete(t, "trace", "show", "t", ""); got != noFilesOffered {
		t.Errorf("a second trace: directive %s, want %s", got, noFilesOffered)
	}
}

// TestComplete_Run: run completes the flags of serve as serve does.
func TestComplete_Run(t *testing.T) {
	for _, command := range []string{"serve", "run"} {
		if got, _ := complete(t, command, "--log-level", ""); !slices.Contains(got, "debug") {
			t.Errorf("%s --log-level: %q offered, want debug, too", command, got)
		}
	}
}
