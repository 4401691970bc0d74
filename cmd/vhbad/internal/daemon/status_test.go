package daemon

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"strings"
	"testing"

	"github.com/vhbad/vhbad/nbd"
)

// TestStatus_OperationNames: what package client, and so the OpenAPI document, says of the
// names of operations has each that is reported.
func TestStatus_OperationNames(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "../../../../client/status.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	var doc string
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.TypeSpec)
		if !ok || spec.Name.Name != "Operation" {
			return true
		}
		for _, f := range spec.Type.(*ast.StructType).Fields.List {
			if f.Names[0].Name == "Op" {
				doc = f.Doc.Text()
			}
		}
		return false
	})
	for op := range nbd.OpCount {
		if name := strconv.Quote(op.String()); !strings.Contains(doc, name) {
			t.Errorf("client.Operation.Op says nothing of %s: %s", name, doc)
		}
	}
}
