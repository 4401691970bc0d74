package config

import "github.com/vhbad/vhbad/internal/quantity"

// Powers of 1024, in bytes.
const (
	KiB = quantity.KiB
	MiB = quantity.MiB
	GiB = quantity.GiB
)

// A Size is a number of bytes as people write it.
type Size = quantity.Size

// A Duration is a span of time as people write it.
type Duration = quantity.Duration

// ParseSize reads "4096", "64MiB" or "64M".
func ParseSize(s string) (Size, error) { return quantity.ParseSize(s) }
