package admin

import (
	"cmp"
	"fmt"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
)

// A Route is one method of one path.
type Route struct {
	Method string
	// Path is a pattern of http.ServeMux, as in /v1/disks/{name}.
	Path string
	// ID is the operation's name in the OpenAPI document.
	ID string
	// Summary is one line, Detail what else there is to know.
	Summary, Detail string
	// Query are the parameters that may follow the question mark; others are refused.
	Query []Parameter
	// Problems are the kinds that the operation's own answers can be, besides those
	// that any can.
	Problems []int
	// Endpoint serves the route.
	Endpoint
}

// A Parameter is one parameter of a query.
type Parameter struct {
	Name, Summary string
	// Of is an example of its type: a string, a bool, an uint64.
	Of any
	// Values, unless empty, are the allowed values.
	Values []string
	// Many is set if the parameter may be given several times.
	Many bool
}

// An Endpoint serves one route.
type Endpoint struct {
	// Body and Answer are the types of the request's body and of the answer, nil for none.
	Body, Answer reflect.Type
	// Status is the HTTP status of a success.
	Status int
	// Media is the media type of the answer if it is not JSON.
	Media string
	serve http.HandlerFunc
}

// None stands for no body or no answer.
type None struct{}

// call makes an Endpoint from a function that turns a body into an answer.
func call[In, Out any](fn func(r *http.Request, in In) (Out, error)) Endpoint {
	e := Endpoint{Body: typeUnlessNone[In](), Answer: typeUnlessNone[Out](), Status: http.StatusOK}
	if e.Answer == nil {
		e.Status = http.StatusNoContent
	}
	e.serve = func(w http.ResponseWriter, r *http.Request) {
		var in In
		if e.Body != nil {
			if err := decodeBody(w, r, &in); err != nil {
				refuse(w, err)
				return
			}
		}
		out, err := fn(r, in)
		switch {
		case err != nil:
			refuse(w, err)
		case e.Answer == nil:
			allowWrite(w)
			w.WriteHeader(e.Status)
		default:
			answer(w, e.Status, out)
		}
	}
	return e
}

func typeUnlessNone[T any]() reflect.Type {
	if t := reflect.TypeFor[T](); t != reflect.TypeFor[None]() {
		return t
	}
	return nil
}

// checkQuery refuses parameters that the route does not have.
func (rt *Route) checkQuery(q url.Values) error {
	for name, values := range q {
		i := slices.IndexFunc(rt.Query, func(p Parameter) bool { return p.Name == name })
		if i < 0 {
			var known []string
			for _, p := range rt.Query {
				known = append(known, p.Name)
			}
			return Invalid("parameter %q is not known: want %s", name, cmp.Or(strings.Join(known, ", "), "none"))
		}
		if len(values) > 1 && !rt.Query[i].Many {
			return Invalid("parameter %q is given %d times: want it once", name, len(values))
		}
	}
	return nil
}

// pathParameters returns the names of the parameters in braces.
func (rt *Route) pathParameters() []string {
	var names []string
	for part := range strings.SplitSeq(rt.Path, "/") {
		if name, ok := strings.CutPrefix(part, "{"); ok {
			names = append(names, strings.TrimSuffix(name, "}"))
		}
	}
	return names
}

// mux makes a handler from a table of routes.
func mux(routes []Route) http.Handler {
	m := http.NewServeMux()
	methods := make(map[string][]string)
	var paths []string
	for i := range routes {
		rt := &routes[i]
		m.HandleFunc(rt.Method+" "+rt.Path, func(w http.ResponseWriter, r *http.Request) {
			q, err := url.ParseQuery(r.URL.RawQuery)
			if err == nil {
				err = rt.checkQuery(q)
			} else {
				err = Invalid("query: %v", err)
			}
			if err != nil {
				refuse(w, err)
				return
			}
			rt.serve(w, r)
		})
		if methods[rt.Path] == nil {
			paths = append(paths, rt.Path)
		}
		methods[rt.Path] = append(methods[rt.Path], rt.Method)
		if rt.Method == http.MethodGet {
			methods[rt.Path] = append(methods[rt.Path], http.MethodHead)
		}
	}
	for path, allowed := range methods {
		slices.Sort(allowed)
		m.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Allow", strings.Join(allowed, ", "))
			refuse(w, methodNotAllowed("%s %s: want %s", r.Method, r.URL.Path, strings.Join(allowed, ", ")))
		})
	}
	slices.Sort(paths)
	everything := strings.Join(paths, ", ")
	m.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		refuse(w, NotFound("%s %s: no such thing: want one of %s", r.Method, r.URL.Path, everything))
	})
	return m
}

// check panics if a table cannot be right, which would be a mistake in this package.
func check(routes []Route) []Route {
	ids := make(map[string]bool)
	for i := range routes {
		rt := &routes[i]
		if rt.serve == nil || rt.ID == "" || rt.Summary == "" || ids[rt.ID] || !strings.HasPrefix(rt.Path, "/v1/") {
			panic(fmt.Sprintf("admin: route %s %s with ID %q is not complete, or its ID is another's", rt.Method, rt.Path, rt.ID))
		}
		ids[rt.ID] = true
		for _, name := range rt.pathParameters() {
			if pathParameters[name] == "" {
				panic(fmt.Sprintf("admin: route %s: nothing says what {%s} is", rt.Path, name))
			}
		}
	}
	return routes
}
