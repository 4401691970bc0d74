package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// scriptJSON is the command "json PATH[=VALUE]...": what the last command has printed is
// JSON, one value or several, and one of them has all of these fields, as in
// .disks[0].name=db.
func scriptJSON(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: json PATH[=VALUE]...")
	}
	d := json.NewDecoder(strings.NewReader(ts.ReadFile("stdout")))
	d.UseNumber()
	var misses []string
	for n := 0; ; n++ {
		var v any
		if err := d.Decode(&v); errors.Is(err, io.EOF) && n > 0 {
			ts.Fatalf("no value has all of %q: %s", args, strings.Join(misses, "; "))
		} else if err != nil {
			ts.Fatalf("not JSON: %v", err)
		}
		miss := missing(v, args)
		if miss == "" {
			return
		}
		misses = append(misses, miss)
	}
}

// missing is the first of the fields that v has not.
func missing(v any, fields []string) string {
	for _, f := range fields {
		path, want, hasValue := strings.Cut(f, "=")
		got, ok := at(v, path)
		if !ok || hasValue && fmt.Sprint(got) != want {
			return fmt.Sprintf("%s is %v", path, got)
		}
	}
	return ""
}

var pathStep = regexp.MustCompile(`^(?:\.([\w-]+)|\[(\d+)\])`)

// at is what stands at a path.
func at(v any, path string) (any, bool) {
	for path != "" {
		m := pathStep.FindStringSubmatch(path)
		if m == nil {
			return "no path: " + path, false
		}
		path = path[len(m[0]):]
		var ok bool
		if m[1] != "" {
			object, _ := v.(map[string]any)
			v, ok = object[m[1]]
		} else {
			list, _ := v.([]any)
			i, err := strconv.Atoi(m[2])
			if ok = err == nil && i < len(list); ok {
				v = list[i]
			}
		}
		if !ok {
			return nil, false
		}
	}
	return v, true
}

// scriptAwait is the command "await TEXT COMMAND ARG...": run a command until it prints
// what matches.
func scriptAwait(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: await TEXT COMMAND ARG...")
	}
	text, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	for tooLong := time.After(time.Minute); ; {
		ts.Check(ts.Exec(args[1], args[2:]...))
		if text.MatchString(ts.ReadFile("stdout")) {
			return
		}
		select {
		case <-tooLong:
			ts.Fatalf("%q does not print %s", args[1:], args[0])
		default:
		}
	}
}

// scriptClient is where a script keeps its client.
const scriptClient = "nbd client"

// scriptNBD is the command "nbd send", which sends a write of a block and does not wait,
// and "nbd reply ERRNO", which waits for its reply.
func scriptNBD(ts *testscript.TestScript, neg bool, args []string) {
	c := ts.Value(scriptClient).(**nbdtest.Client)
	switch {
	case neg || len(args) == 0:
		ts.Fatalf("usage: nbd send | nbd reply ERRNO")
	case args[0] == "send":
		if *c == nil {
			nc, err := net.Dial("unix", ts.MkAbs("n.sock"))
			ts.Check(err)
			ts.Defer(func() { _ = nc.Close() })
			ts.Check(nc.SetReadDeadline(time.Now().Add(time.Minute)))
			*c, err = nbdtest.NewClient(nc, "d")
			ts.Check(err)
		}
		ts.Check((*c).Send(nbdtest.Command{Type: nbdtest.CmdWrite, Length: 512, Payload: make([]byte, 512)}))
	case args[0] == "reply" && len(args) == 2 && *c != nil:
		r, err := (*c).Receive()
		ts.Check(err)
		if r.Errno.String() != args[1] {
			ts.Fatalf("%s, want %s", r.Errno, args[1])
		}
	default:
		ts.Fatalf("nbd %q: want send, then reply ERRNO", args)
	}
}

// kernelOnly are commands whose JSON needs a kernel's block device: the kernel tests
// have them.
var kernelOnly = map[string]bool{"vhbad attach": true, "vhbad detach": true}

// TestJSON_EveryCommand: each command with --json is run with it by a script, and the
// reference says what it prints.
func TestJSON_EveryCommand(t *testing.T) {
	var scripts strings.Builder
	paths, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		scripts.Write(b)
	}
	reference, err := os.ReadFile("../../docs/control.md")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		for _, sub := range c.Commands() {
			walk(sub)
		}
		if c.Flags().Lookup("json") == nil {
			return
		}
		n++
		name := c.CommandPath()
		if !kernelOnly[name] && !regexp.MustCompile(`(?m)^(exec|stdin|await .*) ?`+name+` .*--json`).MatchString(scripts.String()) {
			t.Errorf("no script runs %s --json", name)
		}
		if !regexp.MustCompile("(?m)^\\| [^|]*`" + strings.TrimPrefix(name, "vhbad ") + "`[^|]*\\| .+ \\|$").Match(reference) {
			t.Errorf("docs/control.md does not say what %s --json prints", name)
		}
	}
	walk(newRoot())
	if n < 15 {
		t.Errorf("%d commands have --json: want all that print", n)
	}
}
