package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/vhbad/vhbad/client"
)

// What is wrong in a file of rules is said with the line where it is, whichever of the
// shapes the file has, and whatever stands before.
func TestReadRules_Wrong(t *testing.T) {
	tests := []struct{ text, want string }{
		{"# what for\n\n- name: a\n\n  action: {kind: busy}\n- name: b\n  action: {kind: latency, latency: {meen: 5ms}}\n", `standard input:7: unknown key "meen": is mean meant?`},
		{"# what for\n\nname: a\n\naction: {kind: latency, latency: {mean: 5}}\n", `standard input:5: duration "5": want numbers with a unit`},
		{"{\n\"name\": \"a\",\n\"action\": {\"kind\": \"latency\",\n\"latency\": {\"meen\": \"5ms\"}}}\n", `standard input:4: unknown key "meen"`},
		{"faults:\n\n- name: a\n  action: {kind: busy, for: [1s]}\n", `standard input:4: faults[0].action.for is a list: want one value`},
		{"\n- name: a\n  action: {kind: busy}\n\n- name: b\n  action: 3\n", `standard input:6: faults[1].action is "3": want keys: `},
		{"\nname: a\n\naction: 3\n", `standard input:4: action is "3": want keys: `},
		{"# two\n- {name: a, action: {kind: busy}}\n\n- name: b\n  action: {kind: nap}\n", `standard input:4: fault "b": action.kind "nap": want `},
		{"# one\n\nname: b\naction: {kind: nap}\n", `standard input:3: fault "b": action.kind "nap": want `},
		{"- name: a\n  action: [\n   b: {\n", `standard input:3: did not find expected node content`},
		{"name: a\nname: b\n", `standard input:2: mapping key "name" already defined at line 1`},
		{"\nnone\n", `standard input:2: "none": want a rule, a list of them, or ` + "`faults:`"},
		// Part of a file must not pass for all of it.
		{"name: a\naction: {kind: busy}\n---\nname: b\naction: {kind: busy}\n", `standard input: more than one YAML document: want one`},
		{"# none\n", "standard input: no rules: want one, a list of them, or `faults:`"},
		{"---\n", "standard input: no rules: want one"},
		{"[]\n", "standard input: no rules: want one"},
		{"faults: []\n", "standard input: no rules: want one"},
	}
	for _, tt := range tests {
		if rules, err := readRules(strings.NewReader(tt.text), "-"); err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%q: %d rules, %v; want %s", tt.text, len(rules), err, tt.want)
		}
	}
}

func TestReadRules(t *testing.T) {
	for _, text := range []string{
		"name: a\naction: {kind: busy}\n",
		"- name: a\n  action: {kind: busy}\n",
		"disks: [{name: d, memory: 1MiB}]\nfaults:\n- name: a\n  action: {kind: busy}\n",
		`{"name": "a", "action": {"kind": "busy"}}`,
		`[{"name": "a", "action": {"kind": "busy"}}]`,
	} {
		rules, err := readRules(strings.NewReader(text), "-")
		if err != nil || !slices.EqualFunc(rules, []string{"a"}, func(r client.FaultRule, name string) bool { return r.Name == name && r.Action.Kind == "busy" }) {
			t.Errorf("%q: %+v, %v", text, rules, err)
		}
	}
}

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
