package config

import (
	"bytes"
	"cmp"
	"encoding"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/vhbad/vhbad/hba/fault"
	"github.com/vhbad/vhbad/internal/quantity"
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

// Parse is Load for text at hand; name stands for the file in errors.
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

// ParseRules reads a file of fault rules: one, a list of them, or a configuration. Its
// errors name the file and the line, too.
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

// document is the top of the one document of a text, nil if there is none.
func document(name string, text []byte) (*yaml.Node, error) {
	dec := yaml.NewDecoder(bytes.NewReader(text))
	var root yaml.Node
	if err := dec.Decode(&root); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, nameErrors(name, err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: more than one YAML document: want one", name)
	}
	if root.Kind != yaml.DocumentNode || len(root.Content) == 0 {
		return nil, nil
	}
	return root.Content[0], nil
}

// read makes into, a pointer, of a text whose top is at hand, and is called path in errors.
func read(name string, text []byte, top *yaml.Node, path string, into any, zero func(path string) error) error {
	if err := checkValues(name, top, reflect.TypeOf(into).Elem(), path, zero); err != nil {
		return err
	}
	strict := yaml.NewDecoder(bytes.NewReader(text))
	strict.KnownFields(true)
	if err := strict.Decode(into); err != nil && !errors.Is(err, io.EOF) {
		return nameErrors(name, err)
	}
	return nil
}

// checkRules checks each rule so that its error has its line.
func checkRules(name string, rules []fault.Rule, line func(i int) int) error {
	for i := range rules {
		if err := rules[i].Check(); err != nil {
			return fmt.Errorf("%s:%d: %w", name, line(i), err)
		}
	}
	return nil
}

// lineOf is the line of item i of a list at the top.
func lineOf(top *yaml.Node, list string, i int) int {
	for k := 0; k+1 < len(top.Content); k += 2 {
		if items := top.Content[k+1].Content; top.Content[k].Value == list && i < len(items) {
			return items[i].Line
		}
	}
	return 1
}

// checkValues parses every scalar by itself first: the YAML package does not give the
// line of what UnmarshalText refuses, takes fractions for whole numbers, and names
// types of Go where a number is wanted. It tells zero, if that is not nil, what is 0:
// where it is left out it is another number.
func checkValues(name string, top *yaml.Node, t reflect.Type, path string, zero func(path string) error) error {
	return walk(top, t, path, func(n *yaml.Node, t reflect.Type, path string) error {
		isText, err := checkValue(n, t)
		if err == nil && zero != nil && isZero(n, t) {
			isText, err = false, zero(path)
		}
		switch {
		case err == nil:
			return nil
		case isText:
			return fmt.Errorf("%s:%d: %w", name, n.Line, err)
		}
		return fmt.Errorf("%s:%d: %s %w", name, n.Line, cmp.Or(path, "the file"), err)
	})
}

// isZero reports whether a scalar that has been checked is the number 0.
func isZero(n *yaml.Node, t reflect.Type) bool {
	v := reflect.New(t).Elem()
	return n.Kind == yaml.ScalarNode && n.ShortTag() != "!!null" && v.CanInt() && n.Decode(v.Addr().Interface()) == nil && v.IsZero()
}

// inDisk is the path of a key of a disk.
var inDisk = regexp.MustCompile(`^disks\[\d+\]\.([a-z-]+)$`)

// noteZero is told of what is 0 in the file.
func (f *File) noteZero(path string) error {
	if m := inDisk.FindStringSubmatch(path); m != nil {
		return zeroOfDisk(m[1])
	}
	section, key, _ := strings.Cut(path, ".")
	if section == "limits" || section == "hba" {
		f.Set(key, true)
	}
	return nil
}

// checkValue checks a scalar that is to become a t. isText: t reads text by itself, and
// its errors say what the text was to be.
func checkValue(n *yaml.Node, t reflect.Type) (isText bool, err error) {
	if n.Kind == 0 {
		return false, errors.New("is missing")
	}
	if err := checkShape(n, t); err != nil || n.Kind != yaml.ScalarNode {
		return false, err
	}
	if u, ok := reflect.TypeAssert[encoding.TextUnmarshaler](reflect.New(t)); ok {
		return true, u.UnmarshalText([]byte(n.Value))
	}
	k := t.Kind()
	if k < reflect.Bool || k > reflect.Float64 || n.ShortTag() == "!!null" {
		return false, nil
	}
	cut := k <= reflect.Uint64 && k >= reflect.Int && n.ShortTag() == "!!float" // which the decoder does
	if cut || n.Decode(reflect.New(t).Interface()) != nil {
		return false, fmt.Errorf("%s: want %s", n.Value, quantity.Want(t))
	}
	return false, nil
}

// checkShape checks that what is to become a t is a list, keys or one value, as t is: the
// YAML package names types of Go.
func checkShape(n *yaml.Node, t reflect.Type) error {
	isNull := n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null"
	if _, decides := reflect.PointerTo(t).MethodByName("UnmarshalYAML"); decides || isNull {
		return nil // it says itself what it takes; nothing is the default
	}
	isText := reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
	var want string
	switch k := t.Kind(); {
	case !isText && k == reflect.Struct && n.Kind != yaml.MappingNode:
		want = "keys: " + strings.Join(keys(t.Name()), ", ")
	case !isText && k == reflect.Slice && n.Kind != yaml.SequenceNode:
		want = "a list"
	case (isText || k != reflect.Struct && k != reflect.Slice) && n.Kind != yaml.ScalarNode:
		want = "one value"
	default:
		return nil
	}
	is := map[yaml.Kind]string{yaml.ScalarNode: "is " + shortQuote(n.Value), yaml.SequenceNode: "is a list", yaml.MappingNode: "has keys"}[n.Kind]
	return fmt.Errorf("%s: want %s", is, want)
}

// shortQuote is the beginning of s, quoted: it may be all of a file.
func shortQuote(s string) string {
	const most = 40
	if utf8.RuneCountInString(s) > most {
		return strconv.Quote(string([]rune(s)[:most])) + "…"
	}
	return strconv.Quote(s)
}

// ParseRule reads one fault rule, as an item of `faults`. Its errors name the field;
// what the rule says is not checked.
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
	strict := yaml.NewDecoder(bytes.NewReader(text))
	strict.KnownFields(true)
	err = strict.Decode(&r)
	if te, ok := errors.AsType[*yaml.TypeError](err); ok {
		err = errors.New(strings.Join(te.Errors, "; "))
	}
	return r, err
}

// walk calls fn for every scalar of n, and for aliases of what is none, together with the
// type it will have and where it is, as in faults[0].match.op. Where one is missing that has no default, it has nothing
// but a line.
func walk(n *yaml.Node, t reflect.Type, path string, fn func(*yaml.Node, reflect.Type, string) error) error {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if n.Kind == yaml.AliasNode {
		value := *n.Alias // which may be of another type here
		value.Line = n.Line
		if value.Kind != yaml.ScalarNode {
			return fn(&value, t, path) // what is in it is walked where its anchor stands
		}
		n = &value
	}
	switch {
	case t.Kind() == reflect.Slice && n.Kind == yaml.SequenceNode:
		for i, c := range n.Content {
			if c.Kind == yaml.ScalarNode && c.ShortTag() == "!!null" { // the decoder leaves it out
				return fn(&yaml.Node{Line: c.Line}, t.Elem(), fmt.Sprintf("%s[%d]", path, i))
			}
			if err := walk(c, t.Elem(), fmt.Sprintf("%s[%d]", path, i), fn); err != nil {
				return err
			}
		}
	case t.Kind() == reflect.Struct && n.Kind == yaml.MappingNode:
		if t == reflect.TypeFor[fault.Quantile]() {
			for f := range t.Fields() {
				if key := keyOf(f); !hasKey(n, key) {
					return fn(&yaml.Node{Line: n.Line}, f.Type, path+"."+key)
				}
			}
		}
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].ShortTag() == "!!merge" {
				for _, m := range merged(n.Content[i+1]) {
					if err := walk(m, t, path, fn); err != nil {
						return err
					}
				}
			}
			field, ok := fieldOf(t, n.Content[i].Value)
			if !ok {
				continue // reported by the strict decoder
			}
			at := n.Content[i].Value
			if path != "" {
				at = path + "." + at
			}
			if err := walk(n.Content[i+1], field.Type, at, fn); err != nil {
				return err
			}
		}
	default:
		return fn(n, t, path)
	}
	return nil
}

// merged are the mappings that stand in the value of a merge key, which is one or a list
// of them. Those that it has by an alias stand elsewhere.
func merged(value *yaml.Node) []*yaml.Node {
	all := []*yaml.Node{value}
	if value.Kind == yaml.SequenceNode {
		all = value.Content
	}
	return slices.DeleteFunc(slices.Clone(all), func(n *yaml.Node) bool { return n.Kind != yaml.MappingNode })
}

// hasKey reports whether a mapping has a key.
func hasKey(n *yaml.Node, key string) bool {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return true
		}
	}
	return false
}

// keyOf is the key of a field, empty if it has none.
func keyOf(f reflect.StructField) string {
	key, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
	return strings.TrimPrefix(key, "-")
}

func fieldOf(t reflect.Type, key string) (reflect.StructField, bool) {
	for f := range t.Fields() {
		if key != "" && keyOf(f) == key {
			return f, true
		}
	}
	return reflect.StructField{}, false
}

// checkDiskLines checks each disk so that its error has its line.
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

// nameErrors turns the YAML package's errors into "FILE:LINE: …" and adds to an
// unknown key those that are known.
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
			out = append(out, fmt.Errorf("%s:%s: unknown key %q: want %s", name, m[1], m[2], strings.Join(keys(m[3]), ", ")))
		case otherError.MatchString(line):
			m := otherError.FindStringSubmatch(line)
			out = append(out, fmt.Errorf("%s:%s: %s", name, m[1], m[2]))
		default:
			out = append(out, fmt.Errorf("%s: %s", name, strings.TrimPrefix(line, "yaml: ")))
		}
	}
	return errors.Join(out...)
}

// keys lists the keys of one of this package's structures.
func keys(typeName string) []string {
	var out []string
	for _, t := range []reflect.Type{
		reflect.TypeFor[File](), reflect.TypeFor[Disk](), reflect.TypeFor[Log](),
		reflect.TypeFor[Limits](), reflect.TypeFor[HBA](), reflect.TypeFor[TLS](), reflect.TypeFor[Sandbox](),
		reflect.TypeFor[fault.Rule](), reflect.TypeFor[fault.Match](), reflect.TypeFor[fault.Action](), reflect.TypeFor[fault.Sense](),
		reflect.TypeFor[fault.Latency](), reflect.TypeFor[fault.Quantile](), reflect.TypeFor[fault.PowerCut](),
	} {
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
