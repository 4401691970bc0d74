package conformance

import (
	_ "embed"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
)

// SpecificationVersion is the text that the table was written from: doc/proto.md
// of this release of the NBD project.
const SpecificationVersion = "nbd 3.26.1"

// branch is the prefix of the names of sections that only the extension's branch of the
// document has.
const branch = "extension-ext-header: "

// A Requirement is one key word of the specification, and what shows that a
// server heeds it. Requirement 0 of a section is what it says without a key word:
// layouts, numbers, and what follows from them.
type Requirement struct {
	Keyword
	// Binds is who must heed it: server, client, both or document.
	Binds string
	// Rows are names of rows, Tests those of Go tests anywhere in the project.
	Rows, Tests []string
	// Text is the requirement in a few words of our own.
	Text string
	// Class is why no row shows it, if none does: unseen (it cannot be seen from the
	// client's end), absent (it is about something that neither the server of package nbd
	// nor the rows have), outside (it is up to whoever configures the server), client or
	// document.
	Class string
	// Why gives the reason in words.
	Why string
}

//go:embed requirements.tsv
var requirementTable string

// Requirements returns the table of all requirements, by section in the order of
// the document.
var Requirements = sync.OnceValue(func() []Requirement {
	rs, err := parseRequirements(requirementTable)
	if err != nil {
		panic(err) // a test parses it first
	}
	return rs
})

// parseRequirements reads the table: eight columns, separated by tabs, under
// their names. A dash is an empty cell.
func parseRequirements(table string) ([]Requirement, error) {
	var rs []Requirement
	for i, line := range strings.Split(strings.TrimSuffix(table, "\n"), "\n") {
		if i == 0 {
			continue
		}
		cells := strings.Split(line, "\t")
		if len(cells) != 8 {
			return nil, fmt.Errorf("requirements.tsv:%d: %d columns: want 8", i+1, len(cells))
		}
		for j := range cells {
			if cells[j] == "-" {
				cells[j] = ""
			}
		}
		r := Requirement{Keyword: Keyword{Section: cells[0], Word: cells[2], Mark: cells[3], Line: i + 1}, Binds: cells[4], Text: cells[6]}
		var err error
		if r.N, err = strconv.Atoi(cells[1]); err != nil {
			return nil, fmt.Errorf("requirements.tsv:%d: ordinal %q: want a number", i+1, cells[1])
		}
		for name := range strings.FieldsSeq(cells[5]) {
			if strings.HasPrefix(name, "Test") {
				r.Tests = append(r.Tests, name)
			} else {
				r.Rows = append(r.Rows, name)
			}
		}
		class, why, _ := strings.Cut(cells[7], ": ")
		r.Class, r.Why = class, why
		rs = append(rs, r)
	}
	return rs, nil
}

// String is the citation, such as "NBD_CMD_READ 3".
func (r *Requirement) String() string {
	if r.N == 0 {
		return r.Section
	}
	return fmt.Sprintf("%s %d", r.Section, r.N)
}

// bindsServer says whether a server has to heed it.
func (r *Requirement) bindsServer() bool { return r.Binds == "server" || r.Binds == "both" }

// level is the strength of a key word.
func (k *Keyword) level() Level {
	if strings.HasPrefix(k.Word, "SHOULD") || strings.HasSuffix(k.Word, "RECOMMENDED") {
		return Should
	}
	return Must
}

// citations are the requirements that each row shows.
var citations = sync.OnceValue(func() map[string][]*Requirement {
	all := map[string][]*Requirement{}
	rs := Requirements()
	for i := range rs {
		for _, row := range rs[i].Rows {
			all[row] = append(all[row], &rs[i])
		}
	}
	return all
})

// cites are the citations of the row, such as "NBD_CMD_READ 3, 4; Error values 5".
func (r *Row) cites() string {
	var b strings.Builder
	last := ""
	for _, q := range citations()[r.Name] {
		switch {
		case q.Section == last:
			fmt.Fprintf(&b, ", %d", q.N)
		case last != "":
			b.WriteString("; ")
			fallthrough
		default:
			b.WriteString(q.String())
		}
		last = q.Section
	}
	return b.String()
}

// WriteRequirements writes a table in Markdown that counts the requirements, by whom they
// bind and what shows that they are heeded.
func WriteRequirements(out io.Writer) error {
	counts := map[string][2]int{} // MUST and SHOULD, by line
	rs := Requirements()
	count := func(line string, level Level) {
		c := counts[line]
		c[level]++
		counts[line] = c
	}
	const (
		all      = "in all"
		server   = "that bind servers"
		rows     = "… shown by rows"
		tested   = "… not to be seen from the client's end, shown by tests of vhbad"
		unseen   = "… not to be seen from the client's end, and not tested"
		absent   = "… about what there is no more"
		outside  = "… about how a server is configured"
		client   = "that bind clients alone"
		document = "that bind documents and those who extend the protocol"
	)
	for i := range rs {
		r := &rs[i]
		if r.N == 0 {
			continue
		}
		level := r.level()
		count(all, level)
		switch r.Binds {
		case "client":
			count(client, level)
			continue
		case "document":
			count(document, level)
			continue
		}
		count(server, level)
		switch {
		case len(r.Rows) > 0:
			count(rows, level)
		case r.Class == "absent":
			count(absent, level)
		case r.Class == "outside":
			count(outside, level)
		case len(r.Tests) > 0:
			count(tested, level)
		default:
			count(unseen, level)
		}
	}
	var b strings.Builder
	b.WriteString("| requirements of " + SpecificationVersion + " | MUST | SHOULD | all |\n|---|---|---|---|\n")
	for _, line := range []string{all, server, rows, tested, unseen, absent, outside, client, document} {
		c := counts[line]
		fmt.Fprintf(&b, "| %s | %d | %d | %d |\n", line, c[Must], c[Should], c[Must]+c[Should])
	}
	_, err := io.WriteString(out, b.String())
	return err
}
