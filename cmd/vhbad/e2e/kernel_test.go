//go:build kernel

package e2e

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

var fullFlag = flag.Bool("full", false, "run every file system over every transport and number of connections")

const (
	// guestMemory is an upper bound: the guest's memory is a sparse file.
	guestMemory = "768M"
	// guestDeadline bounds one boot, from start to power-off.
	guestDeadline = 8 * time.Minute
	// mapCount is how many mappings a host process may have. The guest kernel maps
	// each page that a guest process touches, so a big daemon needs many.
	mapCount     = 1 << 20
	mapCountFile = "/proc/sys/vm/max_map_count"
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
	raiseMapCount(t)
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

// raiseMapCount lets guest processes touch more than 256 MiB, if we may. Without,
// the scenarios still fit.
func raiseMapCount(t *testing.T) {
	t.Helper()
	content, err := os.ReadFile(mapCountFile)
	if err != nil {
		t.Fatal(err)
	}
	now, err := strconv.Atoi(strings.TrimSpace(string(content)))
	if err != nil {
		t.Fatal(err)
	}
	if now >= mapCount {
		return
	}
	if err := os.WriteFile(mapCountFile, []byte(strconv.Itoa(mapCount)), 0); err != nil {
		t.Logf("%s stays at %d: %v", mapCountFile, now, err)
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
	results, guestResults, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	console := new(bytes.Buffer)
	uml := exec.Command(tool(t, "linux.uml"),
		"mem="+guestMemory, "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "init="+self,
		"con=null", "con0=null,fd:1", "con1=null,fd:3", "quiet", "panic=-1", "uml_dir="+t.TempDir()+"/",
		// Signals are dear in the guest; init needs no preemption.
		"GODEBUG=asyncpreemptoff=1",
		envScenario+"="+s.name, envServer+"="+*serverFlag, envBinary+"="+vhbadBinary,
		fmt.Sprintf("%s=%d", envCrashes, *crashesFlag), fmt.Sprintf("%s=%d", envCrashSeed, *crashSeedFlag))
	uml.Stdout, uml.Stderr = console, console
	uml.ExtraFiles = []*os.File{guestResults}
	uml.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	uml.WaitDelay = time.Second // its children may keep the console open
	if err := uml.Start(); err != nil {
		t.Fatal(err)
	}
	if err := guestResults.Close(); err != nil {
		t.Fatal(err)
	}
	deadline := guestDeadline
	if *crashesFlag > 10 && strings.HasPrefix(s.name, "crash/") {
		deadline = guestDeadline * time.Duration(*crashesFlag) / 10
	}
	late := time.AfterFunc(deadline, func() {
		_ = syscall.Kill(-uml.Process.Pid, syscall.SIGKILL) // the steps not reported say the rest
	})
	ended := make(chan struct{})
	go func() {
		// A guest whose kernel panicked exits with a status too; what counts is
		// whether all its steps were reported.
		_ = uml.Wait()
		close(ended)
		_ = results.SetReadDeadline(time.Now().Add(time.Second))
	}()

	lines := bufio.NewScanner(results)
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
	<-ended
	if !late.Stop() {
		t.Errorf("the guest did not end within %v", deadline)
	}
	if err := results.Close(); err != nil {
		t.Error(err)
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
