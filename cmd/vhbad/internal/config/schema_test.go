package config

import (
	"bytes"
	"encoding"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/invopop/jsonschema"
	validate "github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"

	"github.com/vhbad/vhbad/hba/fault"
)

var update = flag.Bool("update", false, "write schema.json anew")

// Patterns of values with a text form of their own.
const (
	sizePattern     = `^[0-9]+([KMGTkmgt]|KiB|MiB|GiB|TiB)?$`
	durationPattern = `^([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h))*$|^0$`
	addressPattern  = `^(tcp://.*:[0-9]+|unix:///.+|vsock://(any|local|host|[0-9]+):[0-9]+)$`
)

// enums are the values of strings that have few, by key.
func enums() map[reflect.Type]map[string][]any {
	return map[reflect.Type]map[string][]any{
		reflect.TypeFor[File]():    {"replies": {"", string(RepliesExtended), string(RepliesStructured), string(RepliesSimple)}},
		reflect.TypeFor[Log]():     {"format": {"", "auto", "text", "json"}, "level": {"", "debug", "info", "warn", "error"}},
		reflect.TypeFor[TLS]():     {"mode": {"", string(TLSOff), string(TLSOptional), string(TLSRequired)}},
		reflect.TypeFor[HBA]():     {"interrupts": {"", string(InterruptsPerMessage), string(InterruptsAll), string(InterruptsSingle), string(InterruptsLine)}},
		reflect.TypeFor[Sandbox](): {"mode": {"", string(SandboxAuto), string(SandboxOff)}},
	}
}

func makeSchema(t *testing.T) []byte {
	t.Helper()
	r := &jsonschema.Reflector{
		Anonymous: true, FieldNameTag: "yaml", RequiredFromJSONSchemaTags: true,
		Mapper: func(rt reflect.Type) *jsonschema.Schema {
			switch rt {
			case reflect.TypeFor[Size]():
				return &jsonschema.Schema{OneOf: []*jsonschema.Schema{{Type: "string", Pattern: sizePattern}, {Type: "integer", Minimum: "0"}}}
			case reflect.TypeFor[Duration]():
				return &jsonschema.Schema{OneOf: []*jsonschema.Schema{{Type: "string", Pattern: durationPattern}, {Const: 0}}}
			case reflect.TypeFor[Address]():
				return &jsonschema.Schema{Type: "string", Pattern: addressPattern}
			case reflect.TypeFor[fault.Ops]():
				text := &jsonschema.Schema{Type: "string"}
				return &jsonschema.Schema{OneOf: []*jsonschema.Schema{text, {Type: "array", Items: text}}}
			}
			if reflect.PointerTo(rt).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) {
				return &jsonschema.Schema{OneOf: []*jsonschema.Schema{{Type: "string"}, {Type: "number"}}}
			}
			return nil
		},
	}
	for _, path := range []string{".", "../../../../hba/fault"} {
		if err := r.AddGoComments("github.com/vhbad/vhbad/cmd/vhbad/internal/config", path, jsonschema.WithFullComment()); err != nil {
			t.Fatal(err)
		}
	}
	s := r.ReflectFromType(reflect.TypeFor[File]())
	s.Title = "vhbad"
	for rt, keys := range enums() {
		for key, values := range keys {
			p, ok := s.Definitions[rt.Name()].Properties.Get(key)
			if !ok {
				t.Fatalf("%s has no key %q", rt, key)
			}
			p.Enum = values
		}
	}
	for _, rt := range structures {
		sayKeys(t, rt, s.Definitions[rt.Name()])
	}
	disk := s.Definitions["Disk"]
	disk.Required = []string{"name"}
	disk.OneOf = []*jsonschema.Schema{{Required: []string{"memory"}}, {Required: []string{"file"}}}
	s.Definitions["Rule"].Required = []string{"name", "action"}
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return append(text, '\n')
}

// sayKeys has the descriptions of a structure's keys, which are comments of Go, call the
// keys what a file calls them.
func sayKeys(t *testing.T, rt reflect.Type, s *jsonschema.Schema) {
	t.Helper()
	if s == nil {
		t.Fatalf("%s is not in the schema", rt)
	}
	for f := range rt.Fields() {
		key := keyOf(f)
		if key == "" {
			continue
		}
		word := regexp.MustCompile(`\b` + f.Name + `\b`)
		for p := s.Properties.Oldest(); p != nil; p = p.Next() {
			p.Value.Description = word.ReplaceAllString(p.Value.Description, key)
		}
	}
}

// TestSchema_Document holds the schema that is shipped against File.
func TestSchema_Document(t *testing.T) {
	want := makeSchema(t)
	if *update {
		if err := os.WriteFile("schema.json", want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(string(Schema), "\n")); diff != "" {
		t.Errorf("schema.json is not that of File: run go generate ./cmd/vhbad/internal/config\n-want +got\n%s", diff)
	}
}

func compiledSchema(t *testing.T) *validate.Schema {
	t.Helper()
	doc, err := validate.UnmarshalJSON(bytes.NewReader(Schema))
	if err != nil {
		t.Fatal(err)
	}
	c := validate.NewCompiler()
	if err := c.AddResource("vhbad.schema.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("vhbad.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// bySchema returns what is wrong with a file according to the schema.
func bySchema(t *testing.T, s *validate.Schema, text string) error {
	t.Helper()
	var v any
	if err := yaml.Unmarshal([]byte(text), &v); err != nil {
		return err
	}
	j, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	v, err = validate.UnmarshalJSON(bytes.NewReader(j))
	if err != nil {
		t.Fatal(err)
	}
	return s.Validate(v)
}

// TestSchema_AgreesWithParser: the schema accepts whatever the parser accepts, and refuses
// what the parser refuses by itself. Rules between values are the parser's alone.
func TestSchema_AgreesWithParser(t *testing.T) {
	s := compiledSchema(t)
	packaged, err := os.ReadFile("../../../../deploy/package/vhbad.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		string(packaged),
		`{}`,
		`listen: ["unix:///run/x.sock?mode=0660&owner=:disk", "tcp://:0", "tcp://[::1]:10809", vsock://any:10809]`,
		`disks: [{name: a, memory: 64MiB}, {name: b, file: /b.img, size: 1073741824, block-size: 4096, read-only: true, allow: [x], connections: 3}]`,
		`disks: [{name: a, memory: 64M, cache: writeback, cache-size: 1MiB, hostile: [lying-flush]}]`,
		"http: none\nadmin: /run/a.sock\nlog: {format: json, level: debug}\nread-only: true\nhostile: true",
		"limits: {memory: 64MiB, connections: 3, idle-timeout: 1m30s, drain-timeout: 500ms, reply-timeout: 0.5h}",
		"tls: {certificates: /c, mode: required, verify-peer: true}\nhba: {queues: 2, interrupts: line, srb-timeout: 5s}\nsandbox: {mode: 'off', paths: [/srv]}",
		`faults: [{name: f, disk: disk0, match: {op: [write, flush], every: 3, probability: 0.5}, action: {kind: busy}, budget: 4}, {name: g, action: {kind: latency, latency: {mean: 5ms}}, match: {op: read}}]`,
	} {
		if err := bySchema(t, s, text); err != nil {
			t.Errorf("the schema refuses\n%s\n%v", text, err)
		}
		if _, err := Parse("good", []byte(text)); err != nil {
			t.Errorf("the parser refuses\n%s\n%v", text, err)
		}
	}
	for _, text := range []string{
		`dsks: []`,
		`disks: {a: 1}`,
		`disks: [{memory: 64MiB}]`,
		`disks: [{name: a}]`,
		`disks: [{name: a, memory: 1MiB, file: /x}]`,
		`disks: [{name: a, memory: 64MB}]`,
		`disks: [{name: a, memory: -1}]`,
		`disks: [{name: a, memory: 1MiB, sise: 1}]`,
		`disks: [{name: a, memory: 1MiB, read-only: perhaps}]`,
		`disks: [{name: a, memory: 1MiB, connections: many}]`,
		`listen: [http://x]`,
		`listen: unix:///x`,
		`limits: {drain-timeout: 5}`,
		`limits: {drain-timeout: 5 s}`,
		`limits: {connections: 1.5}`,
		`limits: {memory: much}`,
		`tls: {cert: x}`,
		`sandbox: {path: [/x]}`,
		`hba: [1]`,
		`faults: [{name: f, when: now, action: {kind: busy}}]`,
	} {
		if bySchema(t, s, text) == nil {
			t.Errorf("the schema takes\n%s", text)
		}
		if _, err := Parse("bad", []byte(text)); err == nil {
			t.Errorf("the parser takes\n%s", text)
		}
	}
}

// TestFile_RoundTrip: a printed file means the same, with and without comments, and the
// schema accepts it.
func TestFile_RoundTrip(t *testing.T) {
	s := compiledSchema(t)
	for _, text := range []string{
		"",
		"listen: ['unix:///run/x.sock?mode=0660', tcp://127.0.0.1:0]\ndisks: [{name: a, memory: 64MiB, description: 'x: #y', allow: [n]}, {name: b, file: /b.img, size: 1GiB, block-size: 4096}]\n" +
			"http: none\nadmin: none\nlog: {level: warn, format: text}\ntls: {certificates: /c, verify-peer: true}\nlimits: {idle-timeout: 1m30s, memory: 64MiB}\nread-only: true\n" +
			"sandbox: {paths: [/srv]}\nfaults: [{name: f, disk: a, match: {op: [write], every: 3}, action: {kind: busy}, budget: 4}]",
	} {
		f, err := Parse("in", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		want, err := f.Resolve("/run/a.sock", false)
		if err != nil {
			t.Fatal(err)
		}
		for _, comments := range []bool{false, true} {
			out, err := want.File().YAML(comments)
			if err != nil {
				t.Fatal(err)
			}
			if comments != strings.Contains(string(out), "# drain-timeout bounds an orderly stop.") {
				t.Errorf("comments %v, but\n%s", comments, out)
			}
			if err := bySchema(t, s, string(out)); err != nil {
				t.Errorf("the schema refuses\n%s\n%v", out, err)
			}
			again, err := Parse(filepath.Join("printed"), out)
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			got, err := again.Resolve("/another", false)
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("printed and read back, -want +got\n%s\n%s", diff, out)
			}
		}
		m, err := want.File().JSON()
		if err != nil || m["limits"].(map[string]any)["drain-timeout"] != "30s" {
			t.Errorf("JSON %v, %v", m, err)
		}
	}
}
