package admin

import (
	"bytes"
	"cmp"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"slices"
	"strings"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/internal/quantity"
)

// maxBodyBytes bounds the body of a request.
const maxBodyBytes = 256 << 10

// decodeBody reads a request's body, strictly.
func decodeBody(w http.ResponseWriter, r *http.Request, into any) error {
	text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBodyBytes))
	if _, long := errors.AsType[*http.MaxBytesError](err); long {
		return &client.Error{Code: client.CodeTooLarge, Message: fmt.Sprintf("body: longer than %d bytes", maxBodyBytes)}
	}
	if err != nil {
		return Invalid("body: %v", err)
	}
	return decode(text, into)
}

// decode reads one JSON value into what into points to. All fields must be known, each by
// its exact name, those that are not optional must be there, and none twice.
func decode(text []byte, into any) error {
	if len(bytes.TrimSpace(text)) == 0 {
		return Invalid("body: empty: want a JSON object")
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return Invalid("body: %v: want a JSON object", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Invalid("body: something follows the JSON object")
	}
	if err := checkShape(v, reflect.TypeOf(into).Elem(), ""); err != nil {
		return err
	}
	if err := checkTwice(json.NewDecoder(bytes.NewReader(text)), ""); err != nil {
		return err
	}
	err := json.Unmarshal(text, into)
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return Invalid("body: %s: %s: want %s", cmp.Or(e.Field, "all of it"), e.Value, e.Type)
	}
	if err != nil {
		return Invalid("body: %v", err)
	}
	return nil
}

// checkShape returns what is wrong with v, compared with the fields of t.
func checkShape(v any, t reflect.Type, path string) error {
	for t.Kind() == reflect.Pointer {
		if v == nil {
			return nil
		}
		t = t.Elem()
	}
	where := cmp.Or(path, "all of it")
	if decodesItself(t) {
		return checkLeaf(v, t, where, true)
	}
	switch t.Kind() {
	case reflect.Slice:
		list, ok := v.([]any)
		if !ok {
			return Invalid("body: %s: %s: want a list", where, kindOf(v))
		}
		for i := range list {
			if err := checkShape(list[i], t.Elem(), fmt.Sprintf("%s[%d]", path, i)); err != nil {
				return err
			}
		}
	case reflect.Map:
		object, ok := v.(map[string]any)
		if !ok {
			return Invalid("body: %s: %s: want an object", where, kindOf(v))
		}
		for name := range object {
			if err := checkShape(object[name], t.Elem(), join(path, name)); err != nil {
				return err
			}
		}
	case reflect.Struct:
		return checkFields(v, t, path, where)
	default:
		if v == nil && t.Kind() != reflect.Interface {
			return Invalid("body: %s: null: want %s", where, quantity.Want(t))
		}
		return checkLeaf(v, t, where, false)
	}
	return nil
}

// checkLeaf checks a value that has no parts. Types that decode themselves say what they
// want.
func checkLeaf(v any, t reflect.Type, where string, decodesItself bool) error {
	text, err := json.Marshal(v)
	if err == nil {
		err = json.Unmarshal(text, reflect.New(t).Interface())
	}
	switch {
	case err == nil:
		return nil
	case decodesItself:
		return Invalid("body: %s: %v", where, err)
	}
	return Invalid("body: %s %s: want %s", where, text, quantity.Want(t))
}

// checkFields is checkShape for a structure.
func checkFields(v any, t reflect.Type, path, where string) error {
	object, ok := v.(map[string]any)
	if !ok {
		return Invalid("body: %s: %s: want an object", where, kindOf(v))
	}
	known := make(map[string]reflect.Type)
	var names []string
	for f := range t.Fields() {
		name, option, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "-" || !f.IsExported() {
			continue
		}
		known[name] = f.Type
		names = append(names, name)
		if _, there := object[name]; !there && option == "" {
			return Invalid("body: %q is missing", join(path, name))
		}
	}
	given := make([]string, 0, len(object))
	for name := range object {
		given = append(given, name)
	}
	slices.Sort(given) // so that the message is always the same
	for _, name := range given {
		ft, ok := known[name]
		if !ok {
			return Invalid("body: unknown field %q: want %s", join(path, name), strings.Join(names, ", "))
		}
		if err := checkShape(object[name], ft, join(path, name)); err != nil {
			return err
		}
	}
	return nil
}

// checkTwice refuses an object that has a field twice: the last would count, without a word.
// The text is known to be right otherwise.
func checkTwice(d *json.Decoder, path string) error {
	token, err := d.Token()
	if err != nil {
		return Invalid("body: %v", err)
	}
	switch token {
	case json.Delim('{'):
		seen := make(map[string]bool)
		for d.More() {
			key, err := d.Token()
			if err != nil {
				return Invalid("body: %v", err)
			}
			name := key.(string)
			if seen[name] {
				return Invalid("body: %q is given twice", join(path, name))
			}
			seen[name] = true
			if err := checkTwice(d, join(path, name)); err != nil {
				return err
			}
		}
	case json.Delim('['):
		for i := 0; d.More(); i++ {
			if err := checkTwice(d, fmt.Sprintf("%s[%d]", path, i)); err != nil {
				return err
			}
		}
	default:
		return nil
	}
	_, err = d.Token() // the end of it
	return err
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// decodesItself reports whether a type decodes JSON by itself.
func decodesItself(t reflect.Type) bool {
	p := reflect.PointerTo(t)
	return p.Implements(reflect.TypeFor[json.Unmarshaler]()) || p.Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

// kindOf names the kind of a JSON value.
func kindOf(v any) string {
	switch v.(type) {
	case nil:
		return "null"
	case bool:
		return "a bool"
	case string:
		return "a string"
	case json.Number:
		return "a number"
	case []any:
		return "a list"
	}
	return "an object"
}
