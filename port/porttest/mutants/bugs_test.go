package mutants

import "testing"

// Bugs that were reported against public drivers, or are in their sources, by
// name: each scenario fails with the bug and passes with the good specimen. vw is
// virtio-win/kvm-guest-drivers-windows; the numbers are its issues and pull
// requests.

// bred tests the mutant of a name.
func bred(t *testing.T, name string) {
	t.Helper()
	for i := range mutants {
		if mutants[i].name == name {
			mutants[i].test(t)
			return
		}
	}
	t.Fatalf("there is no mutant %q", name)
}

// vw#1453, #1466: ids of requests from a counter that is read and then increased
// without a lock; two requests had one id, and reads came back with the data of
// others.
func TestBug_vw1453_DuplicateIDs(t *testing.T) { bred(t, "id_outside_sync") }

// vw PR#1150 (#756, #623, #907): whether to ring the doorbell was decided outside
// the lock; requests stayed in the ring until the unit was reset.
func TestBug_vw1150_LostKick(t *testing.T) { bred(t, "kick_decided_early") }

// vw#907: a request that is never completed is found by the unit's timer alone.
func TestBug_vw907_LostRequest(t *testing.T) { bred(t, "start_without_complete") }

// vw PR#103: without the message lock two processors wrote into one ring.
func TestBug_vw103_RingWithoutLock(t *testing.T) { bred(t, "ring_without_lock") }

// vw PR#533: a routine for Dispatch was called from the handler.
func TestBug_vw533_DispatchRoutineInHandler(t *testing.T) { bred(t, "work_item_at_device_level") }

// vw PR#1295, #1326, #1370, #1493: a reset completed requests whose memory the
// device still wrote to.
func TestBug_vw1295_CompletedBeforeDMAStopped(t *testing.T) { bred(t, "reset_bus_keeps_dma") }

// vw PR#1296: an answer that came after a reset was taken for that of the request
// that had its place by then.
func TestBug_vw1296_LateAnswerHitsNewRequest(t *testing.T) { bred(t, "no_generation") }

// vw PR#922: a full ring must be BUSY with QUEUE FULL.
func TestBug_vw922_FullRing(t *testing.T) { bred(t, "ring_full_unchecked") }

// vw PR#1595: BuildIo returned false and nobody completed the request.
func TestBug_vw1595_BuildIoFalseWithoutCompletion(t *testing.T) { bred(t, "false_without_complete") }

// vw PR#1595: what can never succeed was completed as BUSY, and tried again.
func TestBug_vw1595_PermanentFailureAsBusy(t *testing.T) { bred(t, "permanent_as_busy") }

// vw PR#1293, #1294: the interrupt lock was taken where it is held already.
func TestBug_vw1293_InterruptLockTwice(t *testing.T) { bred(t, "lock_in_handler") }

// vw PR#1175: a wrapper released one kind of the locks that its twin took.
func TestBug_vw1175_LockNotReleased(t *testing.T) { bred(t, "lock_leaked") }

// ZFSin#211: a reset completed all requests at once, with a worker still at some
// of them.
func TestBug_ZFSin211_BulkCompletion(t *testing.T) { bred(t, "reset_bus_in_bulk") }

// vioscsi sets tmf_infly after SynchronizeAccess has returned; the handler does
// not look for the answer in between.
func TestBug_vioscsi_FlagAfterSynchronizeAccess(t *testing.T) { bred(t, "flag_after_sync") }

// vioscsi unlinks a list entry in the extension of an SRB that it has completed.
func TestBug_vioscsi_UnlinkAfterCompletion(t *testing.T) { bred(t, "extension_after_complete") }

// viostor clears a flag of a request that it may have completed.
func TestBug_viostor_FlagClearedAfterCompletion(t *testing.T) { bred(t, "result_after_complete") }

// viostor keeps one sense buffer for all requests of the adapter.
func TestBug_viostor_SharedSense(t *testing.T) { bred(t, "shared_sense") }

// viostor checks ranges in BuildIo against a capacity that the handler changes.
func TestBug_viostor_StaleCapacity(t *testing.T) { bred(t, "capacity_outside_sync") }

// lsi_u3 ends the requests of a whole target when one unit is reset.
func TestBug_lsi_UnitResetHitsTarget(t *testing.T) { bred(t, "reset_unit_hits_target") }
