package main

import (
	"testing"
)

// What looks like a number is a text all the same where one is wanted.
func TestRuleOfWords_Texts(t *testing.T) {
	for _, text := range []string{"1.0", "007", "0x10", "1e3", "1_000", "2030-01-02", "yes", "a b", `"1.0"`, "'it'"} {
		r, err := ruleOfWords("r", "hang", []string{"disk=" + text, "at-mark=" + text, "seed=7"})
		want := text
		if text[0] == '"' || text[0] == '\'' { // quotes are those of YAML
			want = text[1 : len(text)-1]
		}
		if err != nil || r.Disk != want || r.Match.AtMark != want || r.Seed != 7 {
			t.Errorf("%s: disk %q, mark %q, %v; want %q", text, r.Disk, r.Match.AtMark, err, want)
		}
	}
}
