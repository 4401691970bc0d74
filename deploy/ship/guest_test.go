//go:build ship

package ship

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Environment of this test binary inside the guest: what of the boot it is to do,
// and the package to install.
const (
	guestPart    = "VHBAD_GUEST_PART"
	guestPackage = "VHBAD_GUEST_PACKAGE"
)

// Parts of the boot.
const (
	partInit  = "init"  // process 1, until systemd is
	partSteps = "steps" // a unit that systemd runs
)

const (
	// guestMemory is an upper bound: the guest's memory is a sparse file.
	guestMemory = "768M"
	// guestDeadline bounds the boot, from start to power-off.
	guestDeadline = 8 * time.Minute
	// guestReport is the console that steps are reported on.
	guestReport = "/dev/tty1"
)

// TestMain is also what runs inside the guest.
func TestMain(m *testing.M) {
	var err error
	switch os.Getenv(guestPart) {
	case "":
		os.Exit(m.Run())
	case partInit:
		err = guestInit()
	case partSteps:
		err = guestSteps()
	}
	fmt.Println("guest:", err)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF) // it returns only if it fails, and then the deadline ends the guest
}

// TestGuest_Systemd boots a machine, User-Mode Linux with this host's files and
// its real systemd, installs the package there and uses it as an administrator
// would. What the guest writes is in its memory and gone with it.
func TestGuest_Systemd(t *testing.T) {
	for _, name := range []string{"linux.uml", "mkfs.ext4", "nbdinfo", "dpkg"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Fatalf("%v: run make deps", err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	deb, err := filepath.Abs(dist(t, "*.deb"))
	if err != nil {
		t.Fatal(err)
	}
	report, guestEnd, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	console := new(bytes.Buffer)
	uml := exec.Command("linux.uml",
		"mem="+guestMemory, "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "init="+self,
		"con=null", "con0=null,fd:1", "con1=null,fd:3", "quiet", "panic=-1", "uml_dir="+t.TempDir()+"/",
		guestPart+"="+partInit, guestPackage+"="+deb)
	uml.Stdout, uml.Stderr = console, console
	uml.ExtraFiles = []*os.File{guestEnd}
	uml.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	uml.WaitDelay = time.Second // its children may keep the console open
	if err := uml.Start(); err != nil {
		t.Fatal(err)
	}
	_ = guestEnd.Close() // the guest has it
	late := time.AfterFunc(guestDeadline, func() {
		_ = syscall.Kill(-uml.Process.Pid, syscall.SIGKILL) // the steps that are missing tell
	})
	ended := make(chan struct{})
	go func() {
		_ = uml.Wait() // what counts are the steps
		_ = report.SetReadDeadline(time.Now().Add(time.Second))
		close(ended)
	}()
	lines := bufio.NewScanner(report)
	for _, s := range steps() {
		ok := t.Run(s.name, func(t *testing.T) {
			for lines.Scan() {
				rest, isStep := strings.CutPrefix(strings.TrimSpace(lines.Text()), "step ")
				if !isStep {
					continue // consoles print codes of their own
				}
				name, why, _ := strings.Cut(rest, " ")
				if name != s.name {
					t.Fatalf("the guest reports step %s", name)
				}
				if why, err := strconv.Unquote(why); err != nil || why != "" {
					t.Fatalf("%s %v", why, err)
				}
				return
			}
			t.Fatal("the guest ended before")
		})
		if !ok {
			break
		}
	}
	<-ended
	if !late.Stop() {
		t.Errorf("the guest did not end within %v", guestDeadline)
	}
	_ = report.Close() // read to its end
	if t.Failed() {
		t.Logf("console of the guest:\n%s", console)
	}
}

// guestInit makes a root of this host's files that can be written, and becomes
// systemd in it.
func guestInit() error {
	if err := os.Setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"); err != nil {
		return err
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	modules := filepath.Join("/usr/lib/uml/modules", unix.ByteSliceToString(u.Release[:]), "kernel")
	for module, parameters := range map[string]string{
		"fs/overlayfs/overlay.ko": "", "drivers/block/nbd.ko": "nbds_max=2", "net/vmw_vsock/vsock.ko": "",
	} {
		if err := insert(filepath.Join(modules, module), parameters); err != nil {
			return err
		}
	}
	for _, module := range []string{"vmw_vsock_virtio_transport_common.ko", "vsock_loopback.ko"} { // they need vsock.ko
		if err := insert(filepath.Join(modules, "net/vmw_vsock", module), ""); err != nil {
			return err
		}
	}
	if err := unix.Mount("none", "/mnt", "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("mount /mnt: %w", err)
	}
	for _, folder := range []string{"/mnt/upper", "/mnt/work", "/mnt/root"} {
		if err := os.Mkdir(folder, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("none", "/mnt/root", "overlay", 0, "lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work"); err != nil {
		return fmt.Errorf("mount the root: %w", err)
	}
	for kind, folder := range map[string]string{"proc": "proc", "sysfs": "sys", "tmpfs": "run", "devtmpfs": "dev"} {
		if err := unix.Mount("none", filepath.Join("/mnt/root", folder), kind, 0, ""); err != nil {
			return fmt.Errorf("mount /%s: %w", folder, err)
		}
	}
	if err := unix.Chroot("/mnt/root"); err != nil {
		return err
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	// The host's file systems are none of the guest's, and it is no container.
	for _, path := range []string{"/etc/fstab", "/.dockerenv"} {
		if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	if err := os.WriteFile("/etc/machine-id", nil, 0o644); err != nil {
		return err
	}
	self, err := filepath.EvalSymlinks(os.Args[0])
	if err != nil {
		return err
	}
	unit := "[Unit]\nDefaultDependencies=no\nWants=systemd-journald.service\nAfter=systemd-journald.service\n" +
		"[Service]\nType=oneshot\nTimeoutStartSec=infinity\nStandardOutput=tty\nStandardError=tty\nTTYPath=/dev/tty0\nEnvironment=HOME=/root " +
		guestPart + "=" + partSteps + " " + guestPackage + "=" + os.Getenv(guestPackage) + "\nExecStart=" + self + "\n"
	if err := os.WriteFile("/etc/systemd/system/steps.service", []byte(unit), 0o644); err != nil {
		return err
	}
	return unix.Exec("/lib/systemd/systemd", []string{"systemd", "--unit=steps.service", "--show-status=no", "--log-level=warning"},
		[]string{"PATH=" + os.Getenv("PATH"), "HOME=/root", "LC_ALL=C"})
}

// insert loads a module of the guest's kernel.
func insert(path, parameters string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	if err := unix.FinitModule(int(f.Fd()), parameters, 0); err != nil {
		return fmt.Errorf("load %s: %w", path, err)
	}
	return f.Close()
}

// guestSteps runs the steps up to the first that fails, and reports each.
func guestSteps() error {
	report, err := os.OpenFile(guestReport, os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	for _, s := range steps() {
		err := s.run()
		why := ""
		if err != nil {
			why = err.Error()
		}
		if _, err := fmt.Fprintf(report, "step %s %q\n", s.name, why); err != nil {
			return err
		}
		if err != nil {
			out, _ := command("journalctl", "--boot", "--no-pager", "--lines=100").CombinedOutput() // as much as there is
			fmt.Printf("%s", out)
			break
		}
	}
	return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}
