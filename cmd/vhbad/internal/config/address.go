package config

import (
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
)

// MaxUnixPathBytes is the longest path of a unix socket.
// Source: unix(7), sun_path less its terminating NUL.
const MaxUnixPathBytes = 107

// An Address is where to listen.
type Address struct {
	// Network is "tcp" or "unix".
	Network string
	// Target is "HOST:PORT" or an absolute path.
	Target string
}

const addressForms = "want tcp://HOST:PORT or unix:///PATH"

// ParseAddress reads "tcp://HOST:PORT" or "unix:///PATH". An empty host means
// every address of this machine, port 0 any free port.
func ParseAddress(s string) (Address, error) {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok {
		return Address{}, fmt.Errorf("address %q: %s", s, addressForms)
	}
	switch scheme {
	case "tcp":
		if err := checkHostPort(rest); err != nil {
			return Address{}, fmt.Errorf("address %q: %w: %s", s, err, addressForms)
		}
	case "unix":
		if err := CheckSocketPath(rest); err != nil {
			return Address{}, fmt.Errorf("address %q: %w: %s", s, err, addressForms)
		}
		rest = filepath.Clean(rest)
	default:
		return Address{}, fmt.Errorf("address %q: scheme %q is not known: %s", s, scheme, addressForms)
	}
	return Address{Network: scheme, Target: rest}, nil
}

// CheckSocketPath reports why path cannot be that of a unix socket.
func CheckSocketPath(path string) error {
	switch {
	case !filepath.IsAbs(path):
		return fmt.Errorf("path %q is not absolute", path)
	case strings.HasSuffix(path, "/"):
		return fmt.Errorf("path %q is that of a folder", path)
	case strings.ContainsRune(path, 0):
		return fmt.Errorf("path %q contains a NUL byte", path)
	case len(path) > MaxUnixPathBytes:
		return fmt.Errorf("path of %d bytes exceeds the %d of a unix socket", len(path), MaxUnixPathBytes)
	}
	return nil
}

func checkHostPort(s string) error {
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf("%q has no port, or too many colons (an IPv6 address goes in brackets)", s)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("port %q is not 0 to 65535", port)
	}
	return nil
}

func (a Address) String() string { return a.Network + "://" + a.Target }

// UnmarshalText implements encoding.TextUnmarshaler, for YAML.
func (a *Address) UnmarshalText(b []byte) error {
	v, err := ParseAddress(string(b))
	if err != nil {
		return err
	}
	*a = v
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (a Address) MarshalText() ([]byte, error) { return []byte(a.String()), nil }
