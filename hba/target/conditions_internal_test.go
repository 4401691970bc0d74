package target

import (
	"testing"

	"github.com/vhbad/vhbad/internal/scsi"
)

// A command that found no power fails, also when the power has come back since: whose it
// is has been looked at before. The attention waits for another.
func TestCheckConditions_AsTheyWereLoaded(t *testing.T) {
	u := &Unit{}
	u.powerCycles.Store(2)
	u.PowerOff()
	found := u.conditions.Load()
	u.PowerOn()
	task := &Task{}
	if !u.checkConditions(task, scsi.OpWrite16, found) || task.Status != scsi.StatusCheckCondition {
		t.Errorf("status %v, want CHECK CONDITION", task.Status)
	}
	if code, ok := u.takeAttention(); !ok || code != scsi.PowerOnOccurred {
		t.Errorf("the attention that waits: %v, %t", code, ok)
	}
}
