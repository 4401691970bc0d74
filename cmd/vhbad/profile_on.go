//go:build profile

package main

import (
	"fmt"
	"os"
	"runtime/pprof"
)

// profileDirVariable names the folder that a binary built with the tag profile
// writes a CPU profile into, one file for each process. `make pgo` uses it.
const profileDirVariable = "VHBAD_PROFILE_DIR"

// profiled runs fn under the CPU profiler, if a folder is named.
func profiled(fn func() int) int {
	dir := os.Getenv(profileDirVariable)
	if dir == "" {
		return fn()
	}
	f, err := os.CreateTemp(dir, "vhbad-*.pprof") // before the sandbox closes
	if err == nil {
		err = pprof.StartCPUProfile(f)
	}
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "vhbad:", err)
		return exitFailure
	}
	code := fn()
	pprof.StopCPUProfile()
	if err := f.Close(); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "vhbad:", err)
		return exitFailure
	}
	return code
}
