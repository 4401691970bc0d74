package config

import (
	"cmp"
	"errors"
	"fmt"
)

// TLS says whether clients may or must use TLS.
type TLS struct {
	// Certificates is a folder with server-cert.pem, server-key.pem and, to
	// verify clients, ca-cert.pem: the layout of other NBD servers.
	Certificates string `yaml:"certificates"`
	// Mode is "off", "optional" or "required". Empty means optional with
	// Certificates and off without, as with nbdkit.
	Mode TLSMode `yaml:"mode"`
	// VerifyPeer requires clients to present a certificate issued by the authority in
	// ca-cert.pem.
	VerifyPeer bool `yaml:"verify-peer"`
}

// TLSMode says which clients are let in.
type TLSMode string

// The values of TLSMode.
const (
	TLSOff      TLSMode = "off"      // in plain text only
	TLSOptional TLSMode = "optional" // either way; disks with tls-only or allow by TLS only
	TLSRequired TLSMode = "required" // by TLS only
)

// resolveTLS checks TLS and what disks require of it.
func (c *Config) resolveTLS() error {
	t := &c.TLS
	def := TLSOff
	if t.Certificates != "" {
		def = TLSOptional
	}
	t.Mode = cmp.Or(t.Mode, def)
	switch t.Mode {
	case TLSOff:
		if t.VerifyPeer {
			return errors.New("tls verify-peer: TLS is off: want certificates, and not mode off")
		}
	case TLSOptional, TLSRequired:
		if t.Certificates == "" {
			return fmt.Errorf("tls mode %s: want certificates, a folder with server-cert.pem and server-key.pem", t.Mode)
		}
	default:
		return fmt.Errorf("tls mode %q: want %s, %s or %s", string(t.Mode), TLSOff, TLSOptional, TLSRequired)
	}
	for i := range c.Disks {
		d := &c.Disks[i]
		switch {
		case d.TLSOnly && t.Mode == TLSOff:
			return fmt.Errorf("disk %q: tls-only: TLS is off, so nobody could use it: want tls certificates", d.Name)
		case len(d.Allow) > 0 && !t.VerifyPeer:
			return fmt.Errorf("disk %q: allow: names are known of verified clients only: want tls certificates and verify-peer", d.Name)
		}
	}
	return nil
}
