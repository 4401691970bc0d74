package conformance

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// A Target is one export of a server under test.
type Target struct {
	// Name is what the report calls it, such as its URI.
	Name string
	// Dial opens a connection to the server.
	Dial func(ctx context.Context) (net.Conn, error)
	// Export is the name of the export.
	Export string
	// Patience is how long the server may take for any step before the verdict is
	// Hang; 0 means 10 s. It does not measure speed: a test of a server that must
	// not hang allows minutes.
	Patience time.Duration
	// Secure makes everything but the rows about TLS itself go over TLS.
	Secure bool
	// TLS is the client's configuration; nil trusts any server and shows no
	// certificate.
	TLS *tls.Config
}

// tls is a copy of the configuration, to change and to use.
func (t *Target) tls() *tls.Config {
	if t.TLS == nil {
		return &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}
	}
	return t.TLS.Clone()
}

// ParseURI makes a Target of an NBD URI: nbd://host[:port]/export,
// nbd+unix:///export?socket=path, and nbds:// or nbds+unix:// to go over TLS.
// With tls-certificates=dir the server must show a certificate issued by ca-cert.pem,
// and is shown client-cert.pem with client-key.pem if they exist; tls-hostname=name is
// the name that the server's certificate must have.
//
// Errors: what is wrong with the URI or the files.
func ParseURI(uri string) (Target, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return Target{}, err
	}
	t := Target{Name: uri, Export: strings.TrimPrefix(u.Path, "/")}
	query := u.Query()
	scheme, network, _ := strings.Cut(u.Scheme, "+")
	switch scheme {
	case "nbd":
	case "nbds":
		t.Secure = true
	default:
		return Target{}, fmt.Errorf("URI %q has scheme %q: want nbd, nbds, nbd+unix or nbds+unix", uri, u.Scheme)
	}
	var address string
	switch network {
	case "":
		network = "tcp"
		port := u.Port()
		if port == "" {
			port = "10809"
		}
		address = net.JoinHostPort(u.Hostname(), port)
	case "unix":
		address = query.Get("socket")
		if address == "" {
			return Target{}, fmt.Errorf("URI %q names no socket: want ?socket=path", uri)
		}
	default:
		return Target{}, fmt.Errorf("URI %q has transport %q: want none, for TCP, or unix", uri, network)
	}
	t.Dial = func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, address)
	}
	if dir := query.Get("tls-certificates"); dir != "" {
		name := query.Get("tls-hostname")
		if name == "" {
			name = u.Hostname()
		}
		if t.TLS, err = clientTLS(dir, name); err != nil {
			return Target{}, err
		}
	}
	return t, nil
}

func clientTLS(dir, name string) (*tls.Config, error) {
	ca, err := os.ReadFile(filepath.Join(dir, "ca-cert.pem"))
	if err != nil {
		return nil, err
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: name, RootCAs: x509.NewCertPool()}
	if name == "" {
		config.ServerName = "localhost"
	}
	if !config.RootCAs.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("%s: no certificate in ca-cert.pem", dir)
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "client-cert.pem"), filepath.Join(dir, "client-key.pem"))
	switch {
	case err == nil:
		config.Certificates = []tls.Certificate{pair}
	case !errors.Is(err, os.ErrNotExist):
		return nil, err
	}
	return config, nil
}
