//go:build kernel

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	machine "github.com/vhbad/vhbad/internal/guest"
)

// Environment of init in the guest, given on its kernel's command line.
const (
	envScenario = "VHBAD_GUEST_SCENARIO" // name of the scenario to run
	envServer   = "VHBAD_GUEST_SERVER"   // serverVhbad or serverNbdkit
	envBinary   = "VHBAD_GUEST_BINARY"   // path of vhbad
)

// A step is one line of a scenario's report. Steps run in order, and the first to
// fail ends the scenario.
type step struct {
	name string
	run  func(g *guest) error
}

// A scenario is what one boot of the guest does.
type scenario struct {
	name  string
	steps []step
}

// A guest is the inside of a boot: it lives in process 1 of the guest kernel.
// Only the goroutine that runs the steps uses it.
type guest struct {
	kind   string // of the server
	binary string // vhbad
	seed   uint64

	server *exec.Cmd
	log    *bytes.Buffer // of the server; read only after it was waited for
}

// Where things are in the guest.
const (
	guestImage  = machine.Temporary + "/disk.img"
	guestMount  = "/run/disk"
	guestSocket = "/run/vhbad.sock"
	guestTCP    = "127.0.0.1:10809"
	guestDevice = "/dev/nbd0"
)

// guestMain runs a scenario and powers the guest off, if this process is a
// guest's init; else it returns false at once.
func guestMain() bool {
	return machine.Main(envScenario, func(name string, results *os.File) {
		debug.SetGCPercent(-1) // a scenario allocates little, and fresh pages are dear here
		runScenario(name, results)
	})
}

func runScenario(name string, results *os.File) {
	g := &guest{
		kind: os.Getenv(envServer), binary: os.Getenv(envBinary),
		seed: uint64(time.Now().UnixNano()),
	}
	report := func(step string, began time.Time, err error) {
		why := "-"
		if err != nil {
			why = strconv.Quote(err.Error())
		}
		if _, err := fmt.Fprintf(results, "step %s %d %s\n", step, time.Since(began).Milliseconds(), why); err != nil {
			fmt.Println("guest:", err)
		}
	}
	steps := []step{{name: bootStep, run: (*guest).boot}}
	s, ok := scenarioNamed(name)
	if !ok {
		steps = append(steps, step{name: "scenario", run: func(*guest) error { return fmt.Errorf("no scenario %q", name) }})
	}
	steps = append(steps, s.steps...)
	for _, s := range steps {
		began := time.Now()
		err := s.run(g)
		report(s.name, began, err)
		if err != nil {
			g.dump()
			return
		}
	}
}

// dump prints to the console what helps to understand a failed step.
func (g *guest) dump() {
	if g.server != nil {
		if err := g.server.Process.Signal(syscall.SIGQUIT); err == nil {
			_ = g.server.Wait() // its exit status after SIGQUIT says nothing
		}
		fmt.Printf("guest: log of the server:\n%s\n", g.log)
	}
	if out, err := g.output("dmesg"); err == nil {
		fmt.Printf("guest: kernel log:\n%s\n", out)
	}
}

// boot makes a system of the kernel and loads nbd.ko.
func (g *guest) boot() error {
	if err := machine.Enter(); err != nil {
		return err
	}
	if err := os.MkdirAll(guestMount, 0o755); err != nil {
		return err
	}
	if err := machine.LoadModule("drivers/block/nbd.ko", "nbds_max=2"); err != nil {
		return err
	}
	return g.run("ip", "link", "set", "lo", "up")
}

// guestCommandTimeout bounds every command and every wait in the guest, which has a
// share of one processor; the host bounds the boot.
const guestCommandTimeout = 2 * time.Minute

// run runs a command to its end; its error holds the end of what it printed.
func (g *guest) run(name string, args ...string) error {
	_, err := g.output(name, args...)
	return err
}

func (g *guest) output(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), guestCommandTimeout)
	defer cancel()
	command := exec.CommandContext(ctx, name, args...)
	command.WaitDelay = time.Second
	out, err := command.CombinedOutput()
	if ctx.Err() != nil {
		err = errors.Join(err, fmt.Errorf("no end after %v", guestCommandTimeout))
	}
	if err != nil {
		return string(out), fmt.Errorf("%s: %w\n%s", strings.Join(command.Args, " "), err, tail(out))
	}
	return string(out), nil
}

// json runs vhbad with --json, and reads what it prints into what v points to, which has
// each of its fields.
func (g *guest) json(v any, args ...string) error {
	out, err := g.output(g.binary, append(args, "--json")...)
	if err != nil {
		return err
	}
	d := json.NewDecoder(strings.NewReader(out))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("%s --json: %w in\n%s", args[0], err, out)
	}
	return nil
}

func tail(out []byte) []byte {
	const keepBytes = 2000
	return out[max(0, len(out)-keepBytes):]
}

// waitFor asks again and again until ok says yes.
func waitFor(what string, ok func() bool) error {
	deadline := time.After(guestCommandTimeout)
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for !ok() {
		select {
		case <-deadline:
			return fmt.Errorf("%s: not so after %v", what, guestCommandTimeout)
		case <-again.C:
		}
	}
	return nil
}

// A transport is one way from the kernel to the server.
type transport struct{ network, address string }

var (
	overUnix = transport{"unix", guestSocket}
	overTCP  = transport{"tcp", guestTCP}
)

// listen is the transport as vhbad's --listen takes it.
func (tr transport) listen() string { return tr.network + "://" + tr.address }

// uri is the transport as an NBD client takes it.
func (tr transport) uri() string {
	if tr.network == "unix" {
		return "nbd+unix:///" + exportName + "?socket=" + tr.address
	}
	return "nbd://" + tr.address + "/" + exportName
}

// startServer starts the server and waits until it accepts.
func (g *guest) startServer(tr transport, disk string, extra ...string) error {
	config := serverConfig{kind: g.kind, binary: g.binary, listen: tr.listen(), disk: disk, folder: "/run", extra: extra}
	server, err := config.command()
	if err != nil {
		return err
	}
	if g.kind == serverNbdkit && tr.network == "unix" {
		// nbdkit leaves its socket behind; vhbad must cope by itself.
		if err := os.RemoveAll(tr.address); err != nil {
			return err
		}
	}
	if err := g.launch(server); err != nil {
		return err
	}
	return waitFor("server accepts on "+tr.listen(), func() bool {
		c, err := net.Dial(tr.network, tr.address)
		if err != nil {
			return false
		}
		return c.Close() == nil
	})
}

// launch starts a server whose output goes to the log of the guest.
func (g *guest) launch(server *exec.Cmd) error {
	log := new(bytes.Buffer)
	server.Stdout, server.Stderr = log, log
	if err := server.Start(); err != nil {
		return err
	}
	g.server, g.log = server, log
	return nil
}

// stopServer stops the server with SIGTERM and wants exit status 0.
func (g *guest) stopServer() error {
	server := g.server
	g.server = nil
	if err := server.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	late := time.AfterFunc(guestCommandTimeout, func() {
		_ = server.Process.Signal(syscall.SIGQUIT) // Wait reports that it died of it
	})
	defer late.Stop()
	if err := server.Wait(); err != nil {
		return fmt.Errorf("server after SIGTERM: %w\n%s", err, tail(g.log.Bytes()))
	}
	return nil
}

// killServer kills the server with no chance to save anything.
func (g *guest) killServer() error {
	server := g.server
	g.server = nil
	if err := server.Process.Kill(); err != nil {
		return err
	}
	if err := server.Wait(); server.ProcessState == nil {
		return err
	}
	return nil
}

// attached is what attach --json prints.
type attached struct {
	Device      string `json:"device"`
	Export      string `json:"export"`
	SizeBytes   uint64 `json:"size_bytes"`
	BlockBytes  uint32 `json:"block_bytes"`
	ReadOnly    bool   `json:"read_only"`
	Connections int    `json:"connections"`
	BackendID   string `json:"backend_id"`
}

// A client attaches the device and detaches it.
type client struct {
	name   string
	attach func(g *guest, tr transport, connections int) error
	detach func(g *guest) error
}

var (
	nbdClient = client{
		name: "nbd-client",
		attach: func(g *guest, tr transport, connections int) error {
			var args []string
			if tr.network == "unix" {
				args = []string{"-unix", tr.address}
			} else {
				host, port, err := net.SplitHostPort(tr.address)
				if err != nil {
					return err
				}
				args = []string{host, port}
			}
			return g.run("nbd-client", append(args, guestDevice, "-N", exportName, "-C", strconv.Itoa(connections))...)
		},
		detach: func(g *guest) error { return g.run("nbd-client", "-d", guestDevice) },
	}
	vhbadClient = client{
		name: "vhbad",
		attach: func(g *guest, tr transport, connections int) error {
			var d attached
			err := g.json(&d, "attach", "--wait", guestCommandTimeout.String(), "--connections", strconv.Itoa(connections), tr.uri(), guestDevice)
			if err != nil {
				return err
			}
			want := attached{
				Device: guestDevice, Export: exportName, SizeBytes: d.SizeBytes, BlockBytes: d.BlockBytes, Connections: connections, BackendID: tr.uri(),
			}
			if d != want || d.SizeBytes == 0 || d.SizeBytes%512 != 0 || d.BlockBytes < 512 {
				return fmt.Errorf("attach says %+v, want %+v", d, want)
			}
			return waitFor(guestDevice+" has the size that attach says", func() bool {
				return sysfs("size") == strconv.FormatUint(d.SizeBytes/512, 10) && sysfs("queue/logical_block_size") == strconv.Itoa(int(d.BlockBytes))
			})
		},
		detach: func(g *guest) error {
			var d struct{ Device string }
			if err := g.json(&d, "detach", "--wait", guestCommandTimeout.String(), guestDevice); err != nil {
				return err
			}
			if d.Device != guestDevice {
				return fmt.Errorf("detach says %+v, want %s", d, guestDevice)
			}
			return nil
		},
	}
)

// attach attaches the device and checks its size and how many sockets it has.
func (g *guest) attach(c client, tr transport, connections int) error {
	if err := c.attach(g, tr, connections); err != nil {
		return err
	}
	return waitFor(guestDevice+" has a size", func() bool { return sysfs("size") != "0" && sysfs("pid") != "" })
}

// detach detaches the device and waits until its slot can be used again.
func (g *guest) detach(c client) error {
	if err := c.detach(g); err != nil {
		return err
	}
	return g.awaitFree()
}

// awaitFree waits until the slot of a device that was detached can be used again.
func (g *guest) awaitFree() error {
	return waitFor(guestDevice+" is free", func() bool {
		return sysfs("pid") == "" && sysfs("size") == "0"
	})
}

// sysfs reads an attribute of the device; empty when it is absent.
func sysfs(name string) string {
	content, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(guestDevice), name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(content))
}

// mount mounts the device, and unmount takes it away again.
func (g *guest) mount(filesystem string) error {
	if err := unix.Mount(guestDevice, guestMount, filesystem, 0, ""); err != nil {
		return fmt.Errorf("mount %s: %w", filesystem, err)
	}
	return nil
}

func (g *guest) unmount() error {
	if err := unix.Unmount(guestMount, 0); err != nil {
		return fmt.Errorf("unmount: %w", err)
	}
	return nil
}
