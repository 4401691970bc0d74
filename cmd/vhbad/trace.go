package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/daemon"
	"github.com/vhbad/vhbad/hba/cache"
	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/hba/trace"
	"github.com/vhbad/vhbad/internal/progress"
)

func newTrace() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "trace",
		Short: "Show what a disk did, and replay power cuts of it",
		Long: `Trace reads the file that a disk with cache=writeback and trace=PATH writes: each
write with its data, when it became durable, flushes, answers, marks and power
cuts. From it comes the image that a power cut at any moment leaves, for any seed
and policy, without the daemon and without the load that led to it.`,
		Example: `  vhbad serve --disk db=memory:1GiB,cache=writeback,trace=/tmp/db.trace
  vhbad trace show /tmp/db.trace
  vhbad trace replay /tmp/db.trace --image crash.img --cut 1 --seed 8`,
		Args: noArgs,
		RunE: wantOneOf("show or replay"),
	}
	cmd.AddCommand(newTraceShow(), newTraceReplay())
	return cmd
}

// An openedTrace is a trace that is being read.
type openedTrace struct {
	*trace.Reader
	file  fs.FileInfo // nil if it comes from no file
	in    *followed
	close func() error
}

// followed is a reader that shows its progress.
type followed struct {
	in          io.Reader
	bar         *progress.Bar // nil if no person is watching
	done, total int64
}

// Read implements io.Reader.
func (f *followed) Read(p []byte) (n int, err error) {
	n, err = f.in.Read(p)
	before := f.done
	f.done += int64(n)
	if f.bar != nil && before < f.total { // what is appended while it is read does not count
		f.bar.Update(min(f.done, f.total), f.total)
	}
	return n, err
}

// newBar begins a progress bar for what is being done; nil if no person is watching.
func newBar(w io.Writer, what string) *progress.Bar {
	if !progress.IsTerminal(w) {
		return nil
	}
	return progress.NewBar(w, what, progress.Bytes, nil)
}

// openTrace opens a trace; "-" is standard input.
func openTrace(cmd *cobra.Command, path string) (t openedTrace, err error) {
	if path == "-" {
		if f, ok := cmd.InOrStdin().(*os.File); ok {
			if t.file, err = f.Stat(); err != nil {
				return t, err
			}
		}
		t.close = func() error { return nil }
		t.in = &followed{in: cmd.InOrStdin()}
		t.Reader, err = trace.NewReader(t.in)
		return t, err
	}
	f, err := os.Open(path)
	if err != nil {
		return t, err
	}
	t.close, t.in = f.Close, &followed{in: f}
	if t.file, err = f.Stat(); err == nil {
		t.Reader, err = trace.NewReader(t.in)
	}
	if err != nil {
		return t, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
	}
	return t, nil
}

func newTraceShow() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show TRACE",
		Short: "Print what a trace has, a line for each record",
		Long: `Show prints the header of a trace and its records with their numbers, which
vhbad trace replay --until takes. A trace that is damaged is printed up to there;
one whose daemon still runs, or was killed, says at its end that it has none.
TRACE may be - for standard input.

  write    is pending from now on: number, kind, offset and length in bytes
  leave    a pending write is chosen to become durable soon
  durable  so much of that write is on the medium
  through  did not fit into the cache and is on the medium
  answer   the client is told that it is done
  flush    came, and covers the writes before that number
  flushed  it is answered
  cut      the power went
  image    what that left, by the digest of vhbad power cut
  unsure   the medium failed to write, and holds who knows what there
  lie      a rule answered a write as if with FUA
  broke    a rule did something to a command that no correct drive does
  resize, mark

The end is no line; that there is none, or why the recording failed, goes to standard
error.`,
		Example: `  vhbad trace show db.trace
  vhbad trace show db.trace --json | jq 'select(.kind == "cut")'`,
		Args:              wantArgs(1, 1),
		ValidArgsFunction: oneFile,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			t, err := openTrace(cmd, args[0])
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, t.close()) }()
			out := bufio.NewWriter(cmd.OutOrStdout())
			err = errors.Join(showTrace(out, t.Reader, asJSON), out.Flush())
			if err != nil {
				return err
			}
			if complete, reason := t.End(); !complete { // a terminal has it behind the records
				_, err = fmt.Fprintf(cmd.ErrOrStderr(), "vhbad: the trace is not complete: %s\n", reason)
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, a line for each record")
	return cmd
}

// A traceHeader is the first line of vhbad trace show --json.
type traceHeader struct {
	Disk        string    `json:"disk"`
	SectorBytes int       `json:"sector_bytes"`
	DiskBytes   int64     `json:"disk_bytes"`
	CacheBytes  int64     `json:"cache_bytes"`
	Eviction    string    `json:"cache_eviction"`
	CacheSeed   uint64    `json:"cache_seed"`
	Start       time.Time `json:"start"`
}

// A traceLine is any other line.
type traceLine struct {
	Number      uint64    `json:"number"`
	Seconds     float64   `json:"seconds"` // since the header's start
	Kind        string    `json:"kind"`
	Op          string    `json:"op,omitempty"`
	Write       *uint64   `json:"write,omitempty"`
	OffsetBytes *int64    `json:"offset_bytes,omitempty"`
	LengthBytes *int64    `json:"length_bytes,omitempty"`
	FUA         bool      `json:"fua,omitempty"`
	Lie         bool      `json:"lie,omitempty"`
	Failed      bool      `json:"failed,omitempty"`
	Covered     *int      `json:"covered_writes,omitempty"`
	Cut         *traceCut `json:"cut,omitempty"`
	SHA256      string    `json:"image_sha256,omitempty"`
	Text        string    `json:"text,omitempty"`
}

type traceCut struct {
	Seed   uint64 `json:"seed"`
	Policy string `json:"policy"`
	Tear   string `json:"tear"`
	Damage string `json:"damage"`
	// LoseFlushed is how many flushed sectors were to be lost.
	LoseFlushed int `json:"lose_flushed,omitempty"`
}

func newTraceLine(h *trace.Header, r *trace.Record) *traceLine {
	l := &traceLine{
		Number: r.Number, Seconds: r.Time.Sub(h.Start).Seconds(), Kind: r.Kind.String(), FUA: r.FUA, Lie: r.Lie, Failed: r.Failed, Text: r.Text,
	}
	switch r.Kind {
	case cache.StepWrite, cache.StepThrough:
		l.Op, l.Write, l.OffsetBytes, l.LengthBytes = r.Op.String(), &r.Write, &r.OffsetBytes, &r.LengthBytes
	case cache.StepDurable:
		l.Write, l.OffsetBytes, l.LengthBytes = &r.Write, &r.OffsetBytes, &r.LengthBytes
	case cache.StepUnsure, cache.StepLie:
		l.OffsetBytes, l.LengthBytes = &r.OffsetBytes, &r.LengthBytes
	case cache.StepAnswer:
		l.Op, l.Write = r.Op.String(), &r.Write
	case cache.StepFlush, cache.StepLeave:
		l.Write = &r.Write
	case cache.StepFlushed:
		l.Write, l.Covered = &r.Write, &r.Covered
	case cache.StepCut:
		l.Cut = &traceCut{r.Cut.Seed, r.Cut.Policy.String(), tearName(r.Cut.TearBytes), r.Cut.Damage.String(), r.Cut.LoseFlushed}
	case cache.StepImage:
		if !r.Failed {
			l.SHA256, l.Text = r.Text, ""
		}
	case cache.StepResize:
		l.LengthBytes = &r.LengthBytes
	default:
	}
	return l
}

func tearName(bytes int) string {
	if bytes == 0 {
		return "none"
	}
	return strconv.Itoa(bytes)
}

// String returns the line as people see it.
func (l *traceLine) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%6d %12.6f  %-8s", l.Number, l.Seconds, l.Kind)
	switch {
	case l.Write == nil:
	case l.Kind == cache.StepFlush.String() || l.Kind == cache.StepFlushed.String():
		fmt.Fprintf(&b, " before %d", *l.Write)
	default:
		fmt.Fprintf(&b, " %d", *l.Write)
	}
	if l.Op != "" {
		b.WriteString(" " + l.Op)
	}
	if l.OffsetBytes != nil {
		fmt.Fprintf(&b, " at %d", *l.OffsetBytes)
	}
	if l.LengthBytes != nil {
		fmt.Fprintf(&b, " length %d", *l.LengthBytes)
	}
	if l.Covered != nil {
		fmt.Fprintf(&b, ", covers %d", *l.Covered)
	}
	if c := l.Cut; c != nil {
		fmt.Fprintf(&b, " seed %d, policy %s, tear %s, damage %s", c.Seed, c.Policy, c.Tear, c.Damage)
		if c.LoseFlushed > 0 {
			fmt.Fprintf(&b, ", lose flushed %d", c.LoseFlushed)
		}
	}
	for _, flag := range []struct {
		on   bool
		name string
	}{{l.FUA, "fua"}, {l.Lie, "a lie"}, {l.Failed, "failed"}} {
		if flag.on {
			b.WriteString(", " + flag.name)
		}
	}
	if l.SHA256 != "" {
		b.WriteString(" " + l.SHA256)
	}
	if l.Text != "" {
		fmt.Fprintf(&b, " %q", l.Text)
	}
	return b.String()
}

// showTrace prints header and records, a line for each.
func showTrace(w io.Writer, r *trace.Reader, asJSON bool) error {
	h := r.Header()
	enc := json.NewEncoder(w)
	var err error
	if asJSON {
		err = enc.Encode(traceHeader{h.Disk, h.SectorBytes, h.DiskBytes, h.CacheBytes, h.Eviction.String(), h.CacheSeed, h.Start})
	} else {
		_, err = fmt.Fprintf(w, "disk %s: %s in sectors of %d bytes, cache %s, eviction %s, seed %d, from %s\n",
			h.Disk, config.Size(h.DiskBytes), h.SectorBytes, config.Size(h.CacheBytes), h.Eviction, h.CacheSeed, h.Start.Local().Format(time.RFC3339Nano))
	}
	for err == nil {
		var rec *trace.Record
		if rec, err = r.Next(); err != nil {
			break
		}
		if l := newTraceLine(&h, rec); asJSON {
			err = enc.Encode(l)
		} else {
			_, err = fmt.Fprintln(w, l)
		}
	}
	if !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// traceReplay has the flags of vhbad trace replay.
type traceReplay struct {
	image, base          string
	until                uint64
	cut                  int
	seed                 uint64
	policy, tear, damage string
	asJSON, force        bool
}

func newTraceReplay() *cobra.Command {
	var o traceReplay
	cmd := &cobra.Command{
		Use:   "replay TRACE --image OUT",
		Short: "Make the image that a power cut leaves, from a trace",
		Long: `Replay does what a trace says on a new image. Without --until or --cut it goes to
the end, and the image has what was on the medium then, with what the power cuts
on the way have left. --cut N ends with the N-th recorded power cut, decided as it
was or as --seed, --policy, --tear and --damage say. --until N ends with record N,
and if any of those four is given the power is cut there (seed 0 and policy subset
unless they say otherwise).

The image is a function of trace, place and these options: the same on any machine.
What the disk held when the recording began is in --base; without, it was blank.
Each recorded power cut on the way has to leave what it left, by its digest, so that a
wrong base is an error. Unreadable sectors have garbage in the image.
TRACE may be - for standard input.`,
		Example: `  vhbad trace replay db.trace --image crash.img --cut 1
  vhbad trace replay db.trace --image crash.img --base before.img --until 812 --policy one-missing --seed 3
  for s in $(seq 100); do vhbad trace replay db.trace --force --image c.img --cut 1 --seed $s && fsck.ext4 -fn c.img; done`,
		Args:              wantArgs(1, 1),
		ValidArgsFunction: oneFile,
		RunE:              func(cmd *cobra.Command, args []string) error { return o.run(cmd, args[0]) },
	}
	f := cmd.Flags()
	f.StringVar(&o.image, "image", "", "write the image here")
	f.StringVar(&o.base, "base", "", "begin with a copy of this image, which is not changed (default: blank)")
	f.BoolVar(&o.force, "force", false, "replace an image that is there, once the new one is complete")
	f.Uint64Var(&o.until, "until", 0, "end with this record")
	f.IntVar(&o.cut, "cut", 0, "end with this recorded power cut, counted from 1")
	f.Uint64Var(&o.seed, "seed", 0, "decide by this seed")
	addCutFlags(cmd, &o.policy, &o.tear, &o.damage)
	f.BoolVar(&o.asJSON, "json", false, "print JSON")
	offerFiles(cmd, "image", "base")
	return cmd
}

// options returns the flags that were given, and no defaults.
func (o *traceReplay) options(cmd *cobra.Command) (r trace.Options, err error) {
	changed := cmd.Flags().Changed
	if changed("until") && o.until == 0 {
		return r, errors.New("--until 0: records count from 1")
	}
	if changed("cut") && o.cut < 1 {
		return r, fmt.Errorf("--cut %d: power cuts count from 1", o.cut)
	}
	if changed("until") && changed("cut") {
		return r, errors.New("--until and --cut: want one of them")
	}
	r.Until, r.Cut = o.until, o.cut
	if changed("seed") {
		r.Choice.Seed = &o.seed
	}
	if changed("policy") {
		p, err := cache.ParsePolicy(o.policy)
		if err != nil {
			return r, fmt.Errorf("--policy: %w", err)
		}
		r.Choice.Policy = &p
	}
	if changed("damage") {
		d, err := cache.ParseDamage(o.damage)
		if err != nil {
			return r, fmt.Errorf("--damage: %w", err)
		}
		r.Choice.Damage = &d
	}
	if changed("tear") {
		n, ok := map[string]int{"none": 0, "512": 512, "4096": 4096}[o.tear]
		if !ok {
			return r, fmt.Errorf("--tear %q: want none, 512 or 4096", o.tear)
		}
		r.Choice.TearBytes = &n
	}
	return r, nil
}

func (o *traceReplay) run(cmd *cobra.Command, path string) (err error) {
	if o.image == "" {
		return usage(errors.New("want --image OUT, where the image goes"))
	}
	how, err := o.options(cmd)
	if err != nil {
		return usage(err)
	}
	t, err := openTrace(cmd, path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.close()) }()
	base, err := o.openBase(t.Header().DiskBytes)
	if err != nil {
		return err
	}
	if base != nil {
		defer func() { err = errors.Join(err, base.Close()) }()
	}
	signals := holdSignals() // from before there is anything to remove
	to, m, err := o.open(&t, base)
	if err != nil {
		letGo(signals, dieBy)
		return err
	}
	// Until it is complete it is an image of nothing, and ours to remove.
	kept := removeBySignal(signals, to.path, dieBy)
	result, err := o.replay(&t, m, base, how, cmd.ErrOrStderr())
	if err = errors.Join(err, m.Close()); err == nil {
		err = to.complete()
	}
	if err != nil {
		err = errors.Join(err, os.Remove(to.path))
	}
	kept()
	if err = errors.Join(err, to.Close()); err != nil {
		return err
	}
	return o.print(cmd, t.Header(), result)
}

// holdSignals has the signals that would end the process wait.
func holdSignals() chan os.Signal {
	signals := make(chan os.Signal, 1)
	for _, sig := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		if !signal.Ignored(sig) { // under nohup it stays ignored
			signal.Notify(signals, sig)
		}
	}
	return signals
}

// letGo ends what holdSignals has begun, and calls do with the signal that waits, if any.
func letGo(signals chan os.Signal, do func(os.Signal)) {
	signal.Stop(signals)
	select {
	case sig := <-signals:
		do(sig)
	default:
	}
}

// dieBy ends the process by a signal, so that a shell's loop ends, too.
func dieBy(sig os.Signal) {
	signal.Reset(sig)
	_ = unix.Kill(os.Getpid(), sig.(syscall.Signal))
	select {} // nothing else is to be printed
}

// removeBySignal has the signal that waits, or comes, remove a file before the process dies
// by it, until kept is called.
func removeBySignal(signals chan os.Signal, path string, die func(os.Signal)) (kept func()) {
	removeAndDie := func(sig os.Signal) {
		_ = os.Remove(path) // there is nobody left to tell of an error
		die(sig)
	}
	over, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case sig := <-signals:
			removeAndDie(sig)
		case <-over:
		}
	}()
	return func() {
		close(over)
		<-ended
		letGo(signals, removeAndDie) // one that came meanwhile
	}
}

// replay applies the trace to m, and shows its progress on w.
func (o *traceReplay) replay(t *openedTrace, m media.Media, base *os.File, how trace.Options, w io.Writer) (*trace.Result, error) {
	if base != nil {
		if err := copyBase(m, base, newBar(w, "copying the base")); err != nil {
			return nil, err
		}
	}
	if bar := newBar(w, "replaying"); bar != nil && t.file != nil && t.file.Mode().IsRegular() {
		t.in.bar, t.in.total = bar, t.file.Size()
		defer bar.End()
	}
	return trace.Replay(t.Reader, m, how)
}

// A replayFile is the file that a replay writes. An image that was there before stays as it
// is until the new one is complete, and is then replaced by it.
type replayFile struct {
	*os.File        // the image that was there, or the new one; it holds the path's lock
	path     string // of what is written
	replaces string // the path of the image that was there; empty if there was none
}

// complete puts what was written in its place.
func (f *replayFile) complete() error {
	if f.replaces == "" {
		return nil
	}
	return os.Rename(f.path, f.replaces)
}

// beside makes the file that is to replace f, with f's permissions and, where we may give
// it, its owner.
func (f *replayFile) beside() error {
	there, err := filepath.EvalSymlinks(f.Name())
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	made, err := os.CreateTemp(filepath.Dir(there), ".vhbad-replay-*")
	if err != nil {
		return fmt.Errorf("the new image is made beside the one that is there: %w", err)
	}
	f.path, f.replaces = made.Name(), there
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		_ = made.Chown(int(st.Uid), int(st.Gid)) // root may
	}
	if err = errors.Join(made.Chmod(info.Mode().Perm()), made.Close()); err != nil {
		err = errors.Join(err, os.Remove(f.path))
	}
	return err
}

// open makes the blank image that the replay begins with. It is locked as a disk's image
// is, and so is one that is to be replaced.
func (o *traceReplay) open(t *openedTrace, base *os.File) (to *replayFile, m media.Media, err error) {
	h := t.Header()
	f, there, err := o.take(t, base)
	if err != nil {
		return nil, nil, err
	}
	to = &replayFile{File: f, path: o.image}
	if there {
		err = to.beside()
	} else {
		err = media.UnlockFile(f) // it passes from this descriptor to the medium's
	}
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	m, err = media.OpenFile(media.FileConfig{Path: to.path, SizeBytes: h.DiskBytes, BlockBytes: uint32(h.SectorBytes)})
	if err != nil {
		if there || lock(f) == nil { // nobody else has taken it meanwhile
			err = errors.Join(err, os.Remove(to.path))
		}
		return nil, nil, errors.Join(err, f.Close())
	}
	return to, m, nil
}

// take opens the file that the image goes to and locks it, but changes nothing in it. It
// refuses files that must not be written over, and tells whether one was there.
func (o *traceReplay) take(t *openedTrace, base *os.File) (f *os.File, there bool, err error) {
	flags := os.O_RDWR | os.O_CREATE | os.O_EXCL
	if o.force {
		// Opening what is not a regular file can have effects.
		info, err := os.Stat(o.image)
		if there = err == nil; there && !info.Mode().IsRegular() {
			return nil, there, fmt.Errorf("--image %s: is no regular file: want one, or none yet", o.image)
		}
		flags = os.O_RDWR | os.O_CREATE | unix.O_NONBLOCK
	}
	f, err = os.OpenFile(o.image, flags, 0o600)
	if errors.Is(err, os.ErrExist) {
		return nil, there, fmt.Errorf("%w: --force replaces it", err)
	}
	if err != nil {
		return nil, there, err
	}
	if err = o.mayWrite(f, t, base); err == nil {
		err = lock(f)
	}
	if err != nil {
		return nil, there, errors.Join(err, f.Close())
	}
	return f, there, nil
}

// mayWrite refuses files that the image must not go to.
func (o *traceReplay) mayWrite(f *os.File, t *openedTrace, base *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("--image %s: is no regular file: want one, or none yet", o.image)
	}
	if info.Mode().Perm()&0o222 == 0 { // which would not stop root
		return fmt.Errorf("--image %s: is write-protected (mode %#o)", o.image, info.Mode().Perm())
	}
	if t.file != nil && os.SameFile(info, t.file) {
		return usage(fmt.Errorf("--image %s: is the trace, too: want another file", o.image))
	}
	if base == nil {
		return nil
	}
	other, err := base.Stat()
	if err == nil && os.SameFile(info, other) {
		err = usage(fmt.Errorf("--image %s: is the base, too: want another file", o.image))
	}
	return err
}

// lock takes the lock of a disk's image.
func lock(f *os.File) error {
	err := media.LockFile(f)
	if errors.Is(err, media.ErrInUse) {
		return fmt.Errorf("--image %s: is in use: a disk or process holds its lock: want another file", f.Name())
	}
	return err
}

// openBase opens the base, nil if there is none.
func (o *traceReplay) openBase(sizeBytes int64) (*os.File, error) {
	if o.base == "" {
		return nil, nil
	}
	f, err := os.Open(o.base)
	if err != nil {
		return nil, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err == nil && size != sizeBytes {
		err = fmt.Errorf("--base %s: %d bytes: the disk of the trace had %d", o.base, size, sizeBytes)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// copyBase copies the base, without its zeros, to a blank medium of the same size. bar
// may be nil.
func copyBase(to media.Media, base *os.File, bar *progress.Bar) error {
	if bar != nil {
		defer bar.End()
	}
	p := make([]byte, 64<<10)
	for off, size := int64(0), to.Size(); off < size; off += int64(len(p)) {
		if bar != nil {
			bar.Update(off, size)
		}
		piece := p[:min(int64(len(p)), size-off)]
		if _, err := base.ReadAt(piece, off); err != nil {
			return fmt.Errorf("--base %s: %w", base.Name(), err)
		}
		if len(bytes.Trim(piece, "\x00")) == 0 {
			continue
		}
		if _, err := to.WriteAt(piece, off); err != nil {
			return err
		}
	}
	if bar != nil {
		bar.Update(to.Size(), to.Size())
	}
	return nil
}

// A replayResult is the answer of vhbad trace replay --json.
type replayResult struct {
	Image             string              `json:"image"`
	Records           uint64              `json:"records"`
	Cuts              int                 `json:"cuts"`
	UnreadableSectors int64               `json:"unreadable_sectors"`
	Incomplete        string              `json:"incomplete,omitempty"`
	Inexact           string              `json:"inexact,omitempty"`
	Report            *client.PowerReport `json:"report,omitempty"`
}

func (o *traceReplay) print(cmd *cobra.Command, h trace.Header, r *trace.Result) error {
	out := replayResult{
		Image: o.image, Records: r.Records, Cuts: r.Cuts, UnreadableSectors: r.UnreadableSectors, Incomplete: r.Incomplete, Inexact: r.Doubt,
	}
	if r.Report != nil {
		p := daemon.PowerReport(r.Report)
		p.Disk, p.Trigger, p.Number = h.Disk, "replay", uint64(max(r.Cuts, 1))
		out.Report = &p
	}
	if o.asJSON {
		return printJSON(cmd.OutOrStdout(), out)
	}
	t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(t, format+"\n", args...) } // Flush reports
	line("%s: %d records of disk %s, power cuts recorded: %d", o.image, r.Records, h.Disk, r.Cuts)
	if r.Incomplete != "" {
		line("the trace is not complete: %s", r.Incomplete)
	}
	if r.Doubt != "" {
		line("the disk's bytes may have been others: %s", r.Doubt)
	}
	if r.UnreadableSectors > 0 {
		line("%d sectors were unreadable; the image has garbage there", r.UnreadableSectors)
	}
	if err := t.Flush(); err != nil || out.Report == nil {
		return err
	}
	return printPowerReport(cmd.OutOrStdout(), out.Report)
}
