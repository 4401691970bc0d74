package nbdtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Names in the client certificate of an Authority.
const (
	ClientName  = "client"             // the common name
	ClientDNS   = "client.example"     // and the subject alternative names
	ClientEmail = "client@example.org" //
	ClientURI   = "urn:example:client" //
)

// An Authority issues certificates for tests. Its directory is laid out as other
// NBD servers and clients want theirs: ca-cert.pem, server-cert.pem,
// server-key.pem, client-cert.pem and client-key.pem.
//
// Concurrency: any goroutine, once made.
type Authority struct {
	Dir string
	// Roots holds the certificate of the authority.
	Roots *x509.CertPool
	// ServerCertificate is for localhost, 127.0.0.1 and ::1.
	ServerCertificate tls.Certificate
	// ClientCertificate has the names ClientName, ClientDNS, ClientEmail and
	// ClientURI.
	ClientCertificate tls.Certificate

	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// NewAuthority makes an authority with a certificate for a server and one for a
// client, and writes its files to a directory of the test.
func NewAuthority(t testing.TB) *Authority {
	t.Helper()
	a := &Authority{Dir: t.TempDir(), Roots: x509.NewCertPool(), key: newKey(t)}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "test authority"},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
	}
	a.certificate = template // it signs itself
	der := a.sign(t, template, a.key)
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	a.certificate = parsed
	a.Roots.AddCert(parsed)
	a.write(t, "ca-cert.pem", "CERTIFICATE", der)

	a.ServerCertificate = a.issue(t, "server", &x509.Certificate{
		SerialNumber: big.NewInt(2),
		Subject:      pkix.Name{CommonName: "localhost"},
		DNSNames:     []string{"localhost"},
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	uri, err := url.Parse(ClientURI)
	if err != nil {
		t.Fatal(err)
	}
	a.ClientCertificate = a.issue(t, "client", &x509.Certificate{
		SerialNumber:   big.NewInt(3),
		Subject:        pkix.Name{CommonName: ClientName},
		DNSNames:       []string{ClientDNS},
		EmailAddresses: []string{ClientEmail},
		URIs:           []*url.URL{uri},
		KeyUsage:       x509.KeyUsageDigitalSignature,
		ExtKeyUsage:    []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	return a
}

// ServerConfig returns a server's configuration. With verify it wants a client
// certificate from this authority.
func (a *Authority) ServerConfig(verify bool) *tls.Config {
	c := &tls.Config{Certificates: []tls.Certificate{a.ServerCertificate}, MinVersion: tls.VersionTLS12}
	if verify {
		c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, a.Roots
	}
	return c
}

// ClientConfig returns a client's configuration for the server localhost. With
// identify it shows the client certificate.
func (a *Authority) ClientConfig(identify bool) *tls.Config {
	c := &tls.Config{RootCAs: a.Roots, ServerName: "localhost", MinVersion: tls.VersionTLS12}
	if identify {
		c.Certificates = []tls.Certificate{a.ClientCertificate}
	}
	return c
}

// issue makes a key and a certificate for it and writes both.
func (a *Authority) issue(t testing.TB, name string, template *x509.Certificate) tls.Certificate {
	t.Helper()
	key := newKey(t)
	der := a.sign(t, template, key)
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	a.write(t, name+"-cert.pem", "CERTIFICATE", der)
	a.write(t, name+"-key.pem", "PRIVATE KEY", secret)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (a *Authority) sign(t testing.TB, template *x509.Certificate, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	// Long enough for tests under a fake clock, which begins in the year 2000.
	template.NotBefore = time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC)
	template.NotAfter = time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC)
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func (a *Authority) write(t testing.TB, name, typ string, der []byte) {
	t.Helper()
	b := pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der})
	if err := os.WriteFile(filepath.Join(a.Dir, name), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}
