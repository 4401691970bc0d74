package sandbox

import (
	"strings"
	"testing"
)

// TestReaches_NoImages: a sandbox of a daemon whose disks are all in memory says so.
func TestReaches_NoImages(t *testing.T) {
	entered.Store(&Access{})
	t.Cleanup(func() { entered.Store(nil) })
	err := Reaches("/srv/a.img")
	if err == nil || !strings.Contains(err.Error(), "/srv/a.img: the sandbox, which cannot be left, has no images: restart with --sandbox-path /srv,") {
		t.Errorf("error %v", err)
	}
}
