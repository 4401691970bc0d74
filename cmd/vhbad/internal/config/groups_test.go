package config

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestSchema_Groups: the comment of a key speaks of no key below that has none of its own,
// and would be without a description in the schema and in what `config print --comments`
// shows.
func TestSchema_Groups(t *testing.T) {
	seen := 0
	for _, folder := range []string{".", "../../../../hba/fault"} {
		names, err := filepath.Glob(filepath.Join(folder, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			set := token.NewFileSet()
			file, err := parser.ParseFile(set, name, text, parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(file, func(n ast.Node) bool {
				structure, ok := n.(*ast.StructType)
				if !ok {
					return true
				}
				above := ""
				for _, field := range structure.Fields.List {
					if field.Doc != nil {
						above = field.Doc.Text()
						continue
					}
					if field.Tag == nil || !strings.Contains(field.Tag.Value, `yaml:"`) {
						continue
					}
					seen++
					for _, id := range field.Names {
						if regexp.MustCompile(`\b` + id.Name + `\b`).MatchString(above) {
							t.Errorf("%s: %s: the comment above speaks of it, and it has none", set.Position(id.Pos()), id.Name)
						}
					}
				}
				return true
			})
		}
	}
	if seen == 0 {
		t.Error("no key found")
	}
}
