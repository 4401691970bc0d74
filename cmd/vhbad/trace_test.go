package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vhbad/vhbad/hba/cache"
	"github.com/vhbad/vhbad/hba/trace"
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
	if f, err := o.take(&openedTrace{}, nil); err == nil || !strings.Contains(err.Error(), path+": is in use") {
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
