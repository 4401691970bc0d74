package daemon

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// revoked is a set of certificates by issuer and serial number.
type revoked map[string]bool

func revokedKey(issuer []byte, c string) string { return string(issuer) + "\x00" + c }

// readRevoked reads the authorities' revocation lists; there are none if there is no file.
func (s *certificates) readRevoked(authorities []*x509.Certificate) (revoked, error) {
	path := filepath.Join(s.dir, revokedFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	out := revoked{}
	lists := 0
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "X509 CRL" {
			continue
		}
		list, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if !signedByOne(list, authorities) {
			return nil, fmt.Errorf("%s: a list of %s is not signed by an authority of %s", path, list.Issuer, authorityFile)
		}
		if !list.NextUpdate.IsZero() && s.now().After(list.NextUpdate) {
			return nil, fmt.Errorf("%s: outdated since %s: want the next list of %s", path, list.NextUpdate.Format(time.DateTime), list.Issuer)
		}
		for i := range list.RevokedCertificateEntries {
			out[revokedKey(list.RawIssuer, list.RevokedCertificateEntries[i].SerialNumber.String())] = true
		}
		lists++
	}
	if lists == 0 {
		return nil, fmt.Errorf("%s: no revocation list in it: want PEM", path)
	}
	return out, nil
}

func signedByOne(list *x509.RevocationList, authorities []*x509.Certificate) bool {
	for _, a := range authorities {
		if list.CheckSignatureFrom(a) == nil {
			return true
		}
	}
	return false
}

// verify is for tls.Config.VerifyPeerCertificate: at least one of the verified chains must
// contain no revoked certificate.
func (r revoked) verify(_ [][]byte, chains [][]*x509.Certificate) error {
	for _, chain := range chains {
		good := true
		for _, c := range chain {
			good = good && !r[revokedKey(c.RawIssuer, c.SerialNumber.String())]
		}
		if good {
			return nil
		}
	}
	return errors.New("the certificate is revoked")
}
