package lockorder

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Two packages each take their locks in an order, and not in the same one: the
// cycle is told with where each of its edges was seen.
func TestMerge(t *testing.T) {
	up := contribution{"port", []Edge{{"StartIo", "DPC", "port TestUp"}, {"DPC", "DPC", "port TestPair"}}}
	down := contribution{"miniport", []Edge{{"DPC", "interrupt", "miniport TestOn"}, {"interrupt", "StartIo", "miniport TestBack"}}}
	for _, tt := range []struct {
		name  string
		files []contribution
		want  []string // in the error; none: no error
	}{
		{"two in one order", []contribution{up, {"miniport", down.Edges[:1]}}, nil},
		{"a cycle of the union", []contribution{up, down}, []string{
			"StartIo held, DPC taken: port TestUp", "DPC held, interrupt taken: miniport TestOn", "interrupt held, StartIo taken: miniport TestBack",
		}},
		{"a package is missing", []contribution{up}, []string{"tests of miniport"}},
		{"no edges", []contribution{{"port", nil}, {"miniport", nil}}, []string{"no order to check"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			folder := t.TempDir()
			for _, c := range tt.files {
				var alone Graph
				for _, e := range c.Edges {
					alone.Add(e)
				}
				if cycle := alone.Cycle(); cycle != nil {
					t.Errorf("package %s alone has the cycle %v", c.Package, cycle)
				}
				if err := write(folder, c); err != nil {
					t.Fatal(err)
				}
			}
			_, err := Merge(folder, []string{"miniport", "port"})
			if (err == nil) != (len(tt.want) == 0) {
				t.Fatalf("error %v, want %q in it", err, tt.want)
			}
			for _, s := range tt.want {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("error %q does not say %q", err, s)
				}
			}
		})
	}
	t.Run("not a file of ours", func(t *testing.T) {
		folder := t.TempDir()
		if err := os.WriteFile(filepath.Join(folder, "port.json"), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Merge(folder, nil); err == nil || !strings.Contains(err.Error(), "port.json") {
			t.Errorf("error %v, want one that names the file", err)
		}
	})
}

// Record writes what this package's tests saw, once there is something new.
func TestRecord(t *testing.T) {
	folder := t.TempDir()
	t.Setenv(Variable, folder)
	Record(t, nil)
	if _, err := Merge(folder, []string{"internal/lockorder"}); err == nil || !strings.Contains(err.Error(), "no order") {
		t.Errorf("with no edge: %v", err)
	}
	for range 2 {
		Record(t, [][2]string{{"outer", "inner"}})
	}
	g, err := Merge(folder, []string{"internal/lockorder"})
	if want := []Edge{{"outer", "inner", "internal/lockorder TestRecord"}}; err != nil || !slices.Equal(g.Edges(), want) {
		t.Errorf("%v, %v; want %v", g.Edges(), err, want)
	}
}

// Contributors is complete: every package whose tests make a machine or a system
// is there. The daemon's tests make theirs by starting a daemon.
func TestContributors(t *testing.T) {
	const root = "../.."
	makes := regexp.MustCompile(`\b(port\.NewSystem|porttest\.NewMachine|porttest\.TestMiniport)\(`)
	found := map[string]bool{"cmd/vhbad/internal/daemon": true}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && path != root && strings.HasPrefix(entry.Name(), "."):
			return filepath.SkipDir
		case !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		folder, err := filepath.Rel(root, filepath.Dir(path))
		if makes.Match(text) && folder != "internal/lockorder" {
			found[folder] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for folder := range found {
		if !slices.Contains(Contributors, folder) {
			t.Errorf("the tests of %s make systems: let them call Record, and add it to Contributors", folder)
		}
	}
	for _, folder := range Contributors {
		if !found[folder] {
			t.Errorf("no test of %s makes a system", folder)
		}
	}
}
