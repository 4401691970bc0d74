package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A kind is a way to serve one disk.
type kind string

// The servers that are compared. All but go-nbd and the ones called "simple" agree on
// structured replies with clients that ask for them.
const (
	vhbadMemory   kind = "vhbad"
	vhbadSimple   kind = "vhbad, simple"
	vhbadVerify   kind = "vhbad --verify"
	vhbadFile     kind = "vhbad file"
	bareLoop      kind = "bare loop"
	bareSimple    kind = "bare loop, simple"
	goNBD         kind = "go-nbd"
	nbdkitMemory  kind = "nbdkit memory"
	nbdkitSimple  kind = "nbdkit memory, simple"
	nbdkitFile    kind = "nbdkit file"
	qemuFile      kind = "qemu-nbd file"
	nbdServerFile kind = "nbd-server file"
)

// startTime bounds how long a server may take to listen.
const startTime = 10 * time.Second

// nbdServerPort is where nbd-server listens besides its socket: without a port it would
// take its standard input for a client.
const nbdServerPort = 10995

// A process is a running server.
type process struct {
	kind   kind
	uri    string
	socket string
	// device is the /dev/nbdN that is attached to it in a guest; otherwise empty.
	device string
	cmd    *exec.Cmd
	log    *bytes.Buffer
	done   chan struct{}
	once   sync.Once
	// pidFile has the process id of a server that is no longer our child; otherwise empty.
	pidFile string
}

// A shop starts servers.
type shop struct {
	vhbad string // the binary
	dir   string // for sockets and images
	extra []string
	count int
}

// start starts a server of sizeBytes and waits until it listens. File kinds
// serve image.
func (s *shop) start(k kind, sizeBytes int64, image string) (*process, error) {
	s.count++
	socket := filepath.Join(s.dir, strconv.Itoa(s.count)+".sock")
	uri := "nbd+unix:///?socket=" + socket
	size := strconv.FormatInt(sizeBytes, 10)
	vhbad := func(disk string, more ...string) *exec.Cmd {
		args := []string{"serve", "--listen", "unix://" + socket, "--disk", disk, "--http", "none", "--admin", "none", "--log-level", "warn"}
		return exec.Command(s.vhbad, append(append(args, more...), s.extra...)...)
	}
	self := func(sub string) *exec.Cmd {
		return exec.Command("/proc/self/exe", "-serve", sub, "-socket", socket, "-size", size)
	}
	var cmd *exec.Cmd
	pidFile := ""
	switch k {
	case vhbadMemory:
		cmd = vhbad("disk=memory:" + size)
	case vhbadSimple:
		cmd = vhbad("disk=memory:"+size, "--replies", "simple")
	case vhbadVerify:
		cmd = vhbad("disk=memory:"+size, "--verify")
	case vhbadFile:
		cmd = vhbad("disk=file:" + image)
	case bareLoop, bareSimple, goNBD:
		cmd = self(string(k))
	case nbdkitMemory:
		cmd = exec.Command("nbdkit", "-f", "-U", socket, "memory", size)
	case nbdkitSimple:
		cmd = exec.Command("nbdkit", "-f", "--no-sr", "-U", socket, "memory", size)
	case nbdkitFile:
		cmd = exec.Command("nbdkit", "-f", "-U", socket, "file", image)
	case qemuFile:
		cmd = exec.Command("qemu-nbd", "-t", "-f", "raw", "-e", "64", "-k", socket, image)
	case nbdServerFile:
		config := filepath.Join(s.dir, strconv.Itoa(s.count)+".conf")
		text := fmt.Sprintf("[generic]\nunixsock = %s\nlistenaddr = 127.0.0.1\nport = %d\n[disk]\nexportname = %s\nflush = true\nfua = true\n", socket, nbdServerPort, image)
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			return nil, err
		}
		// With -d it would serve only one connection, so it becomes a daemon.
		pidFile = filepath.Join(s.dir, strconv.Itoa(s.count)+".pid")
		cmd = exec.Command("nbd-server", "-C", config, "-p", pidFile)
		uri = "nbd+unix:///disk?socket=" + socket
	default:
		return nil, fmt.Errorf("no server %q", k)
	}
	p := &process{kind: k, uri: uri, socket: socket, cmd: cmd, log: &bytes.Buffer{}, done: make(chan struct{}), pidFile: pidFile}
	cmd.Stdout, cmd.Stderr = p.log, p.log
	// If this program is killed, it cannot stop its servers; they then stop by themselves.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", k, err)
	}
	go func() {
		defer close(p.done)
		_ = cmd.Wait() // the log says more
	}()
	for end := time.Now().Add(startTime); ; pause() {
		c, err := net.Dial("unix", socket)
		if err == nil {
			return p, c.Close()
		}
		ended := p.done
		if pidFile != "" {
			ended = nil
		}
		select {
		case <-ended:
			return nil, fmt.Errorf("%s ended at once: %s", k, p.log)
		default:
		}
		if time.Now().After(end) {
			return nil, errors.Join(fmt.Errorf("%s does not listen: %w", k, err), p.stop())
		}
	}
}

// stop ends the server.
func (p *process) stop() (err error) {
	p.once.Do(func() {
		if p.pidFile != "" {
			err = p.stopDaemon()
			return
		}
		_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		select {
		case <-p.done:
		case <-time.After(startTime):
			_ = p.cmd.Process.Kill()
			<-p.done
		}
	})
	return err
}

// stopDaemon ends a server that is no child of ours.
func (p *process) stopDaemon() error {
	<-p.done // the child that forked it
	b, err := os.ReadFile(p.pidFile)
	if err != nil {
		return fmt.Errorf("%s: %w", p.kind, err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return fmt.Errorf("%s: %s: %w", p.kind, p.pidFile, err)
	}
	for end := time.Now().Add(startTime); time.Now().Before(end); pause() {
		if errors.Is(syscall.Kill(pid, syscall.SIGTERM), syscall.ESRCH) {
			return nil
		}
	}
	return fmt.Errorf("%s: process %d does not end", p.kind, pid)
}

// pause is the time between two checks for something that is not announced.
func pause() { <-time.After(5 * time.Millisecond) }

// pid returns the id of the process that serves.
func (p *process) pid() int { return p.cmd.Process.Pid }
