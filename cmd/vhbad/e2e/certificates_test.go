//go:build interop || kernel

package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

const (
	// certifiedHost is the host that the server's certificate names.
	certifiedHost = "localhost"
	// certifiedClient is the name in the client's certificate.
	certifiedClient = "client.example"
)

// makeCertificates fills a folder with an authority and the certificates of a
// server and of a client, under the names that libnbd, qemu and nbdkit look for.
func makeCertificates(folder string) error {
	authorityKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	authority := certificate(1, "authority")
	authority.IsCA, authority.BasicConstraintsValid = true, true
	authority.KeyUsage = x509.KeyUsageCertSign
	server, client := certificate(2, certifiedHost), certificate(3, certifiedClient)
	server.DNSNames = []string{certifiedHost}
	server.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	client.DNSNames = []string{certifiedClient}
	client.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	for name, c := range map[string]*x509.Certificate{"ca": authority, "server": server, "client": client} {
		key := authorityKey
		if !c.IsCA {
			if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
				return err
			}
		}
		signed, err := x509.CreateCertificate(rand.Reader, c, authority, &key.PublicKey, authorityKey)
		if err != nil {
			return err
		}
		secret, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return err
		}
		if err := errors.Join(
			writePEM(filepath.Join(folder, name+"-cert.pem"), "CERTIFICATE", signed),
			writePEM(filepath.Join(folder, name+"-key.pem"), "PRIVATE KEY", secret),
		); err != nil {
			return err
		}
	}
	return nil
}

func certificate(serial int64, name string) *x509.Certificate {
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature,
	}
}

func writePEM(path, kind string, content []byte) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: content}), 0o600)
}

// nbdClientTLS are the arguments of nbd-client with TLS.
func nbdClientTLS(folder string, args ...string) []string {
	return append(args,
		"-certfile", filepath.Join(folder, "client-cert.pem"), "-keyfile", filepath.Join(folder, "client-key.pem"),
		"-cacertfile", filepath.Join(folder, "ca-cert.pem"), "-tlshostname", certifiedHost)
}
