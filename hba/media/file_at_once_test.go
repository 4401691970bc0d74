package media

import (
	"bytes"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A handClock is moved by hand; each look at it moves it on by step. It belongs to one
// goroutine.
type handClock struct{ at, step time.Duration }

func (c *handClock) now() time.Duration {
	c.at += c.step
	return c.at
}

// newAtOnce makes a file that writes at once as if its file system were ext4, by
// the clock, by which no write is late, and turns take turnsTime/4.
func newAtOnce(t *testing.T) (*File, *handClock) {
	t.Helper()
	f, err := OpenFile(FileConfig{Path: filepath.Join(t.TempDir(), "disk"), SizeBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if n, long, turning := f.atOnce.changes.Load(), f.atOnce.long.Load(), f.atOnce.turning.Load(); n != 0 || long != 0 || turning != 0 {
			t.Errorf("%d changes in progress in the end, %d long ones, and %d wait", n, long, turning)
		}
	})
	c := handClock{step: min(lateTime, turnsTime/4)}
	f.noTryWrite.Store(true)
	f.atOnce.able = true
	f.atOnce.now = c.now
	if f.atOnce.stepAside == nil {
		t.Fatal("other processes have no turns")
	}
	f.atOnce.stepAside = func() bool { return c.step > 0 } // turns end, though the clock may stand
	return f, &c
}

func wantTry(t *testing.T, f *File, want bool, why string) {
	t.Helper()
	if done, err := f.TryWriteAt(zeros[:pageBytes], pageBytes); done != want || err != nil {
		t.Errorf("%s: written at once: %t, %v; want %t", why, done, err, want)
	}
}

// TestAtOnce_Late: writes that are late are followed by a time without writes at
// once, eight times as long but for a credit.
func TestAtOnce_Late(t *testing.T) {
	f, c := newAtOnce(t)
	const onTime = lateTime + pageBytes*lateByte
	c.step = onTime
	for range 1000 {
		wantTry(t, f, true, "on time")
	}
	// A write looks at the clock when it begins and when it ends, one that is refused
	// only once.
	c.step = onTime + 300*time.Millisecond
	wantTry(t, f, true, "until it is late, nobody knows")
	late := c.at
	c.step = 0
	wantTry(t, f, false, "after a late one")
	c.at = late + lateShare*(300*time.Millisecond-lateCredit) - 1
	wantTry(t, f, false, "until it is paid for")
	c.at++
	wantTry(t, f, true, "when it is paid for, but for what is lent")
	c.at = late + lateShare*300*time.Millisecond

	// Little delays add up.
	c.step = onTime + lateCredit/4
	n := 0
	for done := true; done; n++ {
		var err error
		if done, err = f.TryWriteAt(zeros[:pageBytes], 0); err != nil {
			t.Fatal(err)
		}
		if n > 100 {
			t.Fatal("always late, and never refused")
		}
	}
	if n < 5 || n > 7 {
		t.Errorf("refused after %d writes each of which was late by a quarter of the credit", n)
	}

	// What one write costs has a bound.
	c.at += time.Hour
	c.step = 24 * time.Hour
	wantTry(t, f, true, "long after")
	c.step = 0
	wantTry(t, f, false, "after one that took a day")
	c.at += lateShare * lateMost
	wantTry(t, f, true, "after the longest time")
}

// TestAtOnce_LateMeanwhile: a write that finds the file free finds out, too, that the one
// before has been late.
func TestAtOnce_LateMeanwhile(t *testing.T) {
	a := atOnce{able: true, now: func() time.Duration { return 0 }, stepAside: func() bool { return false }}
	for i := range 20_000 {
		a.noTurns.Store(0)
		if i%2 == 0 {
			a.noTurns.Store(int64(time.Hour))
		}
		a.paid.Store(0)
		a.changes.Store(1)
		ended := make(chan struct{})
		go func() {
			a.end(-time.Second, pageBytes)
			close(ended)
		}()
		for turn := 1; a.paid.Load() == 0; turn++ {
			if turn%1000 == 0 { // the other goroutine may have no other processor
				runtime.Gosched()
			}
			if _, ok := a.begin(0, pageBytes); ok {
				t.Fatal("a write began after one that was a second late")
			}
		}
		<-ended
		if n := a.changes.Load(); n != 0 {
			t.Fatalf("%d writes under way after all have ended", n)
		}
	}
}

// TestAtOnce_Stay: who has found the file free forgives turns in vain, and leaves again if
// lateness has to be paid for.
func TestAtOnce_Stay(t *testing.T) {
	for _, paid := range []time.Duration{0, time.Hour} {
		var a atOnce
		a.changes.Store(1)
		a.noTurns.Store(int64(time.Hour))
		a.paid.Store(int64(paid))
		want := paid == 0
		if got := a.stay(0); got != want {
			t.Errorf("paid for after %v: it stays: %t, want %t", paid, got, want)
		}
		if n := a.changes.Load(); (n == 1) != want || n < 0 {
			t.Errorf("paid for after %v: %d writes are under way", paid, n)
		}
		if n := a.noTurns.Load(); n != 0 {
			t.Errorf("paid for after %v: no turns until %v", paid, time.Duration(n))
		}
	}
}

// TestAtOnce_Alone: nothing is written at once while something else writes or
// syncs.
func TestAtOnce_Alone(t *testing.T) {
	f, c := newAtOnce(t)
	wantTry(t, f, true, "alone")
	syncs := 0
	f.flushes.sync = func() error {
		syncs++
		wantTry(t, f, false, "during a flush")
		return nil
	}
	if err := f.Flush(); err != nil {
		t.Error(err)
	}
	f.noDSync.Store(true)
	if _, err := f.WriteAtFUA(zeros[:512], 0); err != nil {
		t.Error(err)
	}
	if syncs != 2 {
		t.Errorf("%d syncs, want 2", syncs)
	}
	looks := 0
	f.atOnce.now = func() time.Duration {
		if looks++; looks == 2 { // before it ends
			wantTry(t, f, false, "during another one")
		}
		return c.now()
	}
	wantTry(t, f, true, "after those")
	if looks < 2 {
		t.Error("it did not look at the clock")
	}
	f.atOnce.now = c.now

	for _, tt := range []struct {
		what string
		call func() error
	}{
		{"write", func() error { _, err := f.WriteAt(zeros[:], 0); return err }},
		{"zero", func() error { return f.Zero(0, 1<<20, true) }},
		{"discard", func() error { return f.Discard(0, 1<<20) }},
		{"compare and write", func() error {
			// Far from what is tried: those exclude each other by their range, too.
			_, err := f.CompareAndWriteAt(zeros[:512], zeros[:512], 512<<10)
			return err
		}},
	} {
		t.Run(tt.what, func(t *testing.T) {
			stop, ended := make(chan struct{}), make(chan error, 1)
			go func() {
				for {
					select {
					case <-stop:
						ended <- nil
						return
					default:
					}
					if err := tt.call(); err != nil {
						ended <- err
						return
					}
				}
			}()
			// One of them is met in the end.
			late := time.After(time.Minute)
			for done := true; done; {
				select {
				case err := <-ended:
					t.Fatal(err)
				case <-late:
					t.Fatal("none is met in a minute")
				default:
				}
				var err error
				if done, err = f.TryWriteAt(zeros[:pageBytes], pageBytes); err != nil {
					t.Fatal(err)
				}
			}
			close(stop)
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
}

// noTurns checks that writes that are refused let nobody else have the processor, of
// which there is one. The scheduler may do so all the same, but not each time.
func noTurns(t *testing.T, f *File, why string) {
	t.Helper()
	given := 0
	const tries = 10
	for range tries {
		var others atomic.Bool
		go others.Store(true)
		wantTry(t, f, false, why)
		if others.Load() {
			given++
		}
	}
	if given == tries {
		t.Errorf("%s: others have turns, which are in vain", why)
	}
}

// TestAtOnce_Turns: a write that meets another lets other goroutines have their turns, and
// so the other end, but does not wait for one that does not. After turns in vain there are
// none for eight times as long, or until the file has been found free.
//
// It has the only processor, so the turns are in order.
func TestAtOnce_Turns(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	f, c := newAtOnce(t)
	endsSoon := func(why string) {
		t.Helper()
		f.atOnce.changes.Add(1)
		go f.atOnce.changes.Add(-1)
		wantTry(t, f, true, why)
	}
	endsSoon("during one that ends soon")

	f.atOnce.changes.Add(1)
	wantTry(t, f, false, "during one that does not end")
	step, paid := c.step, c.at+lateShare*turnsTime
	c.step = 0
	noTurns(t, f, "after turns in vain")
	c.at = paid - 1
	noTurns(t, f, "until they are paid for")
	f.atOnce.changes.Add(-1)
	c.at = paid
	endsSoon("when they are paid for")

	f.atOnce.changes.Add(1)
	c.step = step
	wantTry(t, f, false, "during one more that does not end")
	f.atOnce.changes.Add(-1)
	wantTry(t, f, true, "after that one")
	endsSoon("when the file has been found free")
}

// TestAtOnce_StepsAside: other processes have turns, too, until the other write ends, for
// as long as turns are worth it.
func TestAtOnce_StepsAside(t *testing.T) {
	const step, never = turnsTime / 4, 1000
	for _, tt := range []struct {
		what    string
		ends    int           // in which turn the other write does
		blind   bool          // other processes have no turns
		took    time.Duration // the first turn, besides step
		others  int32         // that have turns already
		during  func(a *atOnce)
		want    bool
		turns   int
		without time.Duration // for which there are none afterwards
	}{
		{what: "it ends soon", ends: 2, want: true, turns: 2},
		{what: "it ends in the last turn", ends: 4, want: true, turns: 4},
		{what: "it does not end", ends: never, turns: 4, without: lateShare * turnsTime},
		{what: "only goroutines have turns", ends: 3, blind: true, want: true, turns: 3},
		{what: "only goroutines have turns, and it does not end", ends: never, blind: true, turns: blindTurns, without: lateShare * blindTurns * step},
		{what: "a turn is long, and it ends", ends: 1, took: time.Second, want: true, turns: 1},
		{what: "a turn is long, and it does not end", ends: never, took: time.Second, turns: 1, without: lateShare * (time.Second + step)},
		{what: "a turn takes an hour, and it does not end", ends: never, took: time.Hour, turns: 1, without: lateShare * lateMost},
		{what: "two others have turns", ends: 1, others: 2, want: true, turns: 1},
		{what: "three others have turns", ends: never, others: 3},
		{what: "others' are in vain, and it ends", ends: 2, during: func(a *atOnce) { a.noTurns.Store(int64(time.Hour)) }, want: true, turns: 2},
		{what: "something long begins", ends: never, during: func(a *atOnce) { a.long.Store(1) }, turns: 1},
		{what: "one was late", ends: never, during: func(a *atOnce) { a.paid.Store(int64(time.Hour)) }, turns: 1},
	} {
		t.Run(tt.what, func(t *testing.T) {
			f, c := newAtOnce(t)
			c.step = step
			a := &f.atOnce
			a.changes.Add(1)
			a.turning.Add(tt.others)
			turns := 0
			a.stepAside = func() bool {
				if turns++; turns == 1 {
					c.at += tt.took
					if tt.during != nil {
						tt.during(a)
					}
				}
				if turns == tt.ends {
					a.changes.Add(-1)
				}
				return !tt.blind
			}
			began, ok := a.begin(0, pageBytes)
			if ok != tt.want || turns != tt.turns {
				t.Errorf("begins: %t after %d turns, want %t after %d", ok, turns, tt.want, tt.turns)
			}
			if got := max(time.Duration(a.noTurns.Load())-c.at, 0); got != tt.without {
				t.Errorf("no turns for %v, want %v", got, tt.without)
			}
			if n := a.turning.Add(-tt.others); n != 0 {
				t.Errorf("%d more have turns in the end", n)
			}
			if ok && began != c.at {
				t.Errorf("it began at %v, want now, at %v: it was not late before", began, c.at)
			}
			// Either is a change under way: this one, or the other.
			a.changes.Add(-1)
			a.long.Store(0)
		})
	}
}

// TestAtOnce_NoTurns: nobody waits for what takes long, nor in debt.
func TestAtOnce_NoTurns(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	f, _ := newAtOnce(t)
	f.flushes.sync = func() error {
		noTurns(t, f, "during a flush")
		return nil
	}
	if err := f.Flush(); err != nil {
		t.Error(err)
	}
	f.flushes.sync = func() error { return nil }

	f.atOnce.changes.Add(1)
	f.atOnce.paid.Store(int64(time.Hour))
	noTurns(t, f, "in debt")
	f.atOnce.paid.Store(0)
	f.atOnce.changes.Add(-1)

	const off, n = 512 << 10, pageBytes
	for _, tt := range []struct {
		what string
		call func() error
	}{
		{"write with FUA", func() error { _, err := f.WriteAtFUA(zeros[:n], off); return err }},
		{"zero", func() error { return f.Zero(off, n, true) }},
		{"discard", func() error { return f.Discard(off, n) }},
	} {
		t.Run(tt.what, func(t *testing.T) {
			s := stripesOf(off, n)
			f.ranges.lock(s) // it gets no further until unlock
			ended := make(chan error, 1)
			go func() { ended <- tt.call() }()
			for late := time.Now().Add(time.Minute); f.atOnce.long.Load() == 0; {
				if time.Now().After(late) {
					t.Error("it does not say that it takes long before it has begun")
					break
				}
				runtime.Gosched()
			}
			f.atOnce.changes.Add(1)
			noTurns(t, f, "during one")
			f.atOnce.changes.Add(-1)
			f.ranges.unlock(s)
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
}

// TestAtOnce_Which: short ones of whole pages are written, and with the right bytes.
func TestAtOnce_Which(t *testing.T) {
	f, _ := newAtOnce(t)
	p := bytes.Repeat([]byte{7}, maxAtOnceBytes+pageBytes)
	for _, tt := range []struct {
		off  int64
		n    int
		want bool
	}{
		{0, pageBytes, true},
		{8 * pageBytes, maxAtOnceBytes, true},
		{0, maxAtOnceBytes + pageBytes, false},
		{512, pageBytes, false},
		{0, 512, false},
	} {
		if err := f.Zero(0, 1<<20, false); err != nil {
			t.Fatal(err)
		}
		if done, err := f.TryWriteAt(p[:tt.n], tt.off); done != tt.want || err != nil {
			t.Errorf("%d bytes at %d: %t, %v; want %t", tt.n, tt.off, done, err, tt.want)
		}
		got, want := make([]byte, 1<<20), make([]byte, 1<<20)
		if tt.want {
			copy(want[tt.off:], p[:tt.n])
		}
		if _, err := f.ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%d bytes at %d: the file holds something else", tt.n, tt.off)
		}
	}
	if done, err := f.TryWriteAt(p[:pageBytes], 1<<20); !done || err == nil {
		t.Errorf("beyond the end: %t, %v", done, err)
	}
	f.atOnce.able = false
	wantTry(t, f, false, "on another file system")
	if f.Supports(AbilityTryWrite) {
		t.Error("it says that it can")
	}
}

// TestWritesWaitForDisk: a file system is known by its number. /proc stands for
// those that may be anything.
func TestWritesWaitForDisk(t *testing.T) {
	memory, err := unix.MemfdCreate("disk", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	proc, err := unix.Open("/proc/self/status", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for fd, want := range map[int]bool{memory: true, proc: false, -1: false} {
		if got := writesWaitForDisk(fd); got != want {
			t.Errorf("descriptor %d: %t, want %t", fd, got, want)
		}
	}
	for _, fd := range []int{memory, proc} {
		if err := unix.Close(fd); err != nil {
			t.Error(err)
		}
	}
}
