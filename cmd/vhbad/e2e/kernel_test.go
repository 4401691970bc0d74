//go:build kernel

package e2e

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	machine "github.com/vhbad/vhbad/internal/guest"
)

var fullFlag = flag.Bool("full", false, "run every file system over every transport and number of connections")

const (
	// guestMemory is an upper bound: the guest's memory is a sparse file.
	guestMemory = "768M"
	// guestDeadline bounds one boot, from start to power-off.
	guestDeadline = 8 * time.Minute
)

// TestKernel boots one guest per scenario; each step is a subtest.
func TestKernel(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		"linux.uml", "nbd-client", "fio", "ip", "blkdiscard", "fstrim",
		"mkfs.ext4", "e2fsck", "resize2fs", "mkfs.xfs", "xfs_repair", "mkfs.btrfs", "btrfs",
		"nbdinfo", "nbdcopy", "cmp", "sqlite3",
	} {
		tool(t, name)
	}
	if *serverFlag == serverNbdkit {
		tool(t, "nbdkit")
	}
	if err := machine.RaiseMapCount(); err != nil {
		t.Log(err) // the scenarios fit without
	}
	all := scenarios()
	if *fullFlag {
		all = append(all, fullScenarios()...)
	}
	for _, s := range all {
		if *serverFlag != serverVhbad && strings.HasPrefix(s.name, vhbadClient.name+"/") && vhbadBinary == "" {
			continue // there is no vhbad to attach with
		}
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			boot(t, s)
		})
	}
}

// A result is what the guest reported of one step.
type result struct {
	step    string
	elapsed time.Duration
	failure string // empty when it went well
}

// boot runs one scenario in a guest and turns its steps into subtests.
func boot(t *testing.T, s scenario) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	console := new(bytes.Buffer)
	m, err := machine.Boot(machine.Config{
		Kernel: tool(t, machine.Kernel), Init: self, Memory: guestMemory, Folder: t.TempDir(), Console: console,
		Environment: []string{
			envScenario + "=" + s.name, envServer + "=" + *serverFlag, envBinary + "=" + vhbadBinary,
			fmt.Sprintf("%s=%d", envCrashes, *crashesFlag), fmt.Sprintf("%s=%d", envCrashSeed, *crashSeedFlag),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	deadline := guestDeadline
	if *crashesFlag > 10 && strings.HasPrefix(s.name, "crash/") {
		deadline = guestDeadline * time.Duration(*crashesFlag) / 10
	}
	late := time.AfterFunc(deadline, m.Kill) // the steps not reported say the rest

	lines := bufio.NewScanner(m.Reports)
	for _, want := range append([]step{{name: bootStep}}, s.steps...) {
		got, err := nextResult(lines)
		if err == nil && got.step != want.name {
			err = fmt.Errorf("guest reports step %s", got.step)
		}
		ok := t.Run(want.name, func(t *testing.T) {
			if err != nil {
				t.Fatalf("no result: %v", err)
			}
			if got.failure != "" {
				t.Fatal(got.failure)
			}
			t.Logf("took %v in the guest", got.elapsed)
		})
		if !ok {
			break
		}
	}
	if err := m.Wait(); err != nil {
		t.Error(err)
	}
	if !late.Stop() {
		t.Errorf("the guest did not end within %v", deadline)
	}
	if t.Failed() {
		t.Logf("console of the guest:\n%s", console)
	}
}

// nextResult reads one line of the guest's report: step NAME MILLISECONDS WHY.
func nextResult(lines *bufio.Scanner) (result, error) {
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		rest, ok := strings.CutPrefix(line, "step ")
		if !ok {
			continue // a console may print escape codes of its own
		}
		fields := strings.SplitN(rest, " ", 3)
		if len(fields) != 3 {
			return result{}, fmt.Errorf("line %q: want step NAME MILLISECONDS WHY", line)
		}
		milliseconds, err := strconv.Atoi(fields[1])
		if err != nil {
			return result{}, fmt.Errorf("line %q: %w", line, err)
		}
		r := result{step: fields[0], elapsed: time.Duration(milliseconds) * time.Millisecond}
		if fields[2] != "-" {
			if r.failure, err = strconv.Unquote(fields[2]); err != nil {
				return result{}, fmt.Errorf("line %q: %w", line, err)
			}
		}
		return r, nil
	}
	if err := lines.Err(); err != nil {
		return result{}, err
	}
	return result{}, fmt.Errorf("the guest ended")
}
