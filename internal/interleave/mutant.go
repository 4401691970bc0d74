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

// A Mutant is a mistake: in File, the statements New stand in the place of Old.
type Mutant struct {
	Name string
	// Test finds it.
	Test string
	File string
	// Old is whole statements, and occurs once in File.
	Old, New string
}

const (
	mutantVariable = "VHBAD_MUTANT"
	// mutantTimeout bounds one mutant's search: a mistake that hangs the test is
	// no find.
	mutantTimeout = time.Minute
)

// FindMutants shows that the scenarios of the package in the current folder
// find each mutant: with that mistake its test fails by a schedule, and without
// any it passes.
//
// The mistakes go into copies of the package's own files, so they cannot grow
// apart from the code. They are all in one binary, to be built once, and an
// environment variable switches them on.
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
			if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || !strings.Contains(out, failureMark) {
				t.Errorf("not found: %v\n%s", err, out)
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
	done := map[string]bool{}
	for _, m := range mutants {
		if done[m.Old] {
			continue
		}
		done[m.Old] = true
		if n := bytes.Count(source, []byte(m.Old)); n != 1 {
			return nil, fmt.Errorf("mutant %s: its statements occur %d times, want once:\n%s", m.Name, n, m.Old)
		}
		var b strings.Builder
		for _, other := range mutants {
			if other.Old == m.Old {
				fmt.Fprintf(&b, "if mutant == %q {\n%s\n} else ", other.Name, other.New)
			}
		}
		fmt.Fprintf(&b, "{\n%s\n}", m.Old)
		source = bytes.Replace(source, []byte(m.Old), []byte(b.String()), 1)
	}
	return source, nil
}
