//go:build ship

package ship

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// root is the repository as seen from this package's folder, where tests run.
const root = "../.."

// dist returns the one file of what `make package` has built that matches.
func dist(t *testing.T, pattern string) string {
	t.Helper()
	folder := os.Getenv("VHBAD_DIST")
	if folder == "" {
		t.Fatal("VHBAD_DIST is not set: run make package")
	}
	found, err := filepath.Glob(filepath.Join(folder, pattern))
	if err != nil || len(found) != 1 {
		t.Fatalf("%s/%s: found %q, %v: want one", folder, pattern, found, err)
	}
	return found[0]
}

// output runs a program that must succeed.
func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	return outputOf(t, exec.Command(name, args...))
}

func outputOf(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if errors.Is(err, exec.ErrNotFound) {
		t.Fatalf("%v: run make deps", err)
	}
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", cmd, err, stdout.Bytes(), stderr.Bytes())
	}
	return stdout.String()
}

// asRoot makes cmd believe that it is root, if it is not.
func asRoot(cmd *exec.Cmd) *exec.Cmd {
	if os.Getuid() == 0 {
		return cmd
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	return cmd
}

// files are what both packages have, and the mode of each.
var files = map[string]string{
	"/etc/vhbad/vhbad.yaml":                             "-rw-r--r--",
	"/usr/bin/vhbad":                                    "-rwxr-xr-x",
	"/usr/lib/systemd/system/vhbad-admin.socket":        "-rw-r--r--",
	"/usr/lib/systemd/system/vhbad-attach@.service":     "-rw-r--r--",
	"/usr/lib/systemd/system/vhbad.service":             "-rw-r--r--",
	"/usr/lib/systemd/system/vhbad.socket":              "-rw-r--r--",
	"/usr/lib/sysusers.d/vhbad.conf":                    "-rw-r--r--",
	"/usr/lib/udev/rules.d/60-vhbad.rules":              "-rw-r--r--",
	"/usr/share/bash-completion/completions/vhbad":      "-rw-r--r--",
	"/usr/share/doc/vhbad/README.md":                    "-rw-r--r--",
	"/usr/share/doc/vhbad/copyright":                    "-rw-r--r--",
	"/usr/share/doc/vhbad/vhbad.schema.json":            "-rw-r--r--",
	"/usr/share/doc/vhbad/deploy/prometheus/alerts.yml": "-rw-r--r--",
	"/usr/share/doc/vhbad/docs/benchmarks/iops.svg":     "-rw-r--r--",
	"/usr/share/doc/vhbad/docs/examples/ledger.py":      "-rwxr-xr-x",
	"/usr/share/doc/vhbad/examples/nbd.conf":            "-rw-r--r--",
	"/usr/share/fish/vendor_completions.d/vhbad.fish":   "-rw-r--r--",
	"/usr/share/man/man1/vhbad-attach.1.gz":             "-rw-r--r--",
	"/usr/share/man/man1/vhbad-config-check.1.gz":       "-rw-r--r--",
	"/usr/share/man/man1/vhbad-serve.1.gz":              "-rw-r--r--",
	"/usr/share/man/man1/vhbad.1.gz":                    "-rw-r--r--",
}

// more are patterns of files that may be there too.
var more = []string{
	"/usr/share/man/man1/*.1.gz",
	"/usr/share/doc/vhbad/docs/*.md", "/usr/share/doc/vhbad/docs/*.svg", "/usr/share/doc/vhbad/docs/adr/*.md",
	"/usr/share/doc/vhbad/docs/benchmarks/*.svg", "/usr/share/doc/vhbad/docs/examples/*",
	"/usr/share/doc/vhbad/deploy/prometheus/*.yml", "/usr/share/doc/vhbad/deploy/grafana/*.json",
}

// checkList compares a package's list, "MODE … PATH" in each line, with files, more
// and the completions for zsh.
func checkList(t *testing.T, list, zsh string) {
	t.Helper()
	got := map[string]string{}
	for line := range strings.Lines(list) {
		fields := strings.Fields(line)
		if len(fields) < 2 || strings.HasPrefix(fields[0], "d") {
			continue
		}
		if len(fields) > 2 && (fields[1] != "root/root" && (fields[2] != "root" || fields[3] != "root")) {
			t.Errorf("not of root: %s", line)
		}
		got[strings.TrimPrefix(fields[len(fields)-1], ".")] = fields[0]
	}
	for path, mode := range files {
		if got[path] != mode {
			t.Errorf("%s has mode %q, want %q", path, got[path], mode)
		}
	}
	if got[zsh] == "" {
		t.Errorf("no %s", zsh)
	}
	for path := range got {
		known := slices.ContainsFunc(more, func(pattern string) bool {
			ok, err := filepath.Match(pattern, path)
			return ok && err == nil
		})
		if files[path] == "" && path != zsh && !known {
			t.Errorf("%s is in the package, and nobody wants it there", path)
		}
	}
}

func TestDeb_Content(t *testing.T) {
	deb := dist(t, "*.deb")
	checkList(t, output(t, "dpkg-deb", "-c", deb), "/usr/share/zsh/vendor-completions/_vhbad")
	if got, want := output(t, "dpkg-deb", "-f", deb, "Package"), "vhbad\n"; got != want {
		t.Errorf("package %q, want %q", got, want)
	}
}

func TestRPM_Content(t *testing.T) {
	rpm := dist(t, "*.rpm")
	db := t.TempDir() // none of the machine's
	checkList(t, output(t, "rpm", "--dbpath", db, "-qp", "-lv", rpm), "/usr/share/zsh/site-functions/_vhbad")
	if got, want := output(t, "rpm", "--dbpath", db, "-qp", "--configfiles", rpm), "/etc/vhbad/vhbad.yaml\n"; got != want {
		t.Errorf("configuration files %q, want %q", got, want)
	}
}

// TestDeb_Install installs the package under a folder, as root of that folder, and
// removes it. Nothing outside is touched.
func TestDeb_Install(t *testing.T) {
	to := t.TempDir()
	for _, d := range []string{"etc", "var/lib/dpkg/updates", "var/lib/dpkg/info"} {
		if err := os.MkdirAll(filepath.Join(to, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(to, "var/lib/dpkg/status"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	dpkg := func(args ...string) {
		t.Helper()
		// No time for fsync, and scripts run outside, with DPKG_ROOT.
		cmd := asRoot(exec.Command("dpkg", append([]string{
			"--root=" + to, "--log=" + filepath.Join(to, "log"), "--force-unsafe-io", "--force-script-chrootless", "--force-not-root",
			"--force-depends", "--force-bad-path",
		}, args...)...))
		outputOf(t, cmd)
	}
	dpkg("--install", dist(t, "*.deb"))
	program := filepath.Join(to, "usr/bin/vhbad")
	if got := output(t, program, "version"); !strings.HasPrefix(got, "vhbad ") {
		t.Errorf("installed program says %q", got)
	}
	config := filepath.Join(to, "etc/vhbad/vhbad.yaml")
	if got := output(t, program, "config", "check", config); !strings.Contains(got, `good: disks ["disk0"]`) {
		t.Errorf("configuration of the package: %q", got)
	}
	passwd, err := os.ReadFile(filepath.Join(to, "etc/passwd"))
	if err != nil || !strings.Contains(string(passwd), "\nvhbad:") && !strings.HasPrefix(string(passwd), "vhbad:") {
		t.Errorf("no user vhbad: %v\n%s", err, passwd)
	}
	pages, err := filepath.Glob(filepath.Join(to, "usr/share/man/man1/*.gz"))
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range pages {
		if text := output(t, "gzip", "-dc", page); !strings.Contains(text, ".TH") || !strings.Contains(text, ".SH SYNOPSIS") {
			t.Errorf("%s is no manual page: %.60q", page, text)
		}
	}

	if err := os.WriteFile(config, []byte("# mine\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(to, "var/lib/vhbad/disk0.img")
	if err := os.MkdirAll(filepath.Dir(image), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(image, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	dpkg("--remove", "vhbad")
	for path := range files {
		_, err := os.Lstat(filepath.Join(to, path))
		if stays := strings.HasPrefix(path, "/etc/"); stays != (err == nil) {
			t.Errorf("after remove, %s: %v; want it there: %v", path, err, stays)
		}
	}
	dpkg("--purge", "vhbad")
	if _, err := os.Lstat(config); err == nil {
		t.Errorf("after purge, %s is there", config)
	}
	if b, err := os.ReadFile(image); string(b) != "precious" {
		t.Errorf("after purge, the image: %q, %v; want it untouched", b, err)
	}
}

// TestRPM_Install installs the package under a folder, without its scripts, which
// would need a shell there, and erases it.
func TestRPM_Install(t *testing.T) {
	to := t.TempDir()
	rpm := func(args ...string) {
		t.Helper()
		outputOf(t, asRoot(exec.Command("rpm", append([]string{"--root=" + to, "--noscripts", "--nodeps", "--nosignature"}, args...)...)))
	}
	rpm("--install", dist(t, "*.rpm"))
	config := filepath.Join(to, "etc/vhbad/vhbad.yaml")
	if got := output(t, filepath.Join(to, "usr/bin/vhbad"), "config", "check", config); !strings.Contains(got, `good: disks ["disk0"]`) {
		t.Errorf("configuration of the package: %q", got)
	}
	if err := os.WriteFile(config, []byte("# mine\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	rpm("--erase", "vhbad")
	for path := range files {
		if _, err := os.Lstat(filepath.Join(to, path)); err == nil {
			t.Errorf("after erase, %s is there", path)
		}
	}
	if b, err := os.ReadFile(config + ".rpmsave"); string(b) != "# mine\n" {
		t.Errorf("the configuration that was changed: %q, %v; want it kept", b, err)
	}
}

// TestScripts has the shell read what package managers run.
func TestScripts(t *testing.T) {
	for _, name := range []string{"postinst", "prerm", "postrm"} {
		output(t, "sh", "-n", filepath.Join(root, "deploy/package", name))
	}
}

// TestPrerm: what is removed leaves nothing enabled, whose units are gone.
func TestPrerm(t *testing.T) {
	to := t.TempDir()
	folder := filepath.Join(to, "usr/lib/systemd/system")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range units {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(readUnit(t, name)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	output(t, "systemctl", "--root="+to, "--quiet", "enable", "vhbad.service", "vhbad-attach@nbd0.service", "vhbad-attach@nbd7.service")
	enabled := func() []string {
		t.Helper()
		links, err := filepath.Glob(filepath.Join(to, "etc/systemd/system/*/*"))
		if err != nil {
			t.Fatal(err)
		}
		return links
	}
	if links := enabled(); len(links) != 4 {
		t.Fatalf("enabled are %q, want service, socket and two devices", links)
	}
	for _, word := range []string{"upgrade", "1", "remove"} {
		cmd := exec.Command("sh", filepath.Join(root, "deploy/package/prerm"), word)
		cmd.Env = append(os.Environ(), "DPKG_ROOT="+to)
		outputOf(t, cmd)
		want := 4
		if word == "remove" {
			want = 0
		}
		if links := enabled(); len(links) != want {
			t.Errorf("after prerm %s, enabled are %q, want %d", word, links, want)
		}
	}
}

func TestChecksums(t *testing.T) {
	cmd := exec.Command("sha256sum", "--check", "--strict", "SHA256SUMS")
	cmd.Dir = filepath.Dir(dist(t, "SHA256SUMS"))
	outputOf(t, cmd)
}
