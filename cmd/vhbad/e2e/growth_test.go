//go:build interop

package e2e

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// A shape is what a daemon is given to do; one of its numbers grows.
type shape struct {
	disks, connections, depth int
	sizeGiB                   int
}

// diskName is the name of a disk; connections go to one after the other.
func (s *shape) diskName(n int) string {
	if n %= s.disks; n > 0 {
		return fmt.Sprintf("more%d", n)
	}
	return exportName
}

// work is how many statements were executed, by file.
type work map[string]float64

func (w work) sum() (n float64) {
	for _, v := range w {
		n += v
	}
	return n
}

// less is (w - other) / n.
func (w work) less(other work, n int) work {
	d := work{}
	for file, v := range w {
		d[file] = (v - other[file]) / float64(n)
	}
	return d
}

// String lists the files in which there is most of it.
func (w work) String() string {
	files := slices.SortedFunc(maps.Keys(w), func(a, b string) int { return cmp.Compare(w[b], w[a]) })
	var b strings.Builder
	for _, f := range files[:min(5, len(files))] {
		fmt.Fprintf(&b, "\n%10.1f in %s", w[f], f)
	}
	return b.String()
}

// TestGrowth: what one read costs does not grow with the number of disks, of
// connections, of requests in flight or with the size of the disk, and to start costs
// no more with a disk of 64 TiB than with one of 1 GiB. Cost is the number of
// statements that are executed, as `go build -cover` counts them, not time.
func TestGrowth(t *testing.T) {
	binary := buildCounting(t)
	// Its batches are long: each request has little of what a batch costs.
	small := shape{disks: 1, connections: 1, depth: 32, sizeGiB: 1}
	grown := func(f func(*shape)) shape { s := small; f(&s); return s }
	const slack = 1.25 // batches in parts, a poller's loops; a look at each of 256 makes 1.33
	least := workOfRead(t, binary, small)
	t.Logf("one read of a batch of %d: %.0f statements", small.depth, least.sum())
	for _, tt := range []struct {
		name string
		s    shape
	}{
		{"disks=16", grown(func(s *shape) { s.disks = 16 })},
		{"disks=256", grown(func(s *shape) { s.disks = 256 })},
		{"connections=16", grown(func(s *shape) { s.connections = 16 })},
		{"connections=256", grown(func(s *shape) { s.connections = 256 })},
		{"disks=16/connections=16", grown(func(s *shape) { s.disks, s.connections = 16, 16 })},
		{"disks=256/connections=256", grown(func(s *shape) { s.disks, s.connections = 256, 256 })},
		{"depth=1024", grown(func(s *shape) { s.depth = 1024 })},
		{"size=1TiB", grown(func(s *shape) { s.sizeGiB = 1 << 10 })},
		{"size=64TiB", grown(func(s *shape) { s.sizeGiB = 64 << 10 })},
	} {
		t.Run(tt.name, func(t *testing.T) {
			// Whoever gives way to a thread that has no processor counts its turns: on a busy
			// machine a run may have more of them. What grows has more in each.
			w := workOfRead(t, binary, tt.s)
			for runs := 1; runs < 3 && w.sum() > slack*least.sum(); runs++ {
				if again := workOfRead(t, binary, tt.s); again.sum() < w.sum() {
					w = again
				}
			}
			t.Logf("one read: %.0f statements", w.sum())
			if w.sum() > slack*least.sum() {
				t.Errorf("one read executes %.0f statements, %.0f with %+v. More are%s", w.sum(), least.sum(), small, w.less(least, 1))
			}
		})
	}
	t.Run("start", func(t *testing.T) {
		one := workOf(t, binary, small, 0)
		huge := workOf(t, binary, grown(func(s *shape) { s.sizeGiB = 64 << 10 }), 0)
		t.Logf("start and stop: %.0f statements with 1 GiB, %.0f with 64 TiB", one.sum(), huge.sum())
		if huge.sum() > slack*one.sum() {
			t.Errorf("to start and stop executes %.0f statements with a disk of 64 TiB, %.0f with one of 1 GiB. More are%s", huge.sum(), one.sum(), huge.less(one, 1))
		}
		const few, many = 16, 256
		some := workOf(t, binary, grown(func(s *shape) { s.disks = few }), 0).less(one, few-1)
		all := workOf(t, binary, grown(func(s *shape) { s.disks = many }), 0).less(one, many-1)
		t.Logf("each disk more: %.0f statements of %d disks, %.0f of %d", some.sum(), few, all.sum(), many)
		// Some lists are searched from end to end: a fifth more at 256 disks.
		if all.sum() > 1.4*some.sum() {
			t.Errorf("each of %d disks takes %.0f statements to start and stop, each of %d %.0f. More are%s", many, all.sum(), few, some.sum(), all.less(some, 1))
		}
	})
}

// counted are the packages whose statements count: ours, and those that search and sort
// lists for us.
const counted = "github.com/vhbad/vhbad/...,slices,maps,sort"

// buildCounting builds a daemon that counts what it executes.
func buildCounting(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "vhbad")
	build := exec.Command("go", "build", "-cover", "-covermode=atomic", "-coverpkg="+counted, "-o", path, "github.com/vhbad/vhbad/cmd/vhbad")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build -cover: %v\n%s", err, out)
	}
	return path
}

// workOfRead is what one read executes: a long run less a short one.
func workOfRead(t *testing.T, binary string, s shape) work {
	t.Helper()
	const short = 2
	long := short + max(4, 8192/(s.depth*s.connections))
	few := workOf(t, binary, s, short)
	return workOf(t, binary, s, long).less(few, (long-short)*s.depth*s.connections)
}

// workOf starts the daemon, lets it serve batches on each connection, all connections
// at once, and stops it.
func workOf(t *testing.T, binary string, s shape, batches int) work {
	t.Helper()
	folder := t.TempDir()
	c := newServerConfig(t, "unix", fmt.Sprintf("memory:%dGiB", s.sizeGiB))
	c.kind, c.binary = serverVhbad, binary
	// The sandbox would not let it write what it has counted.
	c.extra = []string{"--sandbox", "off", "--connections", "300", "--requests", "1024", "--memory", "1GiB", "--log-level", "warn"}
	for i := 1; i < s.disks; i++ {
		c.extra = append(c.extra, "--disk", s.diskName(i)+"=memory:1GiB")
	}
	command, err := c.command()
	if err != nil {
		t.Fatal(err)
	}
	command.Env = append(os.Environ(), "GOCOVERDIR="+folder)
	d := start(t, c, command)
	if batches > 0 {
		readAgain(t, strings.TrimPrefix(d.listen, "unix://"), &s, batches)
	}
	d.stop(t)
	text := filepath.Join(folder, "text")
	if out, err := exec.Command("go", "tool", "covdata", "textfmt", "-i", folder, "-o", text).CombinedOutput(); err != nil {
		t.Fatalf("go tool covdata: %v\n%s", err, out)
	}
	return parseWork(t, text)
}

// readAgain reads the same places of each disk again and again. They have all been
// written.
func readAgain(t *testing.T, path string, s *shape, batches int) {
	t.Helper()
	const length = 4 << 10
	rng := rand.New(rand.NewPCG(1, 2)) // any places do
	places := make([]uint64, 32)
	for i := range places {
		places[i] = rng.Uint64N(uint64(s.sizeGiB)<<30/length) * length
	}
	payload := bytes.Repeat([]byte{1}, length)
	conns := make([]net.Conn, s.connections)
	for i := range conns {
		nc, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = nc.Close() }()
		if err := nc.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		client, err := nbdtest.NewClient(nc, s.diskName(i))
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = nc
		if i >= s.disks {
			continue
		}
		for _, at := range places {
			if r, err := client.Do(nbdtest.Command{Type: nbdtest.CmdWrite, Offset: at, Length: length, Payload: payload}); err != nil || r.Errno != 0 {
				t.Fatal(r.Errno, err)
			}
		}
	}
	replies := make([]byte, s.depth*(16+length))
	for b := range batches {
		var send []byte
		for i := range s.depth {
			send = nbdtest.Command{Type: nbdtest.CmdRead, Offset: places[(b*s.depth+i)%len(places)], Length: length}.Append(send)
		}
		for _, nc := range conns {
			if _, err := nc.Write(send); err != nil {
				t.Fatal(err)
			}
		}
		for _, nc := range conns {
			if _, err := io.ReadFull(nc, replies); err != nil {
				t.Fatal(err)
			}
			if magic, errno := binary.BigEndian.Uint32(replies), binary.BigEndian.Uint32(replies[4:]); magic != 0x67446698 || errno != 0 {
				t.Fatalf("reply %#x, error %d", magic, errno)
			}
		}
	}
}

// parseWork reads a coverage profile: lines "FILE:FROM,TO STATEMENTS COUNT".
func parseWork(t *testing.T, path string) work {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	w := work{}
	lines := bufio.NewScanner(f)
	lines.Scan() // "mode: atomic"
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		file, _, ok := strings.Cut(lines.Text(), ":")
		if !ok || len(fields) != 3 {
			t.Fatalf("coverage profile: %q", lines.Text())
		}
		statements, err1 := strconv.ParseFloat(fields[1], 64)
		count, err2 := strconv.ParseFloat(fields[2], 64)
		if err1 != nil || err2 != nil {
			t.Fatalf("coverage profile: %q", lines.Text())
		}
		w[strings.TrimPrefix(file, "github.com/vhbad/vhbad/")] += statements * count
	}
	if err := lines.Err(); err != nil || w.sum() == 0 {
		t.Fatalf("coverage profile of %d files, nothing executed: %v", len(w), err)
	}
	return w
}
