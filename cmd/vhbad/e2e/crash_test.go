//go:build kernel

package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	api "github.com/vhbad/vhbad/client"
)

var (
	crashesFlag   = flag.Int("crashes", 10, "how many power cuts each file system and database has to survive")
	crashSeedFlag = flag.Uint64("crash-seed", 0, "seed of the power cuts; 0 draws one, which a failure tells")
)

// Environment of init in the guest: the flags of the host.
const (
	envCrashes   = "VHBAD_GUEST_CRASHES"
	envCrashSeed = "VHBAD_GUEST_CRASH_SEED"
)

const (
	crashDisk  = "memory:320MiB,cache=writeback,cache-size=8MiB,cache-eviction=random"
	guestAdmin = "/run/admin.sock"
)

// fromHost is a number that the host has as a flag and the guest as environment.
func fromHost(name string, onHost uint64) uint64 {
	if n, err := strconv.ParseUint(os.Getenv(name), 10, 64); err == nil {
		return n
	}
	return onHost
}

func crashes() int { return int(fromHost(envCrashes, uint64(*crashesFlag))) }

// crashScenarios cut the power of a disk under a load, again and again, and check
// what comes back. Where the disk or the file system is told to be careless, the
// same checks must find something: a test that cannot fail proves nothing.
func crashScenarios() []scenario {
	all := []scenario{carelessScenario()}
	for _, x := range crashLoads {
		all = append(all, crashScenario("crash/"+x.name, x.fs, x.load))
	}
	return all
}

var crashLoads = []struct {
	name string
	fs   filesystem
	load func(seed uint64) crashLoad
}{
	{"ext4", ext4, fsyncs},
	{"xfs", xfs, fsyncs},
	{"sqlite-wal", ext4, func(uint64) crashLoad { return &sqliteLoad{mode: "wal"} }},
	{"sqlite-delete", ext4, func(uint64) crashLoad { return &sqliteLoad{mode: "delete"} }},
}

func fsyncs(seed uint64) crashLoad { return newFsyncLoad(seed) }

// A crashLoad is what works on the mounted file system when the power goes.
type crashLoad interface {
	// begin prepares for a round and starts to work. It returns once some work has
	// been acknowledged as durable: as much as enough says.
	begin(g *guest, enough int) error
	// cutting says that the power goes from now on: what is answered later counts as
	// tried only. A file system that has lost its disk may answer anything: ext4 of
	// Linux 6.1 was seen to answer an fsync of a folder as done, which came after the
	// last connection had gone and while the journal aborted.
	cutting()
	// end stops, after the disk has gone.
	end() error
	// check compares what is there with what was acknowledged.
	check(g *guest) error
}

// A crash is a series of power cuts of one disk.
type crash struct {
	fs      filesystem
	load    crashLoad
	options string // of the mount
	seed    uint64
	round   int
	random  *rand.Rand
	report  *api.PowerReport
}

func newCrash(fs filesystem, options string, load func(seed uint64) crashLoad) *crash {
	c := &crash{fs: fs, options: options, seed: fromHost(envCrashSeed, *crashSeedFlag)}
	if c.seed == 0 {
		c.seed = uint64(rand.Uint32()) + 1
	}
	c.random = rand.New(rand.NewPCG(c.seed, 0))
	c.load = load(c.seed)
	return c
}

func crashScenario(name string, fs filesystem, load func(seed uint64) crashLoad) scenario {
	s := scenario{name: name}
	var c *crash
	s.steps = append(s.steps,
		step{"start", func(g *guest) error {
			c = newCrash(fs, "", load)
			return g.startServer(overUnix, fmt.Sprintf("%s,cache-seed=%d", crashDisk, c.seed))
		}},
		step{"mkfs", func(g *guest) error { return c.mkfs(g) }})
	for i := range crashes() {
		s.steps = append(s.steps, step{fmt.Sprintf("round_%02d", i+1), func(g *guest) error {
			if err := c.crashOnce(g); err != nil {
				return err
			}
			if c.report.Class != "legal" {
				return c.fail(fmt.Errorf("the power cut was %s: %v", c.report.Class, c.report.Findings))
			}
			return c.fail(c.recover(g))
		}})
	}
	s.steps = append(s.steps, step{"stop", (*guest).stopServer})
	return s
}

// carelessScenario has a disk that lies about flushes, and then a file system that
// sends none. Within some power cuts each, something acknowledged is lost, or the
// file system is damaged; and only the disk's lie is the disk's fault.
func carelessScenario() scenario {
	s := scenario{name: "crash/careless"}
	add := func(name string, fs filesystem, load func(uint64) crashLoad, disk, options, class string) {
		var c *crash
		s.steps = append(s.steps,
			step{name + "/start", func(g *guest) error {
				c = newCrash(fs, options, load)
				return g.startServer(overUnix, fmt.Sprintf("%s,cache-seed=%d", disk, c.seed), "--hostile")
			}},
			step{name + "/mkfs", func(g *guest) error { return c.mkfs(g) }},
			step{name + "/caught", func(g *guest) error { return c.untilCaught(g, class) }},
			step{name + "/stop", (*guest).stopServer})
	}
	for _, x := range crashLoads {
		add("lying_flush/"+x.name, x.fs, x.load, crashDisk+",hostile=lying-flush", "", "hostile")
	}
	add("nobarrier/ext4", ext4, fsyncs, crashDisk, "nobarrier", "legal")
	return s
}

// untilCaught cuts the power until a check fails.
func (c *crash) untilCaught(g *guest, class string) error {
	const most = 10
	for range most {
		if err := c.crashOnce(g); err != nil {
			return err
		}
		if err := c.recover(g); err != nil {
			if c.report.Class != class {
				return c.fail(fmt.Errorf("something was lost, and the power cut is called %s, want %s", c.report.Class, class))
			}
			fmt.Printf("guest: caught after %d power cuts: %v\n", c.round, err)
			return g.leave()
		}
	}
	return c.fail(fmt.Errorf("nothing was lost by %d power cuts", most))
}

// leave gets rid of the device in whatever state it is.
func (g *guest) leave() error {
	_ = unix.Unmount(guestMount, 0) // it may not be mounted
	return g.detach(vhbadClient)
}

// fail says how to come here again.
func (c *crash) fail(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("round %d, -crash-seed %d, power cut with seed %d, policy %s, tear %s: %w",
		c.round, c.seed, c.report.Seed, c.report.Policy, c.report.Tear, err)
}

func (c *crash) mkfs(g *guest) error {
	if err := g.attach(vhbadClient, overUnix, 2); err != nil {
		return err
	}
	if err := g.run(c.fs.mkfs[0], append(c.fs.mkfs[1:], guestDevice)...); err != nil {
		return err
	}
	return g.detach(vhbadClient)
}

// crashOnce mounts the file system, has the load work, and cuts the power in the
// middle of that. The device is detached then, as by a machine that is off.
func (c *crash) crashOnce(g *guest) error {
	c.round++
	if err := g.attach(vhbadClient, overUnix, 2); err != nil {
		return err
	}
	if err := c.mount(); err != nil {
		return err
	}
	if err := c.load.begin(g, 10+c.random.IntN(40)); err != nil {
		return err
	}
	seed := c.random.Uint64() >> 12
	c.load.cutting()
	policies := []string{"subset", "subset", "reverse", "one-missing", "prefix", "none", "all"}
	a := api.New(guestAdmin)
	defer a.Close()
	ctx, cancel := context.WithTimeout(context.Background(), guestCommandTimeout)
	defer cancel()
	var err error
	c.report, err = a.CutPower(ctx, exportName, api.PowerCutOptions{
		Seed: &seed, Policy: policies[c.random.IntN(len(policies))], Tear: []string{"none", "512", "4096"}[c.random.IntN(3)],
		DropConnections: true,
	})
	if err != nil {
		return err
	}
	// Without the device's end, what was in flight would wait for its timeout.
	if err := nbdClient.detach(g); err != nil {
		return err
	}
	if err := c.load.end(); err != nil {
		return err
	}
	if err := g.unmount(); err != nil {
		return err
	}
	return g.awaitFree()
}

func (c *crash) mount() error {
	if err := unix.Mount(guestDevice, guestMount, c.fs.name, 0, c.options); err != nil {
		return fmt.Errorf("mount %s: %w", c.fs.name, err)
	}
	return nil
}

// recover attaches the disk again, mounts it, which replays the journal, and
// checks the data, then the file system.
func (c *crash) recover(g *guest) error {
	if err := g.attach(vhbadClient, overUnix, 2); err != nil {
		return err
	}
	if err := c.mount(); err != nil {
		return err
	}
	if err := c.load.check(g); err != nil {
		return err
	}
	if err := g.unmount(); err != nil {
		return err
	}
	if err := g.run(c.fs.check[0], append(c.fs.check[1:], guestDevice)...); err != nil {
		return err
	}
	return g.detach(vhbadClient)
}

// A fsyncLoad has several writers that each change files of their own in three
// ways, and know what of that fsync has acknowledged.
type fsyncLoad struct {
	writers []*fsyncWriter
	stop    atomic.Bool
	late    atomic.Bool // the power goes
	group   sync.WaitGroup

	mu     sync.Mutex
	cond   sync.Cond // on mu: acknowledged has grown, or failed is set
	count  int       // acknowledged changes of the round
	failed int       // writers that have ended
}

const (
	fsyncWriters = 3
	fsyncFiles   = 8
	stampBytes   = 512 // each has the file's version
	cellBytes    = 8 * stampBytes
)

func newFsyncLoad(seed uint64) *fsyncLoad {
	l := &fsyncLoad{}
	l.cond.L = &l.mu
	for i := range fsyncWriters {
		l.writers = append(l.writers, &fsyncWriter{
			load: l, folder: fmt.Sprintf("%s/w%d", guestMount, i), random: rand.New(rand.NewPCG(seed, uint64(i+1))),
		})
	}
	return l
}

func (l *fsyncLoad) begin(_ *guest, enough int) error {
	l.stop.Store(false)
	l.late.Store(false)
	l.mu.Lock()
	l.count, l.failed = 0, 0
	l.mu.Unlock()
	for _, w := range l.writers {
		if err := os.MkdirAll(w.folder, 0o755); err != nil {
			return err
		}
		if err := syncFolder(guestMount); err != nil {
			return err
		}
		l.group.Go(w.work)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.count < enough && l.failed == 0 {
		l.cond.Wait()
	}
	if l.failed > 0 {
		return fmt.Errorf("a writer has failed before the power went: %w", errors.Join(l.writers[0].err, l.writers[1].err, l.writers[2].err))
	}
	return nil
}

func (l *fsyncLoad) cutting() { l.late.Store(true) }

func (l *fsyncLoad) end() error {
	l.stop.Store(true)
	l.group.Wait()
	return nil
}

func (l *fsyncLoad) check(*guest) error {
	for _, w := range l.writers {
		if err := w.check(); err != nil {
			return err
		}
	}
	return nil
}

// A fsyncWriter owns some files of three kinds. What it has tried and what was
// acknowledged is all that it remembers of them.
type fsyncWriter struct {
	load   *fsyncLoad
	folder string
	random *rand.Rand
	err    error

	cells, replaced [fsyncFiles]versions
	appended        versions
}

// versions are those of a file: the last one that fsync acknowledged, and the last
// one that was tried.
type versions struct{ acknowledged, tried uint64 }

func (w *fsyncWriter) work() {
	for !w.load.stop.Load() {
		var v *versions
		switch i := w.random.IntN(fsyncFiles); w.random.IntN(3) {
		case 0:
			v = &w.cells[i]
			v.tried++
			w.err = w.overwrite(i, v.tried)
		case 1:
			v = &w.replaced[i]
			v.tried++
			w.err = w.replace(i, v.tried)
		case 2:
			v = &w.appended
			v.tried++
			w.err = w.appendTo(v.tried)
		}
		w.load.mu.Lock()
		if w.err != nil {
			w.load.failed++
		} else if !w.load.late.Load() {
			v.acknowledged = v.tried
			w.load.count++
		}
		w.load.cond.Signal()
		w.load.mu.Unlock()
		if w.err != nil {
			return
		}
	}
}

// stamps is n stamps of a version.
func stamps(n int, version uint64) []byte {
	p := make([]byte, n*stampBytes)
	for i := range n {
		copy(p[i*stampBytes:], fmt.Sprintf("version %d\n", version))
	}
	return p
}

// versionOf reads one stamp.
func versionOf(p []byte) (version uint64, err error) {
	if _, err := fmt.Sscanf(string(p), "version %d\n", &version); err != nil {
		return 0, fmt.Errorf("no stamp but %q", p[:min(len(p), 16)])
	}
	return version, nil
}

func (w *fsyncWriter) cell(i int) string { return fmt.Sprintf("%s/cell%d", w.folder, i) }
func (w *fsyncWriter) file(i int) string { return fmt.Sprintf("%s/file%d", w.folder, i) }
func (w *fsyncWriter) log() string       { return w.folder + "/log" }

// change opens a file, lets fn write to it, and syncs it.
func change(path string, flags int, fn func(f *os.File) error) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|flags, 0o644)
	if err != nil {
		return err
	}
	if err := fn(f); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Sync(); err != nil {
		return errors.Join(err, f.Close())
	}
	return f.Close()
}

func syncFolder(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// overwrite changes a file in place.
func (w *fsyncWriter) overwrite(i int, version uint64) error {
	err := change(w.cell(i), 0, func(f *os.File) error {
		_, err := f.WriteAt(stamps(cellBytes/stampBytes, version), 0)
		return err
	})
	if err == nil && version == 1 {
		err = syncFolder(w.folder)
	}
	return err
}

// replace puts a new file in an old one's place.
func (w *fsyncWriter) replace(i int, version uint64) error {
	next := w.file(i) + ".next"
	err := change(next, os.O_TRUNC, func(f *os.File) error {
		_, err := f.Write(stamps(cellBytes/stampBytes, version))
		return err
	})
	if err != nil {
		return err
	}
	if err := os.Rename(next, w.file(i)); err != nil {
		return err
	}
	return syncFolder(w.folder)
}

// appendTo adds a stamp to a file.
func (w *fsyncWriter) appendTo(version uint64) error {
	err := change(w.log(), os.O_APPEND, func(f *os.File) error {
		_, err := f.Write(stamps(1, version))
		return err
	})
	if err == nil && version == 1 {
		err = syncFolder(w.folder)
	}
	return err
}

// check wants each file as it was acknowledged, or later. What is there is what
// the next round begins with.
func (w *fsyncWriter) check() error {
	for i := range fsyncFiles {
		if err := w.cells[i].check(w.cell(i), false); err != nil {
			return err
		}
		if err := w.replaced[i].check(w.file(i), true); err != nil {
			return err
		}
	}
	return w.checkLog()
}

// check reads a file of stamps: each is of the acknowledged version or of one that
// was tried after it, and of a file that is replaced all are of one version.
func (v *versions) check(path string, whole bool) error {
	if v.tried == 0 {
		return nil
	}
	p, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) && v.acknowledged == 0 {
		v.tried = 0
		return nil
	}
	if err != nil {
		return fmt.Errorf("version %d was acknowledged: %w", v.acknowledged, err)
	}
	if len(p) != cellBytes && (v.acknowledged > 0 || whole) {
		return fmt.Errorf("%s has %d bytes, version %d of %d bytes was acknowledged", path, len(p), v.acknowledged, cellBytes)
	}
	lowest, highest := v.tried, uint64(0)
	if len(p) != cellBytes {
		lowest = 0 // that, too, is a file that was being written for the first time
	}
	for i := 0; i+stampBytes <= len(p); i += stampBytes {
		got, err := versionOf(p[i:])
		if err != nil && v.acknowledged == 0 && !whole {
			got, err = 0, nil // a file that was being written for the first time
		}
		if err != nil || got < v.acknowledged || got > v.tried {
			return fmt.Errorf("%s at %d: version %d, %w; %d was acknowledged and %d tried", path, i, got, err, v.acknowledged, v.tried)
		}
		lowest, highest = min(lowest, got), max(highest, got)
	}
	if whole && lowest != highest {
		return fmt.Errorf("%s has versions %d to %d; it is only ever replaced", path, lowest, highest)
	}
	if v.acknowledged = lowest; lowest == 0 {
		v.tried = 0
	}
	return nil
}

// What a first write that nobody acknowledged has left behind is not taken for acknowledged.
func TestVersions_FirstWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cell")
	for _, n := range []int{0, 1, cellBytes/stampBytes - 1, cellBytes / stampBytes} {
		if err := os.WriteFile(path, stamps(n, 1), 0o600); err != nil {
			t.Fatal(err)
		}
		v, want := versions{tried: 1}, versions{}
		if n*stampBytes == cellBytes {
			want = versions{acknowledged: 1, tried: 1}
		}
		if err := v.check(path, false); err != nil || v != want {
			t.Errorf("of %d stamps: %+v, %v; want %+v", n, v, err, want)
		}
	}
}

// checkLog wants all acknowledged stamps, in order. What follows may be anything
// that an append can leave behind; it is cut off.
func (w *fsyncWriter) checkLog() error {
	v := &w.appended
	p, err := os.ReadFile(w.log())
	if errors.Is(err, os.ErrNotExist) && v.acknowledged == 0 {
		v.tried = 0
		return nil
	}
	if err != nil {
		return err
	}
	good := uint64(0)
	for good < v.tried && int(good+1)*stampBytes <= len(p) {
		if got, err := versionOf(p[good*stampBytes:]); err != nil || got != good+1 {
			break
		}
		good++
	}
	if good < v.acknowledged {
		return fmt.Errorf("%s of %d bytes has %d stamps, %d were acknowledged", w.log(), len(p), good, v.acknowledged)
	}
	v.acknowledged, v.tried = good, good
	if err := os.Truncate(w.log(), int64(good)*stampBytes); err != nil {
		return err
	}
	return change(w.log(), 0, func(*os.File) error { return nil })
}
