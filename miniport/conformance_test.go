package miniport_test

import (
	"fmt"
	"testing"

	"github.com/vhbad/vhbad/hba"
	"github.com/vhbad/vhbad/miniport"
	"github.com/vhbad/vhbad/port/porttest"
)

func conform(t *testing.T, o miniport.Options, strict bool) {
	porttest.TestMiniport(t, func(t *testing.T, m *porttest.Machine) porttest.Subject {
		return newRig(t, m.IOMMU, o, hba.Config{}).subject(strict)
	})
}

// TestDriver_Conformance runs the port's suite over driver and device in every
// mode.
func TestDriver_Conformance(t *testing.T) {
	for _, half := range []bool{false, true} {
		for _, interrupts := range []miniport.Interrupts{miniport.PerMessage, miniport.AllMessages, miniport.Line} {
			for _, queues := range []int{1, 4} {
				t.Run(fmt.Sprintf("half=%t/interrupts=%s/queues=%d", half, interrupts, queues), func(t *testing.T) {
					conform(t, miniport.Options{HalfDuplex: half, Interrupts: interrupts, Queues: queues}, false)
				})
			}
		}
	}
}

// TestDriver_SingleMessage completes four queues on one message.
func TestDriver_SingleMessage(t *testing.T) {
	conform(t, miniport.Options{SingleMessage: true}, false)
}

// TestDriver_StrictSegments has every list split at pages, so that chained lists
// are the rule.
func TestDriver_StrictSegments(t *testing.T) { conform(t, miniport.Options{}, true) }

// TestDriver_SmallRings fills rings of four entries all the time.
func TestDriver_SmallRings(t *testing.T) { conform(t, miniport.Options{RingEntries: 4}, false) }
