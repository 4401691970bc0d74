//go:build interop

package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// steps are the commands for an unprivileged user that a page shows in blocks that are
// indented, each with the lines shown below it.
func steps(t *testing.T, path string) (commands []string, printed map[string]string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	printed = map[string]string{}
	last := ""
	for line := range strings.Lines(string(text)) {
		line, inside := strings.CutPrefix(strings.TrimRight(line, "\n"), "    ")
		command, ok := strings.CutPrefix(line, "$ ")
		switch {
		case !inside:
			last = ""
		case ok:
			commands = append(commands, command)
			last = command
		case last != "":
			printed[last] += line + "\n"
		}
	}
	return commands, printed
}

// root is the repository.
const root = "../../.."

// shell runs a script at the top of the repository, with vhbad and the tools in its PATH
// and files in dir where the page has them in /tmp.
func shell(t *testing.T, dir, script string) string {
	t.Helper()
	if _, err := os.Lstat(filepath.Join(dir, "vhbad")); err != nil {
		if err := os.Symlink(vhbadBinary, filepath.Join(dir, "vhbad")); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("bash", "-c", "set -eo pipefail\n"+strings.ReplaceAll(script, "/tmp/", dir+"/"))
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "PATH="+dir+":"+strings.Join(toolFolders, ":")+":"+os.Getenv("PATH"), "LC_ALL=C")
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s\n%s%s", err, script, &out, &stderr)
	}
	return strings.ReplaceAll(out.String(), dir+"/", "/tmp/")
}

// served is a script that has a page's server run while others do: on a port that
// is free, for the page's may not be.
func served(server, client string) string {
	return server + ` --http 127.0.0.1:0 > /tmp/server.out 2> /tmp/server.err &
pid=$!
trap 'kill $pid; wait $pid; cat /tmp/server.err' EXIT
until grep -q ^ready /tmp/server.out; do kill -0 $pid; sleep 0.05; done
http=$(vhbad status --json --admin /tmp/vhbad.sock | jq -r .http)
` + strings.ReplaceAll(client, "127.0.0.1:9810", "$http")
}

// find returns the one command that begins so.
func find(t *testing.T, commands []string, prefix string) string {
	t.Helper()
	for _, c := range commands {
		if strings.HasPrefix(c, prefix) {
			return c
		}
	}
	t.Fatalf("the page has no command %s…", prefix)
	return ""
}

// TestTutorialFirstDisk: what needs no root; the rest is what TestKernel/persist does.
func TestTutorialFirstDisk(t *testing.T) {
	commands, printed := steps(t, root+"/docs/tutorial-first-disk.md")
	serve := find(t, commands, "vhbad serve")
	out := shell(t, t.TempDir(), served(serve, "ls -ls /tmp/first.img\n"+find(t, commands, "nbdinfo ")+"\n"+find(t, commands, "vhbad status")+`
cat /tmp/server.out`))
	for _, want := range []string{
		`(?m)^0 .* 1073741824 .*/tmp/first.img$`, "can_flush: true", "can_fua: true", "can_trim: true", "can_zero: true", "can_multi_conn: true",
		`(?m)^first .* 0:0:0 `, "level=INFO|\"level\":\"INFO\"", "client|connection",
	} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("no %s in\n%s", want, out)
		}
	}
	for line := range strings.Lines(printed[serve]) {
		if !strings.HasPrefix(line, "time=") && !strings.Contains(out, line) {
			t.Errorf("the server does not print %q:\n%s", line, out)
		}
	}
}

// TestTutorialWatch: the loads are shorter, and status is looked at once.
func TestTutorialWatch(t *testing.T) {
	for _, name := range []string{"fio", "curl", "jq"} {
		tool(t, name)
	}
	commands, _ := steps(t, root+"/docs/tutorial-watch.md")
	var client string
	for _, c := range commands {
		switch {
		case strings.HasPrefix(c, "vhbad serve"), strings.HasPrefix(c, "docker "):
		case strings.HasPrefix(c, "fio "):
			client += strings.Replace(strings.TrimSuffix(c, "&"), "--runtime=600", "--runtime=1 --output=/dev/null", 1) + "\n"
		case strings.HasPrefix(c, "vhbad events"): // until it is stopped
			client += c + " --no-follow --json\n"
		case strings.HasPrefix(c, "kill -STOP"):
			client += c + "\nkill -CONT $pid\n"
		default:
			client += strings.TrimPrefix(c, "watch -n1 ") + "\n"
		}
	}
	out := shell(t, t.TempDir(), served(find(t, commands, "vhbad serve"), client))
	for _, want := range []string{
		`(?m)^[1-9][0-9][0-9]+$`, `vhbad_requests_total\{export="ram",op="read",result="ok"\} [1-9]`, `vhbad_requests_total\{export="img",op="flush",result="ok"\} [1-9]`,
		"DOORBELLS", `"type":"connection.opened"`,
	} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("no %s in\n%s", want, out)
		}
	}
	closed := 0
	for line := range strings.Lines(out) {
		var e struct {
			Type string `json:"type"`
		}
		if json.Unmarshal([]byte(line), &e) == nil && e.Type == "connection.closed" {
			closed++
		}
	}
	if closed < 2 {
		t.Errorf("%d events of closed connections, want both fios'", closed)
	}
}

// TestTutorialStorport: the transcript as it is in the tree, the table of ways to
// start, and the driver broken by the page's own command, in a copy.
func TestTutorialStorport(t *testing.T) {
	const page = root + "/docs/tutorial-storport.md"
	commands, printed := steps(t, page)
	dir := t.TempDir()
	show := find(t, commands, "sed -n")
	if got := shell(t, dir, show); got != printed[show] {
		t.Errorf("%s prints\n%s\nand the page shows\n%s", show, got, printed[show])
	}

	t.Run("modes", func(t *testing.T) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		serve := strings.Replace(find(t, commands, "bin/vhbad serve"), "bin/vhbad", "vhbad", 1)
		serve = strings.Replace(serve, " --http none", "", 1)
		fio := find(t, commands, "fio ") + " --output=/dev/null --io_size=4m"
		modes := [][]string{{"", ""}}
		modes = append(modes, regexp.MustCompile("(?m)^\\| `(--[^`]+)` \\|").FindAllStringSubmatch(string(text), -1)...)
		if len(modes) != 6 {
			t.Fatalf("%d ways to start, want 6", len(modes))
		}
		for _, mode := range modes {
			out := shell(t, t.TempDir(), served(serve+" "+mode[1], fio+"\nvhbad status --admin /tmp/vhbad.sock"))
			want := []string{"verifier: 0 violations"}
			if mode[1] == "" {
				want = append(want, "full duplex, interrupts: a lock per message")
			}
			if m := regexp.MustCompile("(?m)^\\| `" + regexp.QuoteMeta(mode[1]) + "` \\|.*\\(`([^`]+)`\\)").FindStringSubmatch(string(text)); m != nil {
				want = append(want, "interrupts: "+m[1]+",")
			}
			for _, w := range want {
				if !strings.Contains(out, w) {
					t.Errorf("%q: no %q in\n%s", mode[1], w, out)
				}
			}
		}
	})

	t.Run("broken", func(t *testing.T) {
		const broken = "miniport/dpc.go"
		source, err := filepath.Abs(filepath.Join(root, broken))
		if err != nil {
			t.Fatal(err)
		}
		edit := find(t, commands, "sed -i")
		copied := filepath.Join(dir, "dpc.go")
		shell(t, dir, "cp "+broken+" /tmp/dpc.go\n"+strings.Replace(edit, broken, "/tmp/dpc.go", 1))
		overlay, err := json.Marshal(map[string]map[string]string{"Replace": {source: copied}})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600); err != nil {
			t.Fatal(err)
		}
		build := strings.Replace(find(t, commands, "go build"), "go build", "go build -overlay /tmp/overlay.json", 1)
		shell(t, dir, build)
		serve := strings.Replace(find(t, commands, "/tmp/broken serve"), " --http none", "", 1)
		events := strings.Replace(find(t, commands, "bin/vhbad events"), "bin/", "", 1)
		out := shell(t, dir, served(serve, events))
		for _, want := range []string{"check=double_completion|\"check\":\"double_completion\"", "V1 double_completion: completed an SRB that is not"} {
			if !regexp.MustCompile(want).MatchString(out) {
				t.Errorf("no %s in\n%s", want, out)
			}
		}
	})
}

// TestTutorialGoTest: the page's commands print what it says, and its Go code, put in the
// place of the tree's, compiles, and finds the same.
func TestTutorialGoTest(t *testing.T) {
	const page, dir = root + "/docs/tutorial-go-test.md", root + "/client/vhbadtest/example"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	careless, printed := steps(t, page)
	if len(careless) != 1 {
		t.Fatalf("commands %q, want the one that finds the bug", careless)
	}
	careful := regexp.MustCompile("`(go test [^`]+)`").FindSubmatch(text)
	if careful == nil {
		t.Fatal("no command that passes with the bug mended")
	}
	out := shell(t, t.TempDir(), careless[0]+"\n"+string(careful[1]))
	finds := func(out string) {
		t.Helper()
		for line := range strings.Lines(printed[careless[0]]) {
			if !strings.Contains(out, line) {
				t.Errorf("the test does not find %q:\n%s", line, out)
			}
		}
	}
	finds(out)

	var code []string // by block
	for _, m := range regexp.MustCompile("(?ms)^```go\n(.*?)^```$").FindAllSubmatch(text, -1) {
		code = append(code, string(m[1]))
	}
	if len(code) != 4 {
		t.Fatalf("%d blocks of Go, want the program's Add, the disk, the doomed one, and its cut", len(code))
	}
	source, err := os.ReadFile(filepath.Join(dir, "ledger.go"))
	if err != nil {
		t.Fatal(err)
	}
	add := regexp.MustCompile(`(?ms)^func \(l \*Ledger\) Add\(.*?^}\n`)
	if !add.Match(source) {
		t.Fatal("ledger.go has no Add to be replaced")
	}
	test := `package example

import (
	"testing"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/client/vhbadtest"
)

` + code[2] + `
func TestPage(t *testing.T) {
` + code[1] + `
	for n := 1; n <= 3; n++ {
		for seed := range uint64(4) {
			if _, err := disk.WriteAt(make([]byte, 4*blockBytes), 0); err != nil {
				t.Fatal(err)
			}
			l, err := Format(disk)
			if err != nil {
				t.Fatal(err)
			}
			l.disk = &doomed{
				Conn: disk,
				n:    n,
` + strings.TrimSpace(code[3]) + `,
			}
			promised := 0
			for _, text := range []string{"coffee", "tea", "milk"} {
				if l.Add(text) == nil {
					promised++
				}
			}
			if promised >= n {
				t.Errorf("%d entries are promised after a power cut at Sync %d", promised, n)
			}
			disk = d.Dial()
			if _, err := Open(disk); err != nil {
				t.Logf("power cut at Sync %d, seed %d: %v", n, seed, err)
			}
		}
	}
}
`
	replace := map[string]string{}
	temporary := t.TempDir()
	for name, content := range map[string]string{"ledger.go": add.ReplaceAllLiteralString(string(source), code[0]), "ledger_test.go": test} {
		to := filepath.Join(temporary, name)
		if err := os.WriteFile(to, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		from, err := filepath.Abs(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		replace[from] = to
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(temporary, "overlay.json"), overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	finds(shell(t, temporary, "VHBAD=/tmp/vhbad go test -overlay /tmp/overlay.json -v ./client/vhbadtest/example"))
}
