package admin

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vhbad/vhbad/client"
)

type testPart struct {
	Size int `json:"size"`
}

type testBody struct {
	Name  string              `json:"name"`
	Parts []testPart          `json:"parts,omitempty"`
	More  map[string]testPart `json:"more,omitempty"`
	Maybe *testPart           `json:"maybe,omitempty"`
	Flag  bool                `json:"flag,omitempty"`
}

func TestDecode(t *testing.T) {
	var got testBody
	if err := decode([]byte(`{"name":"n","parts":[{"size":1}],"more":{"x":{"size":2}},"maybe":null} `), &got); err != nil {
		t.Fatal(err)
	}
	want := testBody{Name: "n", Parts: []testPart{{1}}, More: map[string]testPart{"x": {2}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	for text, want := range map[string]string{
		``:                                      "empty: want a JSON object",
		`{`:                                     "body: unexpected EOF",
		`[]`:                                    "all of it: a list: want an object",
		`null`:                                  "all of it: null: want an object",
		`{"name":"n"} {}`:                       "something follows",
		`{}`:                                    `"name" is missing`,
		`{"Name":"n"}`:                          `"name" is missing`,
		`{"name":"n","nam":1}`:                  `unknown field "nam": want name, parts, more, maybe, flag`,
		`{"name":1}`:                            "name 1: want a string",
		`{"name":null}`:                         "name: null: want a string",
		`{"name":"n","flag":"x"}`:               `flag "x": want true or false`,
		`{"name":"n","parts":{}}`:               "parts: an object: want a list",
		`{"name":"n","parts":[{}]}`:             `"parts[0].size" is missing`,
		`{"name":"n","parts":[{"size":1.5}]}`:   "parts[0].size 1.5: want a whole number",
		`{"name":"n","more":{"x":{"sise":1}}}`:  `"more.x.size" is missing`,
		`{"name":"n","maybe":{"size":1,"s":1}}`: `unknown field "maybe.s": want size`,
		`{"name":"n","name":"m"}`:               `"name" is given twice`,

		`{"name":"n","parts":[{"size":1},{"size":1,"size":2}]}`: `"parts[1].size" is given twice`,
		`{"name":"n","more":{"x":{"size":1},"x":{"size":1}}}`:   `"more.x" is given twice`,
	} {
		var b testBody
		if err := decode([]byte(text), &b); !errors.Is(err, client.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func TestDecode_TooLong(t *testing.T) {
	r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(`"`+strings.Repeat("x", maxBodyBytes)+`"`))
	w := httptest.NewRecorder()
	call(func(*http.Request, string) (None, error) { return None{}, nil }).serve(w, r)
	if w.Code != http.StatusRequestEntityTooLarge || !strings.Contains(w.Body.String(), "longer than 262144 bytes") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}
