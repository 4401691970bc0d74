package client

import (
	"errors"
	"fmt"
	"net/http"
	"testing"
)

func TestError(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusConflict)
		_, _ = w.Write([]byte(`{"error":"not now","code":"conflict"}`))
	})
	_, err := c.Status(t.Context())
	if err == nil || err.Error() != "not now" || !errors.Is(err, ErrConflict) || errors.Is(err, ErrNotFound) {
		t.Errorf("error %v, want a conflict that says %q", err, "not now")
	}
	if wrapped := fmt.Errorf("disk: %w", err); !errors.Is(wrapped, ErrConflict) {
		t.Errorf("%v is no conflict", wrapped)
	}
	if errors.Is(err, &Error{Code: CodeConflict, Message: "another"}) {
		t.Error("it is the same as one with another message")
	}
}

func TestSegment(t *testing.T) {
	for name, want := range map[string]string{"a": "a", "a/b": "a%2Fb", ".": "%2E", "..": "%2E%2E", "...": "...", "ö %": "%C3%B6%20%25"} {
		if got := segment(name); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
}
