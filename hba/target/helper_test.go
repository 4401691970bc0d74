package target_test

import (
	"bytes"
	"testing"

	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/hba/target"
	"github.com/vhbad/vhbad/internal/scsi"
)

const blockBytes = 512

// newMemoryUnit returns a unit on memory, and the memory.
func newMemoryUnit(tb testing.TB, sizeBytes int64, c target.Config) (*target.Unit, *media.Memory) {
	tb.Helper()
	m, err := media.NewMemory(media.MemoryConfig{SizeBytes: sizeBytes})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := m.Close(); err != nil {
			tb.Errorf("close memory: %v", err)
		}
	})
	return newUnit(tb, m, c), m
}

func newUnit(tb testing.TB, m media.Media, c target.Config) *target.Unit {
	tb.Helper()
	if c.Serial == "" {
		c.Serial = "TEST0001"
	}
	u, err := target.NewUnit(m, c)
	if err != nil {
		tb.Fatal(err)
	}
	return u
}

// put is a Put function of package scsi with its arguments bound.
type put func(cdb *[scsi.CDBMaxBytes]byte) int

// newTask returns the task of a command with data buffers.
func newTask(p put, direction target.Direction, segments ...[]byte) *target.Task {
	t := &target.Task{Direction: direction, Segments: segments}
	t.CDBBytes = p(&t.CDB)
	for _, s := range segments {
		t.DataBytes += len(s)
	}
	return t
}

// executor is a Unit, or a Target's address.
type executor interface {
	Execute(t *target.Task, mayBlock bool) bool
}

// run executes a command where it may block.
func run(tb testing.TB, u executor, p put, direction target.Direction, segments ...[]byte) *target.Task {
	tb.Helper()
	task := newTask(p, direction, segments...)
	if !u.Execute(task, true) {
		tb.Fatalf("%v: not done though it may block", task)
	}
	return task
}

// wantGood runs a command that must succeed.
func wantGood(tb testing.TB, u executor, p put, direction target.Direction, segments ...[]byte) *target.Task {
	tb.Helper()
	task := run(tb, u, p, direction, segments...)
	if task.Status != scsi.StatusGood {
		tb.Fatalf("%v, sense %+v; want GOOD", task, senseOf(task))
	}
	if task.SenseBytes != 0 {
		tb.Fatalf("%v: %d bytes of sense data with GOOD", task, task.SenseBytes)
	}
	return task
}

func senseOf(task *target.Task) scsi.Sense {
	s, _ := scsi.ParseSense(task.Sense[:task.SenseBytes])
	return s
}

// wantSense checks that task ended with CHECK CONDITION and just this.
func wantSense(tb testing.TB, task *target.Task, want scsi.Sense) {
	tb.Helper()
	if task.Status != scsi.StatusCheckCondition {
		tb.Fatalf("%v: want CHECK CONDITION, %v %v", task, want.Key, want.Additional)
	}
	s, ok := scsi.ParseSense(task.Sense[:task.SenseBytes])
	if !ok {
		tb.Fatalf("%v: sense data % x cannot be read", task, task.Sense[:task.SenseBytes])
	}
	if s != want {
		tb.Fatalf("%v:\ngot  %v %v %+v\nwant %v %v %+v", task, s.Key, s.Additional, s, want.Key, want.Additional, want)
	}
}

// field is the sense of an invalid field in the CDB.
func field(n uint16) scsi.Sense {
	return scsi.Sense{
		Key: scsi.KeyIllegalRequest, Additional: scsi.InvalidFieldInCDB, FieldValid: true, FieldInCDB: true, Field: n,
	}
}

func illegal(code scsi.Additional) scsi.Sense {
	return scsi.Sense{Key: scsi.KeyIllegalRequest, Additional: code}
}

func filled(n int, b byte) []byte { return bytes.Repeat([]byte{b}, n) }

func read16(lba uint64, blocks uint32) put {
	return func(cdb *[scsi.CDBMaxBytes]byte) int { return scsi.PutRead16(cdb, lba, blocks, false, false) }
}

func write16(lba uint64, blocks uint32) put {
	return func(cdb *[scsi.CDBMaxBytes]byte) int { return scsi.PutWrite16(cdb, lba, blocks, false, false) }
}

// raw is a CDB given by its bytes.
func raw(b ...byte) put {
	return func(cdb *[scsi.CDBMaxBytes]byte) int {
		*cdb = [scsi.CDBMaxBytes]byte{}
		return copy(cdb[:], b)
	}
}

// mustRead returns blocks of a unit.
func mustRead(tb testing.TB, u executor, lba uint64, blocks uint32) []byte {
	tb.Helper()
	b := filled(int(blocks)*blockBytes, 0xee)
	task := wantGood(tb, u, read16(lba, blocks), target.DataIn, b)
	if task.TransferredBytes != len(b) {
		tb.Fatalf("%v: want %d bytes transferred", task, len(b))
	}
	return b
}
