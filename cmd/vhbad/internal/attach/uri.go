package attach

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strings"
)

// DefaultPort is the port of NBD. Source: IANA; proto.md, "Protocol phases".
const DefaultPort = "10809"

// A Server is where an export is served.
type Server struct {
	// Network is "tcp" or "unix"; Address is for net.Dial.
	Network, Address string
	// Export is its name; empty means the server's default.
	Export string
}

// String is the server's URI, the same for the same server and export.
func (s Server) String() string {
	u := url.URL{Scheme: "nbd", Host: s.Address, Path: "/" + s.Export}
	if s.Network == "unix" {
		socket := strings.NewReplacer("%2F", "/", "+", "%20").Replace(url.QueryEscape(s.Address))
		return "nbd+unix://" + u.EscapedPath() + "?socket=" + socket
	}
	return u.String()
}

// noTLS says what to do if a server or a user wants TLS.
const noTLS = "the kernel speaks no TLS: attach through a tunnel, or with nbd-client, whose -certfile, -keyfile and -cacertfile do TLS in a process of its own"

const uriForms = "want nbd://HOST[:PORT][/EXPORT], nbd+unix:///EXPORT?socket=PATH, tcp://HOST:PORT or unix:///PATH"

// ParseURI parses the address of an export. tcp and unix URIs, which the daemon prints,
// have no export name: they use export. With other URIs, export may only repeat the name in
// the URI.
//
// Source: github.com/NetworkBlockDevice/nbd doc/uri.md.
func ParseURI(uri, export string) (Server, error) {
	s, err := parseURI(uri)
	if err != nil {
		return Server{}, fmt.Errorf("%q: %w", uri, err)
	}
	if export != "" {
		if s.Export != "" && s.Export != export {
			return Server{}, fmt.Errorf("%q names export %q, and --export %q: want one of them", uri, s.Export, export)
		}
		s.Export = export
	}
	if len(s.Export) > maxStringBytes || strings.ContainsRune(s.Export, 0) {
		return Server{}, fmt.Errorf("export name of %d bytes: want at most %d without NUL", len(s.Export), maxStringBytes)
	}
	return s, nil
}

func parseURI(uri string) (Server, error) {
	if path, ok := strings.CutPrefix(uri, "unix://"); ok {
		if !filepath.IsAbs(path) {
			return Server{}, fmt.Errorf("path %q is not absolute: %s", path, uriForms)
		}
		return Server{Network: "unix", Address: path}, nil
	}
	u, err := url.Parse(uri)
	if err != nil {
		return Server{}, errors.New(uriForms)
	}
	export := strings.TrimPrefix(u.Path, "/")
	switch u.Scheme {
	case "nbd", "tcp":
		if u.RawQuery != "" {
			return Server{}, fmt.Errorf("query %q is not known: %s", u.RawQuery, uriForms)
		}
		if u.Scheme == "tcp" && export != "" {
			return Server{}, fmt.Errorf("a tcp address has no export %q: use nbd://, or --export", export)
		}
		host, port := u.Hostname(), u.Port()
		if host == "" {
			host = "localhost"
		}
		if port == "" {
			port = DefaultPort
		}
		return Server{Network: "tcp", Address: net.JoinHostPort(host, port), Export: export}, nil
	case "nbd+unix":
		socket := u.Query().Get("socket")
		if socket == "" || u.Host != "" {
			return Server{}, fmt.Errorf("no socket=PATH after the question mark, or a host before it: %s", uriForms)
		}
		return Server{Network: "unix", Address: socket, Export: export}, nil
	case "nbds", "nbds+unix":
		return Server{}, errors.New(noTLS)
	case "vsock", "nbd+vsock", "nbds+vsock":
		return Server{}, errors.New("the kernel's nbd takes TCP and unix sockets only: forward the port, for instance with socat, and attach to that")
	}
	return Server{}, errors.New(uriForms)
}
