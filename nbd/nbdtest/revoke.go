package nbdtest

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"testing"
	"time"
)

// Revoke writes ca-crl.pem, a list of the authority that revokes certificates
// and is outdated at nextUpdate.
func (a *Authority) Revoke(t testing.TB, nextUpdate time.Time, certificates ...tls.Certificate) {
	t.Helper()
	list := &x509.RevocationList{
		Number:     big.NewInt(1),
		ThisUpdate: nextUpdate.AddDate(-1, 0, 0),
		NextUpdate: nextUpdate,
	}
	for i := range certificates {
		c, err := x509.ParseCertificate(certificates[i].Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{
			SerialNumber: c.SerialNumber, RevocationTime: list.ThisUpdate,
		})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, a.certificate, a.key)
	if err != nil {
		t.Fatal(err)
	}
	a.write(t, "ca-crl.pem", "X509 CRL", der)
}
