package e2e

import (
	"bufio"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// packagesFile is the one list of the Debian packages that the tests need.
const packagesFile = "../../../deploy/ci/packages.txt"

// toolPackages says which Debian package brings each program that a test runs.
var toolPackages = map[string]string{
	"blkdiscard": "util-linux",
	"btrfs":      "btrfs-progs",
	"cmp":        "diffutils",
	"e2fsck":     "e2fsprogs",
	"fio":        "fio",
	"fish":       "fish",
	"fstrim":     "util-linux",
	"gcc":        "gcc",
	"ip":         "iproute2",
	"jq":         "jq",
	"linux.uml":  "user-mode-linux",
	"mkfs.btrfs": "btrfs-progs",
	"mkfs.ext4":  "e2fsprogs",
	"mkfs.xfs":   "xfsprogs",
	"nbd-client": "nbd-client",
	"nbdcopy":    "libnbd-bin",
	"nbdinfo":    "libnbd-bin",
	"nbdkit":     "nbdkit",
	"nbdsh":      "python3-libnbd",
	"prometheus": "prometheus",
	"promtool":   "prometheus",
	"python3":    "python3-minimal",
	"qemu-img":   "qemu-utils",
	"qemu-io":    "qemu-utils",
	"resize2fs":  "e2fsprogs",
	"rpm":        "rpm",
	"sqlite3":    "sqlite3",
	"udevadm":    "udev",
	"xfs_repair": "xfsprogs",
	"zsh":        "zsh",

	"systemd-analyze": "systemd",

	"/usr/include/stdlib.h": "libc6-dev", // with gcc, for go test -race

	"/usr/share/bash-completion/bash_completion": "bash-completion",
}

// toolFolders are searched in order; an unprivileged user's PATH often lacks the
// sbin ones, and a hand-installed Python hides the one that knows libnbd.
var toolFolders = []string{"/usr/sbin", "/usr/bin", "/sbin", "/bin"}

// tool returns the path of a program and fails the test, with the command that
// installs it, when it is missing: a test that was asked for never skips.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, ok := findTool(name)
	if !ok {
		t.Fatalf("%s is missing; install it with: apt-get install --no-install-recommends %s (or run `make deps`)",
			name, toolPackages[name])
	}
	return path
}

func findTool(name string) (string, bool) {
	for _, folder := range toolFolders {
		path := filepath.Join(folder, name)
		if info, err := os.Stat(path); err == nil && info.Mode()&0o111 != 0 {
			return path, true
		}
	}
	path, err := exec.LookPath(name)
	return path, err == nil
}

// TestPackages_CoverTools keeps deploy/ci/packages.txt equal to what tests run.
func TestPackages_CoverTools(t *testing.T) {
	f, err := os.Open(packagesFile)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}()
	listed := map[string]bool{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		name, _, _ := strings.Cut(lines.Text(), "#")
		if name = strings.TrimSpace(name); name != "" {
			listed[name] = true
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	for _, name := range slices.Sorted(maps.Keys(toolPackages)) {
		if !listed[toolPackages[name]] {
			t.Errorf("%s needs package %s, which %s does not list: add it there", name, toolPackages[name], packagesFile)
		}
	}
	used := slices.Collect(maps.Values(toolPackages))
	for name := range listed {
		if !slices.Contains(used, name) {
			t.Errorf("%s lists %s, but no tool in toolPackages needs it: remove it, or name the tool", packagesFile, name)
		}
	}
}
