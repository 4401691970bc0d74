//go:build interop

package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestTutorialPowerCut runs what docs/tutorial-power-cut.md shows, as it would be
// pasted, with its sockets in a folder of the test.
func TestTutorialPowerCut(t *testing.T) {
	for _, name := range []string{"python3", "nbdsh", "jq"} {
		tool(t, name)
	}
	all := sessions(t, "../../../docs/tutorial-power-cut.md")
	if len(all) < 3 {
		t.Fatalf("%d sessions in the tutorial, want the server's and some of the client's", len(all))
	}
	dir := t.TempDir()
	if err := os.Symlink(vhbadBinary, filepath.Join(dir, "vhbad")); err != nil {
		t.Fatal(err)
	}
	server, serverPrints := split(all[0])
	var steps []string
	for _, s := range all[1:] {
		steps = append(steps, s...)
	}
	client, clientPrints := split(steps)
	script := "set -e\n" + strings.TrimRight(server, "\n") + ` > DIR/server.out 2> DIR/server.err &
pid=$!
trap 'kill $pid; wait $pid' EXIT
until grep -q ^ready DIR/server.out; do kill -0 $pid; sleep 0.05; done
` + client
	script = strings.ReplaceAll(strings.ReplaceAll(script, "/tmp/", dir+"/"), "DIR", dir)
	cmd := exec.Command("sh", "-c", script)
	cmd.Dir = "../../.."
	cmd.Env = append(os.Environ(), "PATH="+dir+":"+strings.Join(toolFolders, ":"), "LC_ALL=C")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		t.Errorf("%v\n%s", err, &stderr)
	}
	out, err := os.ReadFile(filepath.Join(dir, "server.out"))
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.ReplaceAll(string(out), dir+"/", "/tmp/"); !serverPrints.MatchString(got) {
		t.Errorf("the server prints\n%s\nwant lines as in the tutorial: %s", got, serverPrints)
	}
	if !clientPrints.Match(stdout.Bytes()) {
		t.Errorf("the client prints\n%s\nwant lines as in the tutorial: %s\n%s", &stdout, clientPrints, &stderr)
	}
}
