package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// root is the repository's root, relative to this package's folder, where tests run.
const root = "../.."

// A file is a parsed Go file of this repository.
type file struct {
	path string // from the root
	*ast.File
}

// parseAll parses every Go file of the repository, whatever its build tags.
func parseAll(t *testing.T) (*token.FileSet, []file) {
	t.Helper()
	set := token.NewFileSet()
	var files []file
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := entry.Name()
		if entry.IsDir() {
			if path != root && (strings.HasPrefix(name, ".") || name == "testdata" || name == "bin") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		parsed, err := parser.ParseFile(set, path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		files = append(files, file{relative, parsed})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Fatal("no Go files found")
	}
	return set, files
}

// TestHouseRules_PackageDoc requires exactly one package comment in each package, in
// doc.go, so that a newcomer knows where to start. Two comments would be joined in
// arbitrary order.
func TestHouseRules_PackageDoc(t *testing.T) {
	_, files := parseAll(t)
	documented := map[string]bool{}
	for _, f := range files {
		folder, name := filepath.Split(f.path)
		if _, ok := documented[folder]; !ok {
			documented[folder] = false
		}
		if f.Doc == nil {
			continue
		}
		if name != "doc.go" {
			t.Errorf("%s has a package comment: move it to %sdoc.go, or put a blank line below it", f.path, folder)
			continue
		}
		documented[folder] = true
	}
	for folder, ok := range documented {
		if !ok {
			t.Errorf("%sdoc.go with a package comment is missing: say what the package owns and where to start", folder)
		}
	}
}

// TestHouseRules_Unsafe keeps unsafe in files whose names say so, so that a reviewer finds
// all of it.
func TestHouseRules_Unsafe(t *testing.T) {
	_, files := parseAll(t)
	for _, f := range files {
		name := strings.TrimSuffix(strings.TrimSuffix(f.path, ".go"), "_test")
		if strings.HasSuffix(name, "_unsafe") {
			continue
		}
		for _, i := range f.Imports {
			if i.Path.Value == `"unsafe"` {
				t.Errorf("%s imports unsafe: move that code to a file named *_unsafe.go (or *_unsafe_test.go)", f.path)
			}
		}
	}
}

// forbidden are functions for which there is something better, by import path and name.
var forbidden = []struct{ path, pattern, instead string }{
	{"time", `^Sleep$`, "wait on a channel, pass a clock, or run in testing/synctest"},
	{"encoding/binary", `^(Read|Write)$`, "use binary.BigEndian.Uint32 and friends: no reflection, no allocation"},
	{"sync/atomic", `^(Add|And|CompareAndSwap|Load|Or|Store|Swap)`, "use the typed atomics, such as atomic.Uint32: no plain access can slip in"},
	{"math/rand", `.`, "use math/rand/v2 with a seed that the test prints"},
	{"io/ioutil", `.`, "use io and os"},
}

// TestHouseRules_Forbidden checks every selector. It identifies packages by their import,
// so a renamed import does not hide one.
func TestHouseRules_Forbidden(t *testing.T) {
	set, files := parseAll(t)
	for _, f := range files {
		names := map[string]string{} // local name -> import path
		for _, i := range f.Imports {
			path, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			name := path[strings.LastIndex(path, "/")+1:]
			if i.Name != nil {
				name = i.Name.Name
			}
			names[name] = path
		}
		bubbles := bubblesOf(f.File)
		ast.Inspect(f.File, func(n ast.Node) bool {
			selector, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			receiver, ok := selector.X.(*ast.Ident)
			if !ok {
				return true
			}
			for _, rule := range forbidden {
				if rule.path == "time" && slices.ContainsFunc(bubbles, func(b ast.Node) bool { return b.Pos() <= n.Pos() && n.End() <= b.End() }) {
					continue // time passes by itself in a bubble
				}
				if names[receiver.Name] == rule.path && regexp.MustCompile(rule.pattern).MatchString(selector.Sel.Name) {
					t.Errorf("%s: %s.%s: %s", set.Position(n.Pos()), rule.path, selector.Sel.Name, rule.instead)
				}
			}
			return true
		})
	}
}

// bubblesOf returns the nodes that can run only in a bubble of synctest: functions given to
// synctest.Test, and functions that call synctest.Wait, which panics elsewhere.
func bubblesOf(f *ast.File) (bubbles []ast.Node) {
	calls := func(n ast.Node, name string) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return false
		}
		selector, ok := call.Fun.(*ast.SelectorExpr)
		if !ok {
			return false
		}
		receiver, ok := selector.X.(*ast.Ident)
		return ok && receiver.Name == "synctest" && selector.Sel.Name == name
	}
	ast.Inspect(f, func(n ast.Node) bool {
		var body *ast.BlockStmt
		switch n := n.(type) {
		case *ast.CallExpr:
			if calls(n, "Test") {
				bubbles = append(bubbles, n)
			}
			return true
		case *ast.FuncDecl:
			body = n.Body
		case *ast.FuncLit:
			body = n.Body
		}
		if body == nil {
			return true
		}
		waits := false
		ast.Inspect(body, func(in ast.Node) bool {
			if _, ok := in.(*ast.FuncLit); ok {
				return false // it is checked by itself
			}
			waits = waits || calls(in, "Wait")
			return true
		})
		if waits {
			bubbles = append(bubbles, body)
		}
		return true
	})
	return bubbles
}

// TestBubblesOf: importing synctest is not enough.
func TestBubblesOf(t *testing.T) {
	for body, want := range map[string]int{
		`func f() { time.Sleep(1) }`:                                                    0,
		`func f() { synctest.Test(t, func(t *testing.T) { time.Sleep(1) }) }`:           1,
		`func f() { time.Sleep(1); synctest.Wait() }`:                                   1,
		`func f() { g(func() { synctest.Wait() }); time.Sleep(1) }`:                     1, // the literal, and not f
		`var v = g(func() { for { time.Sleep(1); synctest.Wait() } }); func f() {}`:     1,
		`func f() { other.Wait(); synctest.Run(func() {}) }`:                            0,
		`func f() { synctest.Test(t, func(t *testing.T) { g(); synctest.Wait() }) }`:    2,
		`func f() { g(func() { synctest.Wait() }, func() { synctest.Wait() }); h() }`:   2,
		`func f() { time.Sleep(1); func() { synctest.Wait() }(); defer time.Sleep(2) }`: 1,
	} {
		f, err := parser.ParseFile(token.NewFileSet(), "x.go", "package p\n"+body, 0)
		if err != nil {
			t.Fatal(err)
		}
		if got := len(bubblesOf(f)); got != want {
			t.Errorf("%s: %d bubbles, want %d", body, got, want)
		}
	}
}

// TestHouseRules_NoSkip allows no test that can pass without having run.
func TestHouseRules_NoSkip(t *testing.T) {
	set, files := parseAll(t)
	for _, f := range files {
		if !strings.HasSuffix(f.path, "_test.go") {
			continue
		}
		ast.Inspect(f.File, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			selector, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			switch selector.Sel.Name {
			case "Skip", "Skipf", "SkipNow":
				if receiver, ok := selector.X.(*ast.Ident); ok && (receiver.Name == "t" || receiver.Name == "b" || receiver.Name == "f") {
					t.Errorf("%s: a skipped test is green and proves nothing: fail and say what is missing, or use a build tag", set.Position(n.Pos()))
				}
			}
			return true
		})
	}
}

// TestHouseRules_Mutexes requires that locks have names, which the comments on the fields
// that they guard can refer to.
func TestHouseRules_Mutexes(t *testing.T) {
	set, files := parseAll(t)
	for _, f := range files {
		ast.Inspect(f.File, func(n ast.Node) bool {
			named, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			structure, ok := named.Type.(*ast.StructType)
			if !ok {
				return true
			}
			for _, field := range structure.Fields.List {
				kind, ok := field.Type.(*ast.SelectorExpr)
				if !ok {
					continue
				}
				if from, ok := kind.X.(*ast.Ident); !ok || from.Name != "sync" || kind.Sel.Name != "Mutex" && kind.Sel.Name != "RWMutex" {
					continue
				}
				if len(field.Names) == 0 && named.Name.IsExported() {
					t.Errorf("%s: the embedded mutex of %s exports Lock: name it mu", set.Position(field.Pos()), named.Name)
				}
				for _, name := range field.Names {
					if name.Name != "mu" && !strings.HasSuffix(name.Name, "Mu") {
						t.Errorf("%s: mutex %s: name it mu or somethingMu", set.Position(name.Pos()), name.Name)
					}
				}
			}
			return true
		})
	}
}

// TestHouseRules_Locked requires that the comment of each function whose name says that it
// needs a lock names the lock, so that the tool can check the callers. It covers the
// packages that have such annotations.
func TestHouseRules_Locked(t *testing.T) {
	set, files := parseAll(t)
	annotated := map[string]bool{}
	for _, f := range files {
		for _, group := range f.Comments {
			if locksNamed(group) {
				annotated[filepath.Dir(f.path)] = true
			}
		}
	}
	seen := 0
	for _, f := range files {
		if !annotated[filepath.Dir(f.path)] {
			continue
		}
		for _, decl := range f.Decls {
			function, ok := decl.(*ast.FuncDecl)
			if !ok || !strings.HasSuffix(function.Name.Name, "Locked") {
				continue
			}
			seen++
			if !locksNamed(function.Doc) {
				t.Errorf("%s: %s has no line +checklocks:x.mu that names the lock (or +checklocksignore: and why)", set.Position(function.Pos()), function.Name.Name)
			}
		}
	}
	if seen == 0 {
		t.Error("no function named somethingLocked found")
	}
}

// locksNamed reports whether a comment has a line for the tool checklocks.
func locksNamed(group *ast.CommentGroup) bool {
	if group == nil {
		return false
	}
	for _, comment := range group.List {
		if strings.HasPrefix(strings.TrimSpace(strings.TrimPrefix(comment.Text, "//")), "+checklocks") {
			return true
		}
	}
	return false
}

// unfinished finds notes about unfinished work.
var unfinished = regexp.MustCompile(`\b(TODO|FIXME|XXX|HACK)\b`)

// TestHouseRules_Finished allows no promises in the code: they belong in an issue, or in a
// BUG note in the package comment.
func TestHouseRules_Finished(t *testing.T) {
	set, files := parseAll(t)
	for _, f := range files {
		for _, group := range f.Comments {
			for _, comment := range group.List {
				if unfinished.MatchString(comment.Text) {
					t.Errorf("%s: finish it, or write a BUG note in doc.go that says what is missing", set.Position(comment.Pos()))
				}
			}
		}
	}
}

// TestHouseRules_Keys: the comment of a key speaks of no key below that has none of its own.
// Configuration schema and OpenAPI document are made of these comments, so that the key
// below would be without a description there, and the one above have one of several.
func TestHouseRules_Keys(t *testing.T) {
	set, files := parseAll(t)
	for folder, tag := range map[string]string{
		"cmd/vhbad/internal/config": `yaml:"`,
		"hba/fault":                 `yaml:"`,
		"client":                    `json:"`,
	} {
		seen := 0
		for _, f := range files {
			if filepath.Dir(f.path) != folder || strings.HasSuffix(f.path, "_test.go") {
				continue
			}
			ast.Inspect(f.File, func(n ast.Node) bool {
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
					if field.Tag == nil || !strings.Contains(field.Tag.Value, tag) {
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
		if seen == 0 {
			t.Errorf("%s: no key without a comment found: is it still the folder?", folder)
		}
	}
}
