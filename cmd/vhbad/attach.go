package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/vhbad/vhbad/cmd/vhbad/internal/attach"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/sdnotify"
)

const (
	// defaultWait bounds attach and detach.
	defaultWait = config.Duration(30 * time.Second)
	// Defaults of --persist for the timeouts that the user does not name.
	persistTimeout         = config.Duration(30 * time.Second)
	persistDeadConnTimeout = config.Duration(5 * time.Minute)
)

var errWait = fmt.Errorf("--wait 0s: want more, as %s", defaultWait)

// attachFlags are the command line of attach.
type attachFlags struct {
	options                attach.Options
	export                 string
	timeout, deadConn      config.Duration
	block                  config.Size
	wait                   config.Duration
	recheck                config.Duration
	persist, keep, asJSON  bool
	timeoutSet, deadConSet func() bool
	blockSet               func() bool
}

func newAttach() *cobra.Command {
	a := &attachFlags{options: attach.Options{Connections: 1}, wait: defaultWait}
	cmd := &cobra.Command{
		Use:   "attach URI [/dev/nbdN]",
		Short: "Make an export a block device of this machine",
		Long: `Attach connects an NBD export to the kernel and waits until the device is
usable. Without a device it takes one that is free, and prints which. It needs
root and the nbd module; the server may be any NBD server. The device stays
until detach, or until the server goes away.

URI is one of
  unix:///PATH                       tcp://HOST:PORT
  nbd+unix:///EXPORT?socket=PATH     nbd://HOST[:PORT][/EXPORT]
The kernel speaks neither TLS nor vsock.

Without --timeout and --dead-conn-timeout the kernel waits for answers for
ever, and fails requests at once when the last connection is gone.

With --persist attach stays, and replaces connections that end: so a mounted
file system lives through a restart of the server. Meanwhile the kernel holds
requests back, for --dead-conn-timeout (then 5m unless given); a request that
was under way on a connection that ended is sent again when it is older than
--timeout (then 30s unless given). That has to be longer than the server ever
needs: what is sent again must not be under way still. Over a unix socket a server
that stops in good order leaves nothing to send again; over TCP it may.

An export that comes back larger makes the device larger; one that comes back
smaller, read-only or with fewer abilities is not taken. SIGHUP asks whether it
has grown meanwhile (` + "`vhbad disk grow`" + `), and so does --recheck, again and again.
Attach ends with status 0 when somebody detaches the
device. SIGTERM and SIGINT detach it, unless --keep is given; a device that is
mounted or otherwise claimed stays, and attach ends with status 1. Started again
with the same URI and device it takes over what it has left. A service manager
is told when the device is usable (systemd: Type=notify).`,
		Example: `  sudo vhbad attach unix:///run/nbd.sock
  sudo vhbad attach --export disk0 --connections 4 tcp://127.0.0.1:10809 /dev/nbd0
  sudo vhbad attach --timeout 30s --dead-conn-timeout 1m nbd://host/disk0
  sudo vhbad attach --persist --timeout 5s unix:///run/nbd.sock /dev/nbd0`,
		Args:              wantArgs(1, 2),
		ValidArgsFunction: deviceAt(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.resolve(args); err != nil {
				return usage(err)
			}
			return a.run(cmd)
		},
	}
	f := cmd.Flags()
	f.StringVar(&a.export, "export", "", "name of the export (default: the URI's, or else the server's default)")
	f.IntVar(&a.options.Connections, "connections", a.options.Connections, "sockets to use; more than one needs a server with NBD_FLAG_CAN_MULTI_CONN")
	f.Var(&a.timeout, "timeout", "give a connection up after this time without an answer; the kernel counts whole seconds (default never; with --persist "+persistTimeout.String()+")")
	f.Var(&a.deadConn, "dead-conn-timeout", "hold requests back this long when no connection is left (default not at all; with --persist "+persistDeadConnTimeout.String()+")")
	f.Var(&a.block, "block-size", "logical block of the device, 512 to 4096 (default: the server's smallest, at least 512)")
	f.StringVar(&a.options.BackendID, "backend-id", "", "what /sys/block/nbdN/backend says (default: the URI)")
	f.Var(&a.wait, "wait", "give up if the device is not usable by then, or not detached")
	f.BoolVar(&a.persist, "persist", false, "stay, and replace connections that end")
	f.Var(&a.recheck, "recheck", "with --persist: ask so often whether the export has grown (default never, but on SIGHUP)")
	f.BoolVar(&a.keep, "keep", false, "with --persist: leave the device attached when told to end")
	f.BoolVar(&a.asJSON, "json", false, "print JSON")
	// pflag would show "0s" as the default of these.
	for _, name := range []string{"timeout", "dead-conn-timeout", "block-size", "recheck"} {
		f.Lookup(name).DefValue = ""
	}
	a.timeoutSet = func() bool { return f.Changed("timeout") }
	a.blockSet = func() bool { return f.Changed("block-size") }
	a.deadConSet = func() bool { return f.Changed("dead-conn-timeout") }
	return cmd
}

// resolve checks the flags and fills in the options.
func (a *attachFlags) resolve(args []string) error {
	o := &a.options
	var err error
	if o.Server, err = attach.ParseURI(args[0], a.export); err != nil {
		return err
	}
	if len(args) == 2 {
		o.Device = args[1]
	}
	if a.block > 1<<30 {
		return fmt.Errorf("block size %s: want 512, 1024, 2048 or 4096", a.block)
	}
	if a.blockSet() && a.block == 0 {
		return errors.New("block size 0: want 512, 1024, 2048 or 4096, or nothing for the server's")
	}
	if a.wait == 0 {
		return errWait
	}
	if a.keep && !a.persist {
		return errors.New("--keep: want --persist with it; without, the device stays anyway")
	}
	if a.recheck != 0 && (!a.persist || a.recheck.Std() < minRecheck) {
		return fmt.Errorf("--recheck %s: want --persist with it, and at least %s", a.recheck, minRecheck)
	}
	if a.persist {
		if !a.timeoutSet() {
			a.timeout = persistTimeout
		}
		if !a.deadConSet() {
			a.deadConn = persistDeadConnTimeout
		}
		if a.timeout == 0 || a.deadConn == 0 {
			return fmt.Errorf("--persist with --timeout %s and --dead-conn-timeout %s: want both above 0, or the kernel does not send requests again", a.timeout, a.deadConn)
		}
	}
	o.BlockBytes, o.Timeout, o.DeadConnTimeout = uint32(a.block), a.timeout.Std(), a.deadConn.Std()
	return o.Check()
}

func (a *attachFlags) run(cmd *cobra.Command) error {
	if a.persist {
		return a.runPersist(cmd)
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), a.wait.Std())
	defer cancel()
	d, err := attach.Attach(ctx, a.options)
	if err != nil {
		return err
	}
	return a.print(cmd, d)
}

func (a *attachFlags) print(cmd *cobra.Command, d attach.Device) error {
	if a.asJSON {
		return printJSON(cmd.OutOrStdout(), d)
	}
	_, err := fmt.Fprintln(cmd.OutOrStdout(), d.Path)
	return err
}

// minRecheck is the shortest --recheck: each one connects to the server.
const minRecheck = 100 * time.Millisecond

// remind sends to ch every so often, unless the previous value has not been received yet.
// stop ends that.
func remind(ch chan<- os.Signal, every time.Duration) (stop func()) {
	tick := time.NewTicker(every)
	end := make(chan struct{})
	go func() {
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				select {
				case ch <- syscall.SIGHUP:
				default:
				}
			case <-end:
				return
			}
		}
	}()
	return func() { close(end) }
}

// runPersist attaches and stays. A second signal ends it at once.
func (a *attachFlags) runPersist(cmd *cobra.Command) error {
	signal.Ignore(syscall.SIGPIPE) // a reader of our output may go away; that ends nothing
	ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))

	wait, cancel := context.WithTimeout(ctx, a.wait.Std())
	defer cancel()
	held, err := attach.Hold(wait, a.options)
	if err != nil {
		return err
	}
	defer func() { _ = held.Close() }()
	cancel()
	d := held.Device
	log.Info("attached", "device", d.Path, "server", a.options.Server.String(), "connections", d.Connections,
		"timeout", a.timeout.Std(), "dead_conn_timeout", a.deadConn.Std(), "taken_over", held.TakenOver)
	tellManager(log, sdnotify.Ready, sdnotify.Status(d.Path+" is "+a.options.Server.String()))
	if err := a.print(cmd, d); err != nil {
		log.Warn("could not print the device", "error", err) // its reader has gone; the device need not go, too
	}

	recheck := make(chan os.Signal, 1)
	signal.Notify(recheck, syscall.SIGHUP)
	defer signal.Stop(recheck)
	if a.recheck != 0 {
		defer remind(recheck, a.recheck.Std())()
	}
	if err := held.Keep(ctx, log, recheck); err == nil || ctx.Err() == nil {
		return err
	}
	stop()
	tellManager(log, sdnotify.Stopping)
	if a.keep {
		log.Info("the device stays attached, and nobody reconnects it", "device", d.Path)
		return nil
	}
	last, cancelLast := context.WithTimeout(context.WithoutCancel(ctx), a.wait.Std())
	defer cancelLast()
	if err := attach.Detach(last, d.Path, false); err != nil {
		return fmt.Errorf("the device stays attached, and nobody reconnects it: %w", err)
	}
	log.Info("detached", "device", d.Path)
	return nil
}
