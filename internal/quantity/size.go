package quantity

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Powers of 1024, in bytes.
const (
	KiB Size = 1 << (10 * (iota + 1))
	MiB
	GiB
	TiB
)

// A Size is a number of bytes. It is never negative.
type Size int64

// sizeForms ends every error about a size.
const sizeForms = `want a whole number of bytes, or one with KiB, MiB, GiB or TiB (K, M, G, T mean the same), as in 4096 or 64MiB`

// sizeUnits are the suffixes in the order in which String prefers them.
var sizeUnits = []struct {
	long, short string
	unit        Size
}{
	{"TiB", "T", TiB},
	{"GiB", "G", GiB},
	{"MiB", "M", MiB},
	{"KiB", "K", KiB},
}

// ParseSize reads "4096", "64MiB" or "64M". Every suffix is binary, as in fio and qemu. MB
// and the like, which others read as powers of 1000, are refused.
func ParseSize(s string) (Size, error) {
	end := 0
	for end < len(s) && s[end] >= '0' && s[end] <= '9' {
		end++
	}
	n, err := strconv.ParseInt(s[:end], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("size %q: %s", s, sizeForms)
	}
	unit := Size(1)
	if suffix := s[end:]; suffix != "" {
		unit = 0
		for _, u := range sizeUnits {
			if strings.EqualFold(suffix, u.short) || suffix == u.long {
				unit = u.unit
			}
		}
		if unit == 0 {
			return 0, fmt.Errorf("size %q: unit %q is not known: %s", s, suffix, sizeForms)
		}
	}
	if n > math.MaxInt64/int64(unit) {
		return 0, fmt.Errorf("size %q: more than %d bytes", s, int64(math.MaxInt64))
	}
	return Size(n) * unit, nil
}

// String returns the shortest exact spelling, which ParseSize reads back.
func (s Size) String() string {
	if s != 0 {
		for _, u := range sizeUnits {
			if s%u.unit == 0 {
				return strconv.FormatInt(int64(s/u.unit), 10) + u.long
			}
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// Set implements pflag.Value.
func (s *Size) Set(v string) error {
	n, err := ParseSize(v)
	if err != nil {
		return err
	}
	*s = n
	return nil
}

// Type implements pflag.Value.
func (*Size) Type() string { return "SIZE" }

// UnmarshalText implements encoding.TextUnmarshaler, for YAML.
func (s *Size) UnmarshalText(b []byte) error { return s.Set(string(b)) }

// MarshalText implements encoding.TextMarshaler.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalJSON takes a string as ParseSize does, or a plain number of bytes.
func (s *Size) UnmarshalJSON(b []byte) error { return s.Set(unquoted(b)) }

// unquoted returns the text of a JSON string, if removing the quotes is all it takes, or
// any other JSON value unchanged, for a parser to judge.
func unquoted(b []byte) string {
	if n := len(b); n >= 2 && b[0] == '"' && b[n-1] == '"' {
		return string(b[1 : n-1])
	}
	return string(b)
}
