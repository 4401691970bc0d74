package main

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/vhbad/vhbad/hba/cache"
	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/hba/trace"
	"github.com/vhbad/vhbad/internal/progress"
)

// TestTraceShow_Kinds: the help has each kind of record.
func TestTraceShow_Kinds(t *testing.T) {
	help := newTraceShow().Long
	for k := cache.StepKind(1); int(k) < cache.StepKinds; k++ {
		if !regexp.MustCompile(`(?m)^  ([a-z, ]*, )?` + k.String() + `(,|  |$)`).MatchString(help) {
			t.Errorf("%s is not in\n%s", k, help)
		}
	}
}

// TestTraceShow_Order: what is wrong with a trace's end comes behind its records on a
// terminal, where both go.
func TestTraceShow_Order(t *testing.T) {
	path := filepath.Join(t.TempDir(), "trace")
	r, err := trace.Create(path, trace.Config{Header: trace.Header{Disk: "d", SectorBytes: 512, DiskBytes: 1 << 20, CacheBytes: 1 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }() // it has no end before that
	r.Mark("begin")
	if err := r.Flush(); err != nil {
		t.Fatal(err)
	}
	var terminal strings.Builder
	if code := run(t.Context(), []string{"trace", "show", path}, &terminal, &terminal); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	lines := strings.Split(strings.TrimSpace(terminal.String()), "\n")
	if last := lines[len(lines)-1]; len(lines) < 3 || !strings.HasPrefix(last, "vhbad: the trace is not complete") {
		t.Errorf("want header, record and then what is wrong:\n%s", terminal.String())
	}
}

// TestTraceReplay_InUseByQemu: --force writes over no image that qemu has open, which
// looks at other locks than flock's.
func TestTraceReplay_InUseByQemu(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, []byte("a virtual machine's"), 0o600); err != nil {
		t.Fatal(err)
	}
	q, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = q.Close() }()
	writes := unix.Flock_t{Type: unix.F_RDLCK, Start: 101, Len: 1}
	if err := unix.FcntlFlock(q.Fd(), unix.F_OFD_SETLK, &writes); err != nil {
		t.Fatal(err)
	}
	o := traceReplay{image: path, force: true}
	if f, _, err := o.take(&openedTrace{}, nil); err == nil || !strings.Contains(err.Error(), path+": is in use") {
		t.Errorf("took %v, %v", f, err)
	}
}

// TestTraceShow_LoseFlushed: what a cut was to lose of what was flushed is a part of it.
func TestTraceShow_LoseFlushed(t *testing.T) {
	for n, want := range map[int][2]string{
		0: {`"damage":"old"}`, "damage old"},
		3: {`"damage":"old","lose_flushed":3}`, "damage old, lose flushed 3"},
	} {
		l := newTraceLine(&trace.Header{}, &trace.Record{Step: cache.Step{Kind: cache.StepCut, Cut: cache.CutOptions{LoseFlushed: n}}})
		b, err := json.Marshal(l)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(b), want[0]) || !strings.HasSuffix(l.String(), want[1]) {
			t.Errorf("%d: %s and %q, want %s and %q", n, b, l, want[0], want[1])
		}
	}
}

// TestFollowed: who waits for a long trace sees how much of it has been read, on one line
// that ends once, even if the trace grows meanwhile.
func TestFollowed(t *testing.T) {
	const total = 10 << 10
	for name, length := range map[string]int{"whole": total, "growing": 2 * total, "shrunk": total / 2} {
		var screen strings.Builder
		now := time.Unix(0, 0)
		bar := progress.NewBar(&screen, "replaying", progress.Bytes, func() time.Time {
			now = now.Add(time.Second)
			return now
		})
		in := &followed{in: iotest.OneByteReader(strings.NewReader(strings.Repeat("x", length))), bar: bar, total: total}
		if n, err := io.Copy(io.Discard, in); int(n) != length || err != nil {
			t.Fatalf("%s: read %d, %v", name, n, err)
		}
		bar.End()
		shown := screen.String()
		if !strings.Contains(shown, "\rreplaying [###############---------------]  50% of 10 KiB") {
			t.Errorf("%s: half of it is not in %q", name, shown)
		}
		if strings.Count(shown, "\n") != 1 || !strings.HasSuffix(shown, "\n") || strings.Contains(shown, "100%") == (length < total) {
			t.Errorf("%s: %q; want one line, and all of it if it is", name, shown)
		}
	}
}

// TestTraceReplay_Bar: progress is for people, and of a whole that is known.
func TestTraceReplay_Bar(t *testing.T) {
	marks := newMarks(t, 1<<18)
	path := filepath.Join(t.TempDir(), "trace")
	if err := os.WriteFile(path, marks, 0o600); err != nil {
		t.Fatal(err)
	}
	screen, terminal := newTerminal(t)
	defer func() { _ = terminal.Close() }()
	go func() { _, _ = io.Copy(io.Discard, screen) }() // in case it takes long enough to be shown
	replay := func(from string, w io.Writer) *followed {
		t.Helper()
		in, out, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = in.Close() }()
		go func() {
			_, _ = out.Write(marks) // a pipe that nobody reads is closed above
			_ = out.Close()
		}()
		cmd := &cobra.Command{}
		cmd.SetIn(in)
		opened, err := openTrace(cmd, from)
		if err != nil {
			t.Fatal(err)
		}
		m, err := media.NewMemory(media.MemoryConfig{SizeBytes: opened.Header().DiskBytes})
		if err == nil {
			_, err = new(traceReplay).replay(&opened, m, nil, trace.Options{}, w)
		}
		if err = errors.Join(err, opened.close()); err != nil {
			t.Fatal(err)
		}
		return opened.in
	}
	if in := replay(path, terminal); in.bar == nil || in.total != int64(len(marks)) || in.done != in.total {
		t.Errorf("on a terminal: %+v; want all of it followed", in)
	}
	if in := replay(path, new(strings.Builder)); in.bar != nil {
		t.Error("a bar for nobody")
	}
	if in := replay("-", terminal); in.bar != nil {
		t.Error("a bar of what has no known length")
	}
}
