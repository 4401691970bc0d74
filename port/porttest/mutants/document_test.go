package mutants

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var writeDocument = flag.Bool("write", false, "write docs/mutants.md")

// document is the list for people.
func document() string {
	var b strings.Builder
	fmt.Fprintf(&b, `# Mutants

A check that has never failed proves nothing. Here are %d miniports and ports with one thing wrong each, many of them bugs
that were reported against public drivers. Each goes through a scenario of its own, twice: the good miniport must pass it
unnoticed, and the mutant must be caught by what the last column names.

A *verifier* check is one of the port's own (V1 to V20, `+"`port/verifier.go`"+`), which `+"`serve --verify`"+` has in production as well.
An *oracle* belongs to the test and knows what no driver can: who was given an id, what the device really did.

Sources: numbers with # are issues and pull requests of virtio-win/kvm-guest-drivers-windows unless another project is named;
lsi is Microsoft's lsi_u3 sample and ros ReactOS; SDV rules, verifier codes and pages are the vendor's; numbers with dots, A and
V are sections, acceptance criteria and checks of the contract that the port was written to.

This file is written by `+"`go test ./port/porttest/mutants -run TestDocument -write`"+` and the same test compares it with the code.

| mutant | what is wrong | source | caught by |
|---|---|---|---|
`, len(mutants))
	for i := range mutants {
		x := &mutants[i]
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", x.name, x.change, x.source, x.by())
	}
	return b.String()
}

// The document says what the table says, and every entry says who catches it.
func TestDocument(t *testing.T) {
	names := map[string]bool{}
	for _, x := range mutants {
		if x.name == "" || x.source == "" || x.change == "" || x.scenario.run == nil || names[x.name] {
			t.Errorf("mutant %q: want a name of its own, a source, a change and a scenario", x.name)
		}
		if (x.check == 0) == (x.oracle == oracleNone) {
			t.Errorf("mutant %s: want a check or an oracle", x.name)
		}
		names[x.name] = true
	}
	path := filepath.Join("..", "..", "..", "docs", "mutants.md")
	if *writeDocument {
		if err := os.WriteFile(path, []byte(document()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != document() {
		t.Errorf("%s is not what the table says; write it with -write", path)
	}
}
