package daemon

import (
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
	"github.com/vhbad/vhbad/hba/fault"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// A tally is how many commands of a batch, at least and at the most, are answered by a
// time.
type tally struct {
	by          time.Duration
	least, most int
}

// tallies sends batches of commands, each at once, and counts how many have been
// answered by the times of want, which are counted from then. The clock stands still in
// between, so that what is held is held. It returns the order of the answers.
func (f *faulty) tallies(t *testing.T, c *nbdtest.Client, batches, n int, cmd nbdtest.Command, want []tally) (order []uint64) {
	t.Helper()
	device := machineOf(f.d).device
	got := make([]int, len(want))
	for range batches {
		for i := range n {
			cmd.Cookie = uint64(i)
			if err := c.Send(cmd); err != nil {
				t.Fatal(err)
			}
		}
		answered, now := 0, time.Duration(0)
		receive := func(upTo int) {
			t.Helper()
			for ; answered < upTo; answered++ {
				r, err := c.Receive()
				if err != nil || r.Errno != nbd.OK {
					t.Fatalf("answer %d of %d: %v, %v", answered+1, n, r.Errno, err)
				}
				order = append(order, r.Cookie)
			}
		}
		for i, w := range want {
			if i == 0 && w.by == 0 {
				receive(w.least / batches)
				f.awaitHeld(t, n-answered)
			} else {
				if i == 0 {
					f.awaitHeld(t, n)
				}
				f.clock.Advance(w.by - now)
				now = w.by
				receive(n - device.Stats().HeldByFaults)
			}
			got[i] += answered
		}
		if answered != n {
			t.Fatalf("%d of %d answered in the end", answered, n)
		}
	}
	for i, w := range want {
		if got[i] < w.least || got[i] > w.most {
			t.Errorf("%d of %d answered after %s, want %d to %d", got[i], batches*n, w.by, w.least, w.most)
		}
	}
	return order
}

// TestFaults_Times: each way to take time, with each of its fields, as a configuration
// and as the API has it, holds the commands of a client for as long as it says: exactly,
// or if it draws from a distribution, with about its quantiles.
func TestFaults_Times(t *testing.T) {
	const ms = time.Millisecond
	page := readCmd(0, 8) // 4 KiB
	seen := map[string]bool{}
	for _, tt := range []struct {
		action     string
		batches, n int
		cmd        nbdtest.Command
		want       []tally
	}{
		{"kind: latency, latency: {mean: 5ms}", 1, 10, page, []tally{{5*ms - 1, 0, 0}, {5 * ms, 10, 10}}},
		{"kind: latency, at: before, latency: {distribution: fixed, mean: 5ms}", 1, 10, page, []tally{{5*ms - 1, 0, 0}, {5 * ms, 10, 10}}},
		{"kind: latency, at: after, latency: {mean: 5ms}", 1, 10, flushCmd, []tally{{5*ms - 1, 0, 0}, {5 * ms, 10, 10}}},
		{
			"kind: latency, latency: {distribution: normal, mean: 10ms, deviation: 1ms}", 20, 16, page,
			[]tally{{6 * ms, 0, 1}, {9 * ms, 30, 75}, {10 * ms, 130, 190}, {11 * ms, 245, 290}, {14 * ms, 319, 320}, {20 * ms, 320, 320}},
		},
		{
			"kind: latency, latency: {distribution: lognormal, median: 1ms, sigma: 1, max: 3ms}", 20, 16, page,
			[]tally{{100 * time.Microsecond, 0, 12}, {368 * time.Microsecond, 30, 75}, {ms, 130, 190}, {2718 * time.Microsecond, 245, 290}, {3 * ms, 320, 320}},
		},
		{
			"kind: latency, latency: {distribution: bimodal, low: 1ms, high: 100ms, high-share: 0.25}", 20, 16, page,
			[]tally{{ms - 1, 0, 0}, {ms, 215, 265}, {100*ms - 1, 215, 265}, {100 * ms, 320, 320}},
		},
		{
			"kind: latency, latency: {distribution: table, table: [{at: 0.5, latency: 1ms}, {at: 0.9, latency: 2ms}, {at: 1, latency: 10ms}]}", 20, 16, page,
			[]tally{{ms / 2, 60, 100}, {ms, 130, 190}, {2 * ms, 270, 305}, {10 * ms, 320, 320}},
		},
		{"kind: stall, for: 200ms, period: 1s", 3, 5, page, []tally{{200*ms - 1, 0, 0}, {200 * ms, 15, 15}, {time.Second, 15, 15}}},
		{
			"kind: rate, bytes-per-second: 4KiB, burst: 8KiB", 1, 5, page,
			[]tally{{0, 2, 2}, {time.Second - 1, 2, 2}, {time.Second, 3, 3}, {2 * time.Second, 4, 4}, {3 * time.Second, 5, 5}},
		},
		{
			"kind: rate, bytes-per-second: 4KiB", 1, 2, page,
			[]tally{{time.Second - 1, 0, 0}, {time.Second, 1, 1}, {2*time.Second - 1, 1, 1}, {2 * time.Second, 2, 2}},
		},
		{
			"kind: rate, iops: 2, burst-ios: 4", 1, 7, flushCmd,
			[]tally{{0, 4, 4}, {500*ms - 1, 4, 4}, {500 * ms, 5, 5}, {time.Second, 6, 6}, {1500 * ms, 7, 7}},
		},
		{ // each cap alone is met sooner
			"kind: rate, iops: 100, burst-ios: 4, bytes-per-second: 4KiB, burst: 20KiB", 1, 6, page,
			[]tally{{0, 4, 4}, {10 * ms, 5, 5}, {time.Second - 1, 5, 5}, {time.Second, 6, 6}},
		},
		{
			"kind: queue, lanes: 2, latency: {mean: 1ms}", 1, 5, page,
			[]tally{{ms - 1, 0, 0}, {ms, 2, 2}, {2*ms - 1, 2, 2}, {2 * ms, 4, 4}, {3 * ms, 5, 5}},
		},
		{"kind: queue, lanes: 16, latency: {mean: 1ms}", 2, 16, page, []tally{{ms - 1, 0, 0}, {ms, 32, 32}}},
		{"kind: reorder, for: 1s", 10, 16, page, []tally{{250 * ms, 20, 60}, {500 * ms, 60, 100}, {time.Second, 160, 160}}},
		{"kind: hang, for: 3s", 1, 5, page, []tally{{3*time.Second - 1, 0, 0}, {3 * time.Second, 5, 5}}},
		{"kind: gate, for: 3s", 1, 5, page, []tally{{3*time.Second - 1, 0, 0}, {3 * time.Second, 5, 5}}},
		{"kind: gate, at: after, for: 3s", 1, 5, page, []tally{{3*time.Second - 1, 0, 0}, {3 * time.Second, 5, 5}}},
	} {
		t.Run(tt.action, func(t *testing.T) {
			text := "{name: r, disk: db, seed: 3, match: {op: [read, flush]}, action: {" + tt.action + "}}"
			var orders [][]uint64
			bothWays(t, text, func(t *testing.T, f *faulty) {
				c := f.dial(t, "db")
				wantErrno(t, f.dial(t, "other"), tt.cmd, nbd.OK)
				orders = append(orders, f.tallies(t, c, tt.batches, tt.n, tt.cmd, tt.want))
			})
			if len(orders) == 2 && strings.Contains(tt.action, "reorder") && slices.IsSorted(orders[0][:tt.n]) {
				t.Errorf("answers come as they were asked for: %v", orders[0][:tt.n])
			}
			note(reflect.ValueOf(ruleOf(t, text).Action.Latency), seen)
		})
	}
	for f := range reflect.TypeFor[fault.Latency]().Fields() {
		if !seen[f.Name] {
			t.Errorf("no row has latency.%s", f.Name)
		}
	}
}

// note marks which fields of a structure that is pointed to have a value.
func note(p reflect.Value, seen map[string]bool) {
	if p.IsNil() {
		return
	}
	for i := range p.Elem().NumField() {
		if !p.Elem().Field(i).IsZero() {
			seen[p.Elem().Type().Field(i).Name] = true
		}
	}
}

// TestFaults_SlowHandshake: a client waits by the clock that all rules go by, and those
// of another disk do not.
func TestFaults_SlowHandshake(t *testing.T) {
	f := startFaulty(t, func(s *settings) { s.Limits.HandshakeTimeout = config.Duration(24 * time.Hour) }, "db=memory:1MiB", "other=memory:1MiB")
	f.put(t, client.FaultRule{Name: "slow", Disk: "db", Budget: 1, Action: fault.Action{Kind: fault.KindSlowHandshake, For: fault.Duration(time.Hour)}})
	idle := f.clock.Pending()
	connected := make(chan *nbdConn, 1)
	go func() {
		c, err := tryOpen(t, f.socket(), "db")
		if err != nil {
			t.Error(err)
		}
		connected <- c
	}()
	for f.clock.Pending() == idle {
		runtime.Gosched()
	}
	wantErrno(t, f.dial(t, "other"), readCmd(0, 1), nbd.OK)
	wantErrno(t, f.dial(t, "db"), readCmd(0, 1), nbd.OK) // the budget is used up
	f.clock.Advance(time.Hour - 1)
	if len(connected) != 0 || f.clock.Pending() != idle+1 {
		t.Error("the client has not waited for its hour")
	}
	f.clock.Advance(1)
	if c := <-connected; c != nil {
		if _, err := c.do(cmdRead, 0, 512, nil); err != nil {
			t.Error(err)
		}
	}
}

// TestFaults_TimesAddUp: the delays of several rules add up, each for the commands that its
// rule is about; and a rule that goes takes its delay along.
func TestFaults_TimesAddUp(t *testing.T) {
	f := startFaulty(t, nil, "db=memory:1MiB")
	c := f.dial(t, "db")
	late := func(name, op string, d time.Duration) client.FaultRule {
		return client.FaultRule{
			Name: name, Match: fault.Match{Op: fault.Ops{op}},
			Action: fault.Action{Kind: fault.KindLatency, Latency: &fault.Latency{Mean: fault.Duration(d)}},
		}
	}
	f.put(t, late("all", "io", time.Second))
	f.put(t, late("reads", "read", 2*time.Second))
	f.tallies(t, c, 1, 3, readCmd(0, 1), []tally{{3*time.Second - 1, 0, 0}, {3 * time.Second, 3, 3}})
	f.tallies(t, c, 1, 3, flushCmd, []tally{{time.Second - 1, 0, 0}, {time.Second, 3, 3}})
	if err := c.Send(readCmd(0, 1)); err != nil {
		t.Fatal(err)
	}
	f.awaitHeld(t, 1)
	if err := f.api.RemoveFault(t.Context(), "reads"); err != nil {
		t.Fatal(err)
	}
	if r, err := c.Receive(); err != nil || r.Errno != nbd.OK {
		t.Errorf("a read whose rule has gone: %v, %v", r.Errno, err)
	}
}
