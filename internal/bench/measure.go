package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ticksPerSecond is the unit of processor time in /proc: USER_HZ, which is 100 on
// every architecture that Go runs on.
const ticksPerSecond = 100

// processorTime is the user and system time of a process and of the children that
// it has waited for.
//
// Source: proc(5), /proc/PID/stat, fields 14 to 17.
func processorTime(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name in parentheses may contain spaces.
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	ticks := 0
	for _, f := range fields[11:15] {
		n, err := strconv.Atoi(f)
		if err != nil {
			return 0, fmt.Errorf("/proc/%d/stat: %w", pid, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / ticksPerSecond, nil
}

// runTime is how long the threads of a process have run. It is exact, where processorTime
// counts in hundredths of a second, but forgets threads that have ended.
//
// Source: Documentation/scheduler/sched-stats.rst, /proc/PID/schedstat, field 1.
func runTime(pid int) (total time.Duration, err error) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil {
		return 0, err
	}
	for _, path := range threads {
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // it has ended
		}
		if err != nil {
			return 0, err
		}
		ns, _, _ := strings.Cut(string(b), " ")
		n, err := strconv.ParseInt(ns, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", path, err)
		}
		total += time.Duration(n)
	}
	return total, nil
}

// residentBytes is the memory of a process that is in RAM.
func residentBytes(pid int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0, err
	}
	pages, err := strconv.ParseInt(strings.Fields(string(b))[1], 10, 64)
	return pages * int64(os.Getpagesize()), err
}

// systemCalls counts the system calls of a process while fn runs. It uses a tracepoint:
// strace would slow each call so much that the process would behave differently.
func systemCalls(pid int, fn func() error) (int64, error) {
	var out bytes.Buffer
	cmd := exec.Command("perf", "stat", "-x", ",", "-e", "raw_syscalls:sys_enter", "-p", strconv.Itoa(pid))
	cmd.Stderr = &out
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	<-time.After(perfStartTime)
	fnErr := fn()
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		return 0, errors.Join(fnErr, err)
	}
	_ = cmd.Wait() // ends by the signal
	if fnErr != nil {
		return 0, fnErr
	}
	count, _, _ := strings.Cut(strings.TrimSpace(out.String()), ",")
	n, err := strconv.ParseInt(count, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("perf stat says %q: want a number; it needs root, or a kernel.perf_event_paranoid of -1", out.String())
	}
	return n, nil
}

// perfStartTime is how long perf is given to attach; it does not say when it has.
const perfStartTime = 500 * time.Millisecond
