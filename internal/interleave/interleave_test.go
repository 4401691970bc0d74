package interleave

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
)

// lostUpdate is two tasks that add one without a lock.
func lostUpdate(r *Run) {
	n := 0
	for _, name := range []string{"first", "second"} {
		r.Go(name, func() {
			r.Yield("load")
			old := n
			r.Yield("store")
			n = old + 1
		})
	}
	r.Check(func() error {
		if n != 2 {
			return fmt.Errorf("n = %d, want 2", n)
		}
		return nil
	})
}

func TestSearch_LostUpdate(t *testing.T) {
	if f, runs := (Search{}).Find(lostUpdate); f != nil || runs != 2 {
		t.Errorf("without preemption: %v after %d runs, want none after 2", f, runs)
	}
	f, _ := Search{Preemptions: 1}.Find(lostUpdate)
	if f == nil {
		t.Fatal("not found with one preemption")
	}
	again, err := Replay(lostUpdate, f.Schedule)
	if err != nil || again == nil || again.Schedule != f.Schedule || again.Err.Error() != "n = 1, want 2" {
		t.Errorf("replay of %s: %v, %v", f.Schedule, again, err)
	}
	if f, _ := (Search{Preemptions: -1, Seeds: 100, FirstSeed: 1}).Find(lostUpdate); f == nil || !strings.HasPrefix(f.How, "seed ") {
		t.Errorf("not found by 100 seeds: %v", f)
	}
}

// Without a bound, every order of the steps is tried once: of two tasks with m
// and n steps there are binomial(m+n, m).
func TestSearch_CountsAllOrders(t *testing.T) {
	seen := map[string]int{}
	scenario := func(r *Run) {
		var order strings.Builder
		for i, name := range []string{"x", "y"} {
			r.Go(name, func() {
				order.WriteString(name)
				for range 2 + i {
					r.Yield("next")
					order.WriteString(name)
				}
			})
		}
		r.Check(func() error { seen[order.String()]++; return nil })
	}
	d := &depthFirst{bound: 100}
	for more := true; more; more = d.advance() {
		if r := d.run(scenario); r.failure != nil {
			t.Fatal(r.failure)
		}
	}
	if len(seen) != 35 { // 7 over 3
		t.Errorf("%d orders, want 35", len(seen))
	}
	for order, n := range seen {
		if n != 1 {
			t.Errorf("%s tried %d times", order, n)
		}
	}
}

// Locks taken in opposite orders deadlock, which needs one preemption.
func TestSearch_Deadlock(t *testing.T) {
	scenario := func(r *Run) {
		var one, other sync.Mutex
		both := func(a, b *sync.Mutex) func() {
			return func() {
				r.Lock("outer", a)
				a.Lock()
				defer a.Unlock()
				r.Lock("inner", b)
				b.Lock()
				defer b.Unlock()
			}
		}
		r.Go("forth", both(&one, &other))
		r.Go("back", both(&other, &one))
	}
	f, _ := Search{Preemptions: 1}.Find(scenario)
	if f == nil || !strings.HasPrefix(f.Err.Error(), "deadlock\n") {
		t.Fatalf("got %v, want a deadlock", f)
	}
}

func TestRun_PanicIsAFailure(t *testing.T) {
	f, _ := Search{}.Find(func(r *Run) {
		r.Go("calm", func() { r.Yield("one") })
		r.Go("nervous", func() { r.Yield("two"); panic("boo") })
	})
	if f == nil || !strings.Contains(f.Err.Error(), "nervous panicked: boo") {
		t.Errorf("got %v, want the panic", f)
	}
}

func TestRun_FailfEndsTheRun(t *testing.T) {
	f, _ := Search{}.Find(func(r *Run) {
		r.Go("only", func() { r.Failf("enough"); t.Error("Failf returned") })
	})
	if f == nil || f.Err.Error() != "enough" {
		t.Errorf("got %v, want enough", f)
	}
}

func TestRun_NoEnd(t *testing.T) {
	f, _ := Search{}.Find(func(r *Run) {
		r.Go("spinner", func() {
			for {
				r.Yield("again")
			}
		})
	})
	if f == nil || !strings.HasPrefix(f.Err.Error(), "no end") {
		t.Errorf("got %v, want no end", f)
	}
}

// A condition that is signalled before it is waited for is a wake-up lost,
// unless the waiter looks first under the lock.
func TestRun_Cond(t *testing.T) {
	scenario := func(looks bool) func(*Run) {
		return func(r *Run) {
			var mu sync.Mutex
			c := sync.NewCond(&mu)
			happened := false
			r.Go("waiter", func() {
				r.Lock("lock", &mu)
				mu.Lock()
				defer mu.Unlock()
				if looks && happened {
					return
				}
				r.Wait("wait", c)
			})
			r.Go("teller", func() {
				r.Lock("lock", &mu)
				mu.Lock()
				happened = true
				r.Broadcast(c)
				mu.Unlock()
			})
		}
	}
	if f, _ := (Search{Preemptions: 3}).Find(scenario(true)); f != nil {
		t.Error(f)
	}
	if f, _ := (Search{Preemptions: 3}).Find(scenario(false)); f == nil {
		t.Error("the lost wake-up was not found")
	}
}

// Those who serve do so until there is nothing more to do, also for each other,
// and one who waits for something else is not served away.
func TestRun_Serve(t *testing.T) {
	scenario := func(patient bool) func(*Run) {
		return func(r *Run) {
			in, between, out := 0, 0, 0
			pass := func(from, to *int) func() {
				return func() {
					for r.Serve("wait", func() bool { return *from > 0 }) {
						*from--
						r.Yield("pass on")
						*to++
					}
				}
			}
			r.Go("second", pass(&between, &out))
			r.Go("first", pass(&in, &between))
			r.Go("source", func() {
				in++
				r.Yield("another")
				in++
				if patient {
					r.Until("all through", func() bool { return out == 3 })
				}
			})
			r.Check(func() error {
				if out != 2 {
					return fmt.Errorf("%d came out, want 2", out)
				}
				return nil
			})
		}
	}
	if f, _ := (Search{Preemptions: 3, Seeds: 100}).Find(scenario(false)); f != nil {
		t.Error(f)
	}
	if f, _ := (Search{}).Find(scenario(true)); f == nil || !strings.HasPrefix(f.Err.Error(), "deadlock") {
		t.Errorf("got %v, want a deadlock", f)
	}
}

func TestReplay_BadSchedule(t *testing.T) {
	for _, s := range []string{"a", "A1", "a0", "a-1", "1", "q1", "a99999"} {
		if _, err := Replay(lostUpdate, s); err == nil {
			t.Errorf("schedule %q was taken", s)
		}
	}
	if f, err := Replay(lostUpdate, "a1c1"); err != nil || f == nil || !errors.Is(f, errSchedule) {
		t.Errorf("got %v, %v; want %v", f, err, errSchedule)
	}
}

func TestSearch_NotDeterministic(t *testing.T) {
	n := 0
	f, _ := Search{Preemptions: 2}.Find(func(r *Run) {
		n++
		stuck := n%2 == 0
		r.Go("one", func() { r.Yield("x"); r.Yield("y") })
		r.Go("two", func() { r.Serve("z", func() bool { return !stuck }); r.Yield("end") })
	})
	if f == nil || !strings.Contains(f.Err.Error(), "not deterministic") {
		t.Errorf("got %v, want a complaint", f)
	}
}

func TestMutate(t *testing.T) {
	source := []byte("package p\n\nfunc f() int {\n\tx := 1\n\tx++\n\treturn x\n}\n")
	if name := packageName(source); name != "p" {
		t.Errorf("package %q, want p", name)
	}
	got, err := mutate(source, []Mutant{{Name: "two", Old: "x++", New: "x += 2"}, {Name: "none", Old: "x++"}})
	want := "package p\n\nfunc f() int {\n\tx := 1\n\tif mutant == \"two\" {\nx += 2\n} else if mutant == \"none\" {\n\n} else {\nx++\n}\n\treturn x\n}\n"
	if err != nil || string(got) != want {
		t.Errorf("got %s, %v; want %s", got, err, want)
	}
	got, err = mutate(source, []Mutant{{Name: "both", Old: "x := 1", New: "x := 2", Also: []Edit{{Old: "x++", New: "x--"}}}})
	want = "package p\n\nfunc f() int {\n\tif mutant == \"both\" {\nx := 2\n} else {\nx := 1\n}\n\tif mutant == \"both\" {\nx--\n} else {\nx++\n}\n\treturn x\n}\n"
	if err != nil || string(got) != want {
		t.Errorf("two places: got %s, %v; want %s", got, err, want)
	}
	if _, err := mutate(source, []Mutant{{Name: "twice", Old: "x"}}); err == nil {
		t.Error("statements that occur more than once were taken")
	}
	if _, err := mutate(source, []Mutant{{Name: "gone", Old: "y++"}}); err == nil {
		t.Error("statements that do not occur were taken")
	}
}
