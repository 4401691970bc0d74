package main

import (
	"io"
	"strings"
	"syscall"
	"testing"

	"github.com/spf13/cobra"
)

// A full is a file system without space.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

// TestHelp_NotWritten: help that does not arrive is a failure, as it is with other output.
func TestHelp_NotWritten(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"--help"}, {"help"}, {"serve", "-h"}, {"help", "fault", "add"}, {"completion", "bash", "--help"}, {"--version"}, {"version"}} {
		var stderr strings.Builder
		if code := run(t.Context(), args, full{}, &stderr); code != exitFailure || stderr.String() != "vhbad: no space left on device\n" {
			t.Errorf("%q: exit code %d, %q; want %d and why", args, code, stderr.String(), exitFailure)
		}
		stderr.Reset()
		if code := run(t.Context(), args, io.Discard, &stderr); code != exitOK || stderr.String() != "" {
			t.Errorf("%q: exit code %d, %q; want none", args, code, stderr.String())
		}
	}
	if code := run(t.Context(), []string{"disk"}, io.Discard, full{}); code != exitUsage {
		t.Errorf("wrong usage whose help is not written: exit code %d, want %d", code, exitUsage)
	}
}

// shellWords splits the line of a shell as far as examples need that: at spaces, but not
// within quotes, and up to what ends a command.
func shellWords(line string) (words []string) {
	word, quote, open := "", rune(0), false
	for _, r := range line + " " {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word += string(r)
		case r == '\'' || r == '"':
			quote, open = r, true
		case strings.ContainsRune("|&;>]", r):
			return words
		case r == ' ' && (word != "" || open):
			words, word, open = append(words, word), "", false
		case r != ' ':
			word += string(r)
		}
	}
	return words
}

// TestHelp_Examples: each example that help shows is a command line as it wants it.
func TestHelp_Examples(t *testing.T) {
	t.Parallel()
	seen := 0
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		for line := range strings.Lines(c.Example) {
			_, own, _ := strings.Cut(line, "vhbad ")
			words := shellWords(strings.ReplaceAll(strings.TrimSpace(own), "$s", "1")) // a loop's seed
			cmd, rest, err := newRoot().Find(words)
			if err == nil {
				err = cmd.ParseFlags(rest)
			}
			if err == nil {
				err = cmd.ValidateArgs(cmd.Flags().Args())
			}
			if err != nil {
				t.Errorf("%s: %s%v", c.CommandPath(), line, err)
			}
			seen++
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(newRoot())
	if seen < 50 {
		t.Errorf("%d examples: want them all", seen)
	}
}

// TestHelp_Run: what is behind -- is the command's, and no place for flags.
func TestHelp_Run(t *testing.T) {
	t.Parallel()
	if line := newRun().UseLine(); !strings.HasSuffix(line, "-- COMMAND [ARG...]") {
		t.Errorf("usage %q: want it to end with the command", line)
	}
}
