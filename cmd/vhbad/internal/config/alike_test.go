package config

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAlike(t *testing.T) {
	words := []string{"size", "cache-size", "read-only", "connections", "connection-rate", "description"}
	for word, want := range map[string][]string{
		"sise":        {"size"},
		"siz":         {"size"},
		"szie":        nil, // two of four letters
		"READ_ONLY":   {"read-only"},
		"readonly":    {"read-only"},
		"conn":        {"connections", "connection-rate"},
		"descriptxon": {"description"},
		"colour":      nil,
		"":            words,
	} {
		if diff := cmp.Diff(want, Alike(word, words)); diff != "" {
			t.Errorf("%q: -want +got\n%s", word, diff)
		}
	}
}

func TestDistance(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int
	}{
		{"", "", 0},
		{"", "abc", 3},
		{"abc", "", 3},
		{"abc", "abc", 0},
		{"kitten", "sitting", 3},
		{"sitting", "kitten", 3},
		{"read-only", "readonly", 1},
		{"ab", "ba", 2},
	} {
		if got := distance(tt.a, tt.b); got != tt.want {
			t.Errorf("%q to %q: %d, want %d", tt.a, tt.b, got, tt.want)
		}
	}
}
