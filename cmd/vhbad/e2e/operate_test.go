//go:build interop

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Exit codes of vhbad, which scripts depend on.
const (
	exitFailure = 1 // something went wrong at run time
	exitUsage   = 2 // wrong command line or configuration
)

// refuses runs vhbad with something it must refuse: it ends by itself with the
// right code, names what is wrong, and shows no stack.
func refuses(t *testing.T, command *exec.Cmd, code int, names ...string) {
	t.Helper()
	out := newOutput()
	command.Stdout, command.Stderr = out, out
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(startTimeout, func() {
		_ = command.Process.Signal(syscall.SIGQUIT) // its stack then tells where it is
	})
	err := command.Wait()
	if !late.Stop() {
		t.Fatalf("%s: still runs after %v, want an error\n%s", strings.Join(command.Args, " "), startTimeout, out)
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != code {
		t.Errorf("%s: got %v, want exit status %d\n%s", strings.Join(command.Args, " "), err, code, out)
	}
	for _, name := range names {
		if !strings.Contains(out.String(), name) {
			t.Errorf("%s: the error does not say %q:\n%s", strings.Join(command.Args, " "), name, out)
		}
	}
	for _, bad := range []string{"goroutine ", "panic:"} {
		if strings.Contains(out.String(), bad) {
			t.Errorf("%s: the error is a crash:\n%s", strings.Join(command.Args, " "), out)
		}
	}
}

// serve is the command line of vhbad for one disk over a socket of its own.
func serve(t *testing.T, disk string, extra ...string) (serverConfig, *exec.Cmd) {
	t.Helper()
	config := newServerConfig(t, "unix", disk)
	config.kind, config.extra = serverVhbad, extra
	command, err := config.command()
	if err != nil {
		t.Fatal(err)
	}
	return config, command
}

// private gives a command mounts of its own and runs a shell script before it, as
// root of a user namespace if we are not root: a test can then fill or write-protect
// a file system that no one else sees.
func private(command *exec.Cmd, script string) {
	command.Args = append([]string{"sh", "-ec", script + `; exec "$@"`, "sh"}, command.Args...)
	command.Path = "/bin/sh"
	command.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if uid := os.Getuid(); uid != 0 {
		command.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		command.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
		command.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
}

func TestServe_BadImage(t *testing.T) {
	folder := t.TempDir()
	file := func(name string, sizeBytes int) string {
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, make([]byte, sizeBytes), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, path := range map[string]string{
		"missing":        filepath.Join(folder, "nosuch"),
		"missing_folder": filepath.Join(folder, "no", "such"),
		"empty":          file("empty", 0),
		"short":          file("short", 100),
		"odd":            file("odd", 4096+1),
		"directory":      folder,
		"device":         "/dev/null",
	} {
		t.Run(name, func(t *testing.T) {
			_, command := serve(t, "file:"+path)
			refuses(t, command, exitFailure, path)
		})
	}
}

func TestServe_ReadOnlyImage(t *testing.T) {
	path := image(t, 1<<20)
	folder := filepath.Dir(path)
	protect := "mount --bind " + folder + " " + folder + " && mount -o remount,bind,ro " + folder

	_, command := serve(t, "file:"+path)
	private(command, protect)
	refuses(t, command, exitFailure, path, "read-only")

	config, command := serve(t, "file:"+path+",read-only")
	private(command, protect)
	d := start(t, config, command)
	nbdsh(t, d.uri(exportName), "readonly.py")
}

func TestServe_ReadOnlyFlag(t *testing.T) {
	config, command := serve(t, "memory:1MiB", "--read-only")
	nbdsh(t, start(t, config, command).uri(exportName), "readonly.py")
}

func TestServe_FileSystemFull(t *testing.T) {
	folder := t.TempDir()
	config, command := serve(t, "file:"+filepath.Join(folder, "image")+",size=64MiB")
	private(command, "mount -t tmpfs -o size=8m none "+folder)
	d := start(t, config, command)
	nbdsh(t, d.uri(exportName), "full.py")
	run(t, "nbdinfo", d.uri(exportName)) // it still serves
}

func TestServe_BadFlags(t *testing.T) {
	for name, tt := range map[string]struct {
		args  []string
		names []string
	}{
		"listen_scheme":   {[]string{"--listen", "udp://127.0.0.1:1"}, []string{"udp://127.0.0.1:1", "tcp://"}},
		"listen_port":     {[]string{"--listen", "tcp://127.0.0.1:99999"}, []string{"99999"}},
		"disk_form":       {[]string{"--disk", "x"}, []string{`"x"`, "memory:"}},
		"disk_size":       {[]string{"--disk", "x=memory:1XiB"}, []string{"1XiB"}},
		"disk_zero":       {[]string{"--disk", "x=memory:0"}, []string{"memory:0"}},
		"disk_twice":      {[]string{"--disk", "x=memory:1MiB", "--disk", "x=memory:1MiB"}, []string{`"x"`}},
		"unknown_flag":    {[]string{"--nosuch"}, []string{"--nosuch"}},
		"config_missing":  {[]string{"--config", "/nosuch/c.yaml"}, []string{"/nosuch/c.yaml"}},
		"stray_arguments": {[]string{"disk0"}, []string{"disk0"}},
	} {
		t.Run(name, func(t *testing.T) {
			args := append([]string{"serve", "--http", "127.0.0.1:0", "--admin", filepath.Join(socketFolder(t), "a")}, tt.args...)
			refuses(t, exec.Command(vhbadBinary, args...), exitUsage, tt.names...)
		})
	}
}

func TestConfig_UnknownKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vhbad.yaml")
	if err := os.WriteFile(path, []byte("disks:\n  - name: d\n    memory: 1MiB\nunixsocket: /run/x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	want := []string{path + ":4", "unixsocket"}
	refuses(t, exec.Command(vhbadBinary, "serve", "--config", path), exitUsage, want...)
	refuses(t, exec.Command(vhbadBinary, "config", "check", path), exitUsage, want...)
}

func TestServe_SecondDaemon(t *testing.T) {
	path := image(t, 1<<20)
	first, command := serve(t, "file:"+path)
	d := start(t, first, command)

	t.Run("same_socket", func(t *testing.T) {
		second, _ := serve(t, "memory:1MiB")
		second.listen = first.listen
		command, err := second.command()
		if err != nil {
			t.Fatal(err)
		}
		refuses(t, command, exitFailure, strings.TrimPrefix(first.listen, "unix://"))
	})
	t.Run("same_admin_socket", func(t *testing.T) {
		second, _ := serve(t, "memory:1MiB")
		second.folder = first.folder
		command, err := second.command()
		if err != nil {
			t.Fatal(err)
		}
		refuses(t, command, exitFailure, first.folder)
	})
	t.Run("same_image", func(t *testing.T) {
		_, command := serve(t, "file:"+path)
		refuses(t, command, exitFailure, path)
	})
	t.Run("first_still_serves", func(t *testing.T) {
		run(t, "nbdcopy", d.uri(exportName), "null:")
	})
}

// A daemon that was killed leaves its sockets behind; the next one takes them over.
func TestServe_AfterKill(t *testing.T) {
	path := image(t, 1<<20)
	config, command := serve(t, "file:"+path)
	d := start(t, config, command)
	if err := d.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-d.exited
	if _, err := os.Stat(strings.TrimPrefix(config.listen, "unix://")); err != nil {
		t.Fatalf("the socket of a killed daemon: %v, want it to be there", err)
	}
	command, err := config.command()
	if err != nil {
		t.Fatal(err)
	}
	again := start(t, config, command)
	run(t, "nbdcopy", again.uri(exportName), "null:")
}

func TestServe_EndRemovesSockets(t *testing.T) {
	config, command := serve(t, "memory:1MiB")
	d := start(t, config, command)
	d.stop(t)
	left, err := os.ReadDir(config.folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range left {
		t.Errorf("%s is left after SIGTERM", entry.Name())
	}
}

// SIGTERM and SIGINT under load: replies under way are sent, then the daemon ends
// with status 0, and clients see their connections end.
func TestServe_SignalDrains(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(signal.String(), func(t *testing.T) {
			config, command := serve(t, "memory:64MiB")
			d := start(t, config, command)
			ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
			defer cancel()
			progress := newOutput()
			fio := peer(ctx, t, "fio", "--name=load", "--ioengine=nbd", "--uri="+d.uri(exportName), "--rw=randrw", "--bs=4k",
				"--iodepth=32", "--numjobs=4", "--size=64m", "--time_based", "--runtime=60", "--status-interval=200ms")
			fio.Stdout, fio.Stderr = progress, progress
			if err := fio.Start(); err != nil {
				t.Fatal(err)
			}
			awaitLoad(t, progress)
			if err := d.cmd.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			select {
			case <-d.exited:
				if d.exitErr != nil {
					t.Errorf("daemon after %v: %v, want exit status 0", signal, d.exitErr)
				}
			case <-time.After(stopTimeout):
				t.Errorf("daemon still runs %v after %v", stopTimeout, signal)
			}
			if err := fio.Wait(); err == nil || ctx.Err() != nil {
				t.Errorf("fio: got %v (%v), want an error from the connection that ended", err, ctx.Err())
			}
		})
	}
}

// awaitLoad waits until fio has reported completed reads.
func awaitLoad(t *testing.T, progress *output) {
	t.Helper()
	timeout := time.After(startTimeout)
	for {
		text, more := progress.snapshot()
		if strings.Contains(text, "read: IOPS=") {
			return
		}
		select {
		case <-more:
		case <-timeout:
			t.Fatalf("fio reports nothing after %v:\n%s", startTimeout, text)
		}
	}
}

// Idle clients must not hold a daemon that is to end.
func TestServe_SignalWithIdleClient(t *testing.T) {
	config, command := serve(t, "memory:1MiB")
	d := start(t, config, command)
	ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
	defer cancel()
	connected := newOutput()
	idle := peer(ctx, t, "nbdsh", "-u", d.uri(exportName),
		"-c", "print('connected', flush=True)", "-c", "import time", "-c", "time.sleep(3600)")
	idle.Stdout = connected
	if err := idle.Start(); err != nil {
		t.Fatal(err)
	}
	text, more := connected.snapshot()
	if !strings.Contains(text, "connected") {
		select {
		case <-more:
		case <-time.After(startTimeout):
			t.Fatalf("nbdsh is not connected after %v", startTimeout)
		}
	}
	d.stop(t)
	cancel()
	if err := idle.Wait(); err == nil {
		t.Error("nbdsh ended by itself")
	}
}

// A client that dies in the middle of its requests affects no one else.
func TestServe_ClientVanishes(t *testing.T) {
	config, command := serve(t, "memory:64MiB")
	d := start(t, config, command)
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
		progress := newOutput()
		fio := peer(ctx, t, "fio", "--name=load", "--ioengine=nbd", "--uri="+d.uri(exportName), "--rw=randrw", "--bs=64k", "--thread",
			"--iodepth=32", "--numjobs=4", "--size=64m", "--time_based", "--runtime=60", "--status-interval=200ms")
		fio.Stdout, fio.Stderr = progress, progress
		if err := fio.Start(); err != nil {
			t.Fatal(err)
		}
		awaitLoad(t, progress)
		if err := fio.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := fio.Wait(); err == nil {
			t.Error("fio ended by itself")
		}
		cancel()
		run(t, "nbdcopy", d.uri(exportName), "null:")
	}
}

// Bytes written over one daemon are there for the next, after an orderly end and
// after a kill.
func TestServe_FileOutlivesDaemon(t *testing.T) {
	in := image(t, 8<<20)
	path := filepath.Join(t.TempDir(), "image")
	config, command := serve(t, "file:"+path+",size=8MiB")
	d := start(t, config, command)
	run(t, "nbdcopy", "--flush", in, d.uri(exportName))
	d.stop(t)

	config, command = serve(t, "file:"+path)
	d = start(t, config, command)
	run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", in, d.uri(exportName))
	in = image(t, 8<<20)
	run(t, "nbdcopy", "--flush", in, d.uri(exportName))
	if err := d.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-d.exited

	config, command = serve(t, "file:"+path)
	d = start(t, config, command)
	run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", in, d.uri(exportName))
	d.stop(t)
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(in)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("the image file differs from what was written over NBD")
	}
}

// Several disks and several listeners: every disk over every listener.
func TestServe_ManyDisksAndListeners(t *testing.T) {
	config, command := serve(t, "memory:1MiB", "--disk", "e=memory:2MiB,block-size=4096", "--listen", "tcp://127.0.0.1:0")
	d := start(t, config, command)
	timeout := time.After(startTimeout)
	var listeners []string
	for len(listeners) < 2 {
		text, more := d.output.snapshot()
		listeners = nil
		for _, match := range ready.FindAllStringSubmatch(text, -1) {
			listeners = append(listeners, match[1])
		}
		if len(listeners) == 2 {
			break
		}
		select {
		case <-more:
		case <-timeout:
			t.Fatalf("got ready lines for %v, want two", listeners)
		}
	}
	for _, listen := range listeners {
		d.listen = listen
		for export, sizeBytes := range map[string]int{"": 1 << 20, "d": 1 << 20, "e": 2 << 20} {
			if got := strings.TrimSpace(run(t, "nbdinfo", "--size", d.uri(export))); got != fmt.Sprint(sizeBytes) {
				t.Errorf("export %q over %s: got %s bytes, want %d", export, listen, got, sizeBytes)
			}
		}
	}
}

// A client of libnbd starts the daemon itself and passes it a listening socket.
func TestServe_SocketActivation(t *testing.T) {
	daemon := []string{"[", vhbadBinary, "serve", "--disk", "d=memory:1MiB", "--http", "none", "--admin", "none", "]"}
	// Both print to the same standard output.
	got := strings.Fields(run(t, "nbdinfo", append([]string{"--size", "--"}, daemon...)...))
	if !slices.Contains(got, fmt.Sprint(1<<20)) {
		t.Errorf("size over an inherited socket: got %s, want %d in it", got, 1<<20)
	}
}
