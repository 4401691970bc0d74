package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

func TestTLS_WhoMayUseWhat(t *testing.T) {
	a := nbdtest.NewAuthority(t)
	plainText, anonymous, known := nbdtest.Options{}, nbdtest.Options{TLS: a.ClientConfig(false)}, nbdtest.Options{TLS: a.ClientConfig(true)}
	everything := []string{"d=memory:1MiB", "t=memory:1MiB,tls-only", "h=memory:1MiB,hidden", "one=memory:1MiB,connections=1"}
	for _, tt := range []struct {
		name  string
		tls   config.TLS
		specs []string
		o     nbdtest.Options
		may   string // exports that can be used
	}{
		{"off", config.TLS{}, []string{"d=memory:1MiB", "h=memory:1MiB,hidden"}, plainText, "d h"},
		{"optional, plain text", config.TLS{}, everything, plainText, "d h one"},
		{"optional, TLS", config.TLS{}, everything, anonymous, "d t h one"},
		{"required, plain text", config.TLS{Mode: config.TLSRequired}, everything, plainText, ""},
		{"required, TLS", config.TLS{Mode: config.TLSRequired}, everything, anonymous, "d t h one"},
		{"verified", config.TLS{VerifyPeer: true}, everything, known, "d t h one"},
		{"unverified", config.TLS{VerifyPeer: true}, everything, anonymous, ""},
		{
			"names",
			config.TLS{VerifyPeer: true},
			[]string{"mine=memory:1MiB,allow=x,allow=" + nbdtest.ClientDNS, "his=memory:1MiB,allow=somebody else"},
			known, "mine",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSettings(t, tt.specs...)
			s.TLS = tt.tls
			if tt.name != "off" {
				s.TLS.Certificates = a.Dir
			}
			d, _ := s.mustStart(t)
			var may []string
			for _, disk := range s.Disks {
				nc, err := net.Dial("unix", s.socket())
				if err != nil {
					t.Fatal(err)
				}
				c, err := nbdtest.Dial(nc, disk.Name, tt.o)
				if err == nil {
					// The server counts it as this client's once it has answered.
					if _, err = c.Do(nbdtest.Command{Type: nbdtest.CmdFlush}); err == nil {
						may = append(may, disk.Name)
					}
				}
				defer func() { _ = nc.Close() }()
			}
			if got := strings.Join(may, " "); got != tt.may {
				t.Errorf("can use %q, want %q", got, tt.may)
			}
			st := d.Status()
			if (st.TLS != nil) != (s.TLS.Certificates != "") {
				t.Errorf("status: TLS %+v", st.TLS)
			}
			for _, c := range st.Connections {
				if secure := strings.HasPrefix(c.TLS, "TLS 1."); c.State == "transmitting" && secure != (tt.o.TLS != nil) {
					t.Errorf("connection %+v: TLS with %+v", c, tt.o)
				}
			}
			if strings.Contains(tt.may, "one") {
				nc, err := net.Dial("unix", s.socket())
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = nc.Close() }()
				if _, err := nbdtest.Dial(nc, "one", tt.o); err == nil {
					t.Error("a second connection to a disk for one")
				}
			}
		})
	}
}

// load reads the certificates in dir at a time. Handshakes wait for files as long as it takes.
func load(dir string, verifyPeer bool, at time.Time, log *slog.Logger) (*certificates, error) {
	s := newCertificates(dir, verifyPeer, log, func() time.Time { return at })
	s.limit = time.Hour
	return s, s.read()
}

func TestCertificates_Bad(t *testing.T) {
	other := nbdtest.NewAuthority(t)
	now := time.Now()
	for want, tt := range map[string]struct {
		at    time.Time
		spoil func(dir string) error
	}{
		"server-cert.pem: no such file or directory: want the server's certificate": {now, func(dir string) error {
			return os.Remove(filepath.Join(dir, certificateFile))
		}},
		"server-key.pem: no such file or directory: want the key": {now, func(dir string) error {
			return os.Remove(filepath.Join(dir, keyFile))
		}},
		"ca-cert.pem: no such file or directory: want the authority that verify-peer": {now, func(dir string) error {
			return os.Remove(filepath.Join(dir, authorityFile))
		}},
		"server-key.pem: mode 0644 lets everybody at the key: want 0640 or less": {now, func(dir string) error {
			return os.Chmod(filepath.Join(dir, keyFile), 0o644)
		}},
		"server-cert.pem with server-key.pem: tls: private key does not match": {now, func(dir string) error {
			b, err := os.ReadFile(filepath.Join(other.Dir, keyFile))
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(dir, keyFile), b, 0o600)
		}},
		"server-cert.pem with server-key.pem: tls: failed to find any PEM data": {now, func(dir string) error {
			return os.WriteFile(filepath.Join(dir, certificateFile), []byte("nonsense"), 0o600)
		}},
		"ca-cert.pem: no certificate in it": {now, func(dir string) error {
			return os.WriteFile(filepath.Join(dir, authorityFile), []byte("nonsense"), 0o600)
		}},
		"ca-crl.pem: no revocation list in it": {now, func(dir string) error {
			return os.WriteFile(filepath.Join(dir, revokedFile), nil, 0o600)
		}},
		"ca-crl.pem: a list of CN=test authority is not signed by": {now, func(dir string) error {
			other.Revoke(t, now.AddDate(1, 0, 0))
			b, err := os.ReadFile(filepath.Join(other.Dir, revokedFile))
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(dir, revokedFile), b, 0o600)
		}},
		"server-cert.pem: expired on ":      {now.AddDate(200, 0, 0), func(string) error { return nil }},
		"server-cert.pem: not valid before": {now.AddDate(-200, 0, 0), func(string) error { return nil }},
	} {
		a := nbdtest.NewAuthority(t)
		if err := tt.spoil(a.Dir); err != nil {
			t.Fatal(err)
		}
		if _, err := load(a.Dir, true, tt.at, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
		s := newSettings(t, "d=memory:1MiB")
		s.TLS = config.TLS{Certificates: a.Dir, VerifyPeer: true}
		if _, err := s.start(t); tt.at.Equal(now) && (err == nil || !strings.Contains(err.Error(), "tls: "+a.Dir) && !strings.Contains(err.Error(), "tls: stat "+a.Dir)) {
			t.Errorf("Start: %v, want a refusal that begins with tls", err)
		}
	}
}

// Files that are replaced count from the next handshake on; until they fit each
// other, the old ones do.
func TestCertificates_Replaced(t *testing.T) {
	dir := t.TempDir()
	replace := func(a *nbdtest.Authority, names ...string) {
		t.Helper()
		for _, name := range names {
			b, err := os.ReadFile(filepath.Join(a.Dir, name))
			if err != nil {
				t.Fatal(err)
			}
			// As whoever replaces files in use should do it.
			fresh := filepath.Join(dir, "fresh")
			if err := os.WriteFile(fresh, b, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(fresh, filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	one, two := nbdtest.NewAuthority(t), nbdtest.NewAuthority(t)
	replace(one, certificateFile, keyFile)
	var log bytes.Buffer
	s, err := load(dir, false, time.Now(), slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	expect := func(a *nbdtest.Authority, when string) {
		t.Helper()
		for range 2 {
			if got := s.config().Certificates[0].Certificate[0]; !bytes.Equal(got, a.ServerCertificate.Certificate[0]) {
				t.Errorf("%s: another certificate", when)
			}
		}
	}
	expect(one, "at first")
	replace(two, certificateFile)
	expect(one, "with only the certificate replaced")
	if err := os.Remove(filepath.Join(dir, keyFile)); err != nil {
		t.Fatal(err)
	}
	expect(one, "with the key away")
	replace(two, keyFile)
	expect(two, "with both replaced")
	replace(one, certificateFile)
	expect(two, "with only the certificate replaced again")
	key := filepath.Join(dir, keyFile)
	replace(one, keyFile)
	if err := os.Chmod(key, 0o644); err != nil {
		t.Fatal(err)
	}
	expect(two, "with a key that everybody can read")
	if err := os.Chmod(key, 0o600); err != nil {
		t.Fatal(err)
	}
	expect(one, "with a key that nobody else can read any more")
	now := time.Now()
	s.now = func() time.Time { return now.AddDate(-200, 0, 0) }
	replace(two, certificateFile, keyFile)
	expect(one, "with a certificate that is not valid yet")
	s.now = func() time.Time { return now.AddDate(-200, 0, 0).Add(retryEvery) }
	expect(one, "with a certificate that is not valid a while later either") // which is no news
	s.now = func() time.Time { return now }
	expect(two, "with a certificate that is valid by now")
	if got := strings.Count(log.String(), "certificates are not replaced"); got != 5 {
		t.Errorf("%d complaints, want 5:\n%s", got, &log)
	}
	if !strings.Contains(log.String(), "certificates replaced") {
		t.Errorf("the log does not tell of new certificates:\n%s", &log)
	}
}

// TestCertificates_Hang: files on a file system that hangs keep handshakes waiting for a
// moment, and then nobody; when it answers again, they count.
func TestCertificates_Hang(t *testing.T) {
	one, two := nbdtest.NewAuthority(t), nbdtest.NewAuthority(t)
	var log lockedBuffer
	s, err := load(one.Dir, false, time.Now(), slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	expect := func(a *nbdtest.Authority, when string) {
		t.Helper()
		got := make(chan []byte, 1)
		go func() {
			got <- s.config().Certificates[0].Certificate[0]
			_ = s.notAfter()
			close(got)
		}()
		late := time.After(20 * time.Second)
		for n := range 2 {
			select {
			case c := <-got:
				if n == 0 && !bytes.Equal(c, a.ServerCertificate.Certificate[0]) {
					t.Errorf("%s: another certificate", when)
				}
			case <-late:
				t.Fatalf("%s: handshakes and status wait", when)
			}
		}
	}
	expect(one, "at first")
	// Whoever opens a FIFO waits until somebody writes to it.
	cert := filepath.Join(one.Dir, certificateFile)
	pipe := filepath.Join(one.Dir, "pipe")
	if err := errors.Join(os.Rename(cert, cert+".old"), unix.Mkfifo(pipe, 0o600), os.Link(pipe, cert)); err != nil {
		t.Fatal(err)
	}
	release := sync.OnceFunc(func() {
		f, err := os.OpenFile(pipe, os.O_RDWR, 0)
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(release)
	s.limit = time.Millisecond
	for late := false; !late; _, late = s.inForce() {
		expect(one, "while the certificate cannot be read")
	}
	s.limit = time.Hour
	for range 3 {
		expect(one, "while it still cannot be read")
	}
	if n := strings.Count(log.String(), "cannot be read"); n != 1 {
		t.Errorf("the log says so %d times, want once:\n%s", n, log.String())
	}
	for _, name := range []string{certificateFile, keyFile} {
		if err := os.Rename(filepath.Join(two.Dir, name), filepath.Join(one.Dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	release()
	s.looking <- struct{}{} // the look has ended
	<-s.looking
	expect(two, "once there is one that can be read")
}

func TestLimits_PerPeer(t *testing.T) {
	s := newSettings(t, "d=memory:1MiB")
	s.Limits.ConnectionsPerPeer = 2
	s.mustStart(t)
	for range 2 {
		open(t, s.socket(), "d")
	}
	nc, err := net.Dial("unix", s.socket())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tryNegotiate(t, nc, "d"); err == nil {
		t.Error("a third connection of one user")
	}
}

func TestLimits_Idle(t *testing.T) {
	s := newSettings(t, "d=memory:1MiB")
	s.Limits.IdleTimeout = config.MinTimeout
	s.mustStart(t)
	if _, err := open(t, s.socket(), "d").tryRead(1); err == nil || fmt.Sprint(err) != "EOF" {
		t.Errorf("an idle connection: %v, want its end", err)
	}
}

func TestCertificates_OutdatedList(t *testing.T) {
	a := nbdtest.NewAuthority(t)
	a.Revoke(t, time.Now().AddDate(0, 0, -1))
	if _, err := load(a.Dir, true, time.Now(), slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "ca-crl.pem: outdated since") {
		t.Errorf("error %v, want that the list is outdated", err)
	}
	if _, err := load(a.Dir, false, time.Now(), slog.New(slog.DiscardHandler)); err != nil {
		t.Errorf("where clients are not verified: %v", err)
	}
}

// A certificate that is revoked while the daemon runs lets nobody in any more.
func TestTLS_Revoked(t *testing.T) {
	a := nbdtest.NewAuthority(t)
	s := newSettings(t, "d=memory:1MiB")
	s.TLS = config.TLS{Certificates: a.Dir, VerifyPeer: true}
	s.mustStart(t)
	try := func() error {
		nc, err := net.Dial("unix", s.socket())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = nc.Close() }()
		c, err := nbdtest.Dial(nc, "d", nbdtest.Options{TLS: a.ClientConfig(true)})
		if err == nil {
			_, err = c.Do(nbdtest.Command{Type: nbdtest.CmdFlush})
		}
		return err
	}
	if err := try(); err != nil {
		t.Errorf("before: %v", err)
	}
	a.Revoke(t, time.Now().AddDate(1, 0, 0), a.ServerCertificate)
	if err := try(); err != nil {
		t.Errorf("with another certificate revoked: %v", err)
	}
	a.Revoke(t, time.Now().AddDate(1, 0, 0), a.ServerCertificate, a.ClientCertificate)
	if err := try(); err == nil {
		t.Error("a revoked certificate lets a client in")
	}
}
