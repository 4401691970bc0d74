package trace_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/cockroachdb/datadriven"

	"github.com/vhbad/vhbad/hba/cache"
	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/hba/trace"
)

// load is n calls of one user. It ends early when the power goes.
func load(c *cache.Cache, random *rand.Rand, n int) error {
	size := int(c.Size())
	for range n {
		length := 512 * (1 + random.IntN(16))
		off := int64(random.IntN((size-length)/512) * 512)
		p := make([]byte, length)
		for i := range p {
			p[i] = byte(random.Uint32())
		}
		var err error
		switch random.IntN(12) {
		case 0:
			err = c.Flush()
		case 1:
			_, err = c.WriteAtFUA(p, off)
		case 2:
			err = c.Discard(off, int64(length))
		case 3:
			err = c.Zero(off, int64(length), true)
		case 4:
			_, err = c.TryWriteAt(p, off)
		default:
			_, err = c.WriteAt(p, off)
		}
		if errors.Is(err, media.ErrPowerLost) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// TestReplay: four users, a buffer that is too small for them, power cuts in the
// middle of it; what the trace says gives the same bytes, and so does each cut
// by itself.
func TestReplay(t *testing.T) {
	f := &sheet{}
	w := record(t, f, trace.Config{BufferBytes: 16 << 10})
	under := memory(t, header.DiskBytes)
	c, err := cache.New(under, cache.Config{SizeBytes: header.CacheBytes, Eviction: header.Eviction, Seed: header.CacheSeed, Recorder: w})
	if err != nil {
		t.Fatal(err)
	}
	var left [][]byte
	for round := range uint64(3) {
		var wg sync.WaitGroup
		reached := make(chan struct{}, 4)
		for user := range uint64(4) {
			wg.Go(func() {
				random := rand.New(rand.NewPCG(round, user))
				err := load(c, random, 100)
				reached <- struct{}{}
				if err == nil {
					err = load(c, random, 1000)
				}
				if err != nil {
					t.Error(err)
				}
			})
		}
		<-reached
		if _, err := c.Cut(cache.CutOptions{Seed: round, TearBytes: 512, Damage: cache.Damage(round)}); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		left = append(left, nil)
		if _, err := c.Cut(cache.CutOptions{Policy: cache.PolicyNone}); err != nil { // of what has come since
			t.Fatal(err)
		}
		left = append(left, contents(t, under))
	}
	w.Mark("done")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	all := f.bytes()
	if s := w.Stats(); s.Waits == 0 {
		t.Error("nobody had to wait: make the buffer smaller")
	}
	for i, want := range left {
		if want == nil {
			continue
		}
		again := memory(t, header.DiskBytes)
		r, err := trace.NewReader(bytes.NewReader(all))
		if err != nil {
			t.Fatal(err)
		}
		result, err := trace.Replay(r, again, trace.Options{Cut: i + 1})
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(contents(t, again), want) {
			t.Errorf("cut %d leaves other bytes", i+1)
		}
		if result.Cuts != i+1 || result.Report == nil || result.Doubt != "" {
			t.Errorf("cut %d: %+v", i+1, result)
		}
	}
}

// TestReplay_LoseFlushed: a power cut that lost what was flushed is replayed without that,
// which the result says if it was to be as recorded.
func TestReplay_LoseFlushed(t *testing.T) {
	f := &sheet{}
	w := record(t, f, trace.Config{})
	w.Record(cache.Step{Kind: cache.StepCut, Cut: cache.CutOptions{Seed: 1, LoseFlushed: 2}})
	w.Record(cache.Step{Kind: cache.StepImage, Text: strings.Repeat("00", 32)})
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	seed := uint64(2)
	for _, o := range []trace.Options{{Cut: 1}, {Cut: 1, Choice: trace.Choice{Seed: &seed}}} {
		r, err := trace.NewReader(bytes.NewReader(f.bytes()))
		if err != nil {
			t.Fatal(err)
		}
		result, err := trace.Replay(r, memory(t, header.DiskBytes), o)
		if err != nil {
			t.Fatal(err)
		}
		if as := !o.Choice.Any(); as != strings.Contains(result.Doubt, "to lose what had been flushed") {
			t.Errorf("as recorded %v: doubt %q", as, result.Doubt)
		}
	}
}

var recordGolden = flag.Bool("record-golden", false, "write testdata/golden.trace anew; then run with -rewrite, and read the diff")

const goldenPath = "testdata/golden.trace"

// golden is a trace that was recorded once: its replays are what any version and
// machine has to make of it.
func golden(tb testing.TB) []byte {
	tb.Helper()
	if *recordGolden {
		f := &sheet{}
		w := record(tb, f, trace.Config{Header: trace.Header{
			Disk: "golden", SectorBytes: 512, DiskBytes: 256 << 10, CacheBytes: cache.MinSizeBytes, Eviction: cache.EvictRandom, CacheSeed: 1,
		}})
		c, err := cache.New(memory(tb, 256<<10), cache.Config{SizeBytes: cache.MinSizeBytes, Eviction: cache.EvictRandom, Seed: 1, Recorder: w})
		if err != nil {
			tb.Fatal(err)
		}
		random := rand.New(rand.NewPCG(1, 5))
		for i := range uint64(2) {
			err := load(c, random, 20)
			w.Mark(fmt.Sprintf("round %d", i))
			if err == nil {
				_, err = c.Cut(cache.CutOptions{Seed: i, TearBytes: 512})
			}
			if err == nil {
				err = load(c, random, 15)
			}
			if err != nil {
				tb.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			tb.Fatal(err)
		}
		if err := os.WriteFile(goldenPath, f.bytes(), 0o644); err != nil {
			tb.Fatal(err)
		}
	}
	b, err := os.ReadFile(goldenPath)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// TestReplay_Golden: the images of a trace, by where it is cut and how. They never
// change: who has kept a trace and a seed gets the same image again.
func TestReplay_Golden(t *testing.T) {
	b := golden(t)
	datadriven.RunTest(t, "testdata/replay", func(t *testing.T, d *datadriven.TestData) string {
		var o trace.Options
		for _, a := range d.CmdArgs {
			number := func() uint64 {
				n, err := strconv.ParseUint(a.Vals[0], 10, 64)
				if err != nil {
					d.Fatalf(t, "%s: %v", a.Key, err)
				}
				return n
			}
			switch a.Key {
			case "until":
				o.Until = number()
			case "cut":
				o.Cut = int(number())
			case "seed":
				n := number()
				o.Choice.Seed = &n
			case "tear":
				n := int(number())
				o.Choice.TearBytes = &n
			case "policy":
				o.Choice.Policy = new(cache.Policy)
				if err := o.Choice.Policy.UnmarshalText([]byte(a.Vals[0])); err != nil {
					d.Fatalf(t, "%v", err)
				}
			case "damage":
				o.Choice.Damage = new(cache.Damage)
				if err := o.Choice.Damage.UnmarshalText([]byte(a.Vals[0])); err != nil {
					d.Fatalf(t, "%v", err)
				}
			default:
				d.Fatalf(t, "unknown argument %s", a.Key)
			}
		}
		r, err := trace.NewReader(bytes.NewReader(b))
		if err != nil {
			d.Fatalf(t, "%v", err)
		}
		m := memory(t, r.Header().DiskBytes)
		result, err := trace.Replay(r, m, o)
		if err != nil {
			return fmt.Sprintf("error: %v\n", err)
		}
		var out strings.Builder
		fmt.Fprintf(&out, "%d records, %d cuts, %d unreadable\n", result.Records, result.Cuts, result.UnreadableSectors)
		if p := result.Report; p != nil {
			fmt.Fprintf(&out, "seed %d policy %s tear %d damage %s: %s %+v\n", p.Seed, p.Policy, p.TearBytes, p.Damage, p.Verdict.Class, p.Sectors)
		}
		fmt.Fprintf(&out, "%x\n", sha256.Sum256(contents(t, m)))
		return out.String()
	})
}

// TestReplay_Refused: what cannot be replayed says why.
func TestReplay_Refused(t *testing.T) {
	b := golden(t)
	zero := uint64(0)
	for _, tt := range []struct {
		name   string
		b      []byte
		medium func() media.Media
		o      trace.Options
		want   string
	}{
		{"both", b, nil, trace.Options{Until: 1, Cut: 1}, "not both"},
		{"beyond the end", b, nil, trace.Options{Until: 1 << 20}, "up to record 1048576, and the last is"},
		{"no such cut", b, nil, trace.Options{Cut: 3}, "up to power cut 3, and there are 2"},
		{"no such cut, chosen", b, nil, trace.Options{Cut: 3, Choice: trace.Choice{Seed: &zero}}, "up to power cut 3, and there are 2"},
		{"damaged", append(bytes.Clone(b[:5000]), 0), nil, trace.Options{}, "the file ends in the middle"},
		{"another medium", b, func() media.Media { return memory(t, 4096) }, trace.Options{}, "a medium of 4096 bytes for a disk of 262144"},
		{"another base", b, func() media.Media {
			m := memory(t, 256<<10)
			if _, err := m.WriteAt(bytes.Repeat([]byte{1}, 256<<10), 0); err != nil {
				t.Fatal(err)
			}
			return m
		}, trace.Options{Cut: 1}, "the medium is not what the recording began with"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := memory(t, 256<<10)
			if tt.medium != nil {
				m = tt.medium()
			}
			r, err := trace.NewReader(bytes.NewReader(tt.b))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := trace.Replay(r, m, tt.o); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}
