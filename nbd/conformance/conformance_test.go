package conformance_test

import (
	"bytes"
	"flag"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/vhbad/vhbad/nbd/conformance"
)

var (
	uri      = flag.String("uri", "", "test the `servers`' exports at these NBD URIs, separated by spaces, instead of our own")
	server   = flag.String("server", "", "`name` and version of the server, for -results")
	results  = flag.String("results", "", "write the results as JSON to this `file`")
	spec     = flag.String("spec", "", "compare the table of requirements with this `file`, the doc/proto.md of a version of the NBD project")
	counts   = flag.Bool("requirements", false, "count the requirements in Markdown on standard output")
	markdown = flag.String("markdown", "", "compare the JSON `files`, separated by commas, in Markdown on standard output")
)

// TestMain runs nothing else if the flags ask for something.
func TestMain(m *testing.M) {
	flag.Parse()
	only := ""
	switch {
	case *uri != "":
		only = "^TestURI$"
	case *markdown != "":
		only = "^TestMarkdown$"
	case *counts:
		only = "^TestRequirementsMarkdown$"
	case *spec != "":
		only = "^TestSpec$"
	}
	if only != "" {
		if err := flag.Set("test.run", only); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}

// TestURI tests the server that the flags name, if any.
func TestURI(t *testing.T) {
	if *uri == "" {
		return // the other tests have our own server
	}
	var targets []conformance.Target
	for u := range strings.FieldsSeq(*uri) {
		target, err := conformance.ParseURI(u)
		if err != nil {
			t.Fatal(err)
		}
		targets = append(targets, target)
	}
	report, err := conformance.Check(t.Context(), targets...)
	if err != nil {
		t.Fatal(err)
	}
	report.Server = *server
	if err := report.WriteTable(os.Stdout); err != nil {
		t.Fatal(err)
	}
	if *results != "" {
		write(t, *results, report.WriteJSON)
	}
	if n := report.Broken(conformance.Must); n > 0 {
		t.Errorf("%d rules with MUST are broken", n)
	}
}

// TestSpec compares the table of requirements with the text that the flags name,
// if any, and fails if a key word is new, gone, or elsewhere.
func TestSpec(t *testing.T) {
	if *spec == "" {
		return // TestCompare has texts of its own
	}
	f, err := os.Open(*spec)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }() // only read
	text, err := conformance.ReadSpecification(f)
	if err != nil {
		t.Fatal(err)
	}
	for _, difference := range text.Compare(conformance.Requirements()) {
		t.Error(difference)
	}
	t.Logf("%d key words; the table is of %s", len(text.Keywords), conformance.SpecificationVersion)
}

// TestRequirementsMarkdown: docs/protocol-support.md counts the requirements as
// they are. With the flag it prints what is to be there.
func TestRequirementsMarkdown(t *testing.T) {
	var b bytes.Buffer
	if err := conformance.WriteRequirements(&b); err != nil {
		t.Fatal(err)
	}
	if *counts {
		if _, err := os.Stdout.Write(b.Bytes()); err != nil {
			t.Fatal(err)
		}
		return
	}
	text, err := os.ReadFile("../../docs/protocol-support.md")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(text, b.Bytes()) {
		t.Errorf("docs/protocol-support.md does not have the table that `go test ./nbd/conformance -v -requirements` prints:\n%s", b.Bytes())
	}
}

// TestMarkdown compares the results that the flags name, if any.
func TestMarkdown(t *testing.T) {
	if *markdown == "" {
		return
	}
	var reports []*conformance.Report
	for name := range strings.SplitSeq(*markdown, ",") {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		r, err := conformance.ReadReport(f)
		_ = f.Close() // only read
		if err != nil {
			t.Fatal(err)
		}
		reports = append(reports, r)
	}
	if err := conformance.WriteMarkdown(os.Stdout, reports...); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, name string, to func(io.Writer) error) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := to(f); err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}
