//go:build ship

package ship

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A step is one thing that an administrator does, and what must come of it.
type step struct {
	name string
	run  func() error
}

// Where things are on a machine that has the package.
const (
	nbdSocket    = "/run/vhbad/nbd.sock"
	adminSocket  = "/run/vhbad.sock"
	image        = "/var/lib/vhbad/disk0.img"
	configPath   = "/etc/vhbad/vhbad.yaml"
	certificates = "/etc/vhbad/pki"
	mountPoint   = "/srv"
)

const attachUnit = "vhbad-attach@nbd0.service"

// steps are run in this order inside the guest.
func steps() []step {
	return []step{
		{"install", func() error {
			return errors.Join(
				run("ip", "link", "set", "lo", "up"),
				run("dpkg", "--force-depends", "--force-unsafe-io", "--no-triggers", "--install", os.Getenv(guestPackage)),
				want("inactive\n", "systemctl", "is-active", "vhbad.service"), // nothing is served before it is asked for
				want("disabled\n", "systemctl", "is-enabled", "vhbad.service"))
		}},
		{"start", func() error {
			return errors.Join(
				run("systemctl", "enable", "--now", "vhbad.service"),
				want("active\nactive\nactive\n", "systemctl", "is-active", "vhbad.service", "vhbad.socket", "vhbad-admin.socket"),
				want("Serving 1 disk at unix://"+nbdSocket+"\n", "systemctl", "show", "--property=StatusText", "--value", "vhbad.service"),
				contains("disk0", "vhbad", "status"))
		}},
		{"modes", wantModes},
		{"confined", wantConfined},
		{"attach", func() error {
			return errors.Join(
				os.WriteFile("/etc/vhbad/attach-nbd0.conf", []byte("URI=nbd+unix:///disk0?socket="+nbdSocket+"\nOPTIONS=--connections 2 --backend-id first\n"), 0o644),
				run("systemctl", "start", "systemd-udevd.service"),
				run("systemctl", "start", attachUnit),
				until("udev has made the link", func() bool {
					return want("/dev/nbd0\n", "readlink", "--canonicalize", "/dev/disk/by-nbd/first") == nil
				}),
				contains("[none]", "cat", "/sys/block/nbd0/queue/scheduler"),
				run("mkfs.ext4", "-q", "/dev/nbd0"),
				run("mount", "/dev/nbd0", mountPoint),
				run("cp", "-r", "/etc/systemd", mountPoint))
		}},
		{"attach_without_file", func() error {
			cmd := command("systemctl", "start", "vhbad-attach@nbd1.service")
			if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "Assertion failed") {
				return fmt.Errorf("without its file vhbad-attach@nbd1.service starts: %v\n%s", cmd.ProcessState, out)
			}
			return nil
		}},
		{"restart", func() error { return goesOn(func() error { return run("systemctl", "restart", "vhbad.service") }) }},
		{"kill", func() error {
			return goesOn(func() error {
				pid, err := mainPID()
				if err != nil {
					return err
				}
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
					return err
				}
				return until("another process serves", func() bool {
					now, err := mainPID()
					return err == nil && now != 0 && now != pid
				})
			})
		}},
		{"bad_configuration", func() error {
			good, err := os.ReadFile(configPath)
			if err != nil {
				return err
			}
			return goesOn(func() error {
				if err := os.WriteFile(configPath, append(good, "sice: 1GiB\n"...), 0o644); err != nil {
					return err
				}
				if err := run("systemctl", "restart", "vhbad.service"); err == nil {
					return errors.New("the daemon starts with a configuration that is wrong")
				}
				return errors.Join(
					contains("unknown key \"sice\"", "journalctl", "--no-pager", "--unit=vhbad.service"),
					os.WriteFile(configPath, good, 0o644),
					until("the daemon is back by itself", func() bool {
						return want("active\n", "systemctl", "is-active", "vhbad.service") == nil
					}))
			})
		}},
		{"disk_add", func() error {
			return errors.Join(
				run("vhbad", "disk", "add", "more=file:/var/lib/vhbad/more.img,size=64MiB"),
				want("67108864\n", "nbdinfo", "--size", "nbd+unix:///more?socket="+nbdSocket),
				run("vhbad", "disk", "remove", "more"),
				refused("read-only file system", "vhbad", "disk", "add", "else=file:/opt/else.img,size=64MiB"))
		}},
		{"reload", wantReload},
		{"listen", wantListeners},
		{"detach", func() error {
			return errors.Join(
				run("umount", mountPoint),
				run("e2fsck", "-fn", "/dev/nbd0"),
				run("systemctl", "stop", attachUnit),
				want("inactive\n", "systemctl", "is-active", attachUnit),
				gone("/sys/block/nbd0/pid"),
				until("udev has removed the link", func() bool { return gone("/dev/disk/by-nbd/first") == nil }))
		}},
		{"stop", func() error {
			return errors.Join(
				run("systemctl", "stop", "vhbad.service"),
				want("inactive\ninactive\ninactive\n", "systemctl", "is-active", "vhbad.service", "vhbad.socket", "vhbad-admin.socket"),
				gone(nbdSocket), gone(adminSocket))
		}},
		{"on_demand", func() error { // the first client starts the daemon
			return errors.Join(
				run("systemctl", "start", "vhbad.socket"),
				want("inactive\n", "systemctl", "is-active", "vhbad.service"),
				want("1073741824\n", "nbdinfo", "--size", "nbd+unix:///disk0?socket="+nbdSocket),
				want("active\n", "systemctl", "is-active", "vhbad.service"))
		}},
		{"remove", func() error {
			return errors.Join(
				run("dpkg", "--no-triggers", "--remove", "vhbad"),
				gone("/usr/bin/vhbad"), gone(nbdSocket), gone("/etc/systemd/system/multi-user.target.wants/vhbad.service"),
				run("test", "-s", image))
		}},
	}
}

// wantModes looks at who may do what with the files of a daemon that serves.
func wantModes() error {
	var errs []error
	for path, mode := range map[string]string{
		adminSocket: "srw------- root root", nbdSocket: "srw-rw---- vhbad vhbad", image: "-rw------- vhbad vhbad",
		"/run/vhbad": "drwxr-xr-x vhbad vhbad", "/var/lib/vhbad": "drwxr-x--- vhbad vhbad",
	} {
		errs = append(errs, want(mode+"\n", "stat", "--format=%A %U %G", path))
	}
	return errors.Join(errs...)
}

// wantConfined looks at what the kernel says of the process.
func wantConfined() error {
	pid, err := mainPID()
	if err != nil {
		return err
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return err
	}
	var errs []error
	for _, line := range []string{"NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000"} {
		if !strings.Contains(string(status), "\n"+line+"\n") {
			errs = append(errs, fmt.Errorf("no line %q in\n%s", line, status))
		}
	}
	owner, err := user.Lookup("vhbad")
	if err != nil {
		return err
	}
	if uid := strings.Repeat("\t"+owner.Uid, 4); owner.Uid == "0" || !strings.Contains(string(status), "\nUid:"+uid+"\n") {
		errs = append(errs, fmt.Errorf("it does not run as %s in\n%s", owner.Uid, status))
	}
	return errors.Join(errs...)
}

// wantReload adds a disk to the configuration while another one is mounted; then
// something that cannot be, which changes nothing.
func wantReload() error {
	good, err := os.ReadFile(configPath)
	if err != nil {
		return err
	}
	pid, err := mainPID()
	if err != nil {
		return err
	}
	more := strings.Replace(string(good), "\n# Metrics", "  - {name: late, file: /var/lib/vhbad/late.img, size: 64MiB}\n\n# Metrics", 1)
	const late = "nbd+unix:///late?socket=" + nbdSocket
	return goesOn(func() error {
		return errors.Join(
			os.WriteFile(configPath, []byte(more), 0o644),
			run("systemctl", "reload", "vhbad.service"),
			want("67108864\n", "nbdinfo", "--size", late),
			os.WriteFile(configPath, []byte(more+"sice: 1GiB\n"), 0o644),
			refused("Job for vhbad.service failed", "systemctl", "reload", "vhbad.service"),
			want("67108864\n", "nbdinfo", "--size", late),
			contains("unknown key", "journalctl", "--no-pager", "--since=-1min", "--unit=vhbad.service"),
			want("active\n", "systemctl", "is-active", "vhbad.service"),
			os.WriteFile(configPath, good, 0o644),
			run("systemctl", "reload", "vhbad.service"),
			want(strconv.Itoa(pid)+"\n", "systemctl", "show", "--property=MainPID", "--value", "vhbad.service"))
	})
}

// wantListeners has the daemon, within what its unit leaves it, listen on TCP,
// vsock and a unix socket with a mode, and offer TLS.
func wantListeners() error {
	if err := makeCertificate(certificates); err != nil {
		return err
	}
	text, err := os.ReadFile(configPath)
	if err != nil {
		return err
	}
	more := `listen: ["tcp://127.0.0.1:10809", "vsock://local:10809", "unix:///run/vhbad/more.sock?mode=0666"]` +
		"\ntls: {certificates: " + certificates + "}\n"
	const size = "1073741824\n"
	return goesOn(func() error {
		if err := os.WriteFile(configPath, append(text, more...), 0o644); err != nil {
			return err
		}
		return errors.Join(
			run("systemctl", "restart", "vhbad.service"),
			want(size, "nbdinfo", "--size", "nbd://127.0.0.1/disk0"),
			want(size, "nbdinfo", "--size", "nbds://localhost/disk0?tls-certificates="+certificates),
			want(size, "nbdinfo", "--size", "nbd+vsock://1/disk0"),
			want(size, "nbdinfo", "--size", "nbd+unix:///disk0?socket=/run/vhbad/more.sock"),
			want("srw-rw-rw- vhbad vhbad\n", "stat", "--format=%A %U %G", "/run/vhbad/more.sock"))
	})
}

// makeCertificate fills a folder with a certificate for localhost that is its own
// authority, and a key that the group vhbad may read.
func makeCertificate(folder string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	now := time.Now()
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	signed, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		return err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: signed})
	return errors.Join(
		os.MkdirAll(folder, 0o755),
		os.WriteFile(filepath.Join(folder, "server-cert.pem"), cert, 0o644),
		os.WriteFile(filepath.Join(folder, "ca-cert.pem"), cert, 0o644),
		os.WriteFile(filepath.Join(folder, "server-key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o640),
		run("chgrp", "vhbad", filepath.Join(folder, "server-key.pem")))
}

// goesOn does something to the server while a file system is mounted from it: what
// was written before is there afterwards, and more can be written.
func goesOn(do func() error) error {
	return errors.Join(
		do(),
		os.WriteFile(filepath.Join(mountPoint, "more"), []byte("content"), 0o644),
		run("sync", "--file-system", mountPoint),
		os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0),
		run("diff", "-r", "/etc/systemd/system.conf", mountPoint+"/systemd/system.conf"),
		want("content", "cat", filepath.Join(mountPoint, "more")))
}

func mainPID() (int, error) {
	out, err := command("systemctl", "show", "--property=MainPID", "--value", "vhbad.service").Output()
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(out)))
}

func command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	return cmd
}

// run runs a command that must succeed.
func run(name string, args ...string) error {
	cmd := command(name, args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return nil
}

// want runs a command that must print this; its exit code does not matter.
func want(text, name string, args ...string) error {
	cmd := command(name, args...)
	if out, _ := cmd.CombinedOutput(); string(out) != text {
		return fmt.Errorf("%s: %v, printed %q; want %q", strings.Join(cmd.Args, " "), cmd.ProcessState, out, text)
	}
	return nil
}

// contains runs a command that must succeed and print something with text in it.
func contains(text, name string, args ...string) error {
	cmd := command(name, args...)
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), text) {
		return fmt.Errorf("%s: %v, printed %q; want %q in it", strings.Join(cmd.Args, " "), cmd.ProcessState, out, text)
	}
	return nil
}

// refused runs a command that must fail and say why.
func refused(why, name string, args ...string) error {
	cmd := command(name, args...)
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), why) {
		return fmt.Errorf("%s: printed %q; want it to fail with %q: %w", strings.Join(cmd.Args, " "), out, why, cmp.Or(err, errors.New("it succeeds")))
	}
	return nil
}

func gone(path string) error {
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("%s is still there", path)
	}
	return nil
}

// until asks again and again.
func until(what string, ok func() bool) error {
	deadline, again := time.After(time.Minute), time.NewTicker(100*time.Millisecond)
	defer again.Stop()
	for !ok() {
		select {
		case <-deadline:
			return fmt.Errorf("%s: not so after a minute", what)
		case <-again.C:
		}
	}
	return nil
}
