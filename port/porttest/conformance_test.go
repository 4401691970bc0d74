package porttest_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/vhbad/vhbad/port"
	"github.com/vhbad/vhbad/port/porttest"
)

// subject makes a fake miniport the subject of the suite.
func subject(o porttest.Options) porttest.NewSubject {
	return func(t *testing.T, m *porttest.Machine) porttest.Subject {
		f := porttest.New(m, o)
		releaser := m.Processor(t, "releaser")
		return porttest.Subject{
			Function: f.Function(),
			Miniport: f,
			Options:  port.AdapterOptions{BusyRetryCount: -1, BusyPauseTime: time.Millisecond},
			Hold: func() func() {
				release := f.Hold()
				return sync.OnceFunc(func() { release(releaser) })
			},
		}
	}
}

// TestMiniport_Conformance runs the suite over the fake, in every mode of the
// port.
func TestMiniport_Conformance(t *testing.T) {
	for _, model := range []port.SynchronizationModel{port.HalfDuplex, port.FullDuplex} {
		for _, interrupts := range []port.InterruptSynchronizationMode{
			port.InterruptSupportNone, port.InterruptSynchronizeAll, port.InterruptSynchronizePerMessage,
		} {
			for _, dpc := range []bool{false, true} {
				for _, queues := range []int{1, 3} {
					o := porttest.Options{Model: model, Interrupts: interrupts, Queues: queues, Channels: queues > 1, DPC: dpc}
					t.Run(fmt.Sprintf("%s/%s/dpc=%t/queues=%d", model, interrupts, dpc, queues), func(t *testing.T) {
						porttest.TestMiniport(t, subject(o))
					})
				}
			}
		}
	}
}

// TestMiniport_SmallQueue runs it where nearly every request meets a full queue.
func TestMiniport_SmallQueue(t *testing.T) {
	porttest.TestMiniport(t, subject(porttest.Options{Model: port.FullDuplex, Queues: 2, Channels: true, QueueEntries: 3, NoAbort: true}))
}
