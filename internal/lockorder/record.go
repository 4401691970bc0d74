package lockorder

import (
	"encoding/json"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
)

// Variable names the folder that Record writes to. Empty: it writes nothing.
const Variable = "VHBAD_LOCK_ORDER"

// A contribution is what one package saw, as it is in its file.
type contribution struct {
	Package string `json:"package"`
	Edges   []Edge `json:"edges"`
}

// recorded is what this test binary has seen.
var recorded recorder

type recorder struct {
	mu sync.Mutex
	// +checklocks:mu
	graph Graph
	// +checklocks:mu
	written bool
}

// Record adds the edges of a system that a test has done with, given as pairs of
// lock kinds, the second taken while the first was held. It fails the test if
// what the package's tests saw until now has a cycle.
//
// Concurrency: any goroutine.
func Record(t testing.TB, edges [][2]string) {
	t.Helper()
	recorded.mu.Lock()
	defer recorded.mu.Unlock()
	path, grown := testedPackage(), false
	for _, e := range edges {
		grown = recorded.graph.Add(Edge{From: e[0], To: e[1], Where: path + " " + t.Name()}) || grown
	}
	if cycle := recorded.graph.Cycle(); cycle != nil {
		t.Errorf("locks are taken in a circle:%s", Describe(cycle))
	}
	folder := os.Getenv(Variable)
	if folder == "" || recorded.written && !grown {
		return
	}
	recorded.written = true
	if err := write(folder, contribution{path, recorded.graph.Edges()}); err != nil {
		t.Errorf("recording the lock order: %v", err)
	}
}

func write(folder string, c contribution) error {
	text, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(folder, strings.ReplaceAll(c.Package, "/", ".")+".json"), text, 0o600)
}

// module is what every package's path begins with.
const module = "github.com/vhbad/vhbad/"

// testedPackage is the package that this binary tests, from the module's root.
func testedPackage() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		panic("lockorder: the binary was built without module support")
	}
	return strings.TrimPrefix(strings.TrimSuffix(info.Path, ".test"), module)
}
