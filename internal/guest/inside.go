package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	// Reports is the device that ends in Machine.Reports.
	Reports = "/dev/tty1"
	// Temporary is a folder of the guest's own.
	Temporary = "/run/tmp"

	modules = "/usr/lib/uml/modules"
)

// Main is the main function of a program that is process 1 of a guest: it calls run with
// the value of the environment variable orders and the device Reports, and powers the
// guest off. Anywhere else, that is, if the variable is empty or the process is not process
// 1, it returns false at once.
func Main(orders string, run func(order string, reports *os.File)) bool {
	order := os.Getenv(orders)
	if order == "" || os.Getpid() != 1 {
		return false
	}
	reports, err := os.OpenFile(Reports, os.O_WRONLY, 0)
	if err != nil {
		fmt.Println("guest:", err)
	} else {
		run(order, reports)
	}
	fmt.Println("guest:", PowerOff())
	return true
}

// Enter turns a kernel that has just started into what programs expect: it mounts
// proc, sysfs and a tmpfs on /run, and sets the environment of children.
//
// Process 1 calls Enter once, before anything else.
func Enter() error {
	for _, m := range []struct{ kind, folder string }{
		{"proc", "/proc"},
		{"sysfs", "/sys"},
		{"tmpfs", "/run"},
	} {
		if err := unix.Mount("none", m.folder, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.kind, m.folder, err)
		}
	}
	if err := os.MkdirAll(Temporary, 0o755); err != nil {
		return err
	}
	if err := os.Unsetenv("GODEBUG"); err != nil { // it was for init, not for its children
		return err
	}
	for name, value := range map[string]string{
		"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "TMPDIR": Temporary, "HOME": "/run", "LC_ALL": "C",
	} {
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	return nil
}

// LoadModule loads a module of the guest's kernel, by its path below
// /usr/lib/uml/modules/RELEASE/kernel.
func LoadModule(name, parameters string) error {
	var release unix.Utsname
	if err := unix.Uname(&release); err != nil {
		return err
	}
	path := filepath.Join(modules, unix.ByteSliceToString(release.Release[:]), "kernel", name)
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	if err := unix.FinitModule(int(f.Fd()), parameters, 0); err != nil {
		return errors.Join(fmt.Errorf("load %s: %w", path, err), f.Close())
	}
	return f.Close()
}

// PowerOff ends the guest. It returns only if that fails.
func PowerOff() error {
	unix.Sync()
	return fmt.Errorf("power off: %w", unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
}
