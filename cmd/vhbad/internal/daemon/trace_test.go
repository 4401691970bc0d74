package daemon

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
	"github.com/vhbad/vhbad/hba/cache"
	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/hba/trace"
)

// bother sends random writes, trims, zeroes and flushes of a connection, some with FUA,
// until an error. It calls done after the n-th.
func bother(c *nbdConn, random *rand.Rand, sizeBytes, n int, done func()) error {
	be := binary.BigEndian
	for i := 0; ; i++ {
		if i == n {
			done()
		}
		length := 512 * (1 + random.IntN(32))
		off := 512 * random.IntN((sizeBytes-length)/512)
		flags, cmd, data := uint16(random.IntN(2)*random.IntN(2)), uint16(cmdWrite), []byte(nil)
		switch random.IntN(10) {
		case 0:
			cmd, off, length = cmdFlush, 0, 0
		case 1:
			cmd = 4 // TRIM
		case 2:
			cmd = 6 // WRITE_ZEROES
		default:
			data = bytes.Repeat([]byte{byte(random.Uint32() | 1)}, length)
		}
		msg := be.AppendUint32(nil, 0x25609513)
		msg = be.AppendUint16(msg, flags)
		msg = be.AppendUint16(msg, cmd)
		msg = be.AppendUint64(msg, uint64(i))
		msg = be.AppendUint64(msg, uint64(off))
		msg = be.AppendUint32(msg, uint32(length))
		if _, err := c.Write(append(msg, data...)); err != nil {
			return nil // the power has gone
		}
		reply, err := c.tryRead(16)
		if err != nil {
			return nil
		}
		if errno := be.Uint32(reply[4:]); errno == 5 { // so it has
			return nil
		} else if errno != 0 || be.Uint64(reply[8:]) != uint64(i) {
			return fmt.Errorf("command %d: reply %x", i, reply)
		}
	}
}

// openTrace returns a reader of a trace, for as long as the test runs.
func openTrace(t *testing.T, path string) *trace.Reader {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	r, err := trace.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// replayed is the image that a trace gives.
func replayed(t *testing.T, path string, base []byte, o trace.Options) ([]byte, *trace.Result) {
	t.Helper()
	r := openTrace(t, path)
	m, err := media.NewMemory(media.MemoryConfig{SizeBytes: r.Header().DiskBytes})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	if _, err := m.WriteAt(base, 0); err != nil {
		t.Fatal(err)
	}
	result, err := trace.Replay(r, m, o)
	if err != nil {
		t.Fatal(err)
	}
	image := make([]byte, m.Size())
	if _, err := m.ReadAt(image, 0); err != nil {
		t.Fatal(err)
	}
	return image, result
}

// TestTrace_Replay: a daemon under the load of several connections loses its power three
// times; each time, replaying the trace with the same seeds, without daemon and load, gives
// the disk's image, byte for byte.
func TestTrace_Replay(t *testing.T) {
	for _, eviction := range []string{"fifo", "random", "none"} {
		t.Run(eviction, func(t *testing.T) {
			const sizeBytes = 1 << 20
			s := newSettings(t, "db=file:$DIR/i.img,cache=writeback,cache-size=128KiB,cache-seed=3,trace=$DIR/t.trace,cache-eviction="+eviction)
			image, path := filepath.Join(s.dir, "i.img"), filepath.Join(s.dir, "t.trace")
			base := make([]byte, sizeBytes)
			random := rand.New(rand.NewPCG(1, 2))
			for i := range base {
				base[i] = byte(random.Uint32())
			}
			if err := os.WriteFile(image, base, 0o600); err != nil {
				t.Fatal(err)
			}
			d, stop := s.mustStart(t)
			var left [][]byte
			var reports []client.PowerReport
			for round := range uint64(3) {
				var users sync.WaitGroup
				half := make(chan struct{}, 4)
				for user := range uint64(4) {
					c := open(t, s.socket(), "db")
					users.Go(func() {
						if err := bother(c, rand.New(rand.NewPCG(round, user)), sizeBytes, 60, func() { half <- struct{}{} }); err != nil {
							t.Error(err)
						}
					})
				}
				<-half
				if _, err := d.SetMark(fmt.Sprint("round ", round)); err != nil {
					t.Fatal(err)
				}
				report, err := d.CutPower("db", client.PowerCutOptions{
					Seed: &round, Tear: "512", Damage: []string{"old", "garbage", "unreadable"}[round], DropConnections: true,
				})
				if err != nil {
					t.Fatal(err)
				}
				users.Wait()
				b, err := os.ReadFile(image)
				if err != nil {
					t.Fatal(err)
				}
				left, reports = append(left, b), append(reports, report)
			}
			// While the daemon runs, whoever has the report can replay it.
			most := 0 // was pending at that cut
			for i := range left {
				got, result := replayed(t, path, base, trace.Options{Cut: i + 1})
				if !bytes.Equal(got, left[i]) {
					t.Errorf("power cut %d: the replay's image is another", i+1)
				}
				if result.Doubt != "" || result.Report.ImageSHA256 != reports[i].ImageSHA256 || result.Report.Sectors.Pending != reports[i].Sectors.Pending {
					t.Errorf("power cut %d: %+v, the daemon had %+v", i+1, result, reports[i].Sectors)
				}
				if result.Report.Sectors.Pending > reports[most].Sectors.Pending {
					most = i
				}
			}
			if reports[most].Sectors.Pending == 0 {
				t.Error("nothing was pending at any power cut, which proves nothing")
			}
			same := 0
			for seed := range uint64(8) {
				seed += 1000
				if got, _ := replayed(t, path, base, trace.Options{Cut: most + 1, Choice: trace.Choice{Seed: &seed}}); bytes.Equal(got, left[most]) {
					same++
				}
			}
			if same == 8 {
				t.Errorf("eight other seeds leave the same image, of %d pending sectors", reports[most].Sectors.Pending)
			}
			// After a stop it is complete, and its end is the disk's.
			stop()
			got, result := replayed(t, path, base, trace.Options{})
			if b, err := os.ReadFile(image); err != nil || !bytes.Equal(got, b) || result.Incomplete != "" || result.Cuts != 3 {
				t.Errorf("at the end: the same %v, %+v, %v", bytes.Equal(got, b), result, err)
			}
		})
	}
}

// kinds counts the records of a trace by kind, marks by their text.
func kinds(t *testing.T, path string) (count map[string]int, complete bool, reason string) {
	t.Helper()
	r := openTrace(t, path)
	count = make(map[string]int)
	for {
		rec, err := r.Next()
		if errors.Is(err, io.EOF) {
			complete, reason = r.End()
			return count, complete, reason
		}
		if err != nil {
			t.Fatal(err)
		}
		name := rec.Kind.String()
		if rec.Kind == cache.StepMark {
			name += " " + rec.Text
		}
		count[name]++
	}
}

// TestTrace_Life: a trace begins and ends with its disk, also one that comes later,
// has the marks, and is told of.
func TestTrace_Life(t *testing.T) {
	s := newSettings(t, "a=memory:1MiB,cache=writeback")
	d, _ := s.mustStart(t)
	api := client.New(s.Admin)
	defer api.Close()
	events := s.follow(t, client.EventTraceStarted, client.EventTraceEnded)
	path := filepath.Join(s.dir, "b.trace")
	spec := client.DiskSpec{MemoryBytes: 1 << 20, Cache: "writeback", Trace: path}
	if _, err := api.AddDisk(t.Context(), "b", spec); err != nil {
		t.Fatal(err)
	}
	if e := events.want(client.EventTraceStarted, "b"); e.Fields["path"] != path {
		t.Errorf("event %+v", e)
	}
	c := open(t, s.socket(), "b")
	if _, err := c.do(cmdWrite, 0, 512, make([]byte, 512)); err != nil {
		t.Fatal(err)
	}
	if _, err := api.SetMark(t.Context(), "here"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.do(cmdFlush, 0, 0, nil); err != nil {
		t.Fatal(err)
	}
	p, err := api.Power(t.Context(), "b")
	if err != nil || p.Trace == nil || p.Trace.Path != path || p.Trace.Records == 0 || p.Trace.Bytes == 0 || p.Trace.Error != "" {
		t.Errorf("power: %+v, %v", p.Trace, err)
	}
	snap, _ := d.Snapshot()
	if m := snap.Disks[1].Trace; m == nil || m.Records == 0 {
		t.Errorf("metrics: %+v", m)
	}
	if p, err := api.Power(t.Context(), "a"); err != nil || p.Trace != nil || snap.Disks[0].Trace != nil {
		t.Errorf("a disk without a trace: %+v, %v", p.Trace, err)
	}
	// Nobody else can write there.
	if _, err := api.AddDisk(t.Context(), "c", spec); !errors.Is(err, client.ErrConflict) {
		t.Errorf("two disks with one trace: %v, want ErrConflict", err)
	}
	for trace, want := range map[string]string{"t.trace": "want an absolute path", s.dir: "is a directory"} {
		if _, err := api.AddDisk(t.Context(), "c", client.DiskSpec{MemoryBytes: 1 << 20, Cache: "writeback", Trace: trace}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("trace %s: %v, want %q", trace, err, want)
		}
	}
	if _, err := api.RemoveDisk(t.Context(), "b", client.RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	if e := events.want(client.EventTraceEnded, "b"); e.Fields["path"] != path || e.Fields["records"] == 0.0 {
		t.Errorf("event %+v", e)
	}
	count, complete, reason := kinds(t, path)
	if !complete || count["write"] != 1 || count["mark here"] != 1 || count["flush"] < 1 || count["durable"] != 1 || count["answer"] != 1 {
		t.Errorf("complete %v (%s), records %v", complete, reason, count)
	}
}

// TestTrace_Full: a trace that has no room any more ends with the reason, and the disk
// goes on.
func TestTrace_Full(t *testing.T) {
	// Far more than the test's own log of files and variables, which go test keeps.
	const (
		limitBytes = 4 << 20
		piece      = 256 << 10
	)
	s := newSettings(t, "db=memory:8MiB,cache=writeback,trace=$DIR/t.trace")
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &was); err != nil {
		t.Fatal(err)
	}
	d, _ := s.mustStart(t)
	events := s.follow(t, client.EventTraceFailed)
	c := open(t, s.socket(), "db")
	write := func(i int) {
		t.Helper()
		if _, err := c.do(cmdWrite, uint64(i)*piece, piece, bytes.Repeat([]byte{7}, piece)); err != nil {
			t.Fatal(err)
		}
	}
	write(0)
	if _, err := d.Power("db"); err != nil {
		t.Fatal(err)
	}
	signal.Ignore(unix.SIGXFSZ)
	defer signal.Reset(unix.SIGXFSZ)
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: limitBytes, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &was); err != nil {
			t.Fatal(err)
		}
	}()
	const before = limitBytes/piece - 1 // each has a header
	for i := range before + 1 {
		write(i)
	}
	if e := events.want(client.EventTraceFailed, "db"); !strings.Contains(fmt.Sprint(e.Fields["error"]), "file too large") {
		t.Errorf("event %+v", e)
	}
	write(1)
	if _, err := c.do(cmdFlush, 0, 0, nil); err != nil {
		t.Fatal(err)
	}
	if got, err := c.do(cmdRead, 0, 4096, nil); err != nil || got[0] != 7 {
		t.Errorf("the disk: %v", err)
	}
	if p, err := d.Power("db"); err != nil || p.Trace == nil || !strings.Contains(p.Trace.Error, "file too large") {
		t.Errorf("power: %+v, %v", p.Trace, err)
	}
	snap, _ := d.Snapshot()
	if m := snap.Disks[0].Trace; m == nil || m.Err == nil {
		t.Errorf("metrics: %+v", m)
	}
	count, complete, reason := kinds(t, filepath.Join(s.dir, "t.trace"))
	if complete || !strings.Contains(reason, "file too large") || count["write"] != before {
		t.Errorf("complete %v (%s), records %v", complete, reason, count)
	}
}

// TestTrace_Refused: a trace that cannot be written is no disk.
func TestTrace_Refused(t *testing.T) {
	s := newSettings(t, "db=memory:1MiB,cache=writeback,trace=$DIR/t.trace")
	path := filepath.Join(s.dir, "t.trace")
	if err := os.WriteFile(path, []byte("an image"), 0o600); err != nil {
		t.Fatal(err)
	}
	if d, err := s.start(t); err == nil {
		t.Error("the daemon has started")
		_ = d.Stop(t.Context())
	} else if !strings.Contains(err.Error(), path+": is there, and no trace: it is not written over") {
		t.Error(err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "an image" {
		t.Errorf("the file is %q now, %v", b, err)
	}
	if _, err := config.ParseDisk("d=memory:1MiB,trace=/t"); err == nil || !strings.Contains(err.Error(), "want cache writeback") {
		t.Errorf("without a cache: %v", err)
	}
}
