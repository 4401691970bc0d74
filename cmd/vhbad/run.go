package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
)

// An exitError is the exit code of a command that was run and has reported itself what is
// wrong, or of a command that could not be run, and why.
type exitError struct {
	code int
	why  error // nil if the command has said so itself
}

// Exit codes of a command that cannot be run, as shells and timeout(1) have them.
const (
	exitNotRunnable = 126
	exitNoCommand   = 127
)

func (e *exitError) Error() string { return fmt.Sprintf("exit code %d", e.code) }

func newRun() *cobra.Command {
	s := newServeFlags()
	cmd := &cobra.Command{
		Use:   "run [FLAG OF SERVE...] -- COMMAND [ARG...]",
		Short: "Run a command with a daemon of its own",
		Long: `Run starts a daemon, waits until it serves, runs COMMAND, and stops the daemon when
COMMAND has ended. Its exit code is that of COMMAND, 128 and the number of the
signal that ended it, 127 if there is no such command, 126 if it cannot be run, or
1 if the daemon has failed.

The daemon listens on a unix socket in a folder that is only for this, besides
what --listen says, and its log goes to standard error, warnings only unless
--log-level says more. COMMAND finds in its environment

  NBD_URI        the URI of the first disk; another one's has its name as the path
  ` + client.AdminVariable + `    the admin socket, which other commands of vhbad use by default

Files and flags are those of vhbad serve.`,
		Example: `  vhbad run -- sh -c 'nbdinfo "$NBD_URI"'
  vhbad run --disk d=memory:1GiB,cache=writeback -- go test ./...
  vhbad run --hostile --disk d=memory:64MiB -- sh -c 'vhbad fault add f flip hostile=true; nbdcopy "$NBD_URI" d.img'`,
		Args: usageArgs(func(cmd *cobra.Command, args []string) error {
			switch dash := cmd.ArgsLenAtDash(); {
			case dash > 0 || dash < 0 && len(args) > 0:
				return fmt.Errorf("%q before --: want flags of serve, then -- and the command", args[0])
			case len(args) == 0:
				return errors.New("want a command behind --")
			}
			for _, name := range notWithRun {
				if cmd.Flags().Changed(name) {
					return fmt.Errorf("--%s: not with a daemon for one command: its admin socket is in $%s, and nobody else's place is taken", name, client.AdminVariable)
				}
			}
			return nil
		}),
		RunE: func(cmd *cobra.Command, args []string) error {
			c := &captive{flags: serveArgs(cmd.Flags()), stderr: cmd.ErrOrStderr()}
			return c.run(args, cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
	cmd.DisableFlagsInUseLine = true // they would come behind COMMAND
	s.addFlags(cmd)
	cmd.ValidArgsFunction = anyFiles // of COMMAND
	for _, name := range notWithRun {
		cmd.Flags().Lookup(name).Hidden = true
	}
	return cmd
}

// notWithRun are flags of serve that make no sense for a daemon that serves one command.
var notWithRun = []string{"single", "takeover", "takeover-discard-memory", "admin"}

// serveArgs returns the flags that were given, in the form that serve takes.
func serveArgs(f *pflag.FlagSet) (args []string) {
	f.Visit(func(flag *pflag.Flag) {
		values := []string{flag.Value.String()}
		switch v := flag.Value.(type) {
		case interface{ each() []string }:
			values = v.each()
		case pflag.SliceValue:
			values = v.GetSlice()
		}
		for _, v := range values {
			args = append(args, "--"+flag.Name+"="+v)
		}
	})
	if !f.Changed("log-level") {
		args = append(args, "--log-level=warn")
	}
	if !f.Changed("http") {
		args = append(args, "--http="+config.Off)
	}
	return args
}

// A captive is a daemon that lives as long as a command.
type captive struct {
	flags  []string
	stderr io.Writer
	folder string
	daemon *exec.Cmd
	ended  chan error // gets the daemon's result when it has ended
}

func (c *captive) run(args []string, stdin io.Reader, stdout io.Writer) (err error) {
	// The daemon dies with the thread that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGINT)
	defer signal.Stop(signals)
	if c.folder, err = os.MkdirTemp("", "vhbad-run-"); err != nil {
		return fmt.Errorf("$TMPDIR: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(c.folder)) }()
	if n := len(c.admin()); n > config.MaxUnixPathBytes { // the NBD socket's path is shorter
		return fmt.Errorf("$TMPDIR %s: %s has %d bytes, and a unix socket's path at the most %d: want a shorter $TMPDIR, as /tmp",
			filepath.Dir(c.folder), c.admin(), n, config.MaxUnixPathBytes)
	}
	if err := c.start(signals); err != nil {
		return err
	}
	command := exec.Command(args[0], args[1:]...)
	command.Stdin, command.Stdout, command.Stderr = stdin, stdout, c.stderr
	command.Env = append(os.Environ(), "NBD_URI="+c.uri(), client.AdminVariable+"="+c.admin())
	if err := command.Start(); err != nil {
		if stopped := c.stop(); stopped != nil {
			return errors.Join(err, stopped)
		}
		if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
			return &exitError{code: exitNoCommand, why: err}
		}
		return &exitError{code: exitNotRunnable, why: err}
	}
	done := make(chan error, 1)
	go func() { done <- command.Wait() }()
	for {
		select {
		case sig := <-signals:
			if sig != syscall.SIGINT { // a terminal has sent that to both
				_ = command.Process.Signal(sig) // it may have ended
			}
			continue
		case err = <-done:
		}
		break
	}
	if ee, ok := errors.AsType[*exec.ExitError](err); ok {
		code := ee.ExitCode()
		if ws, ok := ee.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			code = 128 + int(ws.Signal())
		}
		err = &exitError{code: code}
	}
	if stopped := c.stop(); stopped != nil {
		return stopped // this is worse: the command may not have noticed
	}
	return err
}

func (c *captive) socket() string { return filepath.Join(c.folder, "nbd.sock") }
func (c *captive) admin() string  { return filepath.Join(c.folder, "admin.sock") }

func (c *captive) uri() string {
	return "nbd+unix:///?socket=" + url.QueryEscape(c.socket())
}

// start starts the daemon and waits until it serves, or until a signal calls that off. A
// second signal kills it.
func (c *captive) start(signals <-chan os.Signal) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	c.daemon = exec.Command(self)
	c.daemon.Args = append([]string{os.Args[0], "serve", "--listen=unix://" + c.socket(), "--admin=" + c.admin()}, c.flags...)
	c.daemon.Stderr = c.stderr
	// Out of reach of the terminal's signals: the command may need the daemon to the end.
	c.daemon.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	out, err := c.daemon.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.daemon.Start(); err != nil {
		return err
	}
	c.ended = make(chan error, 1)
	ready := make(chan struct{})
	go func() {
		lines := bufio.NewScanner(out)
		for open := true; lines.Scan(); {
			if open && strings.HasPrefix(lines.Text(), "ready unix://"+c.socket()) {
				open = false
				close(ready)
			}
		}
		c.ended <- c.daemon.Wait()
	}()
	select {
	case <-ready:
		return nil
	case sig := <-signals:
		_ = c.daemon.Process.Signal(syscall.SIGTERM) // it has not served yet, and may have ended
		var err error
		select {
		case err = <-c.ended:
		case <-signals:
			_ = c.daemon.Process.Kill()
			err = <-c.ended
		}
		_ = err // it had not served anything yet
		return &exitError{code: 128 + int(sig.(syscall.Signal))}
	case err := <-c.ended:
		if ee, ok := errors.AsType[*exec.ExitError](err); ok {
			return &exitError{code: ee.ExitCode()} // it has reported why
		}
		return fmt.Errorf("the daemon has ended before it served: %w", err)
	}
}

// stop ends the daemon in good order.
func (c *captive) stop() error {
	_ = c.daemon.Process.Signal(syscall.SIGTERM) // it may have ended, as Wait will say
	if err := <-c.ended; err != nil {
		return fmt.Errorf("the daemon: %w", err)
	}
	return nil
}
