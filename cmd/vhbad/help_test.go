package main

import (
	"io"
	"strings"
	"syscall"
	"testing"
)

// A full is a file system without space.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

// TestHelp_NotWritten: help that does not arrive is a failure, as it is with other output.
func TestHelp_NotWritten(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"--help"}, {"help"}, {"serve", "-h"}, {"help", "fault", "add"}, {"completion", "bash", "--help"}, {"--version"}, {"version"}} {
		var stderr strings.Builder
		if code := run(t.Context(), args, full{}, &stderr); code != exitFailure || stderr.String() != "vhbad: no space left on device\n" {
			t.Errorf("%q: exit code %d, %q; want %d and why", args, code, stderr.String(), exitFailure)
		}
		stderr.Reset()
		if code := run(t.Context(), args, io.Discard, &stderr); code != exitOK || stderr.String() != "" {
			t.Errorf("%q: exit code %d, %q; want none", args, code, stderr.String())
		}
	}
	if code := run(t.Context(), []string{"disk"}, io.Discard, full{}); code != exitUsage {
		t.Errorf("wrong usage whose help is not written: exit code %d, want %d", code, exitUsage)
	}
}
