package admin

import (
	_ "embed" // for openapi.json
	"encoding/json"
	"net/http"
	"reflect"
)

// document is the OpenAPI document: made of Routes and of the types of package
// client with their comments, and held against them, by TestOpenAPI.
//
//go:generate go test -run TestOpenAPI_Document -update .
//go:embed openapi.json
var document []byte

// pathParameters describes the parameters in braces of paths.
var pathParameters = map[string]string{
	"name":  "Name of a disk",
	"fault": "Name of a fault rule",
}

func openAPIRoutes() []Route {
	return []Route{{
		Method: http.MethodGet, Path: "/v1/openapi.json", ID: "openAPI",
		Summary: "This document",
		Endpoint: Endpoint{
			Answer: reflect.TypeFor[map[string]json.RawMessage](), Status: http.StatusOK,
			serve: func(w http.ResponseWriter, _ *http.Request) {
				allowWrite(w)
				w.Header().Set("Content-Type", "application/json")
				_, _ = w.Write(document) // an error means that the client has gone
			},
		},
	}}
}
