//go:build kernel

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Where the scenario about restarts has its things.
const (
	persistLog    = "/run/persist.log"
	persistNotify = "/run/notify.sock"
	loadReport    = "/run/fio.json"
	loadFile      = guestMount + "/load"
	// persistTimeout is after how long the kernel sends a request again that was
	// under way when its connection ended.
	persistTimeout = "3s"
	// progressRequests is how many requests show that a load is going on.
	progressRequests = 100
)

// A persistence is what the scenario about restarts has beside the server.
type persistence struct {
	listener *os.File  // as a service manager keeps it
	attach   *exec.Cmd // vhbad attach --persist
	// reconnected is how often attach has reconnected until the last time that
	// somebody looked.
	reconnected int
	load        *exec.Cmd // fio
}

// persistScenario has a load and a mounted file system live through all ways in
// which a daemon may be replaced, with vhbad attach --persist.
func persistScenario() scenario {
	s := scenario{name: "persist"}
	p := new(persistence)
	add := func(name string, run func(g *guest) error) { s.steps = append(s.steps, step{name, run}) }
	image := "file:" + guestImage + ",size=256MiB"
	const grownBytes = 320 << 20
	activated := func(g *guest) error { return p.startActivated(g, image) }

	add("listen", p.listen)
	add("start", activated)
	add("attach", func(g *guest) error { return p.startAttach(g, "--connections", "2") })
	add("mkfs", func(g *guest) error { return g.run("mkfs.ext4", "-q", guestDevice) })
	add("mount", func(g *guest) error { return g.mount(ext4.name) })
	add("files", func(g *guest) error { return tree{g.seed, treeFiles / 10}.write(guestMount) })
	add("load", p.startLoad)

	add("sigterm/stop", (*guest).stopServer)
	add("sigterm/start", activated)
	add("sigterm/reconnected", p.waitReconnected)
	add("takeover/start", func(g *guest) error { return p.takeOver(g, image) })
	add("takeover/reconnected", p.waitReconnected)
	add("sigkill/stop", (*guest).killServer)
	add("sigkill/start", activated)
	add("sigkill/reconnected", p.waitReconnected)

	add("load_verified", p.stopLoad)
	add("no_errors", (*guest).wantNoErrors)
	add("files_again", func(g *guest) error { return tree{g.seed, treeFiles / 10}.check(guestMount) })
	add("detach_refused", wantDetachRefused)
	add("sigterm_refused", p.stopAttachRefused)
	add("adopted/attach", func(g *guest) error { return p.startAttach(g, "--connections", "2") })
	add("adopted/stop", (*guest).stopServer)
	add("adopted/start", func(g *guest) error {
		if err := os.Truncate(guestImage, grownBytes); err != nil {
			return err
		}
		return p.startActivated(g, "file:"+guestImage)
	})
	add("adopted/write", func(g *guest) error { return tree{g.seed + 1, treeFiles / 10}.write(guestMount + "/more") })
	add("adopted/reconnected", func(*guest) error { return p.awaitReconnected() })
	add("adopted/grown", func(*guest) error {
		return waitFor(guestDevice+" has grown", func() bool { return sysfs("size") == strconv.Itoa(grownBytes/512) })
	})
	add("adopted/resize2fs", func(g *guest) error { return g.run("resize2fs", guestDevice) })
	add("adopted/no_errors", (*guest).wantNoErrors)
	add("adopted/sigterm_refused", p.stopAttachRefused)
	add("unmount", (*guest).unmount)
	add("fsck", func(g *guest) error { return g.run(ext4.check[0], append(ext4.check[1:], guestDevice)...) })
	add("detach", func(g *guest) error { return g.detach(vhbadClient) })

	add("end/attach", func(g *guest) error { return p.startAttach(g) })
	add("end/sigterm", func(*guest) error { return p.endAttach(syscall.SIGTERM) })
	add("forced/attach", func(g *guest) error { return p.startAttach(g) })
	add("forced/mount", func(g *guest) error { return g.mount(ext4.name) })
	add("forced/detach", p.detachForced)
	add("stop", (*guest).stopServer)
	return s
}

// listen opens the server's socket, as a service manager does.
func (p *persistence) listen(*guest) error {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: guestSocket})
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false)
	if p.listener, err = l.File(); err != nil {
		return err
	}
	return l.Close()
}

// startActivated starts the daemon on the socket that is open.
func (p *persistence) startActivated(g *guest, disk string) error {
	config := serverConfig{kind: g.kind, binary: g.binary, disk: disk, folder: "/run"}
	server, err := config.command()
	if err != nil {
		return err
	}
	// LISTEN_PID must be the process that execs.
	server.Args = append([]string{"sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"`, "sh"}, server.Args...)
	server.Path = "/bin/sh"
	server.ExtraFiles = []*os.File{p.listener}
	return g.launch(server)
}

// takeOver starts a daemon that takes the place of the one that runs, and wants
// that one to end well.
func (p *persistence) takeOver(g *guest, disk string) error {
	old, oldLog := g.server, g.log
	config := serverConfig{kind: g.kind, binary: g.binary, disk: disk, folder: "/run", extra: []string{"--takeover"}}
	server, err := config.command()
	if err != nil {
		return err
	}
	if err := g.launch(server); err != nil {
		return err
	}
	if err := waitProcess(old); err != nil {
		return fmt.Errorf("daemon that handed over: %w\n%s", err, tail(oldLog.Bytes()))
	}
	return nil
}

// waitProcess waits for a process to end with status 0.
func waitProcess(c *exec.Cmd) error {
	late := time.AfterFunc(guestCommandTimeout, func() {
		_ = c.Process.Signal(syscall.SIGQUIT) // Wait reports that it died of it
	})
	defer late.Stop()
	return c.Wait()
}

// startAttach starts vhbad attach --persist and waits until it says, as to a
// service manager, that the device is usable.
func (p *persistence) startAttach(g *guest, args ...string) error {
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: persistNotify})
	if err != nil {
		return err
	}
	defer func() { _ = errors.Join(notify.Close(), os.Remove(persistNotify)) }()
	log, err := os.OpenFile(persistLog, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	args = append(args, "--persist", "--wait", guestCommandTimeout.String(), "--timeout", persistTimeout, "--backend-id", "the disk of the test", overUnix.uri(), guestDevice)
	p.reconnected = 0
	p.attach = exec.Command(g.binary, append([]string{"attach"}, args...)...)
	p.attach.Env = append(os.Environ(), "NOTIFY_SOCKET="+persistNotify)
	p.attach.Stdout, p.attach.Stderr = log, log
	if err := p.attach.Start(); err != nil {
		return err
	}
	message := make([]byte, 1000)
	if err := notify.SetReadDeadline(time.Now().Add(guestCommandTimeout)); err != nil {
		return err
	}
	n, err := notify.Read(message)
	if err != nil {
		return fmt.Errorf("no word of readiness: %w\n%s", err, persistTail())
	}
	if !strings.HasPrefix(string(message[:n]), "READY=1\n") {
		return fmt.Errorf("service manager told %q, want READY=1", message[:n])
	}
	if backend := sysfs("backend"); backend != "the disk of the test" {
		return fmt.Errorf("backend in sysfs is %q", backend)
	}
	return nil
}

func persistTail() []byte {
	content, err := os.ReadFile(persistLog)
	if err != nil {
		return []byte(err.Error())
	}
	return tail(content)
}

// endAttach has vhbad attach --persist end, by a signal or by itself, with status
// 0, and the device be free.
func (p *persistence) endAttach(signal syscall.Signal) error {
	if err := p.attach.Process.Signal(signal); err != nil {
		return err
	}
	if err := waitProcess(p.attach); err != nil {
		return fmt.Errorf("attach: %w\n%s", err, persistTail())
	}
	return wantFree()
}

func wantFree() error {
	return waitFor(guestDevice+" is free", func() bool { return sysfs("pid") == "" && sysfs("size") == "0" })
}

// startLoad starts fio on a file of the mounted file system. It writes until it is
// told to end, 16 requests at a time, and soon reads back and checks what it wrote.
func (p *persistence) startLoad(*guest) error {
	p.load = exec.Command("fio", "--name=load", "--filename="+loadFile, "--size=8m", "--rw=randwrite", "--bs=4k",
		"--iodepth=16", "--ioengine=libaio", "--direct=1", "--thread", "--time_based", "--runtime=600",
		"--verify=crc32c", "--verify_fatal=1", "--verify_backlog=64", "--verify_state_save=0", "--fsync=128",
		"--output-format=json", "--output="+loadReport)
	if err := p.load.Start(); err != nil {
		return err
	}
	return p.waitProgress()
}

// waitProgress waits for requests of the load to be done.
func (p *persistence) waitProgress() error {
	done := func() int {
		// Source: linux Documentation/block/stat.rst: reads and writes completed.
		fields := strings.Fields(sysfs("stat"))
		if len(fields) < 5 {
			return 0
		}
		reads, _ := strconv.Atoi(fields[0])
		writes, _ := strconv.Atoi(fields[4])
		return reads + writes
	}
	least := done() + progressRequests
	return waitFor(fmt.Sprintf("%d requests of the load", progressRequests), func() bool { return done() >= least })
}

// waitReconnected waits for one more reconnection, and for the load to go on.
func (p *persistence) waitReconnected(*guest) error {
	err := p.awaitReconnected()
	if err == nil {
		err = p.waitProgress()
	}
	if err != nil {
		return fmt.Errorf("%w\n%s", err, persistTail())
	}
	return nil
}

func (p *persistence) awaitReconnected() error {
	return waitFor("device reconnected", func() bool {
		content, err := os.ReadFile(persistLog)
		n := strings.Count(string(content), "msg=reconnected")
		if err != nil || n == p.reconnected {
			return false
		}
		p.reconnected = n
		return true
	})
}

// stopLoad ends fio and wants that it saw no error and no wrong byte.
func (p *persistence) stopLoad(*guest) error {
	if err := p.load.Process.Signal(syscall.SIGINT); err != nil {
		return err
	}
	const onSignal = 128 // fio's exit status then
	if err := waitProcess(p.load); err != nil && p.load.ProcessState.ExitCode() != onSignal {
		return fmt.Errorf("fio: %w", err)
	}
	content, err := os.ReadFile(loadReport)
	if err != nil {
		return err
	}
	if at := bytes.IndexByte(content, '{'); at > 0 { // "fio: terminating on signal 2" comes first
		content = content[at:]
	}
	var report struct {
		Jobs []struct {
			Error int `json:"error"`
			Read  struct {
				IOs int `json:"total_ios"`
			} `json:"read"`
			Write struct {
				IOs int `json:"total_ios"`
			} `json:"write"`
		} `json:"jobs"`
	}
	if err := json.Unmarshal(content, &report); err != nil {
		return fmt.Errorf("%s: %w\n%s", loadReport, err, tail(content))
	}
	if len(report.Jobs) != 1 {
		return fmt.Errorf("fio reports %d jobs, want 1", len(report.Jobs))
	}
	if j := report.Jobs[0]; j.Error != 0 || j.Read.IOs == 0 || j.Write.IOs == 0 {
		return fmt.Errorf("fio ended with error %d, after %d reads and %d writes: want no error, and both", j.Error, j.Read.IOs, j.Write.IOs)
	}
	return nil
}

// wantNoErrors looks for what the kernel logs when requests fail.
func (g *guest) wantNoErrors() error {
	out, err := g.output("dmesg")
	if err != nil {
		return err
	}
	for _, bad := range []string{"I/O error", "EXT4-fs error", "EXT4-fs warning", "Aborting journal"} {
		if strings.Contains(out, bad) {
			return fmt.Errorf("the kernel's log has %q:\n%s", bad, tail([]byte(out)))
		}
	}
	return nil
}

// wantDetachRefused wants that a device that is mounted cannot be detached.
func wantDetachRefused(g *guest) error {
	out, err := g.output(g.binary, "detach", guestDevice)
	if err == nil || !strings.Contains(out, "unmount it first") {
		return fmt.Errorf("detach of a mounted device: %w\n%s", err, out)
	}
	if sysfs("pid") == "" {
		return errors.New("detach was refused, but the device is gone")
	}
	return nil
}

// stopAttachRefused wants that attach leaves a device that is mounted, and says so.
func (p *persistence) stopAttachRefused(*guest) error {
	if err := p.attach.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	if err := waitProcess(p.attach); p.attach.ProcessState.ExitCode() != 1 {
		return fmt.Errorf("attach of a mounted device after SIGTERM: %w, want status 1\n%s", err, persistTail())
	}
	if log := string(persistTail()); !strings.Contains(log, "stays attached") || sysfs("pid") == "" {
		return fmt.Errorf("attach after SIGTERM: want a device that stays, and to be told\n%s", log)
	}
	return nil
}

// detachForced detaches a device that is mounted, by another process.
func (p *persistence) detachForced(g *guest) error {
	// The kernel keeps a mounted device's slot until it is closed: detach cannot
	// see its end, and says so.
	out, err := g.output(g.binary, "detach", "--force", "--wait", "1s", guestDevice)
	if err == nil || !strings.Contains(out, "still uses it") {
		return fmt.Errorf("forced detach of a mounted device: %w\n%s", err, out)
	}
	if err := waitProcess(p.attach); err != nil {
		return fmt.Errorf("attach, detached by another: %w\n%s", err, persistTail())
	}
	if err := unix.Unmount(guestMount, 0); err != nil {
		return err
	}
	return wantFree()
}
