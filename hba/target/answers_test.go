package target_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"github.com/vhbad/vhbad/hba/target"
	"github.com/vhbad/vhbad/internal/scsi"
)

// TestAnswers runs the tables under testdata/answers: what a unit answers to each command
// that it takes, at the bounds of its fields. Rewrite them with -rewrite, and read the
// difference.
//
// A directive "unit" makes a unit, of size= bytes, and gets it out of the way that it has
// just been powered on; "read-only", "memory" (no cache can be asked for) and "absent" (there
// is no unit) are its kinds. Each line of a table is a command:
//
//	in 512 | 28 00 00000000 00 0001 00 | the first block
//
// that is the direction (in, out or none), the length of the buffers, after a "=" what they
// begin with, the CDB, and a remark. The answer is its status, sense key, additional sense,
// what that points at, and how many bytes were moved.
func TestAnswers(t *testing.T) {
	seen := map[scsi.Opcode]bool{}
	files := 0
	datadriven.Walk(t, "testdata/answers", func(t *testing.T, path string) {
		files++
		var at executor
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			if d.Cmd == "unit" {
				at = answeringUnit(t, d)
				return ""
			}
			var out strings.Builder
			for line := range strings.Lines(d.Input) {
				task, remark := taskOf(t, d, strings.TrimSpace(line))
				seen[scsi.Opcode(task.CDB[0])] = true
				if !at.Execute(task, true) {
					d.Fatalf(t, "%q is not done though it may block", line)
				}
				fmt.Fprintf(&out, "%-44s %s\n", remark, answerOf(task))
			}
			return out.String()
		})
	})
	all, err := os.ReadDir("testdata/answers")
	if err != nil {
		t.Fatal(err)
	}
	if files < len(all) { // -run has chosen some
		return
	}
	for code := range 256 {
		op := scsi.Opcode(code)
		u, _ := newMemoryUnit(t, blockBytes, target.Config{}) // START STOP UNIT stops it
		if s := senseOf(run(t, u, raw(append([]byte{byte(code)}, make([]byte, 15)...)...), target.NoData)); s.Additional != scsi.InvalidCommandOperationCode && !seen[op] {
			t.Errorf("the unit takes %v, and no table has it", op)
		}
	}
}

// answeringUnit makes what a directive "unit" asks for.
func answeringUnit(t *testing.T, d *datadriven.TestData) executor {
	var sizeBytes int64
	d.ScanArgs(t, "size", &sizeBytes)
	u, _ := newMemoryUnit(t, sizeBytes, target.Config{ReadOnly: d.HasArg("read-only"), WriteCache: true, NoCache: d.HasArg("memory")})
	tgt := target.NewTarget()
	if err := tgt.AddUnit(3, u); err != nil {
		t.Fatal(err)
	}
	if d.HasArg("absent") {
		return address{tgt, 1}
	}
	return address{tgt, 3}
}

// taskOf reads a line of a table.
func taskOf(t *testing.T, d *datadriven.TestData, line string) (task *target.Task, remark string) {
	parts := strings.SplitN(line, " | ", 3)
	if len(parts) != 3 {
		d.Fatalf(t, "%q: want buffers | CDB | remark", line)
	}
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
		if err != nil {
			d.Fatalf(t, "%q: %v", line, err)
		}
		return b
	}
	buffers, content, _ := strings.Cut(parts[0], "=")
	direction, length, _ := strings.Cut(strings.TrimSpace(buffers), " ")
	n, err := strconv.Atoi(length)
	if err != nil && length != "" {
		d.Fatalf(t, "%q: %v", line, err)
	}
	buf := make([]byte, n)
	copy(buf, unhex(content))
	way, ok := map[string]target.Direction{"none": target.NoData, "in": target.DataIn, "out": target.DataOut}[direction]
	if !ok {
		d.Fatalf(t, "%q: direction %q", line, direction)
	}
	if n == 0 {
		return newTask(raw(unhex(parts[1])...), way), parts[2]
	}
	return newTask(raw(unhex(parts[1])...), way, buf), parts[2]
}

// answerOf describes what a command has ended with.
func answerOf(task *target.Task) string {
	var b bytes.Buffer
	b.WriteString(task.Status.String())
	if s := senseOf(task); task.SenseBytes != 0 {
		fmt.Fprintf(&b, ": %v, %v", s.Key, s.Additional)
		if s.FieldValid {
			fmt.Fprintf(&b, " at byte %d", s.Field)
		}
		if s.InformationValid {
			fmt.Fprintf(&b, ", information %d", s.Information)
		}
		if task.Sense[0]&0x7f >= 0x72 {
			b.WriteString(", descriptors")
		}
	}
	if task.TransferredBytes != 0 {
		fmt.Fprintf(&b, ", %d bytes", task.TransferredBytes)
	}
	return b.String()
}
