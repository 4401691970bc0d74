//go:build !race

package target_test

import (
	"testing"

	"github.com/vhbad/vhbad/hba/target"
	"github.com/vhbad/vhbad/internal/scsi"
)

// TestExecute_NoAllocs: the race detector allocates by itself.
func TestExecute_NoAllocs(t *testing.T) {
	u, _ := newMemoryUnit(t, 1<<24, target.Config{})
	buf := make([]byte, 4096)
	wantGood(t, u, write16(0, 8), target.DataOut, buf)
	for name, task := range map[string]*target.Task{
		"read":         newTask(read16(0, 8), target.DataIn, buf),
		"write":        newTask(write16(0, 8), target.DataOut, buf[:1024], buf[1024:]),
		"flush":        newTask(func(c *[16]byte) int { return scsi.PutSynchronizeCache10(c, 0, 0, false) }, target.NoData),
		"verify":       newTask(func(c *[16]byte) int { return scsi.PutVerify10(c, 0, 1, scsi.BytchkNone) }, target.NoData),
		"test":         newTask(scsi.PutTestUnitReady, target.NoData),
		"out of range": newTask(read16(1<<40, 1), target.DataIn, buf),
	} {
		n := testing.AllocsPerRun(200, func() {
			if !u.Execute(task, false) {
				t.Error("not done")
			}
		})
		if n != 0 {
			t.Errorf("%s: %v allocations, want 0", name, n)
		}
	}
}
