//go:build interop

package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// sessions are the blocks of a page that show a terminal: commands after "$ ", and
// what they print, where … stands for anything.
func sessions(t *testing.T, path string) [][]string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out [][]string
	inside := false
	for line := range strings.Lines(string(text)) {
		line = strings.TrimRight(line, "\n")
		switch {
		case line == "```console":
			inside = true
			out = append(out, nil)
		case line == "```":
			inside = false
		case inside:
			out[len(out)-1] = append(out[len(out)-1], line)
		}
	}
	return out
}

// split divides a session into its script and a pattern for what that prints: the
// lines shown, in this order, others between them.
func split(session []string) (script string, printed *regexp.Regexp) {
	pattern := "(?s)"
	for _, line := range session {
		if command, ok := strings.CutPrefix(line, "$ "); ok {
			script += command + "\n"
			continue
		}
		pattern += "(?m:^)" + strings.ReplaceAll(regexp.QuoteMeta(line), "…", "[^\n]*") + ".*"
	}
	return script, regexp.MustCompile(pattern)
}

// TestReadme runs what README.md shows, as it would be pasted, in an empty folder
// and in a network of its own, where the default ports are free.
func TestReadme(t *testing.T) {
	for _, name := range []string{"nbdinfo", "nbdcopy", "qemu-io", "fio", "ip"} {
		tool(t, name)
	}
	all := sessions(t, "../../../README.md")
	if len(all) != 2 {
		t.Fatalf("%d sessions in README.md, want the server's and the client's", len(all))
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(vhbadBinary, filepath.Join(dir, "bin/vhbad")); err != nil {
		t.Fatal(err)
	}
	// In place of the one that builds.
	if err := os.WriteFile(filepath.Join(dir, "bin/make"), []byte("#!/bin/sh\ntest \"$*\" = build\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	server, serverPrints := split(all[0])
	server = strings.Replace(server, "bin/vhbad serve", "exec bin/vhbad serve", 1) // so that the shell's number is its
	client, clientPrints := split(all[1])
	files := map[string]string{"server": server, "client": client, "both": `
set -e
ip link set lo up
sh -e server > server.out 2> server.err & pid=$!
until grep -q ^attach: server.out; do kill -0 $pid; sleep 0.05; done
code=0; sh -e client > client.out 2> client.err || code=$?
kill $pid; wait $pid
exit $code
`}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("sh", "both")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+filepath.Join(dir, "bin")+":"+strings.Join(toolFolders, ":"), "XDG_RUNTIME_DIR="+dir, "LC_ALL=C")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
		}
		return string(b)
	}
	if err != nil {
		t.Errorf("%v\n%s\nserver: %s\nclient: %s", err, &out, read("server.err"), read("client.err"))
	}
	for name, want := range map[string]*regexp.Regexp{"server.out": serverPrints, "client.out": clientPrints} {
		if got := read(name); !want.MatchString(got) {
			t.Errorf("%s:\n%s\nwant lines as in README.md: %s", name, got, want)
		}
	}
	if info, err := os.Stat(filepath.Join(dir, "copy.img")); err != nil || info.Size() != 10<<30 {
		t.Errorf("copy.img: %v, %v; want 10 GiB", info, err)
	}
}
