package lockorder

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Contributors are the packages whose tests make port systems with the verifier
// on, so that each has something to say.
var Contributors = []string{
	"cmd/vhbad/internal/daemon",
	"cmd/vhbad/internal/road",
	"miniport",
	"port",
	"port/disk",
	"port/porttest",
	"port/porttest/mutants",
}

// Merge joins what the packages wrote into folder. The error says which of the
// packages wanted said nothing, that there is no edge, or what cycle there is.
func Merge(folder string, wanted []string) (Graph, error) {
	var g Graph
	files, err := filepath.Glob(filepath.Join(folder, "*.json"))
	if err != nil {
		return g, err
	}
	missing := slices.Clone(wanted)
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			return g, err
		}
		var c contribution
		if err := json.Unmarshal(text, &c); err != nil {
			return g, fmt.Errorf("%s: %w", name, err)
		}
		for _, e := range c.Edges {
			g.Add(e)
		}
		missing = slices.DeleteFunc(missing, func(path string) bool { return path == c.Package })
	}
	if len(missing) > 0 {
		return g, fmt.Errorf("no lock order was recorded by the tests of %s", strings.Join(missing, ", "))
	}
	if len(g.where) == 0 {
		return g, errors.New("no lock was taken while another was held: there is no order to check")
	}
	if cycle := g.Cycle(); cycle != nil {
		return g, fmt.Errorf("locks are taken in a circle:%s", Describe(cycle))
	}
	return g, nil
}
