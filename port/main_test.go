package port

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
)

// lawful has the verifiers of all tests of the package.
var lawful verifiers

type verifiers struct {
	mu   sync.Mutex
	list []*Verifier
}

func (v *verifiers) add(x *Verifier) {
	v.mu.Lock()
	v.list = append(v.list, x)
	v.mu.Unlock()
}

// edges is the lock-order graph of all tests but those that broke the lock rules
// on purpose, which check for that themselves.
func (v *verifiers) edges() [][2]string {
	v.mu.Lock()
	defer v.mu.Unlock()
	seen := map[[2]string]bool{}
	var out [][2]string
	for _, x := range v.list {
		if x.Count(CheckLockRules) != 0 {
			continue
		}
		for _, e := range x.LockOrder() {
			if !seen[e] {
				seen[e] = true
				out = append(out, e)
			}
		}
	}
	return out
}

// A6, for the package as a whole: after all tests the lock-order graph has no
// cycle.
func TestMain(m *testing.M) {
	code := m.Run()
	if cycle := LockCycle(lawful.edges()); cycle != nil {
		fmt.Fprintf(os.Stderr, "the lock-order graph over all tests has a cycle: %s\n", strings.Join(cycle, " > "))
		code = 1
	}
	os.Exit(code)
}
