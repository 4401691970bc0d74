//go:build interop || kernel

package e2e

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

var (
	binaryFlag = flag.String("vhbad", "", "test this `file` instead of building vhbad")
	raceFlag   = flag.Bool("race-daemon", false, "build the daemon with the race detector")
	serverFlag = flag.String("server", serverVhbad, "server to test: vhbad or nbdkit")
)

// vhbadBinary is the absolute path of the binary under test, set by TestMain.
var vhbadBinary string

// TestMain builds the daemon once for all tests. In a guest, this binary is init
// and runs a scenario instead.
func TestMain(m *testing.M) {
	if guestMain() {
		return
	}
	flag.Parse()
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	folder, err := os.MkdirTemp("", "vhbad-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	defer func() {
		if err := os.RemoveAll(folder); err != nil {
			fmt.Fprintln(os.Stderr, "e2e:", err)
		}
	}()
	if vhbadBinary, err = buildDaemon(folder); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	return m.Run()
}

func buildDaemon(folder string) (string, error) {
	if *binaryFlag != "" {
		return filepath.Abs(*binaryFlag)
	}
	if *serverFlag != serverVhbad {
		return "", nil // nothing of ours is under test
	}
	path := filepath.Join(folder, "vhbad")
	args := []string{"build", "-o", path}
	environment := append(os.Environ(), "CGO_ENABLED=0")
	if *raceFlag {
		args = append(args, "-race")
		environment = append(os.Environ(), "CGO_ENABLED=1")
	}
	build := exec.Command("go", append(args, "github.com/vhbad/vhbad/cmd/vhbad")...)
	build.Env = environment
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build ./cmd/vhbad: %w\n%s", err, out)
	}
	return path, nil
}
