package config

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"unicode"
)

// MaxUnixPathBytes is the longest path of a unix socket.
// Source: unix(7), sun_path less its terminating NUL.
const MaxUnixPathBytes = 107

// An Address is where to listen.
type Address struct {
	// Network is "tcp", "unix" or "vsock".
	Network string
	// Target is "HOST:PORT", an absolute path or "CID:PORT".
	Target string
	// Mode is the permissions of a unix socket; zero leaves them to the umask, or
	// means 0660 if Owner is given.
	Mode fs.FileMode
	// Owner is USER, USER:GROUP or :GROUP of a unix socket, by name or number;
	// empty means whoever runs the daemon.
	Owner string
}

const addressForms = "want tcp://HOST:PORT, unix:///PATH[?mode=0660&owner=USER:GROUP] or vsock://CID:PORT"

// ParseAddress reads one of
//
//	tcp://HOST:PORT    an empty host means every address of this machine
//	unix:///PATH[?mode=OCTAL][&owner=[USER][:GROUP]]
//	vsock://CID:PORT   CID is a number, "any", "local" or "host"
//
// TCP's port 0 means any that is free.
func ParseAddress(s string) (Address, error) {
	a, err := parseAddress(s)
	if err != nil {
		return Address{}, fmt.Errorf("address %q: %w: %s", s, err, addressForms)
	}
	return a, nil
}

func parseAddress(s string) (Address, error) {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok {
		return Address{}, errors.New("no scheme")
	}
	a := Address{Network: scheme, Target: rest}
	switch scheme {
	case "tcp":
		return a, checkHostPort(rest)
	case "vsock":
		_, _, err := ParseVsock(rest)
		return a, err
	case "unix":
		path, query, hasQuery := strings.Cut(rest, "?")
		if err := CheckSocketPath(path); err != nil {
			return Address{}, err
		}
		a.Target = filepath.Clean(path)
		if !hasQuery {
			return a, nil
		}
		return a, a.parseQuery(query)
	}
	return Address{}, fmt.Errorf("scheme %q is not known", scheme)
}

// parseQuery reads what follows the question mark of a unix address.
func (a *Address) parseQuery(query string) error {
	for option := range strings.SplitSeq(query, "&") {
		key, value, _ := strings.Cut(option, "=")
		switch key {
		case "mode":
			n, err := strconv.ParseUint(value, 8, 16)
			if err != nil || n == 0 || n > 0o777 || a.Mode != 0 {
				return fmt.Errorf("mode %q: want permissions in octal, once, as in mode=0660", value)
			}
			a.Mode = fs.FileMode(n)
		case "owner":
			user, group, hasGroup := strings.Cut(value, ":")
			if (user == "" && group == "") || (hasGroup && group == "") || a.Owner != "" || strings.ContainsFunc(value, unicode.IsControl) {
				return fmt.Errorf("owner %q: want USER, USER:GROUP or :GROUP, once", value)
			}
			a.Owner = value
		default:
			return fmt.Errorf("option %q is not known", key)
		}
	}
	return nil
}

// Context identifiers of vsock with a meaning.
// Source: vsock(7).
const (
	VsockAny   = math.MaxUint32 // VMADDR_CID_ANY
	VsockLocal = 1              // VMADDR_CID_LOCAL
	VsockHost  = 2              // VMADDR_CID_HOST
)

// ParseVsock reads CID:PORT.
func ParseVsock(s string) (cid, port uint32, err error) {
	c, p, ok := strings.Cut(s, ":")
	if !ok {
		return 0, 0, fmt.Errorf("%q has no port", s)
	}
	n, err := strconv.ParseUint(p, 10, 32)
	if err != nil || n == math.MaxUint32 {
		return 0, 0, fmt.Errorf("port %q is not 0 to %d", p, uint32(math.MaxUint32-1))
	}
	if named, ok := map[string]uint32{"any": VsockAny, "local": VsockLocal, "host": VsockHost}[c]; ok {
		return named, uint32(n), nil
	}
	id, err := strconv.ParseUint(c, 10, 32)
	if err != nil {
		return 0, 0, fmt.Errorf("context identifier %q is neither a number nor any, local or host", c)
	}
	return uint32(id), uint32(n), nil
}

// CheckSocketPath reports why path cannot be that of a unix socket.
func CheckSocketPath(path string) error {
	switch {
	case !filepath.IsAbs(path):
		return fmt.Errorf("path %q is not absolute", path)
	case strings.HasSuffix(path, "/"), strings.HasSuffix(path, "/."), strings.HasSuffix(path, "/.."):
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

// place returns a without the parts that only shape the socket there.
func (a Address) place() Address { return Address{Network: a.Network, Target: a.Target} }

func (a Address) String() string {
	s, sep := a.Network+"://"+a.Target, "?"
	if a.Mode != 0 {
		s, sep = fmt.Sprintf("%s%smode=%04o", s, sep, uint32(a.Mode)), "&"
	}
	if a.Owner != "" {
		s += sep + "owner=" + a.Owner
	}
	return s
}

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
