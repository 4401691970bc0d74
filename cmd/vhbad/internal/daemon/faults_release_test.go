package daemon

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
	"github.com/vhbad/vhbad/hba/fault"
	"github.com/vhbad/vhbad/nbd"
)

// TestFaults_Release: the API releases as many of the commands held by a hang or a gate as
// were asked for, the longest held first. A command that is held before it is executed has
// done nothing; one that is held afterwards has, and only its answer is missing.
func TestFaults_Release(t *testing.T) {
	for _, tt := range []struct {
		action fault.Action
		done   bool // while it is held
	}{
		{fault.Action{Kind: fault.KindHang}, false},
		{fault.Action{Kind: fault.KindGate}, false},
		{fault.Action{Kind: fault.KindGate, At: fault.PlaceBefore}, false},
		{fault.Action{Kind: fault.KindGate, At: fault.PlaceAfter}, true},
	} {
		t.Run(fmt.Sprintf("%s %s", tt.action.Kind, tt.action.At), func(t *testing.T) {
			f := startFaulty(t, nil, "db=memory:1MiB")
			c, other := f.dial(t, "db"), f.dial(t, "db")
			f.put(t, client.FaultRule{Name: "stuck", Disk: "db", Match: fault.Match{Op: fault.Ops{"write"}}, Action: tt.action})
			const n = 5
			for i := range n { // one after the other, so that it is known who has been held for longest
				cmd := writeCmd(i, 1, byte(1+i))
				cmd.Cookie = uint64(i)
				if err := c.Send(cmd); err != nil {
					t.Fatal(err)
				}
				f.awaitHeld(t, i+1)
			}
			there := func(block int, want bool) {
				t.Helper()
				r, err := other.Do(readCmd(block, 1))
				if err != nil || r.Errno != nbd.OK || (r.Data[0] == byte(1+block)) != want {
					t.Errorf("block %d is %v, %v, %v: written: want %v", block, r.Data[:1], r.Errno, err, want)
				}
			}
			release := func(count int, cookies ...uint64) {
				t.Helper()
				if got, err := f.api.ReleaseFault(t.Context(), "stuck", count); got != len(cookies) || err != nil {
					t.Fatalf("%d released, %v, want %d", got, err, len(cookies))
				}
				left := map[uint64]bool{}
				for _, cookie := range cookies {
					left[cookie] = true
				}
				for range cookies { // in any order
					r, err := c.Receive()
					if err != nil || r.Errno != nbd.OK || !left[r.Cookie] {
						t.Fatalf("reply %d, %v, %v, want one of %v", r.Cookie, r.Errno, err, cookies)
					}
					delete(left, r.Cookie)
				}
			}
			for i := range n {
				there(i, tt.done)
			}
			release(1, 0)
			there(0, true)
			there(1, tt.done)
			release(2, 1, 2)
			if got, err := f.api.Fault(t.Context(), "stuck"); err != nil || got.Held != 2 || got.Fired != n {
				t.Errorf("%+v, %v: want 2 held of 5", got, err)
			}
			release(0, 3, 4)
			release(0)
			for i := range n {
				there(i, true)
			}
			// What comes later is held again.
			if err := c.Send(writeCmd(0, 1, 9)); err != nil {
				t.Fatal(err)
			}
			f.awaitHeld(t, 1)
			release(1, 0)
		})
	}
}

// TestFaults_WaysOut: a command that a rule holds ends, whoever ends it, and whatever
// else there is.
func TestFaults_WaysOut(t *testing.T) {
	t.Parallel()
	hang := client.FaultRule{
		Name: "stuck", Disk: "db", Match: fault.Match{Op: fault.Ops{"write"}}, Budget: 1,
		Action: fault.Action{Kind: fault.KindHang, For: fault.Duration(time.Hour)},
	}
	for _, tt := range []struct {
		name string
		out  func(t *testing.T, f *faulty)
		want nbd.Errno
	}{
		{"released", func(t *testing.T, f *faulty) {
			if _, err := f.api.ReleaseFault(t.Context(), "stuck", 0); err != nil {
				t.Error(err)
			}
		}, nbd.OK},
		{"rule removed", func(t *testing.T, f *faulty) {
			if err := f.api.RemoveFault(t.Context(), "stuck"); err != nil {
				t.Error(err)
			}
		}, nbd.OK},
		{"rule replaced", func(t *testing.T, f *faulty) {
			next := hang
			next.Seed++
			next.Match.Op = fault.Ops{"flush"}
			f.put(t, next)
		}, nbd.OK},
		{"end of its time", func(_ *testing.T, f *faulty) { f.clock.Advance(time.Hour) }, nbd.OK},
		{"reset", func(t *testing.T, f *faulty) { // and sent again
			if err := f.api.ResetDisk(t.Context(), "db", client.ResetLun); err != nil {
				t.Error(err)
			}
		}, nbd.OK},
		{"time-out", func(*testing.T, *faulty) {}, nbd.OK},
		{"power cut", func(t *testing.T, f *faulty) {
			if _, err := f.api.CutPower(t.Context(), "db", client.PowerCutOptions{}); err != nil {
				t.Error(err)
			}
			f.clock.Advance(time.Hour)
		}, nbd.EIO},
		{"disk removed", func(t *testing.T, f *faulty) {
			if _, err := f.api.RemoveDisk(t.Context(), "db", client.RemoveOptions{Force: true}); err != nil {
				t.Error(err)
			}
		}, nbd.OK},
		{"stop", func(_ *testing.T, f *faulty) { f.stop() }, nbd.OK},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := startFaulty(t, func(s *settings) {
				if tt.name == "time-out" || tt.name == "disk removed" {
					s.HBA.SRBTimeout = config.Duration(time.Second)
				}
			}, "db=memory:1MiB,cache=writeback", "other=memory:1MiB")
			c, other := f.dial(t, "db"), f.dial(t, "other")
			f.put(t, hang)
			if err := c.Send(writeCmd(0, 1, 1)); err != nil {
				t.Fatal(err)
			}
			if tt.name != "time-out" { // where it may have gone by
				f.awaitHeld(t, 1)
			}
			wantErrno(t, other, writeCmd(0, 2, 2), nbd.OK)
			var wait sync.WaitGroup
			wait.Go(func() { tt.out(t, f) })
			if r, err := c.Receive(); err != nil || r.Errno != tt.want {
				t.Errorf("the write that was held: %v, %v, want %v", r.Errno, err, tt.want)
			}
			wait.Wait()
			if tt.name == "stop" {
				return
			}
			wantErrno(t, other, readCmd(0, 1), nbd.OK)
		})
	}
}
