package conformance

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// theText has what the parser must tell apart.
const theText = `# A protocol

The words "MUST", "MUST NOT" and "RECOMMENDED" mean what they mean.

## Things

A thing MUST
NOT be big, and SHOULD be blue. It must be round.

* ` + "`THING_RED`" + ` (1) and ` + "`THING_BLUE`" + ` (2)

    They MUST be there. A violation ('MUST' etc.) is none.

    * ` + "`THING_PART`" + ` (0)

      It is RECOMMENDED.

    Of parts there SHOULD NOT be many.

* a point that goes on
  over two lines MUST count with the section

Things SHALL end.

## The ` + "`odd`" + ` things

Nothing.
`

func TestReadSpecification(t *testing.T) {
	s, err := ReadSpecification(strings.NewReader(theText))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, k := range s.Keywords {
		got = append(got, fmt.Sprintf("%s %d: %s, line %d", k.Section, k.N, k.Word, k.Line))
	}
	want := []string{
		"Things 1: MUST NOT, line 7",
		"Things 2: SHOULD, line 8",
		"Things 3: MUST, line 21",
		"Things 4: SHALL, line 23",
		"THING_RED and THING_BLUE 1: MUST, line 12",
		"THING_RED and THING_BLUE 2: SHOULD NOT, line 18",
		"THING_PART 1: RECOMMENDED, line 16",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("key words (-want +got):\n%s", diff)
	}
	sections := []string{"A protocol", "Things", "THING_RED and THING_BLUE", "THING_PART", "The odd things"}
	if diff := cmp.Diff(sections, s.Sections); diff != "" {
		t.Errorf("sections (-want +got):\n%s", diff)
	}
	if _, err := ReadSpecification(strings.NewReader("# Another text\n")); err == nil {
		t.Error("a text without key words was taken for the specification")
	}
}

// TestCompare: a new version of the text shows what is new in it.
func TestCompare(t *testing.T) {
	read := func(text string) *Specification {
		s, err := ReadSpecification(strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	var table []Requirement
	for _, k := range read(theText).Keywords {
		table = append(table, Requirement{Keyword: k, Text: "a thing"})
	}
	table = append(table, Requirement{Keyword: Keyword{Section: "The odd things"}}, Requirement{Keyword: Keyword{Section: branch + "Elsewhere"}})
	for _, tt := range []struct {
		name, old, new string
		want           []string // beginnings
	}{
		{"nothing", "", "", nil},
		{"new lines", "blue. It", "blue.\nIt", nil},
		{"a new one", "Things SHALL end.", "A thing that is much too old for this world SHOULD say so, and then go to where it came from.\n\nThings SHALL end.", []string{
			"new: line 23: Things\t4\tSHOULD\t", "moved: line 25: Things 4 is now 5",
		}},
		{"gone", "    They MUST be there.", "    They are there, in all of the red and the blue ways.", []string{
			"moved: line 18: THING_RED and THING_BLUE 2 is now 1", "gone: THING_RED and THING_BLUE 1, MUST",
		}},
		{"stronger", "RECOMMENDED.", "REQUIRED.", []string{"new: line 16: THING_PART\t1\tREQUIRED", "gone: THING_PART 1, RECOMMENDED"}},
		{"another heading", "The `odd` things", "The `even` things", []string{"no such section: The odd things"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := read(strings.Replace(theText, tt.old, tt.new, 1)).Compare(table)
			ok := len(got) == len(tt.want)
			for i := range got {
				ok = ok && strings.HasPrefix(got[i], tt.want[i])
			}
			if !ok {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
			}
		})
	}
}

// TestRequirements_Bite breaks the table, and wants the check to see it.
func TestRequirements_Bite(t *testing.T) {
	rows := map[string]Row{}
	for _, r := range Rows() {
		rows[r.Name] = r
	}
	good := Requirements()
	tests := testsOf(t)
	find := func(section string, n int) int {
		return slices.IndexFunc(good, func(r Requirement) bool { return r.Section == section && r.N == n })
	}
	for _, tt := range []struct {
		name   string
		change func(rs []Requirement, rows map[string]Row) []Requirement
		want   string
	}{
		{"no row and no reason", func(rs []Requirement, _ map[string]Row) []Requirement {
			rs[find("NBD_OPT_STARTTLS", 3)].Rows = nil
			return rs
		}, "NBD_OPT_STARTTLS 3: neither a row nor a reason"},
		{"a row that does not exist", func(rs []Requirement, _ map[string]Row) []Requirement {
			rs[find("NBD_CMD_READ", 3)].Rows = []string{"zero-length/reed"}
			return rs
		}, "NBD_CMD_READ 3: there is no row zero-length/reed"},
		{"a test that does not exist", func(rs []Requirement, _ map[string]Row) []Requirement {
			rs[find("Protocol phases", 1)].Tests = []string{"TestTuna"}
			return rs
		}, "Protocol phases 1: there is no test TestTuna"},
		{"a row without a requirement", func(rs []Requirement, rows map[string]Row) []Requirement {
			rows["read/nothing"] = Row{Name: "read/nothing"}
			return rs
		}, "row read/nothing is not in the table: it cites nothing"},
		{"a row that is too strong", func(rs []Requirement, rows map[string]Row) []Requirement {
			r := rows["abort/data"]
			r.Level = Must
			rows["abort/data"] = r
			return rs
		}, "row abort/data is a MUST, which is not what it cites"},
		{"a requirement missing", func(rs []Requirement, _ map[string]Row) []Requirement {
			i := find("NBD_CMD_DISC", 2)
			return slices.Delete(rs, i, i+1)
		}, "NBD_CMD_DISC 3: out of order"},
		{"a reason of no class", func(rs []Requirement, _ map[string]Row) []Requirement {
			rs[find("NBD_CMD_FLUSH", 1)].Class = "later"
			return rs
		}, "NBD_CMD_FLUSH 1: the reason is of no class: later"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			some := maps.Clone(rows)
			got := checkRequirements(tt.change(slices.Clone(good), some), some, tests)
			if !slices.Contains(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
