package target_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/hba/target"
	"github.com/vhbad/vhbad/internal/scsi"
)

const benchUnitBytes = 64 << 20

// benchTask is a task over the whole of a buffer, at a different place each time.
func benchTask(write bool, n int) (*target.Task, func(i int)) {
	b := make([]byte, n)
	p, direction := read16(0, uint32(n/blockBytes)), target.DataIn
	if write {
		p, direction = write16(0, uint32(n/blockBytes)), target.DataOut
	}
	task := newTask(p, direction, b)
	places := benchUnitBytes / n
	return task, func(i int) {
		lba := uint64(i*7919%places) * uint64(n/blockBytes)
		if write {
			scsi.PutWrite16(&task.CDB, lba, uint32(n/blockBytes), false, false)
		} else {
			scsi.PutRead16(&task.CDB, lba, uint32(n/blockBytes), false, false)
		}
	}
}

func BenchmarkExecute(b *testing.B) {
	for _, medium := range []string{"memory", "file"} {
		for _, op := range []string{"read", "write"} {
			for _, n := range []int{512, 4096, 65536} {
				b.Run(fmt.Sprintf("media=%s/op=%s/size=%d", medium, op, n), func(b *testing.B) {
					u := benchUnit(b, medium)
					for i := range benchUnitBytes >> 20 {
						wantGood(b, u, write16(uint64(i)<<11, 2048), target.DataOut, make([]byte, 1<<20))
					}
					task, at := benchTask(op == "write", n)
					b.SetBytes(int64(n))
					b.ReportAllocs()
					i := 0
					for b.Loop() {
						at(i)
						i++
						if !u.Execute(task, false) && !u.Execute(task, true) || task.Status != scsi.StatusGood {
							b.Fatal(task)
						}
					}
				})
			}
		}
	}
}

func benchUnit(b *testing.B, medium string) *target.Unit {
	b.Helper()
	if medium == "memory" {
		u, _ := newMemoryUnit(b, benchUnitBytes, target.Config{})
		return u
	}
	f, err := media.OpenFile(media.FileConfig{Path: filepath.Join(b.TempDir(), "disk"), SizeBytes: benchUnitBytes})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := f.Close(); err != nil {
			b.Error(err)
		}
	})
	return newUnit(b, f, target.Config{WriteCache: true})
}

// BenchmarkExecuteParallel shows that readers of one unit do not meet.
func BenchmarkExecuteParallel(b *testing.B) {
	u, _ := newMemoryUnit(b, benchUnitBytes, target.Config{})
	b.SetBytes(4096)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		task, at := benchTask(false, 4096)
		for i := 0; pb.Next(); i++ {
			at(i)
			if !u.Execute(task, false) || task.Status != scsi.StatusGood {
				b.Error(task)
				return
			}
		}
	})
}
