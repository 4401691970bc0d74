package guest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// What a host needs.
const (
	Kernel  = "linux.uml"       // the program that is the guest's kernel
	Package = "user-mode-linux" // the Debian package that has it and its modules
)

const (
	// mapCount is how many mappings a host process may have. The guest kernel maps
	// each page that a guest process touches, so a big daemon needs many.
	mapCount     = 1 << 20
	mapCountFile = "/proc/sys/vm/max_map_count"
)

// A Config says what to boot.
type Config struct {
	Kernel string // path of the guest's kernel
	Init   string // absolute path of the program that is process 1
	// Memory is an upper bound, such as "768M": the guest's memory is a sparse file.
	Memory string
	// Environment is that of process 1, NAME=VALUE each, without spaces.
	Environment []string
	// Folder is for the kernel's own files on the host.
	Folder string
	// Pinned keeps the guest on one of the host's processors. The guest never needs two at
	// once: it consists of processes that take turns. If the host spreads them, each turn
	// has to wake another processor, and times vary by a factor of three.
	Pinned bool
	// Console gets what the kernel and the processes print. It is written to until Wait
	// returns.
	Console io.Writer
}

// A Machine is a running guest.
type Machine struct {
	// Reports reads what process 1 writes to the device Reports. It ends when the guest
	// does.
	Reports *os.File

	command *exec.Cmd
	ended   chan struct{}
}

// Boot starts a guest.
//
// Errors: Kernel cannot be started. What goes wrong in the guest shows in its reports
// and on its console.
func Boot(c Config) (*Machine, error) {
	reports, writer, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	command := exec.Command(c.Kernel, append([]string{
		"mem=" + c.Memory, "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "init=" + c.Init,
		"con=null", "con0=null,fd:1", "con1=null,fd:3", "quiet", "panic=-1", "uml_dir=" + c.Folder + "/",
		// Signals are dear in the guest; init needs no preemption.
		"GODEBUG=asyncpreemptoff=1",
	}, c.Environment...)...)
	command.Stdout, command.Stderr = c.Console, c.Console
	command.ExtraFiles = []*os.File{writer}
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	command.WaitDelay = time.Second // its children may keep the console open
	start := command.Start
	if c.Pinned {
		start = func() error { return startPinned(command) }
	}
	if err := start(); err != nil {
		_, _ = reports.Close(), writer.Close()
		return nil, fmt.Errorf("boot a guest: %w", err)
	}
	if err := writer.Close(); err != nil {
		return nil, err
	}
	m := &Machine{Reports: reports, command: command, ended: make(chan struct{})}
	go func() {
		// A guest whose kernel panicked exits with a status too; what counts is
		// what it has reported.
		_ = command.Wait()
		close(m.ended)
		_ = reports.SetReadDeadline(time.Now().Add(time.Second))
	}()
	return m, nil
}

// startPinned starts a command that runs, with its children, only on the last processor
// that this process may use.
func startPinned(command *exec.Cmd) (err error) {
	runtime.LockOSThread() // a child has the affinity of the thread that starts it
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		runtime.UnlockOSThread()
		return os.NewSyscallError("sched_getaffinity", err)
	}
	for i, left := 0, all.Count(); left > 0; i++ {
		if all.IsSet(i) {
			left--
			one.Zero()
			one.Set(i)
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		runtime.UnlockOSThread()
		return os.NewSyscallError("sched_setaffinity", err)
	}
	defer func() {
		if undo := unix.SchedSetaffinity(0, &all); undo != nil {
			err = errors.Join(err, os.NewSyscallError("sched_setaffinity", undo))
			return // the thread ends with its goroutine, and the command with the thread
		}
		runtime.UnlockOSThread()
	}()
	return command.Start()
}

// Kill ends the guest as if its power were cut. It may be called at any time, by
// any goroutine.
func (m *Machine) Kill() { _ = syscall.Kill(-m.command.Process.Pid, syscall.SIGKILL) }

// Wait waits until the guest has ended, and closes Reports.
func (m *Machine) Wait() error {
	<-m.ended
	return m.Reports.Close()
}

// RaiseMapCount lets the processes of guests touch more than 256 MiB each, if this
// process is allowed to. The error is for a log: smaller processes fit all the same.
func RaiseMapCount() error {
	content, err := os.ReadFile(mapCountFile)
	if err != nil {
		return err
	}
	now, err := strconv.Atoi(strings.TrimSpace(string(content)))
	if err != nil {
		return fmt.Errorf("%s: %w", mapCountFile, err)
	}
	if now >= mapCount {
		return nil
	}
	if err := os.WriteFile(mapCountFile, []byte(strconv.Itoa(mapCount)), 0); err != nil {
		return fmt.Errorf("%s stays at %d: %w", mapCountFile, now, err)
	}
	return nil
}
