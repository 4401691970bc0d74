package conformance

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
)

// A Result is the outcome of a row.
type Result struct {
	Name string `json:"name"`
	// Cites are the requirements that it shows.
	Cites   string  `json:"cites"`
	Level   string  `json:"level"`
	Rule    string  `json:"rule"`
	Verdict Verdict `json:"verdict"`
	// Detail says what was seen, or why the row is not applicable.
	Detail string `json:"detail,omitempty"`
}

// A Report has the results of one server, in the order of Rows.
type Report struct {
	// Server is its name and version, as the caller knows it.
	Server string `json:"server,omitempty"`
	// Targets are the exports tested and what they offer.
	Targets []string `json:"targets"`
	Results []Result `json:"results"`
}

// Broken counts the rules of the level that are broken.
func (r *Report) Broken(level Level) int {
	n := 0
	for _, res := range r.Results {
		if res.Verdict.Bad() && res.Level == level.String() {
			n++
		}
	}
	return n
}

// WriteTable writes the results for people.
func (r *Report) WriteTable(out io.Writer) error {
	for _, t := range r.Targets {
		if _, err := fmt.Fprintln(out, t); err != nil {
			return err
		}
	}
	tw := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	counts := map[Verdict]int{}
	for _, res := range r.Results {
		counts[res.Verdict]++
		if _, err := fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", res.Verdict, res.Level, res.Name, res.Detail); err != nil {
			return err
		}
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "%d rows: %d pass, %d fail, %d hang, %d not applicable\n",
		len(r.Results), counts[Pass], counts[Fail], counts[Hang], counts[NotApplicable])
	return err
}

// WriteJSON writes the report for ReadReport and other programs.
func (r *Report) WriteJSON(out io.Writer) error {
	e := json.NewEncoder(out)
	e.SetIndent("", " ")
	return e.Encode(r)
}

// ReadReport reads what WriteJSON wrote.
func ReadReport(in io.Reader) (*Report, error) {
	var r Report
	if err := json.NewDecoder(in).Decode(&r); err != nil {
		return nil, fmt.Errorf("report: %w", err)
	}
	return &r, nil
}

// WriteMarkdown compares reports: a table of counts by group of rows, and what
// each server breaks.
func WriteMarkdown(out io.Writer, reports ...*Report) error {
	var b strings.Builder
	b.WriteString("| rows |")
	for _, r := range reports {
		fmt.Fprintf(&b, " %s |", r.Server)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(reports)) + "\n")
	var groups []string
	rows := Rows()
	for i := range rows {
		if g := rows[i].group(); !slices.Contains(groups, g) {
			groups = append(groups, g)
		}
	}
	groups = append(groups, "")
	for _, g := range groups {
		name := g
		if g == "" {
			name = "**all**"
		}
		fmt.Fprintf(&b, "| %s |", name)
		for _, r := range reports {
			b.WriteString(" " + r.count(g) + " |")
		}
		b.WriteString("\n")
	}
	for _, r := range reports {
		fmt.Fprintf(&b, "\n**%s**", r.Server)
		broken := slices.DeleteFunc(slices.Clone(r.Results), func(res Result) bool { return !res.Verdict.Bad() })
		if len(broken) == 0 {
			b.WriteString(" breaks no rule that applies to it.\n")
			continue
		}
		slices.SortStableFunc(broken, func(a, b Result) int { return cmp.Compare(a.Level, b.Level) })
		b.WriteString(" breaks:\n\n")
		for _, res := range broken {
			fmt.Fprintf(&b, "- `%s` (%s, %s): %s\n", res.Name, res.Level, res.Verdict, tidy(res.Detail))
		}
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// endpoints are the ends of a connection, as package net puts them into errors.
var endpoints = regexp.MustCompile(`(read|write) (tcp|unix) \S+->\S+: `)

// tidy makes a detail one line of Markdown, without what differs between runs.
func tidy(detail string) string {
	detail = endpoints.ReplaceAllString(detail, "")
	detail, target, _ := strings.Cut(detail, " [nbd")
	if strings.HasPrefix(target, "s:") || strings.HasPrefix(target, "s+") {
		detail += " (over TLS)"
	}
	return strings.NewReplacer("\n", " ", "<", "&lt;", "|", "\\|", "*", "\\*").Replace(detail)
}

// count returns the table cell of a group: how many of its applicable rows pass, and how
// many are broken. The empty group stands for all.
func (r *Report) count(group string) string {
	pass, must, should := 0, 0, 0
	for _, res := range r.Results {
		if group != "" && !strings.HasPrefix(res.Name, group+"/") {
			continue
		}
		switch {
		case res.Verdict == Pass:
			pass++
		case res.Verdict.Bad() && res.Level == Must.String():
			must++
		case res.Verdict.Bad():
			should++
		}
	}
	if pass+must+should == 0 {
		return "–"
	}
	cell := fmt.Sprintf("%d of %d", pass, pass+must+should)
	if must > 0 {
		cell += fmt.Sprintf(", **%d MUST**", must)
	}
	if should > 0 {
		cell += fmt.Sprintf(", %d SHOULD", should)
	}
	return cell
}
