//go:build interop

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestCompletions: real shells load what `vhbad completion` prints, and use it.
func TestCompletions(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink(vhbadBinary, filepath.Join(dir, "vhbad")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ shell, script, want string }{
		{"bash", `source /usr/share/bash-completion/bash_completion; source <(vhbad completion bash)
			COMP_WORDS=(vhbad power cu) COMP_CWORD=2 COMP_LINE="vhbad power cu" COMP_POINT=14 COMP_TYPE=9; compopt() { :; } # it has no meaning outside a key press
			"$(complete -p vhbad | sed 's/.*-F \([^ ]*\).*/\1/')"; printf '%s\n' "${COMPREPLY[@]}"`, "cut"},
		{"fish", `vhbad completion fish | source; complete -C "vhbad power cu"`, "cut\tCut the power"},
		{"zsh", `autoload -U compinit; compinit -u -D; source <(vhbad completion zsh); print $_comps[vhbad]; whence -w _vhbad`, "_vhbad\n_vhbad: function"},
	} {
		t.Run(c.shell, func(t *testing.T) {
			cmd := exec.Command(tool(t, c.shell), "-c", c.script)
			cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "HOME="+dir)
			cmd.Stderr = os.Stderr
			out, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(string(out), c.want) {
				t.Errorf("completes %q, want %q", out, c.want)
			}
		})
	}
}
