package main

import (
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
	"github.com/vhbad/vhbad/hba/fault"
)

// A ruleField is one field of a rule that takes a value.
type ruleField struct {
	path string // with dots, as match.op
	// shortest is the shortest end of the path that means no other field.
	shortest string
}

// ruleFields are all fields, by reflection, so that none is forgotten.
func ruleFields() []ruleField {
	var paths []string
	var walk func(t reflect.Type, prefix string)
	walk = func(t reflect.Type, prefix string) {
		for f := range t.Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
			ft := f.Type
			if ft.Kind() == reflect.Pointer {
				ft = ft.Elem()
			}
			if ft.Kind() == reflect.Struct {
				walk(ft, prefix+name+".")
			} else if path := prefix + name; path != "name" && path != "action.kind" {
				paths = append(paths, path)
			}
		}
	}
	walk(reflect.TypeFor[fault.Rule](), "")
	out := make([]ruleField, len(paths))
	for i, path := range paths {
		out[i] = ruleField{path: path, shortest: path}
		parts := strings.Split(path, ".")
		for n := 1; n < len(parts); n++ {
			end := strings.Join(parts[len(parts)-n:], ".")
			if found := meant(paths, end); len(found) == 1 && found[0] == path {
				out[i].shortest = end
				break
			}
		}
	}
	return out
}

// meant returns the paths that field may mean: those that end with it, and of these the
// least deep.
func meant(paths []string, field string) (out []string) {
	depth := func(path string) int { return strings.Count(path, ".") }
	for _, p := range paths {
		switch {
		case p != field && !strings.HasSuffix(p, "."+field):
		case len(out) == 0 || depth(p) < depth(out[0]):
			out = []string{p}
		case depth(p) == depth(out[0]):
			out = append(out, p)
		}
	}
	return out
}

// ruleOfWords makes a rule from the words of a command line.
func ruleOfWords(name, kind string, words []string) (client.FaultRule, error) {
	if err := checkKind(kind); err != nil {
		return client.FaultRule{}, err
	}
	root := map[string]any{"name": name}
	put(root, "action.kind", kind)
	fields := ruleFields()
	for _, w := range words {
		field, value, ok := strings.Cut(w, "=")
		if !ok {
			return client.FaultRule{}, fmt.Errorf("%q: want FIELD=VALUE", w)
		}
		path, err := pathOf(fields, field)
		if err != nil {
			return client.FaultRule{}, err
		}
		v, err := valueOf(path, value)
		if err != nil {
			return client.FaultRule{}, fmt.Errorf("%s: %w", w, err)
		}
		if !put(root, path, v) {
			return client.FaultRule{}, fmt.Errorf("field %q is given twice", field)
		}
	}
	text, err := yaml.Marshal(root)
	if err != nil {
		return client.FaultRule{}, err
	}
	r, err := config.ParseRule(text)
	if err != nil {
		return r, fmt.Errorf("fault %q: %w", name, err)
	}
	return r, r.Check()
}

// checkKind says which kind may be meant by one that is none. Others are left to the rule's
// own check, which lists them all.
func checkKind(kind string) error {
	var kinds []string
	for _, k := range fault.Kinds() {
		kinds = append(kinds, string(k.Kind))
	}
	if may := config.Alike(kind, kinds); !slices.Contains(kinds, kind) && len(may) > 0 && len(may) <= config.MaxAlike {
		return fmt.Errorf("kind %q is not known: is %s meant?", kind, strings.Join(may, " or "))
	}
	return nil
}

// pathOf returns the path of the one field that is meant.
func pathOf(fields []ruleField, field string) (string, error) {
	var paths, known, all []string
	for _, f := range fields {
		paths, known = append(paths, f.path), append(known, f.shortest)
		if all = append(all, f.shortest); f.path != f.shortest {
			all = append(all, f.path)
		}
	}
	found := meant(paths, field)
	switch len(found) {
	case 0:
		if may := config.Alike(field, all); len(may) > 0 && len(may) <= config.MaxAlike {
			return "", fmt.Errorf("field %q is not known: is %s meant?", field, strings.Join(may, " or "))
		}
		slices.Sort(known)
		return "", fmt.Errorf("field %q is not known: want %s", field, strings.Join(known, ", "))
	case 1:
		return found[0], nil
	}
	return "", fmt.Errorf("field %q: want %s", field, strings.Join(found, " or "))
}

// valueOf returns the value that word gives the field at path, as it is to be written
// into a file; nil if it gives none.
func valueOf(path, word string) (any, error) {
	if path == "match.op" {
		return strings.Split(word, ","), nil
	}
	var doc yaml.Node // keeps the spelling: a mark may be 1.0, or 007
	if err := yaml.Unmarshal([]byte(word), &doc); err != nil {
		return nil, err
	}
	if len(doc.Content) == 0 {
		return nil, nil
	}
	return doc.Content[0], nil
}

// put sets the value at a dotted path, and reports whether there was none before.
func put(root map[string]any, path string, v any) bool {
	parts := strings.Split(path, ".")
	for _, p := range parts[:len(parts)-1] {
		next, ok := root[p].(map[string]any)
		if !ok {
			next = map[string]any{}
			root[p] = next
		}
		root = next
	}
	last := parts[len(parts)-1]
	_, there := root[last]
	root[last] = v
	return !there
}

// readRules reads a file of rules: one rule, a list, or a configuration.
func readRules(stdin io.Reader, path string) ([]client.FaultRule, error) {
	in, name := stdin, "standard input"
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }()
		in, name = f, path
	}
	text, err := io.ReadAll(io.LimitReader(in, config.MaxFileBytes+1))
	if err != nil {
		return nil, err
	}
	if len(text) > config.MaxFileBytes {
		return nil, fmt.Errorf("%s: longer than %d bytes: is it a file of rules?", name, config.MaxFileBytes)
	}
	return config.ParseRules(name, text)
}

// ruleText returns a rule in the form that it has in a file.
func ruleText(r *client.FaultRule) (string, error) {
	var b strings.Builder
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(r); err != nil {
		return "", err
	}
	return b.String(), e.Close()
}
