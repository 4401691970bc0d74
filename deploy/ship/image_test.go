//go:build ship

package ship

import (
	"bufio"
	"debug/elf"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// instructions are those that the recipe may use, and may a recipe for a second
// one: no engine is needed to see that each is known and has arguments.
//
// Source: the Dockerfile reference.
var instructions = []string{
	"FROM", "WORKDIR", "COPY", "RUN", "ARG", "LABEL", "ENV", "USER", "VOLUME", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD",
}

// recipe reads the Dockerfile: instructions and their arguments.
func recipe(t *testing.T) [][2]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "deploy/docker/Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	var out [][2]string
	joined := strings.ReplaceAll(string(text), "\\\n", " ")
	for line := range strings.Lines(joined) {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		name, args, _ := strings.Cut(line, " ")
		if !slices.Contains(instructions, name) || strings.TrimSpace(args) == "" {
			t.Errorf("instruction not known, or without arguments: %s", line)
		}
		out = append(out, [2]string{name, strings.TrimSpace(args)})
	}
	return out
}

// last returns the arguments of the last instruction of that name.
func last(t *testing.T, lines [][2]string, name string) string {
	t.Helper()
	for _, l := range slices.Backward(lines) {
		if l[0] == name {
			return l[1]
		}
	}
	t.Fatalf("no %s", name)
	return ""
}

// TestImage runs what the image would: the static program, alone in a file system
// that has nothing else, as neither root nor anybody, with the image's command.
func TestImage(t *testing.T) {
	lines := recipe(t)
	if lines[0][0] != "FROM" || last(t, lines, "FROM") != "scratch" {
		t.Errorf("starts with %q and is made from %q: want FROM, and scratch at last", lines[0], last(t, lines, "FROM"))
	}
	if user := last(t, lines, "USER"); user != "65532:65532" {
		t.Errorf("user %s: want 65532:65532, by number, for the image has no /etc/passwd", user)
	}
	var entry, command, health []string
	for name, into := range map[string]*[]string{"ENTRYPOINT": &entry, "CMD": &command, "HEALTHCHECK": &health} {
		args := last(t, lines, name)
		if _, after, ok := strings.Cut(args, " CMD "); ok {
			args = after // HEALTHCHECK has options before
		}
		if err := json.Unmarshal([]byte(args), into); err != nil {
			t.Fatalf("%s: want a JSON list, the image has no shell: %v", name, err)
		}
	}
	program := dist(t, "stage/vhbad")
	binary, err := elf.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range binary.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			t.Errorf("the program wants a dynamic linker (%s), and the image has none", p.Type)
		}
	}
	_ = binary.Close()

	image := t.TempDir()
	for _, d := range []string{filepath.Dir(image), image} { // of root, with nothing for others
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	to := filepath.Join(image, entry[0])
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, b, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, l := range lines { // the folders that belong to the user
		args := strings.Fields(l[1])
		if l[0] != "COPY" || !slices.Contains(args, "--chown=65532:65532") {
			continue
		}
		folder := filepath.Join(image, args[len(args)-1])
		if err := os.MkdirAll(folder, 0o755); err != nil {
			t.Fatal(err)
		}
		if os.Getuid() != 0 {
			continue
		}
		if err := os.Chown(folder, 65532, 65532); err != nil {
			t.Fatal(err)
		}
	}
	for i, a := range command { // the host's ports may be in use
		command[i] = strings.NewReplacer("tcp://:10809", "tcp://127.0.0.1:0", "=:9810", "=127.0.0.1:0").Replace(a)
	}
	in := func(args ...string) *exec.Cmd {
		cmd := &exec.Cmd{Path: args[0], Args: args, Dir: "/", Env: strings.Fields(last(t, lines, "ENV")), Stderr: os.Stderr}
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: image}
		if os.Getuid() == 0 {
			cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 65532, Gid: 65532}
		} else {
			cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
			cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 65532, HostID: os.Getuid(), Size: 1}}
			cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 65532, HostID: os.Getgid(), Size: 1}}
		}
		return cmd
	}
	cmd := in(append(entry, command...)...)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || !strings.HasPrefix(ready, "ready tcp://127.0.0.1:") {
		t.Errorf("first line %q, %v", ready, err)
	}
	if out, err := in(health...).Output(); err != nil || !strings.Contains(string(out), "disk0") {
		t.Errorf("health: %q, %v", out, err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%s: %v", cmd, err)
	}
	if err := in(health...).Run(); err == nil {
		t.Error("healthy, but there is no daemon")
	}
}
