//go:build interop

package e2e

import (
	"context"
	"os"
	"strconv"
	"strings"
	"testing"
)

// One client, which starts the server: over standard input and output, and by
// socket activation, as libnbd and its programs do both.
func TestSingle_Libnbd(t *testing.T) {
	single := []string{vhbadBinary, "serve", "--single", "--disk", exportName + "=memory:64MiB"}
	many := []string{vhbadBinary, "serve", "--http", "none", "--admin", "none", "--disk", exportName + "=memory:64MiB"}
	for name, connect := range map[string]string{
		"stdio":                     "connect_command(" + pythonList(single) + ")",
		"socket activation":         "connect_systemd_socket_activation(" + pythonList(single) + ")",
		"socket activation of many": "connect_systemd_socket_activation(" + pythonList(many) + ")",
		"stdio and a name":          "set_export_name('" + exportName + "'); h.connect_command(" + pythonList(single) + ")",
	} {
		t.Run(name, func(t *testing.T) { nbdshScript(t, "requests.py", "-c", "h."+connect) })
	}
	t.Run("nbdinfo", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
		defer cancel()
		command := peer(ctx, t, "nbdinfo", append(append([]string{"--size", "--", "["}, single...), "]")...)
		command.Stderr = os.Stderr
		out, err := command.Output()
		if err != nil {
			t.Fatalf("%v: %v", command.Args, err)
		}
		// The server has the same standard output, and says that it is ready there.
		if !strings.Contains("\n"+string(out), "\n"+strconv.Itoa(diskBytes)+"\n") {
			t.Errorf("nbdinfo --size prints %q, want %d", out, diskBytes)
		}
	})
}

func pythonList(words []string) string { return "['" + strings.Join(words, "','") + "']" }
