package config

import "github.com/vhbad/vhbad/internal/quantity"

// Powers of 1024, in bytes.
const (
	KiB = quantity.KiB
	MiB = quantity.MiB
	GiB = quantity.GiB
	TiB = quantity.TiB
)

// A Size is a number of bytes as people write it.
type Size = quantity.Size

// A Duration is a span of time as people write it.
type Duration = quantity.Duration

// ParseSize reads "4096", "64MiB" or "64M".
func ParseSize(s string) (Size, error) { return quantity.ParseSize(s) }

// ParseDuration reads "5ms" or "1m30s".
func ParseDuration(s string) (Duration, error) { return quantity.ParseDuration(s) }
