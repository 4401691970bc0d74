package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/vhbad/vhbad/hba/fault"
)

// MaxFileBytes bounds a configuration file.
const MaxFileBytes = 4 << 20

// Load reads a configuration file. Its errors name the file and the line.
func Load(path string) (*File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, MaxFileBytes+1))
	if err != nil {
		return nil, err
	}
	if len(b) > MaxFileBytes {
		return nil, fmt.Errorf("%s: longer than %d bytes: is it a configuration file?", path, MaxFileBytes)
	}
	return Parse(path, b)
}

// Parse is Load for a text in memory; name stands for the file in errors.
func Parse(name string, text []byte) (*File, error) {
	f := &File{}
	top, err := document(name, text)
	if err != nil {
		return nil, err
	}
	if top == nil {
		return f, nil // empty or comments only: all defaults
	}
	if err := read(name, text, top, "", f, f.noteZero); err != nil {
		return nil, err
	}
	if err := checkDiskLines(name, top, f); err != nil {
		return nil, err
	}
	return f, checkRules(name, f.Faults, func(i int) int { return lineOf(top, "faults", i) })
}

// ParseRules reads a file of fault rules, which is one rule, a list of rules, or a
// configuration. Its errors name the file and the line, too.
func ParseRules(name string, text []byte) (rules []fault.Rule, err error) {
	top, err := document(name, text)
	if err != nil {
		return nil, err
	}
	switch {
	case top == nil || top.ShortTag() == "!!null":
	case top.Kind == yaml.MappingNode && hasKey(top, "faults"):
		f, err := Parse(name, text)
		if err != nil {
			return nil, err
		}
		rules = f.Faults
	case top.Kind == yaml.MappingNode:
		rules = make([]fault.Rule, 1)
		err = read(name, text, top, "", &rules[0], nil)
		if err == nil {
			err = checkRules(name, rules, func(int) int { return top.Line })
		}
	case top.Kind == yaml.SequenceNode:
		err = read(name, text, top, "faults", &rules, nil)
		if err == nil {
			err = checkRules(name, rules, func(i int) int { return top.Content[i].Line })
		}
	default:
		return nil, fmt.Errorf("%s:%d: %s: want a rule, a list of them, or `faults:`", name, top.Line, shortQuote(top.Value))
	}
	if err == nil && len(rules) == 0 {
		err = fmt.Errorf("%s: no rules: want one, a list of them, or `faults:`", name)
	}
	return rules, err
}

// document returns the root of the only document of a text, nil if there is none.
func document(name string, text []byte) (*yaml.Node, error) {
	dec := yaml.NewDecoder(bytes.NewReader(text))
	var root yaml.Node
	if err := dec.Decode(&root); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, nameErrors(name, withLine(err, text))
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: more than one YAML document: want one", name)
	}
	if root.Kind != yaml.DocumentNode || len(root.Content) == 0 {
		return nil, nil
	}
	return root.Content[0], nil
}

// read decodes text, whose root is top, into what into points to. Errors call the root
// path.
func read(name string, text []byte, top *yaml.Node, path string, into any, zero func(path string) error) error {
	if err := checkValues(name, top, reflect.TypeOf(into).Elem(), path, zero); err != nil {
		return err
	}
	if err := decodeStrictly(text, into); err != nil && !errors.Is(err, io.EOF) {
		return nameErrors(name, err)
	}
	return nil
}

// checkRules checks each rule by itself, so that an error has the rule's line.
func checkRules(name string, rules []fault.Rule, line func(i int) int) error {
	for i := range rules {
		if err := rules[i].Check(); err != nil {
			return fmt.Errorf("%s:%d: %w", name, line(i), err)
		}
	}
	return nil
}

// lineOf returns the line of item i of a list at the top.
func lineOf(top *yaml.Node, list string, i int) int {
	for k := 0; k+1 < len(top.Content); k += 2 {
		if items := top.Content[k+1].Content; top.Content[k].Value == list && i < len(items) {
			return items[i].Line
		}
	}
	return 1
}

// ParseRule reads one fault rule, in the form of an item of `faults`. Its errors name the
// field; whether the rule makes sense is not checked.
func ParseRule(text []byte) (r fault.Rule, err error) {
	var root yaml.Node
	if err := yaml.Unmarshal(text, &root); err != nil {
		return r, err
	}
	if root.Kind == yaml.DocumentNode && len(root.Content) > 0 {
		err := walk(root.Content[0], reflect.TypeFor[fault.Rule](), "", func(n *yaml.Node, t reflect.Type, path string) error {
			isText, err := checkValue(n, t)
			if isText && err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
			if err != nil {
				return fmt.Errorf("%s %w", path, err)
			}
			return nil
		})
		if err != nil {
			return r, err
		}
	}
	err = decodeStrictly(text, &r)
	if te, ok := errors.AsType[*yaml.TypeError](err); ok {
		err = errors.New(strings.Join(te.Errors, "; "))
	}
	return r, err
}

// decodeStrictly fills what into points to, and refuses unknown keys.
func decodeStrictly(text []byte, into any) error {
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true)
	return dec.Decode(into)
}

// checkDiskLines checks each disk by itself, so that an error has the disk's line.
func checkDiskLines(name string, top *yaml.Node, f *File) error {
	for i := range f.Disks {
		if err := f.Disks[i].check(); err != nil {
			return fmt.Errorf("%s:%d: disk %q: %w", name, lineOf(top, "disks", i), f.Disks[i].Name, err)
		}
	}
	return nil
}

var (
	unknownKey = regexp.MustCompile(`^line (\d+): field (.*) not found in type (?:config|fault)\.(\w+)$`)
	otherError = regexp.MustCompile(`^(?:yaml: )?line (\d+): (.*)$`)
)

// withLine gives the line to an error in the first line of text, which the YAML package
// leaves out: its marks count from 0, and 0 is also what has none. Behind an empty line the
// same error has one.
func withLine(err error, text []byte) error {
	problem, hasNone := strings.CutPrefix(err.Error(), "yaml: ")
	if !hasNone || otherError.MatchString(err.Error()) {
		return err
	}
	again := yaml.Unmarshal(append([]byte("\n"), text...), new(yaml.Node))
	if again == nil || !otherError.MatchString(again.Error()) || !strings.HasSuffix(again.Error(), ": "+problem) {
		return err
	}
	return fmt.Errorf("yaml: line 1: %s", problem)
}

// withRemedy adds what to do to what the YAML package says of a tab.
func withRemedy(problem string) string {
	if problem == "found character that cannot start any token" {
		return problem + ": lines are indented by spaces, not tabs, and a text that begins with @ or % wants quotes"
	}
	return problem
}

// nameErrors turns the YAML package's errors into "FILE:LINE: …" and adds to an error
// about an unknown key the one that may have been meant, or all.
func nameErrors(name string, err error) error {
	lines := []string{err.Error()}
	if te, ok := errors.AsType[*yaml.TypeError](err); ok {
		lines = te.Errors
	}
	var out []error
	for _, line := range lines {
		switch {
		case unknownKey.MatchString(line):
			m := unknownKey.FindStringSubmatch(line)
			known := keys(m[3])
			out = append(out, fmt.Errorf("%s:%s: unknown key %q: %s", name, m[1], m[2], meantOr(m[2], known, "want "+strings.Join(known, ", "))))
		case otherError.MatchString(line):
			m := otherError.FindStringSubmatch(line)
			out = append(out, fmt.Errorf("%s:%s: %s", name, m[1], withRemedy(m[2])))
		default:
			out = append(out, fmt.Errorf("%s: %s", name, withRemedy(strings.TrimPrefix(line, "yaml: "))))
		}
	}
	return errors.Join(out...)
}

// structures are those that a file consists of.
var structures = []reflect.Type{
	reflect.TypeFor[File](), reflect.TypeFor[Disk](), reflect.TypeFor[Log](),
	reflect.TypeFor[Limits](), reflect.TypeFor[HBA](), reflect.TypeFor[TLS](), reflect.TypeFor[Sandbox](),
	reflect.TypeFor[fault.Rule](), reflect.TypeFor[fault.Match](), reflect.TypeFor[fault.Action](), reflect.TypeFor[fault.Sense](),
	reflect.TypeFor[fault.Latency](), reflect.TypeFor[fault.Quantile](), reflect.TypeFor[fault.PowerCut](),
}

// keys lists the keys of one of the structures.
func keys(typeName string) []string {
	var out []string
	for _, t := range structures {
		if t.Name() == typeName {
			for f := range t.Fields() {
				if key := keyOf(f); key != "" {
					out = append(out, key)
				}
			}
		}
	}
	slices.Sort(out)
	return out
}
