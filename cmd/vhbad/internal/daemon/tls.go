package daemon

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
)

// Files of a folder of certificates, as other NBD servers have them.
//
// Source: nbdkit-tls(1), "Setting up TLS"; qemu's tls-creds-x509.
const (
	authorityFile   = "ca-cert.pem"
	certificateFile = "server-cert.pem"
	keyFile         = "server-key.pem"
	revokedFile     = "ca-crl.pem"
)

// certificates are a server's, read again when their files change.
//
// The files may be on a file system that hangs: no lock is held while they are looked at,
// and handshakes wait for that no longer than limit.
//
// Concurrency: any goroutine.
type certificates struct {
	dir        string
	verifyPeer bool
	log        *slog.Logger
	now        func() time.Time
	limit      time.Duration // lookLimit, except in tests

	// looking is the right to look at the files, and to use seen, retry and said: whoever
	// has put a value in holds it, until it takes the value out.
	looking chan struct{}
	// seen are the files as they were when last read, successfully or not.
	seen [4]fingerprint
	// retry is when files that could not be used are read again even if they have not
	// changed; zero if they could be used.
	retry time.Time
	// said is the error last logged about files that could not be used; empty if they
	// could.
	said string

	mu sync.Mutex
	// +checklocks:mu
	current *tls.Config
	// expiry is when the current certificate expires.
	// +checklocks:mu
	expiry time.Time
	// underWay is set while a look for handshakes is, and late if one has waited for it in
	// vain: nobody else waits then.
	// +checklocks:mu
	underWay, late bool
}

// lookLimit is how long a handshake waits until the files have been looked at.
const lookLimit = time.Second

// retryEvery is how often files that could not be used are read again: a certificate may
// become valid merely with time.
const retryEvery = time.Minute

// A fingerprint changes when a file does, even if only its permissions do.
type fingerprint struct {
	file   fs.FileInfo // for os.SameFile
	size   int64
	change syscall.Timespec // of its content or its mode and owner: st_ctim
}

func fingerprintOf(fi fs.FileInfo) fingerprint {
	return fingerprint{file: fi, size: fi.Size(), change: fi.Sys().(*syscall.Stat_t).Ctim}
}

// loadCertificates reads the certificates that the configuration names. It returns nil, and
// no error, if TLS is off.
func loadCertificates(c *config.TLS, log *slog.Logger) (*certificates, error) {
	if c.Mode == config.TLSOff {
		return nil, nil
	}
	s := newCertificates(c.Certificates, c.VerifyPeer, log, time.Now)
	if err := s.read(); err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	return s, nil
}

func newCertificates(dir string, verifyPeer bool, log *slog.Logger, now func() time.Time) *certificates {
	return &certificates{dir: dir, verifyPeer: verifyPeer, log: log, now: now, limit: lookLimit, looking: make(chan struct{}, 1)}
}

// read reads the files for the first time.
func (s *certificates) read() error {
	if _, err := s.changed(); err != nil {
		return err
	}
	return s.load()
}

// config returns the configuration for one TLS handshake. While files are being replaced
// and do not fit each other yet, or cannot be read in time, the last good ones stay in force.
func (s *certificates) config() *tls.Config {
	if current, late := s.inForce(); late {
		return current
	}
	late := time.NewTimer(s.limit)
	defer late.Stop()
	done := make(chan struct{})
	select {
	case s.looking <- struct{}{}:
		s.setUnderWay(true)
		go func() {
			s.look()
			s.setUnderWay(false)
			<-s.looking
			close(done)
		}()
	case <-late.C:
		return s.tooLate()
	}
	select {
	case <-done:
		current, _ := s.inForce()
		return current
	case <-late.C:
		return s.tooLate()
	}
}

func (s *certificates) inForce() (current *tls.Config, late bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current, s.late
}

func (s *certificates) setUnderWay(is bool) {
	s.mu.Lock()
	s.underWay, s.late = is, false
	s.mu.Unlock()
}

// tooLate has nobody wait for the look that is under way, if there still is one, and returns
// what is in force.
func (s *certificates) tooLate() *tls.Config {
	s.mu.Lock()
	current, news := s.current, s.underWay && !s.late
	s.late = s.underWay
	s.mu.Unlock()
	if news {
		s.log.Error("certificates cannot be read: the last good ones stay in force until they can: does the file system answer?", "certificates", s.dir)
	}
	return current
}

// look reads the files again if they have changed, or could not be used. The caller holds
// looking.
func (s *certificates) look() {
	changed, err := s.changed()
	again := changed || !s.retry.IsZero() && !s.now().Before(s.retry)
	if !again {
		return
	}
	if err == nil {
		err = s.load()
	}
	if err != nil {
		s.retry = s.now().Add(retryEvery)
		if said := err.Error(); changed || said != s.said {
			s.said = said
			s.log.Error("certificates are not replaced", "error", err)
		}
		return
	}
	s.retry, s.said = time.Time{}, ""
	s.log.Info("certificates replaced", "certificates", s.dir, "not_after", s.notAfter())
}

// notAfter returns when the certificate expires.
func (s *certificates) notAfter() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.expiry
}

// files returns the names of the files that are in use.
func (s *certificates) files() []string {
	files := []string{certificateFile, keyFile}
	if s.verifyPeer {
		files = append(files, authorityFile, revokedFile)
	}
	return files
}

// changed looks whether a file is another one than the last time. The caller holds looking.
func (s *certificates) changed() (bool, error) {
	changed := false
	var errs []error
	for i, name := range s.files() {
		var f fingerprint
		fi, err := os.Stat(filepath.Join(s.dir, name))
		if err == nil {
			f = fingerprintOf(fi)
		} else if name != revokedFile || !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, s.explain(name, err))
		}
		old := s.seen[i]
		same := f.size == old.size && f.change == old.change && (f.file == nil) == (old.file == nil) &&
			(f.file == nil || os.SameFile(f.file, old.file))
		if !same {
			changed = true
			s.seen[i] = f
		}
	}
	return changed, errors.Join(errs...)
}

// explain adds to the error about a file that cannot be read what the file is for.
func (s *certificates) explain(name string, err error) error {
	what := map[string]string{
		certificateFile: "the server's certificate, with those between it and its authority",
		keyFile:         "the key of " + certificateFile,
		revokedFile:     "the authority's list of revoked certificates",
		authorityFile:   "the authority that verify-peer wants clients' certificates from",
	}[name]
	return fmt.Errorf("%w: want %s", err, what)
}

// load reads the files.
func (s *certificates) load() error {
	keyPath := filepath.Join(s.dir, keyFile)
	fi, err := os.Stat(keyPath)
	if err != nil {
		return s.explain(keyFile, err)
	}
	if fi.Mode().Perm()&0o007 != 0 {
		return fmt.Errorf("%s: mode %04o lets everybody at the key: want 0640 or less (chmod o= %s)", keyPath, fi.Mode().Perm(), keyPath)
	}
	key, err := os.ReadFile(keyPath)
	if err != nil {
		return s.explain(keyFile, err)
	}
	certPath := filepath.Join(s.dir, certificateFile)
	cert, err := os.ReadFile(certPath)
	if err != nil {
		return s.explain(certificateFile, err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return fmt.Errorf("%s with %s: %w", certPath, keyFile, err)
	}
	if err := s.checkTime(certPath, pair.Leaf); err != nil {
		return err
	}
	c := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	if s.verifyPeer {
		authorities, err := s.readAuthorities()
		if err != nil {
			return err
		}
		c.ClientCAs = x509.NewCertPool()
		for _, a := range authorities {
			c.ClientCAs.AddCert(a)
		}
		gone, err := s.readRevoked(authorities)
		if err != nil {
			return err
		}
		c.VerifyPeerCertificate = gone.verify
		c.ClientAuth = tls.RequireAndVerifyClientCert
	}
	s.mu.Lock()
	s.current, s.expiry = c, pair.Leaf.NotAfter
	s.mu.Unlock()
	return nil
}

// readAuthorities reads the authorities that clients' certificates must come from.
func (s *certificates) readAuthorities() ([]*x509.Certificate, error) {
	path := filepath.Join(s.dir, authorityFile)
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, s.explain(authorityFile, err)
	}
	var out []*x509.Certificate
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if err := s.checkTime(path, c); err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s: no certificate in it: want PEM", path)
	}
	return out, nil
}

func (s *certificates) checkTime(path string, c *x509.Certificate) error {
	switch now := s.now(); {
	case now.After(c.NotAfter):
		return fmt.Errorf("%s: expired on %s: want a new one", path, c.NotAfter.Format(time.DateTime))
	case now.Before(c.NotBefore):
		return fmt.Errorf("%s: not valid before %s: is the clock right?", path, c.NotBefore.Format(time.DateTime))
	}
	return nil
}
