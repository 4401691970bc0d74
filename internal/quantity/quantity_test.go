package quantity

import (
	"math"
	"strings"
	"testing"
	"time"
)

func TestParseSize(t *testing.T) {
	for in, want := range map[string]Size{
		"0": 0, "512": 512, "4096": 4096, "1K": KiB, "1k": KiB, "64MiB": 64 * MiB, "64M": 64 * MiB,
		"1GiB": GiB, "3G": 3 * GiB, "64TiB": 64 * TiB, "9223372036854775807": math.MaxInt64,
	} {
		got, err := ParseSize(in)
		if err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
}

func TestParseSize_Bad(t *testing.T) {
	for in, want := range map[string]string{
		"": "whole number", "-1": "whole number", "1.5G": `unit ".5G"`, "64MB": `unit "MB"`, "64 MiB": `unit " MiB"`,
		"MiB": "whole number", "9223372036854775808": "whole number", "8388608TiB": "more than", "64mib": `unit "mib"`,
	} {
		_, err := ParseSize(in)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseSize(%q): error %v, want one with %q", in, err, want)
		}
	}
}

func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"1", "64MiB", "1.5G", "99999999999999999999", "7T"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseSize(s)
		if err != nil {
			return
		}
		if back, err := ParseSize(n.String()); err != nil || back != n {
			t.Errorf("ParseSize(%q) = %d, whose spelling %q reads as %d, %v", s, n, n.String(), back, err)
		}
	})
}

func TestParseDuration(t *testing.T) {
	got, err := ParseDuration("1m30s")
	if err != nil || got.Std() != 90*time.Second {
		t.Errorf("ParseDuration(1m30s) = %v, %v", got, err)
	}
	for _, in := range []string{"", "5", "-5ms", "5 ms", "soon"} {
		if _, err := ParseDuration(in); err == nil || !strings.Contains(err.Error(), "5ms or 1m30s") {
			t.Errorf("ParseDuration(%q): error %v, want one that shows the form", in, err)
		}
	}
}
