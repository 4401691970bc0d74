package config

import (
	"cmp"
	"encoding"
	"errors"
	"fmt"
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

// checkValues first parses every scalar by itself: the YAML package does not give the line
// of what UnmarshalText refuses, takes fractions for whole numbers, and names Go types
// where a number is wanted. It calls zero, unless nil, for every value that is 0 where
// leaving it out would mean another number.
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

// inDisk matches the path of a key of a disk.
var inDisk = regexp.MustCompile(`^disks\[\d+\]\.([a-z-]+)$`)

// noteZero notes a key that is 0 in the file. Its error says why the key cannot be 0.
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

// checkValue checks a scalar that is to become a t. isText says that t parses text by
// itself, so that its errors say what is wanted.
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
	cut := k <= reflect.Uint64 && k >= reflect.Int && n.ShortTag() == "!!float" // the decoder would cut the fraction off
	if cut || n.Decode(reflect.New(t).Interface()) != nil {
		return false, fmt.Errorf("%s: want %s", n.Value, quantity.Want(t))
	}
	return false, nil
}

// checkShape checks that a node that is to become a t is a list, a mapping or a single
// value, as t is: the YAML package would name Go types.
func checkShape(n *yaml.Node, t reflect.Type) error {
	if _, decides := reflect.PointerTo(t).MethodByName("UnmarshalYAML"); decides || isNull(n) {
		return nil // t says itself what it takes; null means the default
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

// shortQuote returns the beginning of s, quoted: s may be a whole file.
func shortQuote(s string) string {
	const most = 40
	if utf8.RuneCountInString(s) > most {
		return strconv.Quote(string([]rune(s)[:most])) + "…"
	}
	return strconv.Quote(s)
}

// A visit is a function that walk calls.
type visit func(n *yaml.Node, t reflect.Type, path string) error

// walk calls fn for every scalar of n, and for aliases that stand for something else, with
// the type it will have and its path, as in faults[0].match.op. A missing value that has no
// default is a node with nothing but a line.
func walk(n *yaml.Node, t reflect.Type, path string, fn visit) error {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	isAlias := n.Kind == yaml.AliasNode
	if isAlias { // the same value may be of another type here
		value := *n.Alias
		value.Line = n.Line
		n = &value
	}
	switch {
	case isAlias: // unless it is a scalar, its parts are walked where its anchor is
		return fn(n, t, path)
	case t.Kind() == reflect.Slice && n.Kind == yaml.SequenceNode:
		return walkItems(n, t, path, fn)
	case t.Kind() == reflect.Struct && n.Kind == yaml.MappingNode:
		return walkKeys(n, t, path, fn)
	}
	return fn(n, t, path)
}

// walkItems is walk for a list.
func walkItems(n *yaml.Node, t reflect.Type, path string, fn visit) error {
	for i, item := range n.Content {
		at := fmt.Sprintf("%s[%d]", path, i)
		if isNull(item) { // the decoder leaves it out
			return fn(&yaml.Node{Line: item.Line}, t.Elem(), at)
		}
		if err := walk(item, t.Elem(), at, fn); err != nil {
			return err
		}
	}
	return nil
}

// walkKeys is walk for a mapping.
func walkKeys(n *yaml.Node, t reflect.Type, path string, fn visit) error {
	if t == reflect.TypeFor[fault.Quantile]() {
		for f := range t.Fields() {
			if key := keyOf(f); !hasKey(n, key) {
				return fn(&yaml.Node{Line: n.Line}, f.Type, path+"."+key)
			}
		}
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.ShortTag() == "!!merge" {
			for _, m := range merged(value) {
				if err := walk(m, t, path, fn); err != nil {
					return err
				}
			}
		}
		field, ok := fieldOf(t, key.Value)
		if !ok {
			continue // reported by the strict decoder
		}
		at := key.Value
		if path != "" {
			at = path + "." + at
		}
		if err := walk(value, field.Type, at, fn); err != nil {
			return err
		}
	}
	return nil
}

// merged returns the mappings written out in the value of a merge key, which is a mapping
// or a list of them. Those that it refers to by an alias are elsewhere in the file.
func merged(value *yaml.Node) []*yaml.Node {
	all := []*yaml.Node{value}
	if value.Kind == yaml.SequenceNode {
		all = value.Content
	}
	return slices.DeleteFunc(slices.Clone(all), func(n *yaml.Node) bool { return n.Kind != yaml.MappingNode })
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// hasKey reports whether a mapping has a key.
func hasKey(n *yaml.Node, key string) bool {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return true
		}
	}
	return false
}

// keyOf returns the key of a field, empty if it has none.
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
