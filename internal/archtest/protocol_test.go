package archtest

import (
	"go/ast"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// partOfProtocol says whether a constant of package nbd is a number of the protocol,
// and not a size, a limit or a sum of ours.
func partOfProtocol(name string) bool {
	return !strings.HasSuffix(name, "Bytes") && !strings.HasSuffix(name, "Zeroes") && name != "clientFlags" && name != "OK" ||
		strings.HasPrefix(name, "transmit") || strings.HasPrefix(name, "cmd") || name == "flagNoZeroes" || name == "clientNoZeroes"
}

// TestProtocolTable: what docs/protocol-support.md says of the protocol is true of
// the code. Each test that it names exists, each row that is supported names
// something that shows it, and no constant of the protocol in package nbd is
// missing.
func TestProtocolTable(t *testing.T) {
	_, files := parseAll(t)
	tests, constants := map[string]bool{}, map[string]bool{}
	for _, f := range files {
		inProtocol := f.path == filepath.Join("nbd", "protocol.go") || f.path == filepath.Join("nbd", "errno.go")
		for _, decl := range f.Decls {
			switch d := decl.(type) {
			case *ast.FuncDecl:
				if strings.HasSuffix(f.path, "_test.go") && strings.HasPrefix(d.Name.Name, "Test") {
					tests[d.Name.Name] = true
				}
			case *ast.GenDecl:
				if !inProtocol || d.Tok != token.CONST {
					continue
				}
				for _, spec := range d.Specs {
					for _, name := range spec.(*ast.ValueSpec).Names {
						if partOfProtocol(name.Name) {
							constants[name.Name] = true
						}
					}
				}
			}
		}
	}
	if len(constants) < 70 {
		t.Errorf("only %d constants found in nbd/protocol.go and nbd/errno.go", len(constants))
	}

	text, err := os.ReadFile(filepath.Join(root, "docs/protocol-support.md"))
	if err != nil {
		t.Fatal(err)
	}
	span := regexp.MustCompile("`([^`]+)`")
	described := map[string]bool{}
	ours, _, _ := strings.Cut(string(text), "<!-- results begin") // what follows compares servers
	for line := range strings.Lines(ours) {
		for _, m := range span.FindAllStringSubmatch(line, -1) {
			if strings.HasPrefix(m[1], "Test") && m[1] != "TestX" && !tests[m[1]] {
				t.Errorf("there is no test %s: %s", m[1], line)
			}
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), " | ")
		if !strings.HasPrefix(line, "| ") || len(cells) != 5 || cells[1] == "constant" {
			continue
		}
		constant := strings.Trim(cells[1], " `")
		if constant != "–" {
			if !constants[constant] {
				t.Errorf("package nbd has no constant %s: %s", constant, line)
			}
			described[constant] = true
		}
		if since := cells[3]; since != "–" && !span.MatchString(cells[4]) {
			t.Errorf("nothing shows that it is supported: %s", line)
		}
	}
	for name := range constants {
		if !described[name] {
			t.Errorf("constant %s of package nbd is not in docs/protocol-support.md", name)
		}
	}
}
