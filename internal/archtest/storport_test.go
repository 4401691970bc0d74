package archtest

import (
	"go/ast"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// storportRow is a row of the table of routines in docs/storport.md.
type storportRow struct{ vendor, ours, state, test string }

// storportRows reads the table.
func storportRows(t *testing.T) []storportRow {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "docs/storport.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(text), "| vendor | here | state | test |\n|---|---|---|---|\n")
	if !ok {
		t.Fatal("docs/storport.md has no table of routines")
	}
	var rows []storportRow
	for line := range strings.Lines(table) {
		if !strings.HasPrefix(line, "|") {
			break
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) != 4 {
			t.Fatalf("%d cells, want 4: %s", len(cells), line)
		}
		for i, c := range cells {
			cells[i] = strings.TrimSpace(c)
		}
		rows = append(rows, storportRow{cells[0], cells[1], cells[2], cells[3]})
	}
	return rows
}

var codeSpan = regexp.MustCompile("^`([A-Za-z0-9_]+)`$")

// TestStorportTable: what docs/storport.md says of the vendor's routines is true
// of the code. Each name of ours is exported by package port, each test exists,
// each row has both or neither, and each vendor routine that a comment in package
// port gives as its source has a row.
func TestStorportTable(t *testing.T) {
	_, files := parseAll(t)
	exported, tests, sources := map[string]bool{}, map[string]bool{}, map[string]string{}
	source := regexp.MustCompile(`StorPort[A-Z][A-Za-z0-9]*(\([A-Za-z]+\))?`)
	for _, f := range files {
		inPort := filepath.Dir(f.path) == "port" && !strings.HasSuffix(f.path, "_test.go")
		for _, decl := range f.Decls {
			switch d := decl.(type) {
			case *ast.FuncDecl:
				if inPort && d.Name.IsExported() {
					exported[d.Name.Name] = true
					_, from, _ := strings.Cut(d.Doc.Text(), "Source: ")
					for _, name := range source.FindAllString(from, -1) {
						sources[name] = d.Name.Name
					}
				}
				if strings.HasSuffix(f.path, "_test.go") && strings.HasPrefix(d.Name.Name, "Test") {
					tests[d.Name.Name] = true
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					if s, ok := spec.(*ast.TypeSpec); ok && inPort {
						exported[s.Name.Name] = true
					}
				}
			}
		}
	}
	rows := storportRows(t)
	seen := map[string]bool{}
	for _, r := range rows {
		vendor := strings.Trim(r.vendor, "`")
		if seen[vendor] {
			t.Errorf("%s has two rows", vendor)
		}
		seen[vendor] = true
		if r.ours == "–" {
			if !strings.HasPrefix(r.state, "not meaningful: ") || r.test != "–" {
				t.Errorf("%s: want a reason and no test, have %q and %q", vendor, r.state, r.test)
			}
			continue
		}
		name, test := codeSpan.FindStringSubmatch(r.ours), codeSpan.FindStringSubmatch(r.test)
		switch {
		case name == nil || !exported[name[1]]:
			t.Errorf("%s: package port exports no %s", vendor, r.ours)
		case test == nil || !tests[test[1]]:
			t.Errorf("%s: there is no test %s", vendor, r.test)
		case !strings.HasPrefix(r.state, "done"):
			t.Errorf("%s: state %q, want done", vendor, r.state)
		}
	}
	for name, ours := range sources {
		if !seen[name] {
			t.Errorf("%s, the source of port's %s, has no row in docs/storport.md", name, ours)
		}
	}
}
