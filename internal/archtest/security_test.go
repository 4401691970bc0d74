package archtest

import (
	"go/ast"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// testNames are all tests of the repository, whatever their build tags.
func testNames(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	_, files := parseAll(t)
	for _, f := range files {
		for _, decl := range f.Decls {
			if d, ok := decl.(*ast.FuncDecl); ok && strings.HasSuffix(f.path, "_test.go") && strings.HasPrefix(d.Name.Name, "Test") {
				names[d.Name.Name] = true
			}
		}
	}
	return names
}

// TestSecurityTable: every promise of docs/security.md names a test, and each test
// that the page names exists.
func TestSecurityTable(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "docs/security.md"))
	if err != nil {
		t.Fatal(err)
	}
	names := testNames(t)
	span := regexp.MustCompile("`(Test[A-Za-z0-9_]+)`")
	_, rest, _ := strings.Cut(string(text), "\n## Promises\n")
	promises, _, _ := strings.Cut(rest, "\n## ")
	rows := 0
	for line := range strings.Lines(promises) {
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| promise |") {
			continue
		}
		rows++
		if !span.MatchString(line) {
			t.Errorf("no test shows it: %s", line)
		}
	}
	if rows < 20 {
		t.Errorf("%d promises found, want those of the page", rows)
	}
	for _, m := range span.FindAllStringSubmatch(string(text), -1) {
		if !names[m[1]] {
			t.Errorf("docs/security.md: there is no test %s", m[1])
		}
	}
}
