package quantity

import (
	"fmt"
	"time"
)

// A Duration is a span of time, written as "5ms" or "1m30s". It is never negative.
type Duration time.Duration

// ParseDuration reads what time.ParseDuration reads, except negative spans.
func ParseDuration(s string) (Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("duration %q: want numbers with a unit of ns, us, ms, s, m or h, as in 5ms or 1m30s", s)
	}
	return Duration(d), nil
}

// Std returns d as a time.Duration.
func (d Duration) Std() time.Duration { return time.Duration(d) }

func (d Duration) String() string { return time.Duration(d).String() }

// Set implements pflag.Value.
func (d *Duration) Set(v string) error {
	n, err := ParseDuration(v)
	if err != nil {
		return err
	}
	*d = n
	return nil
}

// Type implements pflag.Value.
func (*Duration) Type() string { return "DURATION" }

// UnmarshalText implements encoding.TextUnmarshaler, for YAML.
func (d *Duration) UnmarshalText(b []byte) error { return d.Set(string(b)) }

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalJSON takes a string as ParseDuration does.
func (d *Duration) UnmarshalJSON(b []byte) error { return d.Set(unquoted(b)) }
