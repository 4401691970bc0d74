package client

import (
	"go/ast"
	"go/parser"
	"go/token"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestEventTypes: every type there is can be asked for, and is described where
// people look.
func TestEventTypes(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "event.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var declared []string
	ast.Inspect(f, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if id, ok := spec.Type.(*ast.Ident); !ok || id.Name != "EventType" || len(spec.Values) != 1 {
			return true
		}
		s, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Error(err)
		}
		declared = append(declared, s)
		return true
	})
	if len(declared) < 5 {
		t.Fatalf("only %q are declared: has the test lost its way?", declared)
	}
	page, err := os.ReadFile("../docs/control.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range declared {
		if !slices.Contains(EventTypes(), EventType(s)) {
			t.Errorf("%s is not in EventTypes", s)
		}
		if !strings.Contains(string(page), "`"+s+"`") {
			t.Errorf("%s is not in docs/control.md", s)
		}
	}
	if len(EventTypes()) != len(declared) {
		t.Errorf("EventTypes has %d, %d are declared", len(EventTypes()), len(declared))
	}
}

// TestEvents_Died: a stream that breaks off is no end.
func TestEvents_Died(t *testing.T) {
	for body, want := range map[string]string{
		"{\"seq\":1}\n{\"se": "unexpected EOF: the daemon has died",
		"{\"seq\":1}\nx\n":   `event "x"`,
	} {
		c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			if want != `event "x"` {
				w.Header().Set("Content-Length", "1000")
			}
			_, _ = w.Write([]byte(body))
		})
		s, err := c.Events(t.Context(), EventFilter{})
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		var last error
		for e, err := range s.All() {
			if last = err; err == nil && e.Seq == 1 {
				n++
			}
		}
		if n != 1 || last == nil || !strings.Contains(last.Error(), want) {
			t.Errorf("%q: %d events, %v; want one and %q", body, n, last, want)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}
