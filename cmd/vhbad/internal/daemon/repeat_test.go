package daemon

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/hba/cache"
	"github.com/vhbad/vhbad/hba/fault"
)

// A repeatable is a request that can be sent again.
type repeatable struct {
	flags, cmd uint16
	off        uint64
	n          int
	fill       byte
}

// repeatables are n requests, the same for the same seed.
func repeatables(seed uint64, n, sizeBytes int) (all []repeatable) {
	random := rand.New(rand.NewPCG(seed, 0))
	for range n {
		r := repeatable{n: 512 * (1 + random.IntN(32)), fill: byte(random.Uint32() | 1)}
		r.off = uint64(512 * random.IntN((sizeBytes-r.n)/512))
		switch k := random.IntN(20); {
		case k == 0:
			r = repeatable{cmd: cmdFlush}
		case k == 1:
			r.cmd = cmdTrim
		case k == 2:
			r.cmd = cmdWriteZeroes
		case k < 11:
			r.cmd = cmdRead
		default:
			r.cmd, r.flags = cmdWrite, uint16(random.IntN(4)/3) // FUA with one in four
		}
		all = append(all, r)
	}
	return all
}

// sumOf is short for data.
func sumOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:4])
}

// repeat sends requests, so many at once, and describes the replies in the requests' order.
func repeat(c *nbdConn, requests []repeatable, depth int) (replies []string) {
	c.t.Helper()
	be := binary.BigEndian
	replies = make([]string, len(requests))
	for from := 0; from < len(requests); from += depth {
		some := requests[from:min(from+depth, len(requests))]
		var msg []byte
		for i, r := range some {
			msg = be.AppendUint32(msg, 0x25609513)
			msg = be.AppendUint16(msg, r.flags)
			msg = be.AppendUint16(msg, r.cmd)
			msg = be.AppendUint64(msg, uint64(from+i))
			msg = be.AppendUint64(msg, r.off)
			msg = be.AppendUint32(msg, uint32(r.n))
			if r.cmd == cmdWrite {
				data := make([]byte, r.n)
				for k := range data {
					data[k] = r.fill
				}
				msg = append(msg, data...)
			}
		}
		c.write(msg)
		for range some {
			head := c.read(16)
			at, errno := be.Uint64(head[8:]), be.Uint32(head[4:])
			if r := requests[at]; r.cmd == cmdRead && errno == 0 {
				replies[at] = fmt.Sprintf("%d %+v: %s", at, r, sumOf(c.read(r.n)))
			} else {
				replies[at] = fmt.Sprintf("%d %+v: errno %d", at, r, errno)
			}
		}
	}
	return replies
}

// stepsOf describes the steps of a trace, less their time, and less those that are taken
// when the medium has taken something: when that is, nobody has promised.
func stepsOf(t *testing.T, path string) (steps []string) {
	t.Helper()
	r := openTrace(t, path)
	for {
		rec, err := r.Next()
		if errors.Is(err, io.EOF) {
			return steps
		}
		if err != nil {
			t.Fatal(err)
		}
		if rec.Kind == cache.StepDurable {
			continue
		}
		s := rec.Step
		s.Data = nil
		steps = append(steps, fmt.Sprintf("%v %+v %s", s.Kind, s, sumOf(rec.Data)))
	}
}

// TestRepeat: the same requests, one after the other, meet the same faults of the same
// rules with the same seeds, whatever these do, in daemons that know nothing of each other:
// the replies are the same, and so are what the rules have counted, the trace, what a power
// cut loses, and the image that it leaves. Another seed of one rule makes a difference.
func TestRepeat(t *testing.T) {
	const sizeBytes = 1 << 20
	run := func(seed uint64) (out []string) {
		s := newSettings(t, "db=file:$DIR/i.img,size=1MiB,cache=writeback,cache-size=128KiB,cache-eviction=random,cache-seed=3,trace=$DIR/t.trace")
		s.Hostile = true
		d, stop := s.mustStart(t)
		at := func(kib uint64) fault.Match { return fault.Match{LBA: new(2 * kib), Blocks: 2 * 128} }
		with := func(p float64, op ...string) fault.Match { return fault.Match{Op: op, Probability: &p} }
		for _, r := range []client.FaultRule{
			{Name: "bad", Seed: 1, Match: at(0), Action: fault.Action{Kind: fault.KindMediumError, Share: new(0.02)}},
			{Name: "rot", Seed: 2, Match: at(128), Action: fault.Action{Kind: fault.KindRot, Share: new(0.1), Bits: 3}},
			{Name: "stale", Match: at(256), Action: fault.Action{Kind: fault.KindStaleRead}},
			{Name: "flip", Seed: seed, Match: with(0.2, "read"), Action: fault.Action{Kind: fault.KindFlip, Bits: 5}},
			{Name: "lost", Seed: 5, Match: with(0.1, "write", "trim", "zero"), Action: fault.Action{Kind: fault.KindLostWrite}},
			{Name: "astray", Seed: 6, Match: with(0.1, "write"), Action: fault.Action{Kind: fault.KindMisdirected}},
			{Name: "fua", Seed: 7, Match: with(0.5, "write"), Action: fault.Action{Kind: fault.KindIgnoreFUA}},
			{Name: "lie", Seed: 8, Match: with(0.5, "flush"), Action: fault.Action{Kind: fault.KindLieAboutFlush}},
			{Name: "short", Match: fault.Match{Op: fault.Ops{"read", "write"}, Every: 17}, Action: fault.Action{Kind: fault.KindShortTransfer}},
			{Name: "full", Seed: 9, Match: with(0.1, "write"), Action: fault.Action{Kind: fault.KindErrno, Errno: "ENOSPC"}},
			{Name: "then", Match: fault.Match{AfterRule: "full", AfterCount: 5}, Budget: 3, Action: fault.Action{Kind: fault.KindWriteProtect}},
			{Name: "late", Seed: 10, Match: with(0.3), Action: fault.Action{Kind: fault.KindLatency, Latency: &fault.Latency{Distribution: fault.LogNormal, Median: 1000, Sigma: 1}}},
		} {
			r.Disk = "db"
			for _, k := range fault.Kinds() {
				r.Hostile = r.Hostile || k.Kind == r.Action.Kind && k.Hostile
			}
			if _, err := d.PutFault(r); err != nil {
				t.Fatal(err)
			}
		}
		out = repeat(open(t, s.socket(), "db"), repeatables(11, 600, sizeBytes), 1)
		faults, err := d.Faults()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range faults.Faults {
			out = append(out, fmt.Sprintf("%s has met %d and fired %d times", f.Rule.Name, f.Matched, f.Fired))
			if f.Fired == 0 {
				t.Errorf("rule %s has not fired: it proves nothing", f.Rule.Name)
			}
		}
		report, err := d.CutPower("db", client.PowerCutOptions{Seed: new(uint64(12)), Tear: "512", DropConnections: true})
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, fmt.Sprintf("cut: %s, %s, %v, %v, %+v", report.Class, report.ImageClass, report.Hostile, report.Acts, report.Sectors))
		stop()
		image, err := os.ReadFile(filepath.Join(s.dir, "i.img"))
		if err != nil {
			t.Fatal(err)
		}
		return append(append(out, "image: "+sumOf(image)), stepsOf(t, filepath.Join(s.dir, "t.trace"))...)
	}
	first := run(4)
	if diff := cmp.Diff(first, run(4)); diff != "" {
		t.Errorf("the same again has another outcome (-first +second):\n%s", diff)
	}
	if cmp.Equal(first, run(5)) {
		t.Error("another seed has the same outcome")
	}
}

// TestRepeat_InFlight: what one connection has in flight at once comes to the disk in its
// order, if there is one way only, so the same of its requests meet a fault, in whatever
// order they are answered.
func TestRepeat_InFlight(t *testing.T) {
	const sizeBytes = 1 << 20
	run := func(seed uint64) []string {
		s := newSettings(t, "db=memory:1MiB,cache=writeback")
		s.HBA.Queues = 1
		d, stop := s.mustStart(t)
		defer stop()
		// A flush that fails has those fail that are under way just then.
		match := fault.Match{Op: fault.Ops{"write", "trim", "zero"}, Probability: new(0.3)}
		_, err := d.PutFault(client.FaultRule{Name: "r", Seed: seed, Match: match, Action: fault.Action{Kind: fault.KindErrno, Errno: "ENOSPC"}})
		if err != nil {
			t.Fatal(err)
		}
		requests := repeatables(13, 1024, sizeBytes)
		for i := range requests {
			if r := &requests[i]; r.cmd == cmdRead { // what it reads depends on who was first
				r.cmd = cmdWrite
			}
		}
		return repeat(open(t, s.socket(), "db"), requests, 32)
	}
	first := run(1)
	if diff := cmp.Diff(first, run(1)); diff != "" {
		t.Errorf("the same again meets other faults (-first +second):\n%s", diff)
	}
	if cmp.Equal(first, run(2)) {
		t.Error("another seed meets the same faults")
	}
}
