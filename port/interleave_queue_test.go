//go:build interleave

package port

import (
	"fmt"
	"testing"

	"github.com/vhbad/vhbad/internal/interleave"
	"github.com/vhbad/vhbad/internal/scsi"
)

// The orders in which Submit, completions and flow control can take their steps
// are gone through here: nothing may wait in a queue when there is nobody left
// to start it.

// A warehouse is an adapter with units whose device holds SRBs until a task
// completes them.
type warehouse struct {
	*machine
	units    []*LogicalUnit
	onDevice []*SRB
	srbs     []*SRB
	done     map[*SRB]int
	patience int // the device does nothing before it has had more SRBs than this at once
	full     int // QUEUE FULL answers still to be given, while others are on the device
}

func newWarehouse(m *machine, units int) *warehouse {
	x := &warehouse{machine: m, done: map[*SRB]int{}}
	for i := range units {
		x.units = append(x.units, m.a.unitAt(0, 0, uint8(i)))
	}
	m.d.a = m.a
	m.d.startIo = func(_ *Processor, srb *SRB) bool {
		x.onDevice = append(x.onDevice, srb)
		return true
	}
	m.Check(func() error {
		for i, srb := range x.srbs {
			if n := x.done[srb]; n != 1 {
				return fmt.Errorf("SRB %d came back %d times", i, n)
			}
			m.a.FreeSRB(srb)
		}
		for _, lu := range x.units {
			if s, gate := lu.Stats(), lu.gate.Load()&^gateRemoved; s.Outstanding != 0 || s.Waiting != 0 || gate != 0 {
				return fmt.Errorf("%s: %d outstanding, %d waiting, gate %#x at rest", lu, s.Outstanding, s.Waiting, gate)
			}
		}
		if n, gate := m.a.outstanding.Load(), m.a.gate.Load(); n != 0 || gate != 0 {
			return fmt.Errorf("adapter: %d outstanding, gate %#x at rest", n, gate)
		}
		return nil
	})
	return x
}

// CompleteSRB implements Completer.
func (x *warehouse) CompleteSRB(_ *Processor, srb *SRB) { x.done[srb]++ }

// submitter adds a task that submits n SRBs to a unit, one after the other.
func (x *warehouse) submitter(unit, n int) {
	var srbs []*SRB
	for range n {
		srb, err := x.a.NewSRB(nil)
		if err != nil {
			panic(err)
		}
		srb.Flags = FlagQueueActionEnable | FlagNoQueueFreeze
		srb.QueueAction = SimpleTag
		srb.Completer = x
		srbs = append(srbs, srb)
	}
	x.srbs = append(x.srbs, srbs...)
	x.task(fmt.Sprintf("submitter to unit %d", unit), func(p *Processor) {
		for i := range srbs {
			x.units[unit].Submit(p, srbs[i:i+1])
		}
	})
}

// device adds a task that completes the SRBs on the device.
func (x *warehouse) device() {
	x.task("device", func(p *Processor) {
		for x.Serve("wait for SRBs", func() bool { return len(x.onDevice) > x.patience }) {
			x.patience = 0
			srb := x.onDevice[0]
			x.onDevice = x.onDevice[1:]
			if x.full > 0 && len(x.onDevice) > 0 {
				x.full--
				srb.Status, srb.ScsiStatus = StatusError, scsi.StatusTaskSetFull
				x.a.Complete(p, srb)
				continue
			}
			x.d.complete(p, srb)
		}
	})
}

func limits(adapter, unit, depth int) interruptModel {
	return interruptModel{model: FullDuplex, messages: 1, limits: func(c *Config) {
		c.MaxNumberOfIO, c.MaxIOsPerLun, c.InitialLunQueueDepth = adapter, unit, depth
	}}
}

// Two units share an adapter that takes one SRB at a time: a unit that found it full is
// started when it is not.
func TestInterleave_AdapterFull(t *testing.T) {
	explore(t, interleave.Search{Preemptions: 2, Seeds: 1000}, limits(1, 1, 1), func(m *machine) {
		x := newWarehouse(m, 2)
		x.submitter(0, 1)
		x.submitter(1, 1)
		x.device()
	})
}

// Busy ends when the given number of SRBs, or all, have completed, or at Ready.
func TestInterleave_Busy(t *testing.T) {
	for _, ready := range []bool{false, true} {
		t.Run(fmt.Sprintf("ready=%t", ready), func(t *testing.T) {
			explore(t, interleave.Search{Preemptions: 2, Seeds: 1000}, limits(4, 4, 4), func(m *machine) {
				x := newWarehouse(m, 1)
				x.submitter(0, 2)
				x.device()
				m.task("throttle", func(p *Processor) {
					m.a.Busy(p, 2)
					if ready {
						m.a.Ready(p)
					}
				})
			})
		})
	}
}

// The same for one unit.
func TestInterleave_DeviceBusy(t *testing.T) {
	for _, ready := range []bool{false, true} {
		t.Run(fmt.Sprintf("ready=%t", ready), func(t *testing.T) {
			explore(t, interleave.Search{Preemptions: 2, Seeds: 1000}, limits(4, 4, 4), func(m *machine) {
				x := newWarehouse(m, 1)
				x.submitter(0, 2)
				x.device()
				m.task("throttle", func(p *Processor) {
					m.a.DeviceBusy(p, 0, 0, 0, 2)
					if ready {
						m.a.DeviceReady(p, 0, 0, 0)
					}
				})
			})
		})
	}
}

// A depth that grows lets in SRBs that waited for it, without waiting for a
// completion.
func TestInterleave_Depth(t *testing.T) {
	explore(t, interleave.Search{Preemptions: 1, Seeds: 2000}, limits(4, 4, 1), func(m *machine) {
		x := newWarehouse(m, 1)
		x.patience = 1
		x.submitter(0, 2)
		x.submitter(0, 1)
		x.device()
		m.task("depth", func(p *Processor) { m.a.SetDeviceQueueDepth(p, 0, 0, 0, 2) })
	})
}

// A unit leaves while the adapter is paused: its SRBs end all the same, those that
// BuildIo has passed on as well.
func TestInterleave_RemovedWhilePaused(t *testing.T) {
	explore(t, interleave.Search{Preemptions: 3, Seeds: 1000}, limits(4, 4, 4), func(m *machine) {
		x := newWarehouse(m, 1)
		x.submitter(0, 1)
		x.device()
		m.task("remover", func(p *Processor) {
			m.a.mu.Lock()
			m.a.closeGateLocked(gatePaused)
			m.a.mu.Unlock()
			m.Yield("paused")
			m.a.detach(p, x.units[0])
			m.a.forget(p, x.units[0])
			m.Yield("removed")
			m.a.Resume(p)
		})
	})
}

// A unit that left is taken out of the table while the adapter is removed: no unit is in
// it afterwards.
func TestInterleave_LeaverWhileRemoved(t *testing.T) {
	explore(t, interleave.Search{Preemptions: 3, Seeds: 500}, limits(4, 4, 4), func(m *machine) {
		lu := m.a.unitAt(0, 0, 0)
		m.a.unitAt(0, 0, 1)
		p := m.processor("before")
		m.a.detach(p, lu)
		m.a.forget(p, lu)
		m.task("timer", func(p *Processor) { m.a.timeLeaver(p, lu) })
		m.task("remover", m.a.removeUnits)
		m.Check(func() error {
			if t := m.a.units.Load(); len(t.all) != 0 {
				return fmt.Errorf("the adapter is removed and has %v", t.all)
			}
			return nil
		})
	})
}

// After QUEUE FULL the SRB goes down again, once enough others have completed.
func TestInterleave_QueueFull(t *testing.T) {
	explore(t, interleave.Search{Preemptions: 2, Seeds: 1000}, limits(4, 4, 4), func(m *machine) {
		x := newWarehouse(m, 1)
		x.full = 1
		x.submitter(0, 2)
		x.submitter(0, 1)
		x.device()
	})
}
