package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/invopop/jsonschema"
	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/hba/fault"
)

var update = flag.Bool("update", false, "write openapi.json anew")

// A documentWriter makes the OpenAPI document of a table.
type documentWriter struct {
	reflector jsonschema.Reflector
	schemas   map[string]any
	taken     map[string]bool // names of types that are in bodies of requests
	// fields are the names in JSON of the fields of each type, by their names in Go.
	fields map[string]map[string]string
}

func newDocumentWriter(t *testing.T) *documentWriter {
	t.Helper()
	w := &documentWriter{schemas: make(map[string]any), taken: make(map[string]bool), fields: make(map[string]map[string]string)}
	w.reflector = jsonschema.Reflector{Anonymous: true, AllowAdditionalProperties: true, Mapper: spelled}
	// The path is both that of the folder and, joined to the base, of the package.
	err := w.reflector.AddGoComments("github.com/vhbad/vhbad/cmd/vhbad/internal/admin", "../../../../client", jsonschema.WithFullComment())
	if err == nil {
		err = w.reflector.AddGoComments("github.com/vhbad/vhbad/cmd/vhbad/internal/admin", "../../../../hba/fault", jsonschema.WithFullComment())
	}
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// spelled are the schemas of types that have their own idea of JSON.
func spelled(t reflect.Type) *jsonschema.Schema {
	switch t {
	case reflect.TypeFor[fault.Size]():
		return &jsonschema.Schema{
			Description: "Bytes, as a number or as in 64MiB",
			OneOf:       []*jsonschema.Schema{{Type: "integer"}, {Type: "string", Pattern: "^[0-9]+([KMGT](iB)?)?$"}},
		}
	case reflect.TypeFor[fault.Duration]():
		return &jsonschema.Schema{Type: "string", Description: "A span of time, as in 5ms or 1m30s"}
	case reflect.TypeFor[fault.Ops]():
		one := &jsonschema.Schema{Type: "string"}
		for _, name := range fault.OpNames() {
			one.Enum = append(one.Enum, name)
		}
		return &jsonschema.Schema{
			Description: "Kinds of commands", OneOf: []*jsonschema.Schema{one, {Type: "array", Items: one}},
		}
	}
	return nil
}

// schemaOf returns a schema that refers to the components, and adds to those.
func (w *documentWriter) schemaOf(t *testing.T, rt reflect.Type, body bool) map[string]any {
	t.Helper()
	w.collect(rt)
	text, err := json.Marshal(w.reflector.ReflectFromType(rt))
	if err != nil {
		t.Fatal(err)
	}
	text = bytes.ReplaceAll(text, []byte("#/$defs/"), []byte("#/components/schemas/"))
	var s map[string]any
	if err := json.Unmarshal(text, &s); err != nil {
		t.Fatal(err)
	}
	delete(s, "$schema")
	definitions, _ := s["$defs"].(map[string]any)
	delete(s, "$defs")
	for name, d := range definitions {
		if body {
			w.taken[name] = true
		}
		w.schemas[name] = d
	}
	return s
}

// finish makes the schemas of what the daemon takes reject unknown fields. The schemas of
// what it returns stay open: there may be more fields later.
func (w *documentWriter) finish() map[string]any {
	for name := range w.taken {
		if s := w.schemas[name].(map[string]any); s["type"] == "object" {
			s["additionalProperties"] = false
		}
	}
	for name, s := range w.schemas {
		w.describe(name, s.(map[string]any))
	}
	return w.schemas
}

// collect notes the fields of a type and of those in it.
func (w *documentWriter) collect(rt reflect.Type) {
	switch rt.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Array, reflect.Map:
		w.collect(rt.Elem())
	case reflect.Struct:
		if w.fields[rt.Name()] != nil {
			return
		}
		w.fields[rt.Name()] = make(map[string]string)
		for f := range rt.Fields() {
			if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" && name != "-" {
				w.fields[rt.Name()][f.Name] = name
			}
			w.collect(f.Type)
		}
	}
}

// elsewhere returns the name in JSON of a field of any type, if all agree on it.
func (w *documentWriter) elsewhere(field string) (string, bool) {
	names := make(map[string]bool)
	for _, fields := range w.fields {
		if name, ok := fields[field]; ok {
			names[name] = true
		}
	}
	for name := range names {
		return name, len(names) == 1
	}
	return "", false
}

// Words of comments that may be names of fields, and those that can be nothing else.
var (
	nameForm  = regexp.MustCompile(`\b[A-Z]\w*`)
	mixedForm = regexp.MustCompile(`[a-z][A-Z]|[A-Z]{2}[a-z]`)
)

// describe has the descriptions of a type, which are comments of Go, name fields as they are
// in JSON.
func (w *documentWriter) describe(typeName string, s map[string]any) {
	spell := func(text, own string) string {
		var out strings.Builder
		end := 0
		for _, at := range nameForm.FindAllStringIndex(text, -1) {
			word := text[at[0]:at[1]]
			begins := at[0] == 0 || strings.HasSuffix(strings.TrimRight(text[:at[0]], " \n"), ".")
			name, ok := w.fields[typeName][word]
			if !ok && w.schemas[word] == nil && mixedForm.MatchString(word) {
				name, ok = w.elsewhere(word)
			}
			switch {
			case at[0] == 0 && own != "" && name == own:
			case ok && (!begins || mixedForm.MatchString(word)):
			default:
				continue
			}
			out.WriteString(text[end:at[0]] + name)
			end = at[1]
		}
		return out.String() + text[end:]
	}
	if text, ok := s["description"].(string); ok {
		s["description"] = spell(text, "")
	}
	properties, _ := s["properties"].(map[string]any)
	for own, p := range properties {
		if p, ok := p.(map[string]any); ok {
			if text, ok := p["description"].(string); ok {
				p["description"] = spell(text, own)
			}
		}
	}
}

func (w *documentWriter) operation(t *testing.T, rt *Route) map[string]any {
	t.Helper()
	o := map[string]any{"operationId": rt.ID, "summary": rt.Summary}
	if rt.Detail != "" {
		o["description"] = rt.Detail
	}
	var parameters []any
	for _, name := range rt.pathParameters() {
		parameters = append(parameters, map[string]any{
			"name": name, "in": "path", "required": true, "description": pathParameters[name], "schema": map[string]any{"type": "string"},
		})
	}
	for _, p := range rt.Query {
		s := w.schemaOf(t, reflect.TypeOf(p.Of), false)
		if len(p.Values) > 0 {
			s["enum"] = p.Values
		}
		if p.Many {
			s = map[string]any{"type": "array", "items": s}
		}
		parameters = append(parameters, map[string]any{"name": p.Name, "in": "query", "description": p.Summary, "schema": s})
	}
	if parameters != nil {
		o["parameters"] = parameters
	}
	content := func(media string, schema any) map[string]any {
		return map[string]any{media: map[string]any{"schema": schema}}
	}
	if rt.Body != nil {
		o["requestBody"] = map[string]any{"required": true, "content": content("application/json", w.schemaOf(t, rt.Body, true))}
	}
	ok := map[string]any{"description": http.StatusText(rt.Status)}
	if rt.Answer != nil {
		media := rt.Media
		if media == "" {
			media = "application/json"
		}
		ok["content"] = content(media, w.schemaOf(t, rt.Answer, false))
	}
	responses := map[string]any{strconv.Itoa(rt.Status): ok}
	problem := content("application/json", w.schemaOf(t, reflect.TypeFor[client.Problem](), false))
	for _, status := range rt.Problems {
		responses[strconv.Itoa(status)] = map[string]any{"description": http.StatusText(status), "content": problem}
	}
	responses["default"] = map[string]any{"description": "What was wrong, and what is allowed", "content": problem}
	o["responses"] = responses
	return o
}

func writeDocument(t *testing.T, routes []Route) []byte {
	t.Helper()
	w := newDocumentWriter(t)
	paths := make(map[string]map[string]any)
	for i := range routes {
		rt := &routes[i]
		if paths[rt.Path] == nil {
			paths[rt.Path] = make(map[string]any)
		}
		paths[rt.Path][strings.ToLower(rt.Method)] = w.operation(t, rt)
	}
	out, err := json.MarshalIndent(map[string]any{
		"openapi": "3.1.0",
		"info": map[string]any{
			"title": "vhbad", "version": "v1",
			"description": "Control of a running vhbad, over HTTP on its admin socket. Within v1, operations, fields of answers and " +
				"types of events are only added. Bodies of requests are read strictly.",
			"license": map[string]any{"name": "Apache-2.0", "identifier": "Apache-2.0"},
		},
		"servers":    []any{map[string]any{"url": "http://vhbad", "description": "The admin socket; any host name will do"}},
		"paths":      paths,
		"components": map[string]any{"schemas": w.finish()},
	}, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return append(out, '\n')
}

// TestOpenAPI_Document holds the document that is served against the table, the
// types of package client and their comments.
func TestOpenAPI_Document(t *testing.T) {
	want := writeDocument(t, Routes(sources(fixed{})))
	if *update {
		if err := os.WriteFile("openapi.json", want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(string(document), "\n")); diff != "" {
		t.Errorf("openapi.json is not that of the table: run go generate ./cmd/vhbad/internal/admin\n-want +got\n%s", diff)
	}
	w := httptest.NewRecorder()
	Handler(sources(fixed{})).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/v1/openapi.json", nil))
	if w.Code != http.StatusOK || !bytes.Equal(w.Body.Bytes(), document) {
		t.Errorf("GET /v1/openapi.json: %d, %d bytes; want the document", w.Code, w.Body.Len())
	}
}

// TestOpenAPI_Descriptions: descriptions name what is in JSON, not the fields, errors and
// functions of Go that they come from.
func TestOpenAPI_Descriptions(t *testing.T) {
	var d struct {
		Components struct {
			Schemas map[string]struct {
				Description string
				Properties  map[string]struct{ Description string }
			}
		}
	}
	if err := json.Unmarshal(document, &d); err != nil {
		t.Fatal(err)
	}
	ofGo := func(schema, text string) {
		t.Helper()
		for _, word := range nameForm.FindAllString(text, -1) {
			_, isType := d.Components.Schemas[word]
			if !isType && word != "MiB" && word != "URIs" && mixedForm.MatchString(word) {
				t.Errorf("%s: %s is of Go: %s", schema, word, text)
			}
		}
	}
	described := 0
	for name, s := range d.Components.Schemas {
		ofGo(name, s.Description)
		for property, p := range s.Properties {
			ofGo(name+"."+property, p.Description)
			if p.Description != "" {
				described++
			}
		}
	}
	if described < 100 {
		t.Errorf("only %d properties are described", described)
	}
	for property, text := range map[string]string{
		"size_bytes": d.Components.Schemas["DiskChange"].Properties["size_bytes"].Description,
		"error":      d.Components.Schemas["Problem"].Properties["error"].Description,
	} {
		if got, _, _ := strings.Cut(text, " "); got != property {
			t.Errorf("the description of %s begins with %s", property, got)
		}
	}
}

// newValidator checks the document by the rules of OpenAPI.
func newValidator(t *testing.T) validator.Validator {
	t.Helper()
	d, err := libopenapi.NewDocument(document)
	if err != nil {
		t.Fatal(err)
	}
	v, errs := validator.NewValidator(d)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	return v
}

func TestOpenAPI_Valid(t *testing.T) {
	if ok, errs := newValidator(t).ValidateDocument(); !ok {
		for _, err := range errs {
			t.Errorf("%s: %s: %v", err.Message, err.Reason, err.SchemaValidationErrors)
		}
	}
}

// clientCalls has a call of package client for each operation.
var clientCalls = map[string]func(ctx context.Context, c *client.Client) error{
	"status": func(ctx context.Context, c *client.Client) error {
		_, err := c.Status(ctx)
		return err
	},
	"disks": func(ctx context.Context, c *client.Client) error {
		disks, err := c.Disks(ctx)
		if len(disks) != 1 {
			return fmt.Errorf("%d disks: %w", len(disks), err)
		}
		return err
	},
	"disk": func(ctx context.Context, c *client.Client) error {
		_, err := c.Disk(ctx, "a/b")
		return err
	},
	"addDisk": func(ctx context.Context, c *client.Client) error {
		d, err := c.AddDisk(ctx, "..", client.DiskSpec{MemoryBytes: 1 << 20, Allow: []string{"n"}})
		if err == nil && (d.Name != ".." || d.SizeBytes != 1<<20) {
			return fmt.Errorf("added %+v", d)
		}
		return err
	},
	"growDisk": func(ctx context.Context, c *client.Client) error {
		d, err := c.GrowDisk(ctx, "a", 2<<20)
		if err == nil && d.SizeBytes != 2<<20 {
			return fmt.Errorf("grown %+v", d)
		}
		return err
	},
	"removeDisk": func(ctx context.Context, c *client.Client) error {
		_, err := c.RemoveDisk(ctx, "a b", client.RemoveOptions{Force: true, DrainTimeout: 1500 * time.Millisecond})
		return err
	},
	"reload": func(ctx context.Context, c *client.Client) error {
		r, err := c.Reload(ctx)
		if err == nil && len(r.DisksAdded) != 1 {
			return fmt.Errorf("reloaded %+v", r)
		}
		return err
	},
	"events": func(ctx context.Context, c *client.Client) error {
		s, err := c.Events(ctx, client.EventFilter{Since: new(uint64), Types: []client.EventType{client.EventReady, client.EventStopping}, NoFollow: true})
		if err != nil {
			return err
		}
		for e, err := range s.All() {
			if err != nil || e.Type != client.EventReady {
				return fmt.Errorf("event %+v: %w", e, err)
			}
		}
		return s.Close()
	},
	"cutPower": func(ctx context.Context, c *client.Client) error {
		r, err := c.CutPower(ctx, "a", client.PowerCutOptions{Seed: new(uint64), Policy: "all"})
		if err == nil && (r.Disk != "a" || r.Policy != "all") {
			err = fmt.Errorf("report %+v", r)
		}
		return err
	},
	"power": func(ctx context.Context, c *client.Client) error {
		_, err := c.Power(ctx, "a")
		return err
	},
	"faults": func(ctx context.Context, c *client.Client) error {
		_, err := c.Faults(ctx)
		return err
	},
	"fault": func(ctx context.Context, c *client.Client) error {
		_, err := c.Fault(ctx, "r")
		return err
	},
	"putFault": func(ctx context.Context, c *client.Client) error {
		_, err := c.PutFault(ctx, fullRule())
		return err
	},
	"removeFault": func(ctx context.Context, c *client.Client) error { return c.RemoveFault(ctx, "r") },
	"releaseFault": func(ctx context.Context, c *client.Client) error {
		n, err := c.ReleaseFault(ctx, "r", 3)
		if err == nil && n != 3 {
			err = fmt.Errorf("%d released", n)
		}
		return err
	},
	"setMark": func(ctx context.Context, c *client.Client) error {
		n, err := c.SetMark(ctx, "here")
		if err == nil && n != 4 {
			err = fmt.Errorf("%d rules", n)
		}
		return err
	},
	"resetDisk": func(ctx context.Context, c *client.Client) error { return c.ResetDisk(ctx, "a", client.ResetTarget) },
}

// noClient are the operations that package client does not have, and why.
var noClient = map[string]string{
	"handOver": "package daemon speaks it, on a connection of its own",
	"openAPI":  "it is for other programs' makers",
}

// TestOpenAPI_Client makes each operation by package client, and holds what goes
// both ways against the document.
func TestOpenAPI_Client(t *testing.T) {
	v := newValidator(t)
	routes := Routes(fullSources(t))
	var served string
	for i := range routes {
		rt := &routes[i]
		serve := rt.serve
		rt.serve = func(w http.ResponseWriter, r *http.Request) {
			served = rt.ID
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
			rec := httptest.NewRecorder()
			serve(rec, r)
			r.Body = io.NopCloser(bytes.NewReader(body))
			if ok, errs := v.ValidateHttpRequest(r); !ok {
				t.Errorf("request of %s: %v", rt.ID, errs)
			}
			if rt.Media == "" {
				if ok, errs := v.ValidateHttpResponse(r, rec.Result()); !ok {
					t.Errorf("answer of %s: %v\n%s", rt.ID, errs, rec.Body)
				}
			}
			maps.Copy(w.Header(), rec.Header())
			w.WriteHeader(rec.Code)
			_, _ = w.Write(rec.Body.Bytes())
		}
	}
	path := filepath.Join(t.TempDir(), "x.sock")
	s := Serve(listen(t, path, 0o600), mux(routes), slog.New(slog.DiscardHandler))
	defer func() {
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	c := client.New(path)
	defer c.Close()
	var ids []string
	for i := range routes {
		id := routes[i].ID
		ids = append(ids, id)
		fn := clientCalls[id]
		if fn == nil {
			if noClient[id] == "" {
				t.Errorf("no method of client.Client makes %s", id)
			}
			continue
		}
		if err := fn(t.Context(), c); err != nil || served != id {
			t.Errorf("%s: %v, the server did %q", id, err, served)
		}
	}
	for id := range clientCalls {
		if !slices.Contains(ids, id) {
			t.Errorf("the client makes %s, which there is not", id)
		}
	}
}

// fullSources are sources that have something to tell of each kind.
func fullSources(t *testing.T) Sources {
	t.Helper()
	s := sources(fixed{
		Version: "v1", State: "ready", Listeners: []string{"unix:///a"}, TLS: &client.TLS{Mode: "optional"},
		Disks:       []client.Disk{{Name: "a/b", State: client.DiskServing, Origin: client.OriginAPI, Operations: []client.Operation{{Op: "read"}}}},
		Connections: []client.Connection{{ID: 1}}, Adapter: client.Adapter{Queues: []client.Queue{{}}},
	})
	l := newTestLog(4)
	l.Publish(client.EventReady, "")
	l.Publish(client.EventConnectionOpened, "a", slog.Uint64("connection", 1))
	s.Events = l
	return s
}
