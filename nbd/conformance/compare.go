package conformance

import (
	"fmt"
	"slices"
	"strings"
)

// Compare returns the places where the table of requirements and a text differ: key
// words that are new, gone, moved to another ordinal, or of another strength, and
// sections that the text does not have. If it returns nothing, the table has every key
// word of the text.
func (s *Specification) Compare(table []Requirement) []string {
	type key struct{ section, mark string }
	has, tells := map[key][]*Requirement{}, map[key]int{}
	for i := range table {
		if r := &table[i]; r.N > 0 {
			has[key{r.Section, r.Mark}] = append(has[key{r.Section, r.Mark}], r)
		}
	}
	var found []string
	for i := range s.Keywords {
		k := &s.Keywords[i]
		at := key{k.Section, k.Mark}
		same := has[at]
		if tells[at] >= len(same) {
			found = append(found, fmt.Sprintf("new: line %d: %s\t%d\t%s\t%s\t…", k.Line, k.Section, k.N, k.Word, k.Mark))
			continue
		}
		r := same[tells[at]]
		tells[at]++
		switch {
		case r.Word != k.Word:
			found = append(found, fmt.Sprintf("other key word: line %d: %s %d is %s, and was %s", k.Line, k.Section, k.N, k.Word, r.Word))
		case r.N != k.N:
			found = append(found, fmt.Sprintf("moved: line %d: %v is now %d", k.Line, r, k.N))
		}
	}
	for i := range table {
		r := &table[i]
		at := key{r.Section, r.Mark}
		switch {
		case r.N > 0 && tells[at] == 0:
			found = append(found, fmt.Sprintf("gone: %v, %s: %s", r, r.Word, r.Text))
		case r.N > 0:
			tells[at]--
		case !strings.HasPrefix(r.Section, branch) && !slices.Contains(s.Sections, r.Section):
			found = append(found, "no such section: "+r.Section)
		}
	}
	return found
}
