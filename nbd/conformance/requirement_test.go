package conformance

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// testsOf are the names of all tests of the project.
func testsOf(t *testing.T) map[string]bool {
	t.Helper()
	name := regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	found := map[string]bool{}
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && strings.HasPrefix(d.Name(), ".") && len(d.Name()) > 2:
			return fs.SkipDir // .git, .cache
		case !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range name.FindAllStringSubmatch(string(text), -1) {
			found[m[1]] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestRequirements: every requirement that binds a server is shown by a row, or
// says why not; what the table names exists; and the rows say of themselves what
// the table says of them.
func TestRequirements(t *testing.T) {
	rs, err := parseRequirements(requirementTable)
	if err != nil {
		t.Fatal(err)
	}
	rows, tests := map[string]Row{}, testsOf(t)
	for _, r := range Rows() {
		rows[r.Name] = r
	}
	for _, problem := range checkRequirements(rs, rows, tests) {
		t.Error(problem)
	}
	demands := 0
	for i := range rs {
		if rs[i].N > 0 {
			demands++
		}
	}
	if demands < 350 {
		t.Errorf("only %d requirements", demands)
	}
}

// checkRequirements says what is wrong with the table and the rows.
func checkRequirements(rs []Requirement, rows map[string]Row, tests map[string]bool) (problems []string) {
	words := []string{"MUST", "MUST NOT", "SHOULD", "SHOULD NOT", "SHALL", "SHALL NOT", "REQUIRED", "RECOMMENDED", "NOT RECOMMENDED"}
	cited, strict := map[string][]string{}, map[string]bool{}
	bare := map[string]bool{} // rows that rest on text without a key word, too
	last := map[string]int{}
	for i := range rs {
		r := &rs[i]
		wrong := func(text string) { problems = append(problems, r.String()+": "+text) }
		if n, again := last[r.Section]; again && r.N != n+1 || !again && r.N > 1 {
			wrong("out of order")
		}
		last[r.Section] = r.N
		if r.N > 0 != slices.Contains(words, r.Word) || r.N > 0 != (len(r.Mark) == 8) {
			wrong("the key word or its mark is wrong")
		}
		if r.Text == "" || len(strings.Fields(r.Text)) > 12 {
			wrong("want it said in a few words")
		}
		for _, name := range r.Rows {
			if _, ok := rows[name]; !ok {
				wrong("there is no row " + name)
			}
			cited[name] = append(cited[name], r.Section)
			strict[name] = strict[name] || r.N > 0 && r.level() == Must
			bare[name] = bare[name] || r.N == 0
		}
		for _, name := range r.Tests {
			if !tests[name] {
				wrong("there is no test " + name)
			}
		}
		shown := len(r.Rows) > 0
		switch r.Class {
		case "":
			if !shown && r.Binds != "both" {
				wrong("neither a row nor a reason")
			}
			if !shown && r.Binds == "both" {
				wrong("it binds servers, and has neither a row nor a reason")
			}
		case "unseen", "absent", "outside":
			if !r.bindsServer() || shown || r.Why == "" {
				wrong("the reason does not fit: " + r.Class)
			}
		case "client", "document":
			if r.Binds != r.Class || shown || r.Why == "" && len(r.Tests) == 0 && r.Class == "document" {
				wrong("the reason does not fit: " + r.Class)
			}
		default:
			wrong("the reason is of no class: " + r.Class)
		}
		if !slices.Contains([]string{"server", "client", "both", "document"}, r.Binds) {
			wrong("binds " + r.Binds)
		}
	}
	for name, row := range rows {
		switch {
		case len(cited[name]) == 0:
			problems = append(problems, "row "+name+" is not in the table: it cites nothing")
		case strict[name] && row.Level != Must, !strict[name] && !bare[name] && row.Level == Must:
			problems = append(problems, "row "+name+" is a "+row.Level.String()+", which is not what it cites")
		}
	}
	slices.Sort(problems)
	return problems
}
