package daemon

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// TestLog_NoSecrets: neither the server's key nor what clients write is in the log,
// at whatever level, in the status or in the metrics.
func TestLog_NoSecrets(t *testing.T) {
	a := nbdtest.NewAuthority(t)
	s := newSettings(t, "d=memory:1MiB,tls-only")
	s.TLS = config.TLS{Certificates: a.Dir, VerifyPeer: true}
	s.HTTP = "127.0.0.1:0"
	o := s.options(t)
	var log bytes.Buffer // of a handler that locks; read after the end
	o.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug, AddSource: true}))
	d, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	stop := stopper(t, d)
	const written = "the diary of a client"
	dial := func(o nbdtest.Options) (*nbdtest.Client, error) {
		nc, err := net.Dial("unix", s.socket())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = nc.Close() })
		return nbdtest.Dial(nc, "d", o)
	}
	c, err := dial(nbdtest.Options{TLS: a.ClientConfig(true)})
	if err != nil {
		t.Fatal(err)
	}
	data := []byte(strings.Repeat(written+"\n", 4096)[:4096])
	for _, cmd := range []nbdtest.Command{
		{Type: nbdtest.CmdWrite, Length: 4096, Payload: data},
		{Type: nbdtest.CmdRead, Length: 4096},
	} {
		if _, err := c.Do(cmd); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := dial(nbdtest.Options{}); err == nil {
		t.Error("a client without TLS gets a disk that is tls-only")
	}
	res, err := http.Get("http://" + d.HTTPAddress() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	metrics, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close() // read to its end
	status, err := json.Marshal(d.Status())
	if err != nil {
		t.Fatal(err)
	}
	// A key that becomes wrong while the daemon runs is what errors are about.
	key, err := os.ReadFile(filepath.Join(a.Dir, keyFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(a.Dir, keyFile), key[:len(key)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := dial(nbdtest.Options{TLS: a.ClientConfig(true)}); err != nil {
		t.Error(err)
	}
	stop()
	if !strings.Contains(log.String(), "certificates are not replaced") || !strings.Contains(log.String(), "level=DEBUG") {
		t.Errorf("the log is not about what it should be:\n%s", &log)
	}
	secrets := []string{written}
	for line := range strings.Lines(string(key)) {
		if line = strings.TrimSpace(line); len(line) >= 16 && !strings.HasPrefix(line, "-----") {
			secrets = append(secrets, line[:16])
		}
	}
	if len(secrets) < 3 {
		t.Fatalf("%d lines in the key, want more", len(secrets)-1)
	}
	for where, text := range map[string]string{"log": log.String(), "metrics": string(metrics), "status": string(status)} {
		for _, secret := range secrets {
			if strings.Contains(text, secret) {
				t.Errorf("the %s has %q", where, secret)
			}
		}
	}
}

// TestImages_Raw: what a client writes is never taken for a description of an
// image: one that looks like a qcow2 image with a backing file is served again as
// the bytes that it is.
func TestImages_Raw(t *testing.T) {
	s := newSettings(t, "d=file:$DIR/i.img,size=1MiB")
	_, stop := s.mustStart(t)
	header := make([]byte, 4096)
	// Magic, version 2, backing file at 104 with 11 bytes, clusters of 64 KiB, 1 GiB.
	copy(header, "QFI\xfb\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x68\x00\x00\x00\x0b\x00\x00\x00\x10\x00\x00\x00\x00\x40\x00\x00\x00")
	copy(header[104:], "/etc/passwd")
	if _, err := open(t, s.socket(), "d").do(cmdWrite, 0, 4096, header); err != nil {
		t.Fatal(err)
	}
	stop()
	s.Disks[0].Size = 0 // as it is
	s.mustStart(t)
	c := open(t, s.socket(), "d")
	if c.sizeBytes != 1<<20 {
		t.Errorf("%d bytes, want %d", c.sizeBytes, 1<<20)
	}
	if got, err := c.do(cmdRead, 0, 4096, nil); err != nil || !bytes.Equal(got, header) {
		t.Errorf("read %.40q, %v; want what was written", got, err)
	}
}
