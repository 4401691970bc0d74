package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
	"github.com/vhbad/vhbad/hba/media"
)

// control is a client of the daemon's API.
func (s *settings) control(t *testing.T) *client.Client {
	t.Helper()
	c := client.New(s.Admin)
	t.Cleanup(c.Close)
	return c
}

// machineOf is the daemon's machine.
func machineOf(d *Daemon) *machine {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.machine
}

// noViolations fails the test for anything that the verifier has seen.
func noViolations(t *testing.T, m *machine) {
	t.Helper()
	for _, v := range m.system.Verifier().Violations() {
		t.Errorf("violation: %s", v)
	}
}

// refused is why an export cannot be had, nil if it can.
func (s *settings) refused(t *testing.T, export string) error {
	t.Helper()
	nc, err := net.Dial("unix", s.socket())
	if err != nil {
		t.Fatal(err)
	}
	_, err = tryNegotiate(t, nc, export)
	return err
}

// wantError fails the test unless err is of that kind and says so.
func wantError(t *testing.T, err, kind error, text string) {
	t.Helper()
	if !errors.Is(err, kind) || !strings.Contains(err.Error(), text) {
		t.Errorf("error %v, want %v with %q", err, kind, text)
	}
}

// TestDisks_Life: a disk comes, is used, and goes, while another is used on.
func TestDisks_Life(t *testing.T) {
	s := newSettings(t, "first=memory:1MiB")
	d, _ := s.mustStart(t)
	ctl, events := s.control(t), s.follow(t, client.EventDiskAdded, client.EventDiskRemoved)
	bystander := open(t, s.socket(), "first")
	image := filepath.Join(s.dir, "i.img")
	spec := client.DiskSpec{File: image, SizeBytes: 1 << 20, BlockBytes: 4096, Description: "the second"}
	got, err := ctl.AddDisk(t.Context(), "a/b ö", spec)
	if err != nil {
		t.Fatal(err)
	}
	if got.Name != "a/b ö" || got.Address != "0:0:1" || got.Origin != client.OriginAPI || got.State != client.DiskServing || got.SizeBytes != 1<<20 || got.Path != image {
		t.Errorf("added %+v", got)
	}
	if e := events.want(client.EventDiskAdded, "a/b ö"); e.Fields["address"] != "0:0:1" || e.Fields["origin"] != "api" {
		t.Errorf("event %+v", e)
	}
	if again, err := ctl.AddDisk(t.Context(), "a/b ö", spec); err != nil || again.Address != got.Address {
		t.Errorf("the same again: %+v, %v", again, err)
	}
	if one, err := ctl.Disk(t.Context(), "a/b ö"); err != nil || one.Description != "the second" {
		t.Errorf("asked for: %+v, %v", one, err)
	}
	c := open(t, s.socket(), "a/b ö")
	data := bytes.Repeat([]byte("x"), 8192)
	if _, err := c.do(cmdWrite, 4096, len(data), data); err != nil {
		t.Error(err)
	}
	_, err = ctl.RemoveDisk(t.Context(), "a/b ö", client.RemoveOptions{})
	wantError(t, err, client.ErrConflict, "1 clients use it: --force")
	if _, err := c.do(cmdRead, 0, 4096, nil); err != nil {
		t.Errorf("after a removal that was refused: %v", err)
	}
	r, err := ctl.RemoveDisk(t.Context(), "a/b ö", client.RemoveOptions{Force: true})
	if diff := cmp.Diff(&client.DiskRemoval{Name: "a/b ö", ConnectionsClosed: 1}, r); err != nil || diff != "" {
		t.Errorf("%v, -want +got\n%s", err, diff)
	}
	events.want(client.EventDiskRemoved, "a/b ö")
	if _, err := c.tryRead(1); err == nil {
		t.Error("the connection to a removed disk goes on")
	}
	if err := s.refused(t, "a/b ö"); err == nil {
		t.Error("a removed disk can be opened")
	}
	if b, err := os.ReadFile(image); err != nil || !bytes.Equal(b[4096:4096+len(data)], data) {
		t.Errorf("the image of a removed disk: %v, or other data", err)
	}
	if _, err := bystander.do(cmdWrite, 0, 4096, data[:4096]); err != nil {
		t.Errorf("the bystander: %v", err)
	}
	// The address, the name and the file are free again; and the first disk may go.
	if got, err = ctl.AddDisk(t.Context(), "a/b ö", client.DiskSpec{File: image}); err != nil || got.Address != "0:0:1" {
		t.Errorf("added again: %+v, %v", got, err)
	}
	if c = open(t, s.socket(), "a/b ö"); c.sizeBytes != 1<<20 {
		t.Errorf("%d bytes", c.sizeBytes)
	}
	if _, err := ctl.RemoveDisk(t.Context(), "first", client.RemoveOptions{Force: true}); err != nil {
		t.Error(err)
	}
	if st := d.Status(); len(st.Disks) != 1 || !st.Disks[0].Default {
		t.Errorf("the disks are %+v", st.Disks)
	}
	if _, err := ctl.RemoveDisk(t.Context(), "a/b ö", client.RemoveOptions{Force: true}); err != nil {
		t.Error(err)
	}
	if disks, err := ctl.Disks(t.Context()); len(disks) != 0 || err != nil {
		t.Errorf("%+v, %v; want none", disks, err)
	}
	if err := s.refused(t, ""); err == nil {
		t.Error("without disks there is a default export")
	}
	noViolations(t, machineOf(d))
}

// TestDisks_Wrong: impossible requests are refused, and nothing changes.
func TestDisks_Wrong(t *testing.T) {
	s := newSettings(t, "one=memory:1MiB", "two=file:$DIR/two.img,size=1MiB", "ro=memory:1MiB,read-only")
	d, _ := s.mustStart(t)
	ctl := s.control(t)
	odd := filepath.Join(s.dir, "odd.img")
	if err := os.WriteFile(odd, []byte("odd"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := d.Status()
	for _, tt := range []struct {
		name string
		spec client.DiskSpec
		kind error
		text string
	}{
		{"one", client.DiskSpec{MemoryBytes: 2 << 20}, client.ErrConflict, "one=memory:1MiB"},
		{"x", client.DiskSpec{}, client.ErrInvalid, "want either memory (a size) or file (a path), not neither"},
		{"x", client.DiskSpec{MemoryBytes: 1000}, client.ErrInvalid, "size 1000 is not a multiple"},
		{"x", client.DiskSpec{MemoryBytes: 1 << 20, BlockBytes: 100}, client.ErrInvalid, "block-size 100: want 512 or 4096"},
		{"x", client.DiskSpec{MemoryBytes: 1 << 20, Allow: []string{"n"}}, client.ErrInvalid, "want tls certificates and verify-peer"},
		{"x", client.DiskSpec{MemoryBytes: -512}, client.ErrInvalid, "size -512: want at least one block, 512 bytes"},
		{"x", client.DiskSpec{MemoryBytes: 1 << 62}, client.ErrInvalid, "memory of 4611686018427387904 bytes: want at most"},
		{"x", client.DiskSpec{File: odd, SizeBytes: -4096}, client.ErrInvalid, "size -4096: want at least one block"},
		{strings.Repeat("x", 256), client.DiskSpec{MemoryBytes: 1 << 20}, client.ErrInvalid, "name of 256 bytes"},
		{"x", client.DiskSpec{File: "rel.img"}, client.ErrInvalid, `file "rel.img": want an absolute path`},
		{"x", client.DiskSpec{File: filepath.Join(s.dir, "two.img")}, client.ErrConflict, `belongs to disk "two" already`},
		{"x", client.DiskSpec{File: filepath.Join(s.dir, "none.img")}, client.ErrInternal, "does not exist; give size= to create it"},
		{"x", client.DiskSpec{File: odd}, client.ErrInternal, "odd.img"},
	} {
		_, err := ctl.AddDisk(t.Context(), tt.name, tt.spec)
		wantError(t, err, tt.kind, tt.text)
	}
	for _, tt := range []struct {
		name string
		size int64
		kind error
		text string
	}{
		{"none", 1 << 20, client.ErrNotFound, `disk "none": there is none`},
		{"one", 1 << 19, client.ErrInvalid, "want at least the present size, 1MiB: disks do not shrink"},
		{"one", 1 << 62, client.ErrInvalid, "size 4194304TiB: want at most "},
		{"one", 1<<20 + 1, client.ErrInvalid, "want a multiple of the block size, 512"},
		{"ro", 2 << 20, client.ErrConflict, "is read-only"},
	} {
		_, err := ctl.GrowDisk(t.Context(), tt.name, tt.size)
		wantError(t, err, tt.kind, tt.text)
	}
	_, err := ctl.RemoveDisk(t.Context(), "none", client.RemoveOptions{})
	wantError(t, err, client.ErrNotFound, `disk "none": there is none`)
	_, err = ctl.RemoveDisk(t.Context(), "one", client.RemoveOptions{DrainTimeout: 48 * time.Hour})
	wantError(t, err, client.ErrInvalid, `drain_timeout "48h0m0s": want 1ms to 24h0m0s`)
	_, err = ctl.Disk(t.Context(), "none")
	wantError(t, err, client.ErrNotFound, `disk "none": there is none`)
	if diff := cmp.Diff(before.Disks, d.Status().Disks); diff != "" {
		t.Errorf("the disks have changed, -before +after\n%s", diff)
	}
}

// TestDisks_Grow: connected clients can use the new part at once, and are told of it if
// they ask.
func TestDisks_Grow(t *testing.T) {
	s := newSettings(t, "m=memory:1MiB", "f=file:$DIR/f.img,size=1MiB,block-size=4096")
	d, _ := s.mustStart(t)
	ctl, events := s.control(t), s.follow(t, client.EventDiskGrown)
	for _, name := range []string{"m", "f"} {
		c := open(t, s.socket(), name)
		if _, err := c.do(cmdRead, 1<<20, 4096, nil); err == nil {
			t.Errorf("%s: read beyond the end succeeded", name)
		}
		got, err := ctl.GrowDisk(t.Context(), name, 3<<20)
		if err != nil || got.SizeBytes != 3<<20 {
			t.Fatalf("%s: %+v, %v", name, got, err)
		}
		if e := events.want(client.EventDiskGrown, name); e.Fields["size_bytes"] != 3.0*(1<<20) || e.Fields["was_bytes"] != 1.0*(1<<20) {
			t.Errorf("event %+v", e)
		}
		data := bytes.Repeat([]byte("y"), 4096)
		if _, err := c.do(cmdWrite, 3<<20-4096, 4096, data); err != nil {
			t.Errorf("%s: a write to the new part: %v", name, err)
		}
		if c := open(t, s.socket(), name); c.sizeBytes != 3<<20 {
			t.Errorf("%s: a new client sees %d bytes", name, c.sizeBytes)
		}
		if got, err = ctl.GrowDisk(t.Context(), name, 3<<20); err != nil || got.SizeBytes != 3<<20 {
			t.Errorf("%s: to the present size: %+v, %v", name, got, err)
		}
	}
	if fi, err := os.Stat(filepath.Join(s.dir, "f.img")); err != nil || fi.Size() != 3<<20 {
		t.Errorf("the file: %v, %v", fi, err)
	}
	noViolations(t, machineOf(d))
}

// held is everything a daemon uses that it could leak.
type held struct {
	Files, Memory, Windows, Processors int
	Names                              []string
}

func holdings(t *testing.T, m *machine) held {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	h := held{Files: len(fds), Memory: m.arena.Stats().InUseBytes, Windows: m.iommu.WindowsInUse(), Processors: m.system.ProcessorsInUse()}
	for _, x := range m.server.Snapshot().Exports {
		h.Names = append(h.Names, x.Name)
	}
	return h
}

// more returns what is held after that was not held before. Holding less is no leak: what
// was released last may still have counted before.
func more(before, after held) string {
	for _, n := range []struct{ before, after *int }{
		{&before.Files, &after.Files},
		{&before.Memory, &after.Memory},
		{&before.Windows, &after.Windows},
		{&before.Processors, &after.Processors},
	} {
		*n.after = max(*n.before, *n.after)
	}
	return cmp.Diff(before, after)
}

// TestDisks_Churn: disks come and go a hundred times, each with clients, while
// clients of another one read back what they write. Nothing is left of them.
func TestDisks_Churn(t *testing.T) {
	s := newSettings(t, "load=memory:4MiB")
	d, _ := s.mustStart(t)
	m, ctl := machineOf(d), s.control(t)
	cycle := func(i int) {
		name := fmt.Sprintf("d%d", i%7)
		spec := client.DiskSpec{MemoryBytes: 1 << 20}
		if i%2 == 1 {
			spec = client.DiskSpec{File: filepath.Join(s.dir, name+".img"), SizeBytes: 1 << 20}
		}
		if _, err := ctl.AddDisk(t.Context(), name, spec); err != nil {
			t.Fatalf("cycle %d: %v", i, err)
		}
		c := open(t, s.socket(), name)
		data := bytes.Repeat([]byte{byte(i)}, 4096)
		if _, err := c.do(cmdWrite, 8192, len(data), data); err != nil {
			t.Errorf("cycle %d: write: %v", i, err)
		}
		if got, err := c.do(cmdRead, 8192, len(data), nil); err != nil || !bytes.Equal(got, data) {
			t.Errorf("cycle %d: read: %v, or other data", i, err)
		}
		if i%3 == 0 {
			_ = c.Close() // and the daemon may or may not have seen it
		}
		if _, err := ctl.RemoveDisk(t.Context(), name, client.RemoveOptions{Force: true}); err != nil {
			t.Fatalf("cycle %d: %v", i, err)
		}
		_ = c.Close()
	}
	const clients = 3
	stop := make(chan struct{})
	var load sync.WaitGroup
	for n := range clients {
		c := open(t, s.socket(), "load")
		load.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(n)))
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				data := bytes.Repeat([]byte{byte(i)}, 1+r.IntN(16<<10))
				at := uint64(n)<<20 + uint64(r.IntN(1<<20-len(data)))
				if _, err := c.do(cmdWrite, at, len(data), data); err != nil {
					t.Errorf("load %d: write: %v", n, err)
					return
				}
				if got, err := c.do(cmdRead, at, len(data), nil); err != nil || !bytes.Equal(got, data) {
					t.Errorf("load %d: read: %v, or other data", n, err)
					return
				}
			}
		})
	}
	for i := range 7 { // what is made once is there
		cycle(i)
	}
	close(stop)
	load.Wait()
	before, goroutines := holdings(t, m), runtime.NumGoroutine()
	stop = make(chan struct{})
	for n := range clients {
		c := open(t, s.socket(), "load")
		load.Go(func() {
			defer func() { _ = c.Close() }()
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				data := bytes.Repeat([]byte{byte(i)}, 4096)
				if _, err := c.do(cmdWrite, uint64(n)<<20, len(data), data); err != nil {
					t.Errorf("load %d: %v", n, err)
					return
				}
			}
		})
	}
	for i := range 100 {
		cycle(i)
	}
	close(stop)
	load.Wait()
	// The load's connections of the second part end on their own time.
	eventually(t, func() string {
		if diff := more(before, holdings(t, m)); diff != "" {
			return "-before +after\n" + diff
		}
		if n := runtime.NumGoroutine(); n > goroutines {
			return fmt.Sprintf("%d goroutines, %d before", n, goroutines)
		}
		return ""
	})
	noViolations(t, m)
}

// eventually waits until fn has no objection.
func eventually(t *testing.T, fn func() string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		objection := fn()
		if objection == "" {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal(objection)
		}
	}
}

// TestDisks_Concurrent: changes take turns; of those that cannot all be, one is.
func TestDisks_Concurrent(t *testing.T) {
	s := newSettings(t, "one=memory:1MiB")
	d, _ := s.mustStart(t)
	ctl := s.control(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	made := make(map[int64]int)
	for i := range 16 {
		wg.Go(func() {
			size := int64(1+i%4) << 20
			_, err := ctl.AddDisk(t.Context(), "same", client.DiskSpec{MemoryBytes: size})
			if err != nil && !errors.Is(err, client.ErrConflict) {
				t.Errorf("same: %v", err)
			}
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				made[size]++
			}
		})
		wg.Go(func() {
			name := fmt.Sprintf("d%d", i)
			if _, err := ctl.AddDisk(t.Context(), name, client.DiskSpec{MemoryBytes: 1 << 20}); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if i%2 == 0 {
				if _, err := ctl.RemoveDisk(t.Context(), name, client.RemoveOptions{}); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
	wg.Wait()
	if len(made) != 1 {
		t.Errorf("disks of %v bytes were all made under one name", made)
	}
	addresses := make(map[string]string)
	disks := d.Disks()
	for i := range disks {
		if other := addresses[disks[i].Address]; other != "" {
			t.Errorf("%s and %s are both at %s", other, disks[i].Name, disks[i].Address)
		}
		addresses[disks[i].Address] = disks[i].Name
	}
	if len(disks) != 1+1+8 {
		t.Errorf("%d disks, want 10", len(disks))
	}
	noViolations(t, machineOf(d))
}

// A slowMedium keeps writes waiting while it is held, and fails flushes with an
// error.
type slowMedium struct {
	media.Media
	held   chan struct{} // writes wait until it is closed
	wrote  chan struct{} // gets a value when a write waits
	flush  error
	closed chan struct{} // closed by Close
}

func (m *slowMedium) WriteAt(p []byte, off int64) (int, error) {
	if m.held != nil {
		m.wrote <- struct{}{}
		<-m.held
	}
	return m.Media.WriteAt(p, off)
}

func (m *slowMedium) Flush() error {
	if m.flush != nil {
		return m.flush
	}
	return m.Media.Flush()
}

func (m *slowMedium) Close() error {
	defer close(m.closed)
	return m.Media.Close()
}

// startSlow starts a daemon in which the disk "slow" is on md.
func startSlow(t *testing.T, md *slowMedium) (*settings, *Daemon) {
	t.Helper()
	s := newSettings(t, "one=memory:1MiB", "slow=memory:1MiB")
	inner, err := media.NewMemory(media.MemoryConfig{SizeBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	md.Media, md.closed = inner, make(chan struct{})
	used := false
	o := s.options(t)
	o.OpenMedium = func(c *config.Disk) (media.Media, error) {
		if c.Name == "slow" && !used {
			used = true
			return md, nil
		}
		return openMedium(c, nil)
	}
	d, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stopper(t, d))
	return s, d
}

// TestDisks_RemoveHung: a disk whose medium hangs can be removed; its medium is
// closed, and its address used again, only when the last command has ended.
func TestDisks_RemoveHung(t *testing.T) {
	md := &slowMedium{held: make(chan struct{}), wrote: make(chan struct{}, 1)}
	s, d := startSlow(t, md)
	ctl := s.control(t)
	c := open(t, s.socket(), "slow")
	done := make(chan struct{})
	go func() {
		defer close(done)
		be := make([]byte, 4096)
		_, _ = c.Write(append([]byte("\x25\x60\x95\x13\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x2a\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x10\x00"), be...))
	}()
	<-done
	<-md.wrote
	m := machineOf(d)
	ctx, cancel := context.WithCancel(t.Context())
	removed := make(chan error, 1)
	go func() {
		_, err := d.removeWithin(ctx, m, m.find("slow"), true, 10*time.Millisecond, 10*time.Millisecond)
		removed <- err
	}()
	if err := <-removed; err == nil || !strings.Contains(err.Error(), "commands still run on its medium") {
		t.Errorf("removal of a disk that hangs: %v", err)
	}
	cancel()
	select {
	case <-md.closed:
		t.Error("the medium was closed with a command on it")
	default:
	}
	if got, err := ctl.AddDisk(t.Context(), "slow", client.DiskSpec{MemoryBytes: 2 << 20}); err != nil || got.Address != "0:0:2" {
		t.Errorf("a new disk of that name: %+v, %v; want another address", got, err)
	}
	close(md.held)
	<-md.closed
	eventually(t, func() string {
		m.addressMu.Lock()
		defer m.addressMu.Unlock()
		if m.addresses[1] {
			return "the address of the disk that hung is still taken"
		}
		return ""
	})
	noViolations(t, m)
}

// TestDisks_RemoveUnflushed: a disk that cannot be flushed is served on, unless it
// is to go all the same.
func TestDisks_RemoveUnflushed(t *testing.T) {
	md := &slowMedium{flush: errors.New("no")}
	s, _ := startSlow(t, md)
	ctl := s.control(t)
	_, err := ctl.RemoveDisk(t.Context(), "slow", client.RemoveOptions{})
	wantError(t, err, client.ErrConflict, "cannot be flushed, and is served as before")
	c := open(t, s.socket(), "slow")
	if _, err := c.do(cmdWrite, 0, 512, make([]byte, 512)); err != nil {
		t.Errorf("a disk that was not removed: %v", err)
	}
	r, err := ctl.RemoveDisk(t.Context(), "slow", client.RemoveOptions{Force: true})
	if err != nil || r.FlushError == "" || r.ConnectionsClosed != 1 {
		t.Errorf("removed by force: %+v, %v", r, err)
	}
	<-md.closed
}

// TestDisks_RemoveAtStop: a disk that was being removed by force when the daemon
// began to stop is flushed all the same: it is no disk of the daemon any more.
func TestDisks_RemoveAtStop(t *testing.T) {
	s := newSettings(t, "db=file:$DIR/db.img,size=1MiB,cache=writeback")
	d, _ := s.mustStart(t)
	data := bytes.Repeat([]byte("w"), 4096)
	if _, err := open(t, s.socket(), "db").do(cmdWrite, 0, len(data), data); err != nil {
		t.Fatal(err)
	}
	m := machineOf(d)
	stopping, cancel := context.WithCancel(t.Context())
	cancel()
	r, _ := d.removeWithin(stopping, m, m.find("db"), true, time.Minute, time.Minute)
	if r.FlushError != "" {
		t.Errorf("the flush of a removal when the daemon stops: %s", r.FlushError)
	}
	if b, err := os.ReadFile(filepath.Join(s.dir, "db.img")); err != nil || !bytes.Equal(b[:len(data)], data) {
		t.Errorf("the image lacks a write that was answered (%v)", err)
	}
}

// TestDisks_AddFails: an addition that fails late leaves nothing behind, not even the file
// that it made.
func TestDisks_AddFails(t *testing.T) {
	s := newSettings(t, "one=memory:1MiB")
	d, _ := s.mustStart(t)
	m, ctl := machineOf(d), s.control(t)
	if _, err := ctl.Disks(t.Context()); err != nil { // its connection stays
		t.Fatal(err)
	}
	before := holdings(t, m)
	m.addressMu.Lock()
	for i := range m.addresses {
		m.addresses[i] = true
	}
	m.addressMu.Unlock()
	image := filepath.Join(s.dir, "new.img")
	_, err := ctl.AddDisk(t.Context(), "x", client.DiskSpec{File: image, SizeBytes: 1 << 20})
	wantError(t, err, client.ErrInternal, "2048 disks are all that there is room for")
	if _, err := os.Stat(image); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file of a disk that was not added: %v", err)
	}
	_, err = ctl.AddDisk(t.Context(), "x", client.DiskSpec{File: image, SizeBytes: 1 << 20, Cache: "writeback", Trace: filepath.Join(s.dir, "none", "x.trace")})
	wantError(t, err, client.ErrInternal, "no such file or directory")
	if _, err := os.Stat(image); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file of a disk whose trace cannot be made: %v", err)
	}
	eventually(t, func() string { return more(before, holdings(t, m)) })
}

// TestDisks_Draining: a daemon that stops takes no changes, and waits for one under
// way.
func TestDisks_Draining(t *testing.T) {
	s := newSettings(t, "one=memory:1MiB")
	d, stop := s.mustStart(t)
	ctx, m, end, err := d.beginChange(t.Context())
	if err != nil || m == nil {
		t.Fatal(err)
	}
	queued, waits := make(chan error), make(chan struct{})
	go func() {
		close(waits)
		_, _, _, err := d.beginChange(context.WithoutCancel(t.Context()))
		queued <- err
	}()
	<-waits
	runtime.Gosched()
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		stop()
	}()
	<-ctx.Done()                                                            // the change is told
	wantError(t, <-queued, client.ErrUnavailable, "the daemon is draining") // so is the next
	select {
	case <-stopped:
		t.Error("stopped in the middle of a change")
	default:
	}
	end()
	<-stopped
	_, err = d.AddDisk(t.Context(), "x", client.DiskSpec{MemoryBytes: 1 << 20})
	wantError(t, err, client.ErrUnavailable, "the daemon is draining")
}

// TestDiskConfig: the API's form of a disk loses nothing: each key of the
// configuration has its field.
func TestDiskConfig(t *testing.T) {
	var want config.Disk
	v := reflect.ValueOf(&want).Elem()
	for i := range v.NumField() {
		f, name := v.Field(i), v.Type().Field(i).Name
		switch f.Kind() {
		case reflect.String:
			f.SetString(name)
		case reflect.Bool:
			f.SetBool(true)
		case reflect.Int, reflect.Int64:
			f.SetInt(int64(i + 1))
		case reflect.Uint64:
			f.SetUint(uint64(i + 1))
		case reflect.Slice:
			f.Set(reflect.MakeSlice(f.Type(), 1, 1))
			f.Index(0).SetString(name)
		default:
			t.Errorf("field %s is a %s: teach this test of it", name, f.Kind())
		}
	}
	spec := DiskSpec(&want)
	if diff := cmp.Diff(want, diskConfig(want.Name, &spec)); diff != "" {
		t.Errorf("client.DiskSpec, diskConfig and DiskSpec lack a key of config.Disk, -want +got\n%s", diff)
	}
}
