package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/vhbad/vhbad/internal/archtest/pages"
)

// A quote is a command line, or part of one, that a page shows.
type quote struct {
	page string
	text string
}

// quotes finds the command lines in the code of every Markdown file: blocks, line by
// line, and spans that begin with our name or with a flag.
func quotes(t *testing.T) (lines, flags []quote) {
	t.Helper()
	span := regexp.MustCompile("`([^`\n]+)`")
	// Where in a line of a shell our command can be.
	ours := regexp.MustCompile(`(?:^|[\s(\[;|&"'])(?:\S*/)?vhbad ([^|;&\])>"]*)`)
	others := regexp.MustCompile(`^(sudo )?(docker|install) `) // we are their argument
	find := func(page, text string) {
		for _, m := range ours.FindAllStringSubmatch(text, -1) {
			lines = append(lines, quote{page, strings.TrimSpace(m[1])})
		}
	}
	all, err := pages.Read("../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range all {
		fenced := false
		joined := regexp.MustCompile(`\\\n\s*`).ReplaceAllString(page.Text, "")
		for line := range strings.Lines(joined) {
			line = strings.TrimRight(line, "\n")
			switch {
			case strings.HasPrefix(line, "```"):
				fenced = !fenced
			case fenced || strings.HasPrefix(line, "    "):
				command := strings.TrimSpace(line)
				if !strings.HasPrefix(command, "$ ") && !strings.HasPrefix(command, "# ") {
					continue // what a command prints, or a file
				}
				command, _, _ = strings.Cut(command[2:], " # ") // a remark
				if !others.MatchString(command) {
					find(page.Path, command)
				}
			default:
				for _, m := range span.FindAllStringSubmatch(line, -1) {
					if strings.HasPrefix(m[1], "--") {
						flags = append(flags, quote{page.Path, m[1]})
					} else if strings.HasPrefix(m[1], "vhbad ") || strings.HasPrefix(m[1], "bin/vhbad ") {
						find(page.Path, m[1])
					}
				}
			}
		}
	}
	return lines, flags
}

// allFlags are those of all commands.
func allFlags(c *cobra.Command, into map[string]bool) {
	c.InitDefaultHelpFlag()
	c.Flags().VisitAll(func(f *pflag.Flag) { into[f.Name] = true })
	for _, sub := range c.Commands() {
		allFlags(sub, into)
	}
}

// othersFlags are flags of other programs that pages name.
var othersFlags = map[string]bool{"iodepth": true /* fio */, "flush": true /* nbdcopy */, "no-sr": true /* nbdkit */}

// TestDocs_Commands: each command of vhbad that a page shows exists, and so does each
// flag that it is shown with.
func TestDocs_Commands(t *testing.T) {
	root := newRoot()
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	known := map[string]bool{}
	allFlags(root, known)
	lines, flags := quotes(t)
	if len(lines) < 30 || len(flags) < 30 {
		t.Errorf("%d command lines and %d flags found in the pages: want them all", len(lines), len(flags))
	}
	for _, q := range lines {
		cmd := root
		words := strings.Fields(q.text)
		for len(words) > 0 {
			next := subcommand(cmd, words[0])
			if next == nil {
				break
			}
			cmd, words = next, words[1:]
		}
		if cmd.HasSubCommands() && len(words) > 0 && !strings.HasPrefix(words[0], "-") && words[0] != "…" {
			t.Errorf("%s: vhbad %s: %s has no command %q", q.page, q.text, cmd.CommandPath(), words[0])
			continue
		}
		cmd.InitDefaultHelpFlag()
		for _, w := range words {
			name, isFlag := strings.CutPrefix(w, "--")
			name, _, _ = strings.Cut(name, "=")
			if isFlag && name != "" && cmd.Flags().Lookup(name) == nil && cmd.InheritedFlags().Lookup(name) == nil {
				t.Errorf("%s: vhbad %s: %s has no flag --%s", q.page, q.text, cmd.CommandPath(), name)
			}
		}
	}
	for _, q := range flags {
		for w := range strings.FieldsSeq(q.text) {
			name, isFlag := strings.CutPrefix(w, "--")
			name, _, _ = strings.Cut(name, "=")
			if isFlag && !known[name] && !othersFlags[name] {
				t.Errorf("%s: `%s`: no command of vhbad has a flag --%s", q.page, q.text, name)
			}
		}
	}
}

// TestDocs_Configuration: each configuration that a page shows is a good one.
func TestDocs_Configuration(t *testing.T) {
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)```yaml\n(.*?)```")
	seen := 0
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range block.FindAllStringSubmatch(string(text), -1) {
			seen++
			path := filepath.Join(t.TempDir(), "c.yaml")
			if err := os.WriteFile(path, []byte(m[1]), 0o600); err != nil {
				t.Fatal(err)
			}
			var stdout, stderr strings.Builder
			if code := run(t.Context(), []string{"config", "check", path}, &stdout, &stderr); code != exitOK {
				t.Errorf("%s: exit code %d: %s\n%s", page, code, stderr.String(), m[1])
			}
		}
	}
	if seen == 0 {
		t.Error("no configuration found")
	}
}

func subcommand(c *cobra.Command, name string) *cobra.Command {
	for _, sub := range c.Commands() {
		if sub.Name() == name {
			return sub
		}
	}
	return nil
}

// TestHelp_Defaults: help tells one default of a flag at the most, and says what it is.
func TestHelp_Defaults(t *testing.T) {
	t.Parallel()
	twice := regexp.MustCompile(`\(default.*\(default|\(default \)`)
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		for line := range strings.Lines(c.LocalFlags().FlagUsages()) {
			if twice.MatchString(line) {
				t.Errorf("%s: %s", c.CommandPath(), line)
			}
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(newRoot())
}
