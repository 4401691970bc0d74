package main

import (
	"strings"
	"testing"

	"github.com/vhbad/vhbad/client"
)

// TestPrint_Paths: a path cannot draw on the terminal, or begin a line of its own.
func TestPrint_Paths(t *testing.T) {
	t.Parallel()
	const path, want = "/srv/a\x1b[2J\nb.img", `"/srv/a\x1b[2J\nb.img"`
	var disks, power strings.Builder
	if err := printDisks(&disks, []client.Disk{{Name: "d", Backend: "file", Path: path}}); err != nil {
		t.Fatal(err)
	}
	if got := disks.String(); !strings.HasSuffix(got, "  file:"+want+"\n") {
		t.Errorf("disk list: %q, want %s", got, want)
	}
	if err := printPower(&power, &client.Power{Trace: &client.PowerTrace{Path: path}}); err != nil {
		t.Fatal(err)
	}
	if got := power.String(); !strings.Contains(got, "trace "+want+":") {
		t.Errorf("power status: %q, want %s", got, want)
	}
}
