package interleave

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A Mutant is a mistake: in File, the statements New replace Old. Also holds any further
// replacements that the mistake needs.
type Mutant struct {
	Name string
	// Test is the test that finds the mutant.
	Test string
	File string
	// Old is whole statements, and occurs once in File.
	Old, New string
	Also     []Edit
	// Says is what the test's output must contain. If it is empty any failure will do.
	Says string
}

// An Edit is one more place in a Mutant's file.
type Edit struct{ Old, New string }

const (
	mutantVariable = "VHBAD_MUTANT"
	// mutantTimeout bounds one mutant's search: a mistake that makes the test hang
	// does not count as found.
	mutantTimeout = time.Minute
)

// FindMutants shows that the scenarios of the package in the current folder
// find each mutant: with that mistake its test fails by a schedule, and without
// any mistake it passes.
//
// The mistakes go into copies of the package's own files, so they cannot drift
// away from the code. They are all in one binary, which is built once, and an
// environment variable switches one of them on.
func FindMutants(t *testing.T, mutants []Mutant) {
	t.Helper()
	binary := buildMutants(t, mutants)
	sound := map[string]bool{} // tests that passed without a mutant
	for _, m := range mutants {
		if sound[m.Test] {
			continue
		}
		sound[m.Test] = true
		if out, err := runMutant(t.Context(), binary, m.Test, ""); err != nil || !strings.Contains(out, "--- PASS: "+m.Test+" ") {
			t.Fatalf("%s without a mutant: %v\n%s", m.Test, err, out)
		}
	}
	for _, m := range mutants {
		t.Run(m.Name, func(t *testing.T) {
			out, err := runMutant(t.Context(), binary, m.Test, m.Name)
			if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || !strings.Contains(out, failureMark) || !strings.Contains(out, m.Says) {
				t.Errorf("not found, or not because of %q: %v\n%s", m.Says, err, out)
			}
		})
	}
}

func runMutant(ctx context.Context, binary, test, name string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, mutantTimeout)
	defer cancel()
	c := exec.CommandContext(ctx, binary, "-test.run", "^"+test+"$", "-test.failfast", "-test.v")
	c.Env = append(os.Environ(), mutantVariable+"="+name)
	out, err := c.CombinedOutput()
	return string(out), err
}

// buildMutants builds the test binary of the package in the current folder.
func buildMutants(t *testing.T, mutants []Mutant) string {
	t.Helper()
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	out := t.TempDir()
	overlay := map[string]string{} // file -> what to read in its place
	write := func(name string, content []byte) {
		t.Helper()
		replacement := filepath.Join(out, name)
		if err := os.WriteFile(replacement, content, 0o600); err != nil {
			t.Fatal(err)
		}
		overlay[filepath.Join(here, name)] = replacement
	}
	files := map[string][]byte{}
	var name string // of the package
	for file, edits := range group(mutants) {
		source, err := os.ReadFile(filepath.Join(here, file))
		if err != nil {
			t.Fatal(err)
		}
		if files[file], err = mutate(source, edits); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		write(file, files[file])
		name = packageName(source)
	}
	write("zz_mutant.go", fmt.Appendf(nil, "package %s\n\nimport \"os\"\n\nvar mutant = os.Getenv(%q)\n", name, mutantVariable))
	table, err := json.Marshal(map[string]any{"Replace": overlay})
	if err != nil {
		t.Fatal(err)
	}
	tablePath, binary := filepath.Join(out, "overlay.json"), filepath.Join(out, "mutants.test")
	if err := os.WriteFile(tablePath, table, 0o600); err != nil {
		t.Fatal(err)
	}
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-vet=off", "-ldflags=-s -w", "-tags", "interleave", "-overlay", tablePath, "-o", binary, ".")
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the mutants: %v\n%s", err, text)
	}
	return binary
}

func packageName(source []byte) string {
	for line := range bytes.Lines(source) {
		if name, ok := bytes.CutPrefix(line, []byte("package ")); ok {
			return string(bytes.TrimSpace(name))
		}
	}
	return ""
}

func group(mutants []Mutant) map[string][]Mutant {
	byFile := map[string][]Mutant{}
	for _, m := range mutants {
		byFile[m.File] = append(byFile[m.File], m)
	}
	return byFile
}

// mutate puts the mutants of one file into its source. Several may change the
// same statements.
func mutate(source []byte, mutants []Mutant) ([]byte, error) {
	type place struct{ mutant, old, new string }
	var places []place
	for _, m := range mutants {
		places = append(places, place{m.Name, m.Old, m.New})
		for _, e := range m.Also {
			places = append(places, place{m.Name, e.Old, e.New})
		}
	}
	done := map[string]bool{}
	for _, p := range places {
		if done[p.old] {
			continue
		}
		done[p.old] = true
		if n := bytes.Count(source, []byte(p.old)); n != 1 {
			return nil, fmt.Errorf("mutant %s: its statements occur %d times, want once:\n%s", p.mutant, n, p.old)
		}
		var b strings.Builder
		for _, other := range places {
			if other.old == p.old {
				fmt.Fprintf(&b, "if mutant == %q {\n%s\n} else ", other.mutant, other.new)
			}
		}
		fmt.Fprintf(&b, "{\n%s\n}", p.old)
		source = bytes.Replace(source, []byte(p.old), []byte(b.String()), 1)
	}
	return source, nil
}
