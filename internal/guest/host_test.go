package guest_test

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/vhbad/vhbad/internal/guest"
)

// TestBoot_Pinned: a guest is on one processor if that is asked for, and nothing else is
// afterwards.
func TestBoot_Pinned(t *testing.T) {
	runtime.LockOSThread() // so that the same thread starts both
	defer runtime.UnlockOSThread()
	kernel := filepath.Join(t.TempDir(), "kernel")
	const script = "#!/bin/sh\nsed -n 's/^Cpus_allowed_list:[[:space:]]*//p' /proc/self/status >&3\n"
	if err := os.WriteFile(kernel, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	processors := func(pinned bool) string {
		var console bytes.Buffer
		m, err := guest.Boot(guest.Config{Kernel: kernel, Memory: "1M", Folder: t.TempDir(), Console: &console, Pinned: pinned})
		if err != nil {
			t.Fatal(err)
		}
		list, err := io.ReadAll(m.Reports)
		if err != nil {
			t.Error(err)
		}
		if err := m.Wait(); err != nil {
			t.Error(err)
		}
		if console.Len() > 0 {
			t.Errorf("console: %s", &console)
		}
		return strings.TrimSpace(string(list))
	}
	all := processors(false)
	if got := processors(true); got == "" || strings.ContainsAny(got, ",-") {
		t.Errorf("pinned to processors %q of %q: want one", got, all)
	}
	if got := processors(false); got == "" || got != all {
		t.Errorf("processors %q after a pinned guest, %q before", got, all)
	}
}
