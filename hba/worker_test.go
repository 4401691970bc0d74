package hba

import (
	"testing"

	"github.com/vhbad/vhbad/internal/scsi"
)

// Commands come in order of arrival, but what is no transfer never gets the last
// workers.
func TestNextInLine(t *testing.T) {
	for _, tt := range []struct{ workers, status, others int }{{1, 1, 1}, {2, 1, 1}, {3, 2, 1}, {4, 3, 2}, {16, 12, 10}, {1024, 768, 640}} {
		if status, others := kept(tt.workers); status != tt.status || others != tt.others {
			t.Errorf("%d workers: %d and %d for others, want %d and %d", tt.workers, status, others, tt.status, tt.others)
		}
	}
	const flush, status, read = scsi.OpSynchronizeCache16, scsi.OpServiceActionIn16, scsi.OpRead16
	d := &Device{workers: 4}
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.nextInLineLocked(); ok {
		t.Error("something in line, where there is nothing")
	}
	for i, op := range []scsi.Opcode{flush, read, flush, flush, status, status, read} {
		rec := &record{arrival: uint64(i)}
		rec.cmd.CDB[0] = uint8(op)
		rec.line = lineOf(&rec.cmd)
		d.lines[rec.line].push(rec)
	}
	want := []uint64{0, 1, 2, 4, 6} // 3 is a flush too many, 5 one that is no transfer
	for _, arrival := range want {
		l, ok := d.nextInLineLocked()
		if !ok {
			t.Fatalf("nothing in line, want %d", arrival)
		}
		if rec := d.lines[l].pop(); rec.arrival != arrival {
			t.Errorf("%d is next, want %d", rec.arrival, arrival)
		}
		d.busy[l]++
	}
	if _, ok := d.nextInLineLocked(); ok {
		t.Error("flushes get all workers")
	}
	d.busy[lineOthers]--
	if l, ok := d.nextInLineLocked(); !ok || d.lines[l].first.arrival != 3 {
		t.Error("the last flush was forgotten")
	}
}
