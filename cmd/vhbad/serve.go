package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/daemon"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/sdnotify"
	"github.com/vhbad/vhbad/internal/progress"
)

// signalPause is for how long after the first signal further ones are ignored: timeout(1)
// and terminals send the same signal twice.
const signalPause = time.Second

// forceGrace is how long an orderly stop may go on after its time is up, to put
// away what it still can.
const forceGrace = 3 * time.Second

// listFlag is a flag that may be given several times, each a T.
type listFlag[T fmt.Stringer] struct {
	values []T
	parse  func(string) (T, error)
	kind   string
}

func (l *listFlag[T]) Set(s string) error {
	v, err := l.parse(s)
	if err != nil {
		return err
	}
	l.values = append(l.values, v)
	return nil
}

func (l *listFlag[T]) Type() string { return l.kind }

func (l *listFlag[T]) String() string { return strings.Join(l.each(), " ") }

// each returns the values that were given, one by one.
func (l *listFlag[T]) each() (parts []string) {
	for _, v := range l.values {
		parts = append(parts, v.String())
	}
	return parts
}

// serveFlags are the command line of serve.
type serveFlags struct {
	configPath string
	file       config.File // what the flags say, in the shape of a configuration file
	settings   []setting
	listen     listFlag[config.Address]
	disks      listFlag[config.Disk]
	single     bool
	takeover   bool
	discard    bool // give up the memory disks of the daemon that is replaced
}

// A setting is a flag that takes the place of a value of the configuration file.
type setting struct {
	flag string
	put  func(file *config.File)
}

func newServeFlags() *serveFlags {
	return &serveFlags{
		listen: listFlag[config.Address]{parse: config.ParseAddress, kind: "ADDR"},
		disks:  listFlag[config.Disk]{parse: config.ParseDisk, kind: "SPEC"},
	}
}

func newServe() *cobra.Command {
	s := newServeFlags()
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the daemon",
		Long: `Serve exports disks over NBD until SIGTERM or SIGINT. Then it stops accepting,
finishes what is in flight, flushes every disk and exits 0; a second signal, or
--drain-timeout, ends it at once with exit code 1.

Disks and addresses of the command line come after those of --config; other
flags take the place of the file's values. The first disk is also the export
without a name.

With --config, SIGHUP has it read the file again, as ` + "`vhbad reload`" + ` does: disks
and addresses are added, changed and removed, all of it or, if anything is
wrong, nothing.

For each address it prints a line "ready ADDR" on standard output, and one that
shows how to attach the first disk. Sockets passed by a service manager
(LISTEN_FDS) are served as well.

ADDR  tcp://HOST:PORT, where port 0 means any that is free,
      unix:///PATH[?mode=0660&owner=USER:GROUP], or
      vsock://CID:PORT, where CID may be any, local or host
SPEC  NAME=memory:SIZE or NAME=file:PATH[,size=SIZE][,preallocate], which gives
      all of the file its place on the file system; further options after
      commas: block-size=512|4096, read-only, description=TEXT, hidden (not
      listed), tls-only, allow=NAME (of a client's certificate; several times),
      connections=N (at once), and cache=writeback for a volatile write cache
      whose power can be cut (vhbad power), with cache-size=SIZE (64MiB),
      cache-eviction=fifo|random|none, cache-seed=N, trace=PATH to record what
      it does (vhbad trace) and, for a disk that breaks promises,
      hostile=lying-flush or hostile=ignored-fua. A comma inside a value is
      written twice. With size= a file that does not exist is made.
SIZE  bytes, or with KiB, MiB, GiB, TiB (K, M, G, T mean the same)`,
		Example: `  vhbad serve
  vhbad serve --listen unix:///run/nbd.sock --disk a=memory:64MiB --disk b=file:/srv/b.img,size=10GiB
  vhbad serve --config /etc/vhbad/vhbad.yaml --log-level debug --verify
  vhbad serve --disk db=file:/srv/db.img,cache=writeback,cache-size=16MiB
  vhbad serve --config /etc/vhbad/vhbad.yaml --takeover
  vhbad serve --listen tcp://:10809 --tls-certificates /etc/pki/vhbad --tls required
  nbdinfo -- [ vhbad serve --single --disk d=memory:64MiB ]`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 { // as other servers take it
				return usage(fmt.Errorf("%q: want no argument but flags: a file is served by --disk NAME=file:PATH", args[0]))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return s.run(cmd) },
	}
	s.addFlags(cmd)
	return cmd
}

// set adds a flag that takes the place of a value of the configuration file, which field
// finds in it. A flag that is not given has no value.
func set[T any](s *serveFlags, f *pflag.FlagSet, name, usage string, field func(*config.File) *T) {
	given := field(&s.file)
	switch v := any(given).(type) {
	case *string:
		f.StringVar(v, name, "", usage)
	case *bool:
		f.BoolVar(v, name, false, usage)
	case *int:
		f.IntVar(v, name, 0, usage)
	case pflag.Value:
		f.Var(v, name, usage)
		f.Lookup(name).DefValue = "" // pflag would show "0"
	default:
		panic(fmt.Sprintf("--%s: no flag for a %T", name, given))
	}
	s.settings = append(s.settings, setting{name, func(file *config.File) { *field(file) = *given }})
}

func (s *serveFlags) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVarP(&s.configPath, "config", "c", "", "configuration file, YAML")
	f.Var(&s.listen, "listen", "address to serve, again for more (default "+config.DefaultListen+")")
	f.Var(&s.disks, "disk", "disk to serve, again for more (default "+config.DefaultDisk+")")
	set(s, f, "http", "HOST:PORT of metrics and health, or none (default "+config.DefaultHTTP+")", func(v *config.File) *string { return &v.HTTP })
	set(s, f, "admin", "path of the admin socket, or none (default "+client.DefaultPath()+")", func(v *config.File) *string { return &v.Admin })
	f.BoolVar(&s.single, "single", false, "serve one client on standard input and output, or on the socket of LISTEN_FDS, and end with it; no admin socket or HTTP unless asked for")
	f.BoolVar(&s.takeover, "takeover", false, "take the place of the daemon at the admin socket: its sockets stay open, it finishes and ends; starts as usual if there is none")
	f.BoolVar(&s.discard, "takeover-discard-memory", false, "take over even from memory disks, whose content is lost")
	set(s, f, "hostile", "allow disks and fault rules that break what a correct drive promises: data may be lost", func(v *config.File) *bool { return &v.Hostile })
	set(s, f, "srb-timeout", "time for a command before the port begins with resets, whole seconds; a flush gets four times as much (default "+config.DefaultSRBTimeout.String()+")", func(v *config.File) *config.Duration { return &v.HBA.SRBTimeout })
	set(s, f, "reset-timeout", "time for each reset before the next, greater one (default "+config.DefaultResetTimeout.String()+")", func(v *config.File) *config.Duration { return &v.HBA.ResetTimeout })
	set(s, f, "read-only", "make every disk read-only", func(v *config.File) *bool { return &v.ReadOnly })
	set(s, f, "verify", "check every rule of the port's contract; slower", func(v *config.File) *bool { return &v.HBA.Verify })
	set(s, f, "queues", fmt.Sprintf("queue pairs of the adapter (default %d)", config.DefaultQueues), func(v *config.File) *int { return &v.HBA.Queues })
	set(s, f, "workers", fmt.Sprintf("goroutines for commands that block (default %d)", config.DefaultWorkers), func(v *config.File) *int { return &v.HBA.Workers })
	set(s, f, "half-duplex", "never run StartIo and the interrupt handler at once", func(v *config.File) *bool { return &v.HBA.HalfDuplex })
	set(s, f, "interrupts", "per-message (a message and a lock for each queue), all (one lock), single (one message) or line (default "+string(config.InterruptsPerMessage)+")", func(v *config.File) *string { return (*string)(&v.HBA.Interrupts) })
	set(s, f, "strict-segments", "cut buffers at every page, for long scatter lists", func(v *config.File) *bool { return &v.HBA.StrictSegments })
	set(s, f, "memory", "memory for rings and buffers, rounded up to a power of two (default "+config.DefaultMemory.String()+")", func(v *config.File) *config.Size { return &v.Limits.Memory })
	set(s, f, "tls-certificates", "folder with server-cert.pem, server-key.pem and, for --tls-verify-peer, ca-cert.pem and perhaps ca-crl.pem", func(v *config.File) *string { return &v.TLS.Certificates })
	set(s, f, "tls", "off, optional or required (default: optional with --tls-certificates, else off)", func(v *config.File) *string { return (*string)(&v.TLS.Mode) })
	set(s, f, "tls-verify-peer", "want a certificate of the authority in ca-cert.pem from clients", func(v *config.File) *bool { return &v.TLS.VerifyPeer })
	set(s, f, "replies", "what clients may agree on: extended (all), structured (no extended headers) or simple (neither, and no block status) (default "+string(config.RepliesExtended)+")", func(v *config.File) *string { return (*string)(&v.Replies) })
	set(s, f, "copy-reads", "copy reads of 64KiB and more, as all others are, instead of sending the disk's own pages: writes can then no longer change a reply on its way; slower", func(v *config.File) *bool { return &v.CopyReads })
	set(s, f, "connections-per-peer", "clients at once from one IP address, user of a unix socket or vsock context (default no limit)", func(v *config.File) *int { return &v.Limits.ConnectionsPerPeer })
	set(s, f, "connection-rate", fmt.Sprintf("clients accepted in a second, after the first few; more wait (default %d)", config.DefaultConnectionRate), func(v *config.File) *int { return &v.Limits.ConnectionRate })
	set(s, f, "bytes-in-flight", "memory for the requests of one client (default a quarter of --memory, at most 68MiB)", func(v *config.File) *config.Size { return &v.Limits.BytesInFlight })
	set(s, f, "payload", "longest read or write (default a quarter of --memory, at most "+config.MaxPayload.String()+")", func(v *config.File) *config.Size { return &v.Limits.Payload })
	set(s, f, "options", fmt.Sprintf("options of one handshake (default %d)", config.DefaultOptions), func(v *config.File) *int { return &v.Limits.Options })
	set(s, f, "option-bytes", "data of one option (default "+config.DefaultOptionBytes.String()+")", func(v *config.File) *config.Size { return &v.Limits.OptionBytes })
	set(s, f, "handshake-timeout", "time for a handshake, TLS included (default "+config.DefaultHandshakeTimeout.String()+")", func(v *config.File) *config.Duration { return &v.Limits.HandshakeTimeout })
	set(s, f, "reply-timeout", "close a client that takes no replies, or does not finish a request, for so long (default "+config.DefaultReplyTimeout.String()+")", func(v *config.File) *config.Duration { return &v.Limits.ReplyTimeout })
	set(s, f, "idle-timeout", "close a client without requests for so long (default never)", func(v *config.File) *config.Duration { return &v.Limits.IdleTimeout })
	set(s, f, "connections", fmt.Sprintf("clients at once (default %d)", config.DefaultConnections), func(v *config.File) *int { return &v.Limits.Connections })
	set(s, f, "requests", fmt.Sprintf("requests in flight of one client (default %d)", config.DefaultRequests), func(v *config.File) *int { return &v.Limits.Requests })
	set(s, f, "drain-timeout", "longest time for an orderly stop (default "+config.DefaultDrainTimeout.String()+")", func(v *config.File) *config.Duration { return &v.Limits.DrainTimeout })
	set(s, f, "sandbox", "auto: once everything is open, keep nothing of the file system but images, certificates and sockets, as far as the kernel can; or off (default "+string(config.SandboxAuto)+")", func(v *config.File) *string { return (*string)(&v.Sandbox.Mode) })
	f.StringArrayVar(&s.file.Sandbox.Paths, "sandbox-path", nil, "file or folder of images that the sandbox leaves besides, again for more")
	set(s, f, "log-format", "auto, text or json (default auto: text on a terminal)", func(v *config.File) *string { return &v.Log.Format })
	set(s, f, "log-level", "debug, info, warn or error (default info)", func(v *config.File) *string { return &v.Log.Level })
	offer(cmd, "interrupts", string(config.InterruptsPerMessage), string(config.InterruptsAll), string(config.InterruptsSingle), string(config.InterruptsLine))
	offer(cmd, "log-format", "auto", "text", "json")
	offer(cmd, "log-level", "debug", "info", "warn", "error")
	offer(cmd, "replies", string(config.RepliesExtended), string(config.RepliesStructured), string(config.RepliesSimple))
	offer(cmd, "sandbox", string(config.SandboxAuto), string(config.SandboxOff))
	offer(cmd, "tls", string(config.TLSOff), string(config.TLSOptional), string(config.TLSRequired))
	offer(cmd, "listen", "unix:///", "tcp://127.0.0.1:10809")
	offerFiles(cmd, "config", "disk", "admin", "tls-certificates", "sandbox-path") // SPEC may end with one
}

// resolve merges file and flags and checks the result.
func (s *serveFlags) resolve(f *pflag.FlagSet, inherited bool) (*config.Config, error) {
	file := &config.File{}
	if s.configPath != "" {
		var err error
		if file, err = config.Load(s.configPath); err != nil {
			return nil, err
		}
	}
	if err := s.merge(file, f); err != nil {
		return nil, err
	}
	if s.single {
		if err := s.makeSingle(file); err != nil {
			return nil, err
		}
	}
	c, err := file.Resolve(client.DefaultPath(), inherited || s.single)
	if err != nil {
		return nil, err
	}
	for i := range c.Disks { // so that the same path is the same file whoever names it
		if err := rootPaths(&c.Disks[i]); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// merge puts what the flags say into file.
func (s *serveFlags) merge(file *config.File, f *pflag.FlagSet) (err error) {
	for _, o := range s.settings {
		if f.Changed(o.flag) {
			o.put(file)
			said := f.Lookup(o.flag).Value.String()
			file.Set(o.flag, said == "0" || said == config.Duration(0).String())
		}
	}
	if admin := s.file.Admin; admin != "" && admin != config.Off && !filepath.IsAbs(admin) { // as those who ask take it
		if file.Admin, err = filepath.Abs(admin); err != nil {
			return fmt.Errorf("--admin: %w", err)
		}
		if strings.HasSuffix(admin, "/") {
			file.Admin += "/" // a folder is refused
		}
	}
	file.Listen = append(file.Listen, s.listen.values...)
	file.Disks = append(file.Disks, s.disks.values...)
	file.Sandbox.Paths = append(file.Sandbox.Paths, s.file.Sandbox.Paths...)
	return nil
}

// resolveUnlessSignalled is resolve, but a signal meanwhile ends it; the result is then nil.
// The file may be a terminal or a pipe, which has more only when somebody writes it.
func (s *serveFlags) resolveUnlessSignalled(cmd *cobra.Command, signals <-chan os.Signal, inherited bool) (*config.Config, error) {
	type outcome struct {
		c   *config.Config
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		c, err := s.resolve(cmd.Flags(), inherited)
		done <- outcome{c, err}
	}()
	select {
	case o := <-done:
		return o.c, o.err
	case sig := <-signals:
		_, err := fmt.Fprintf(cmd.ErrOrStderr(), "vhbad: stopped before the configuration was read: %s\n", sig)
		return nil, err
	}
}

// wantRegular returns an error if a file is there and cannot be read a second time, such
// as a pipe, whose reader waits for somebody to write.
func wantRegular(path string) error {
	fi, err := os.Stat(path)
	if err != nil || fi.Mode().IsRegular() || fi.IsDir() { // read tells of what is not there, and of folders
		return nil //nolint:nilerr // likewise
	}
	return fmt.Errorf("%s: is no regular file, and cannot be read again: want one", path)
}

// makeSingle turns file into what --single means.
func (s *serveFlags) makeSingle(file *config.File) error {
	if s.takeover {
		return errors.New("--takeover with --single: a single client cannot be handed over")
	}
	if len(file.Listen) > 0 {
		return fmt.Errorf("--single serves who has started it: want no address to listen on, not %s", file.Listen[0])
	}
	file.HTTP = cmp.Or(file.HTTP, config.Off)
	file.Admin = cmp.Or(file.Admin, config.Off)
	file.Log.Level = cmp.Or(file.Log.Level, "warn")
	return nil
}

// newLog makes the daemon's log, which writes to w.
func newLog(w io.Writer, c *config.Config, level slog.Leveler) *slog.Logger {
	o := &slog.HandlerOptions{Level: level}
	asText := c.LogFormat == "text"
	if c.LogFormat == "auto" {
		asText = progress.IsTerminal(w)
	}
	if asText {
		return slog.New(slog.NewTextHandler(w, o))
	}
	return slog.New(slog.NewJSONHandler(w, o))
}

func (s *serveFlags) run(cmd *cobra.Command) error {
	signals, hups, ignoreSignals := s.catchSignals()
	defer ignoreSignals()
	inherited, err := daemon.Inherited()
	if err != nil {
		return usage(err)
	}
	c, err := s.resolveUnlessSignalled(cmd, signals, len(inherited.NBD) > 0)
	if c == nil || err != nil {
		return usage(err)
	}
	level := &slog.LevelVar{}
	level.Set(c.LogLevel)
	log := newLog(cmd.ErrOrStderr(), c, level)
	conn, err := s.singleConn(inherited)
	if err != nil {
		return usage(err)
	}
	o := daemon.Options{
		Config: c, Version: buildVersion(), Log: log, LogLevel: level, Inherited: inherited,
		Single: s.single, Conn: conn,
	}
	if w := cmd.ErrOrStderr(); progress.IsTerminal(w) {
		o.Progress = func(what string) daemon.Progress { return progress.NewBar(w, what, progress.Bytes, nil) }
	}
	if s.configPath != "" && !s.single {
		given := len(inherited.NBD) > 0
		o.Reload = func() (*config.Config, error) {
			tellManager(log, sdnotify.Reloading())
			if err := wantRegular(s.configPath); err != nil {
				return nil, err
			}
			return s.resolve(cmd.Flags(), given)
		}
		o.Reloaded = func(d *daemon.Daemon, _ error) { tellServing(d, log) }
	}
	d, err := s.startUnlessSignalled(cmd.Context(), signals, o)
	if d == nil || err != nil {
		return err
	}
	if err := s.enterSandbox(c, log); err != nil {
		return errors.Join(err, stop(d, c.Limits.DrainTimeout.Std(), signals, log))
	}
	log.Info("serving", "disks", len(c.Disks), "http", d.HTTPAddress(), "admin", c.Admin)
	// The log comes first, so that whoever waits for these lines finds it complete. Their
	// reader may be gone; the disks are served all the same.
	out := cmd.OutOrStdout()
	if s.single { // standard output is the client's
		out = cmd.ErrOrStderr()
	}
	if conn != nil {
		_, _ = fmt.Fprintln(out, "ready stdio")
	}
	for _, e := range d.Endpoints() {
		_, _ = fmt.Fprintf(out, "ready %s\n", e.URI)
	}
	tellServing(d, log)
	defer reloadOn(hups, d)()
	defer keepAlive(log, func() { _ = d.Status() })()
	for _, e := range d.Endpoints() {
		if s.single {
			break // the client is there, or about to be
		}
		_, _ = fmt.Fprintf(out, "attach: %s\n", e.AttachHint)
	}
	return serveUntilEnd(cmd.Context(), d, signals, log)
}

// catchSignals delivers the signals that end the daemon through signals, and the one that
// makes it read its configuration again through hups, until ignore is called.
func (s *serveFlags) catchSignals() (signals, hups chan os.Signal, ignore func()) {
	// If the reader of our output goes away, clients must not lose their disks.
	signal.Ignore(syscall.SIGPIPE)
	signals, hups = make(chan os.Signal, 2), make(chan os.Signal, 1)
	stopOn := []os.Signal{syscall.SIGTERM, syscall.SIGINT}
	switch {
	case s.configPath != "":
		signal.Notify(hups, syscall.SIGHUP)
	case !signal.Ignored(syscall.SIGHUP): // nohup stays in force
		stopOn = append(stopOn, syscall.SIGHUP)
	}
	signal.Notify(signals, stopOn...)
	return signals, hups, func() {
		signal.Stop(signals)
		signal.Stop(hups)
	}
}

// singleConn is the connection of --single. It is nil if the client is to come by the one
// inherited socket.
func (s *serveFlags) singleConn(inherited daemon.Sockets) (net.Conn, error) {
	switch {
	case s.single && len(inherited.NBD) > 1:
		return nil, fmt.Errorf("--single with LISTEN_FDS=%d: want one socket", len(inherited.NBD))
	case s.single && len(inherited.NBD) == 0:
		return daemon.Stdio()
	}
	return nil, nil
}

// serveUntilEnd waits until something asks the daemon to end, and then stops it in good
// order.
func serveUntilEnd(ctx context.Context, d *daemon.Daemon, signals <-chan os.Signal, log *slog.Logger) error {
	var broken error
	hurry := signals
	select {
	case sig := <-signals:
		log.Info("stopping", "signal", sig.String())
	case <-d.ClientGone():
		log.Info("stopping: the client is gone")
	case <-d.HandedOver():
		log.Info("stopping: another daemon takes over")
		hurry = afterFirst(signals)
	case broken = <-d.Failed():
		log.Error("stopping: a listener failed", "error", broken)
	case <-ctx.Done():
		broken = ctx.Err()
	}
	limit := d.Config().Limits.DrainTimeout.Std()
	tellManager(log, sdnotify.Stopping, sdnotify.Status("Finishing what is in flight"), sdnotify.Extend(limit+2*forceGrace))
	return errors.Join(broken, stop(d, limit, hurry, log))
}

// afterFirst passes on all signals but the first, which asks for what is already under
// way.
func afterFirst(signals <-chan os.Signal) <-chan os.Signal {
	rest := make(chan os.Signal, 1)
	go func() {
		<-signals
		for {
			rest <- <-signals
		}
	}()
	return rest
}

// takeOver asks the running daemon for its place, if the flags say so.
func (s *serveFlags) takeOver(ctx context.Context, c *config.Config, log *slog.Logger) (*daemon.Predecessor, error) {
	switch {
	case !s.takeover && s.discard:
		return nil, usage(errors.New("--takeover-discard-memory without --takeover"))
	case !s.takeover:
		return nil, nil
	case c.Admin == "":
		return nil, usage(errors.New("--takeover finds the running daemon by its admin socket: want --admin PATH"))
	}
	p, err := daemon.TakeOver(ctx, c.Admin, client.HandOver{DiscardMemory: s.discard}, log)
	if p == nil && err == nil {
		log.Info("no daemon to take over from", "admin", c.Admin)
	}
	return p, err
}

// start starts the daemon, in place of the running one if it is to take over.
func (s *serveFlags) start(ctx context.Context, o daemon.Options) (*daemon.Daemon, error) {
	var err error
	if o.Predecessor, err = s.takeOver(ctx, o.Config, o.Log); err != nil {
		return nil, err
	}
	return daemon.Start(ctx, o)
}

// startUnlessSignalled is start, but a signal meanwhile undoes it; the result is then
// nil.
func (s *serveFlags) startUnlessSignalled(ctx context.Context, signals <-chan os.Signal, o daemon.Options) (*daemon.Daemon, error) {
	startCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	started, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case sig := <-signals:
			o.Log.Info("stopping before everything was up", "signal", sig.String())
			cancel()
		case <-started:
		}
	}()
	d, err := s.start(startCtx, o)
	close(started)
	<-watched
	signalled := startCtx.Err() != nil && ctx.Err() == nil
	if !signalled {
		return d, err
	}
	if err == nil { // the signal came just after the last step
		stopCtx, cancelStop := context.WithTimeout(ctx, o.Config.Limits.DrainTimeout.Std())
		defer cancelStop()
		return nil, d.Stop(stopCtx)
	}
	if errors.Is(err, context.Canceled) {
		return nil, nil
	}
	return nil, err
}

// A stopper is a daemon.Daemon, or a stand-in in tests.
type stopper interface {
	Stop(ctx context.Context) error
}

// stop ends the daemon in good order, unless time runs out or a signal cuts that short.
// An error means exit code 1.
func stop(d stopper, limit time.Duration, signals <-chan os.Signal, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- d.Stop(ctx) }()
	force := time.NewTimer(limit + forceGrace)
	defer force.Stop()
	begun := time.Now()
	for {
		select {
		case err := <-done:
			if err == nil {
				log.Info("stopped")
			}
			return err
		case sig := <-signals:
			if time.Since(begun) >= signalPause {
				return fmt.Errorf("%s again: stopped at once; what was in flight is lost", sig)
			}
		case <-force.C:
			return fmt.Errorf("not stopped after %s: gave up; what was in flight is lost", limit)
		}
	}
}
