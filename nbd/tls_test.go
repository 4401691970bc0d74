package nbd_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// serveTLS is a Server.TLSConfig that is always config.
func serveTLS(config *tls.Config) func() *tls.Config {
	return func() *tls.Config { return config }
}

// newTLSServer returns a server of twoExports with TLS.
func newTLSServer(t *testing.T, mode nbd.TLSMode, config *tls.Config) *testServer {
	t.Helper()
	s := newServerOf(t, nbd.Limits{MaxPayloadBytes: payloadBytes, MaxOptionBytes: 40_000}, arenaBytes, twoExports()...)
	s.TLSMode, s.TLSConfig = mode, serveTLS(config)
	return s
}

// startTLS sends STARTTLS and shakes hands. The haggler talks TLS afterwards.
func (h *haggler) startTLS(config *tls.Config) {
	h.t.Helper()
	h.want(startTLS, nil, "ACK")
	c := tls.Client(h.nc, config)
	if err := c.Handshake(); err != nil {
		h.t.Fatal(err)
	}
	h.nc = c
}

// A tap keeps what is read from a socket.
type tap struct {
	net.Conn
	mu sync.Mutex
	// +checklocks:mu
	seen []byte
}

func (p *tap) Read(b []byte) (int, error) {
	n, err := p.Conn.Read(b)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen = append(p.seen, b[:n]...)
	return n, err
}

// lastRecord is the type of the last TLS record that was read.
func (p *tap) lastRecord() (typ byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for b := p.seen; len(b) >= 5; {
		typ = b[0]
		b = b[min(len(b), 5+int(b[3])<<8+int(b[4])):]
	}
	return typ
}

// recordAlert is the record type of an alert, encrypted or not, in TLS 1.2.
const recordAlert = 21

// startTLS12 is startTLS with a version whose records show their type.
func (h *haggler) startTLS12(a *nbdtest.Authority) *tap {
	h.t.Helper()
	h.want(startTLS, nil, "ACK")
	p := &tap{Conn: h.nc}
	config := a.ClientConfig(false)
	config.MaxVersion = tls.VersionTLS12
	c := tls.Client(p, config)
	if err := c.Handshake(); err != nil {
		h.t.Fatal(err)
	}
	h.nc = c
	return p
}

// saysFarewell reads to the end, which the server must have announced: package
// tls is content without, but other clients are not.
func (h *haggler) saysFarewell(p *tap) {
	h.t.Helper()
	if _, err := h.nc.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		h.t.Errorf("the end is %v, want EOF", err)
	}
	if typ := p.lastRecord(); typ != recordAlert {
		h.t.Errorf("the last record is of type %d, want an alert: close_notify", typ)
	}
}

// startTLSFails sends STARTTLS and shakes hands in vain.
func (h *haggler) startTLSFails(config *tls.Config) {
	h.t.Helper()
	h.want(startTLS, nil, "ACK")
	c := tls.Client(h.nc, config)
	err := c.Handshake()
	if err == nil { // TLS 1.3: the server speaks last
		_, err = c.Read(make([]byte, 1))
	}
	if err == nil {
		h.t.Error("TLS works")
	}
	_ = h.nc.Close()
}

// TestTLSModes: what is answered before TLS in each mode.
func TestTLSModes(t *testing.T) {
	a := nbdtest.NewAuthority(t)
	type wants map[nbd.TLSMode]string
	all := func(want string) wants {
		return wants{nbd.TLSOff: want, nbd.TLSOptional: want, nbd.TLSRequired: want}
	}
	unlessRequired := func(want string) wants {
		return wants{nbd.TLSOff: want, nbd.TLSOptional: want, nbd.TLSRequired: "ERR_TLS_REQD"}
	}
	tests := []struct {
		name string
		id   uint32
		data []byte
		want wants
	}{
		{"STARTTLS", startTLS, nil, wants{nbd.TLSOff: "ERR_UNSUP", nbd.TLSOptional: "ACK", nbd.TLSRequired: "ACK"}},
		{"STARTTLS with data", startTLS, []byte{0}, all("ERR_INVALID")},
		{"LIST", list, nil, unlessRequired("SERVER disk0 (the disk); SERVER tiny (); ACK")},
		{"INFO", info, infoData("disk0"), unlessRequired(diskAck)},
		{"INFO beyond the limit", info, make([]byte, 50_000), unlessRequired("ERR_TOO_BIG")},
		{"INFO of none", info, infoData("nix"), unlessRequired("ERR_UNKNOWN")},
		{"INFO malformed", info, nil, unlessRequired("ERR_INVALID")},
		{"GO", goTo, infoData("disk0"), unlessRequired(diskAck)},
		{"STRUCTURED_REPLY", structured, nil, unlessRequired("ACK")},
		{"EXTENDED_HEADERS", extended, nil, unlessRequired("ACK")},
		{"LIST_META_CONTEXT", listContexts, contextData("disk0"), unlessRequired("META 0 base:allocation; ACK")},
		{"SET_META_CONTEXT", setContexts, contextData("disk0"), unlessRequired("ERR_INVALID")},
		{"unknown", unknownOption, []byte{1}, unlessRequired("ERR_UNSUP")},
		{"ABORT", abort, nil, all("ACK")},
	}
	for _, mode := range []nbd.TLSMode{nbd.TLSOff, nbd.TLSOptional, nbd.TLSRequired} {
		t.Run(mode.String(), func(t *testing.T) {
			s := newTLSServer(t, mode, a.ServerConfig(false))
			for _, tt := range tests {
				h := s.haggle(t, "unix")
				h.want(tt.id, tt.data, tt.want[mode])
				if err := h.nc.Close(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
	t.Run("EXPORT_NAME", func(t *testing.T) {
		s := newTLSServer(t, nbd.TLSRequired, a.ServerConfig(false))
		h := s.haggle(t, "unix")
		h.write(option(exportName, []byte("disk0")))
		h.ended()
		s.failed(t, nbd.NegotiationTLSRequired)
	})
}

// TestStartTLS_Works: everything is there within TLS, on any transport, and both
// ends of a connection say so.
func TestStartTLS_Works(t *testing.T) {
	a := nbdtest.NewAuthority(t)
	for _, network := range []string{"unix", "tcp", "pipe"} {
		for version, name := range map[uint16]string{tls.VersionTLS12: "TLS 1.2", tls.VersionTLS13: "TLS 1.3"} {
			t.Run(network+"/"+name, func(t *testing.T) {
				s := newTLSServer(t, nbd.TLSRequired, a.ServerConfig(false))
				h := s.haggle(t, network)
				config := a.ClientConfig(false)
				config.MaxVersion = version
				h.startTLS(config)
				h.want(startTLS, nil, "ERR_INVALID")
				h.want(startTLS, []byte{0}, "ERR_INVALID")
				h.want(list, nil, "SERVER disk0 (the disk); SERVER tiny (); ACK")
				h.want(goTo, infoData("disk0"), diskAck)
				h.write(nbdtest.Command{Type: nbdtest.CmdFlush, Cookie: 0xabcdef}.Append(nil))
				expect(t, h.nc, hx("67446698", "00000000", "0000000000abcdef"))
				st := s.waitStats("transmission", func(st nbd.Stats) bool { return st.Connections[0].Transmitting })
				if got := st.Connections[0].TLS; !strings.HasPrefix(got, name) {
					t.Errorf("the server speaks of %q, want %s", got, name)
				}
				h.write(nbdtest.Command{Type: nbdtest.CmdDisc}.Append(nil))
				h.ended()
			})
		}
	}
}

// TestStartTLS_Farewell: whenever the server has the choice it ends TLS before
// it ends the connection.
func TestStartTLS_Farewell(t *testing.T) {
	a := nbdtest.NewAuthority(t)
	t.Run("ABORT", func(t *testing.T) {
		s := newTLSServer(t, nbd.TLSOptional, a.ServerConfig(false))
		h := s.haggle(t, "unix")
		p := h.startTLS12(a)
		h.want(abort, nil, "ACK")
		h.saysFarewell(p)
		s.failed(t, nbd.NegotiationFailureCount)
	})
	t.Run("DISC", func(t *testing.T) {
		s := newTLSServer(t, nbd.TLSOptional, a.ServerConfig(false))
		h := s.haggle(t, "unix")
		p := h.startTLS12(a)
		h.want(goTo, infoData("disk0"), diskAck)
		h.write(nbdtest.Command{Type: nbdtest.CmdDisc}.Append(nil))
		h.saysFarewell(p)
	})
	t.Run("drain", func(t *testing.T) {
		s := newTLSServer(t, nbd.TLSOptional, a.ServerConfig(false))
		h := s.haggle(t, "unix")
		p := h.startTLS12(a)
		h.want(goTo, infoData("disk0"), diskAck)
		s.waitStats("transmission", func(st nbd.Stats) bool { return st.Connections[0].Transmitting })
		done := make(chan struct{})
		go func() {
			defer close(done)
			h.saysFarewell(p)
			_ = h.nc.Close()
		}()
		s.close()
		<-done
	})
}

// TestStartTLS_HangUpFarewell: a client whose handshake comes to nothing is told that TLS ends,
// too, whoever ends it.
func TestStartTLS_HangUpFarewell(t *testing.T) {
	a := nbdtest.NewAuthority(t)
	for _, tt := range []struct {
		name   string
		end    func(s *testServer, h *haggler)
		reason nbd.NegotiationFailure
	}{
		{"no such export", func(_ *testServer, h *haggler) {
			h.write(option(exportName, []byte("nix")))
		}, nbd.NegotiationNoExport},
		{"EXPORT_NAME with extended headers", func(_ *testServer, h *haggler) {
			h.want(extended, nil, "ACK")
			h.write(option(exportName, []byte("disk0")))
		}, nbd.NegotiationExtendedName},
		{"no magic", func(_ *testServer, h *haggler) { h.write(make([]byte, 16)) }, nbd.NegotiationBadMagic},
		{"too many options", func(_ *testServer, h *haggler) {
			for range 63 { // STARTTLS was the first
				h.want(unknownOption, nil, "ERR_UNSUP")
			}
			h.write(option(unknownOption, nil))
		}, nbd.NegotiationTooManyOptions},
		{"the client ends TLS", func(_ *testServer, h *haggler) {
			if err := h.nc.(*tls.Conn).CloseWrite(); err != nil {
				h.t.Error(err)
			}
		}, nbd.NegotiationFailureCount},
		{"drain", func(s *testServer, _ *haggler) {
			if err := s.Shutdown(s.t.Context()); err != nil {
				s.t.Error(err)
			}
		}, nbd.NegotiationShutdown},
	} {
		for _, network := range []string{"unix", "tcp"} {
			t.Run(tt.name+"/"+network, func(t *testing.T) {
				s := newTLSServer(t, nbd.TLSOptional, a.ServerConfig(false))
				h := s.haggle(t, network)
				p := h.startTLS12(a)
				tt.end(s, h)
				h.saysFarewell(p)
				s.failed(t, tt.reason)
			})
		}
	}
}

// TestStartTLS_DiscAndFarewell: a client may end TLS behind DISC, as libnbd does, and gets
// what it is owed all the same, however late it reads: a TCP socket that is closed with
// something unread in it throws away what it has still to send.
func TestStartTLS_DiscAndFarewell(t *testing.T) {
	a := nbdtest.NewAuthority(t)
	d := nbdtest.NewManual(1 << 20)
	s := newServer(t, d, nbd.Limits{})
	dialect := s.secure(dialects()[0], a)
	c := s.speak("tcp", dialect)
	const length = 512 << 10 // more than the client's socket takes while it does not read
	if err := c.Send(
		nbdtest.Command{Type: nbdtest.CmdRead, Cookie: 1, Length: length},
		nbdtest.Command{Type: nbdtest.CmdDisc},
	); err != nil {
		t.Fatal(err)
	}
	r := <-d.Requests // DISC has been read with it
	if err := c.Conn.(*tls.Conn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	nbdtest.Complete(r, nbd.OK)
	s.waitStats("end", func(st nbd.Stats) bool { return st.ConnectionsOpen == 0 })
	if r, err := c.Receive(); err != nil || r.Cookie != 1 || len(r.Data) != length {
		t.Fatalf("cookie %d, %d bytes, %v, want all of the reply", r.Cookie, len(r.Data), err)
	}
	if _, err := c.Conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the end is %v, want EOF", err)
	}
}

// TestStartTLS_Forgets: nothing that was settled in plain text holds within TLS.
func TestStartTLS_Forgets(t *testing.T) {
	a := nbdtest.NewAuthority(t)
	tests := []struct {
		name          string
		before, after []asked
	}{
		{
			"STRUCTURED_REPLY",
			[]asked{{structured, nil, "ACK"}},
			[]asked{
				{setContexts, contextData("disk0"), "ERR_INVALID"},
				{info, infoData("disk0"), diskAck}, // without DF
				{structured, nil, "ACK"},
			},
		},
		{
			"EXTENDED_HEADERS",
			[]asked{{extended, nil, "ACK"}},
			[]asked{
				{info, infoData("disk0"), diskAck},
				{structured, nil, "ACK"}, // not ERR_EXT_HEADER_REQD
				{extended, nil, "ACK"},
			},
		},
		{
			"block sizes",
			[]asked{{info, infoData("tiny", 3), "EXPORT 4096 0x56d; BLOCK_SIZE 512 4096 1048576; ACK"}},
			[]asked{{goTo, infoData("tiny"), "BLOCK_SIZE 512 4096 1048576; ERR_BLOCK_SIZE_REQD"}},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newTLSServer(t, nbd.TLSOptional, a.ServerConfig(false))
			h := s.haggle(t, "unix")
			for _, x := range tt.before {
				h.want(x.id, x.data, x.want)
			}
			h.startTLS(a.ClientConfig(false))
			for _, x := range tt.after {
				h.want(x.id, x.data, x.want)
			}
		})
	}
	t.Run("SET_META_CONTEXT", func(t *testing.T) {
		s := newTLSServer(t, nbd.TLSOptional, a.ServerConfig(false))
		h := s.haggle(t, "unix")
		h.want(structured, nil, "ACK")
		h.want(setContexts, contextData("disk0", "base:allocation"), metaAck)
		h.startTLS(a.ClientConfig(false))
		h.want(structured, nil, "ACK")
		h.want(goTo, infoData("disk0"), "EXPORT 65536 0x5ed; ACK")
		if got := h.chunkType(); got != 0x8001 {
			t.Errorf("BLOCK_STATUS is answered by chunk type %#x, want an error", got)
		}
	})
}

// TestStartTLS_Injection: what comes in plain text behind STARTTLS, in the same
// packet or later, is never taken for an option, neither before nor after TLS
// (the flaw known as CVE-2021-3716).
func TestStartTLS_Injection(t *testing.T) {
	a := nbdtest.NewAuthority(t)
	for name, injected := range map[string][]byte{
		"LIST":         option(list, nil),
		"ABORT":        option(abort, nil),
		"GO":           option(goTo, infoData("disk0")),
		"part of LIST": option(list, nil)[:9],
		"zeroes":       make([]byte, 64),
	} {
		t.Run(name, func(t *testing.T) {
			s := newTLSServer(t, nbd.TLSOptional, a.ServerConfig(false))
			h := s.haggle(t, "tcp")
			h.write(append(option(startTLS, nil), injected...))
			expect(t, h.nc, hx(rep, "00000005", "00000001", "00000000"))
			// The client goes on as if nothing had happened. That it meets a
			// connection closed already is as good as an error later.
			var seen bytes.Buffer
			c := tls.Client(h.nc, a.ClientConfig(false))
			if err := c.Handshake(); err == nil {
				t.Error("the handshake worked, with foreign bytes before it")
			}
			_, _ = io.Copy(&seen, h.nc) // to its end, or to a reset
			if bytes.Contains(seen.Bytes(), hx(rep)) {
				t.Errorf("an option was answered: % x", seen.Bytes())
			}
			s.failed(t, nbd.NegotiationTLSFailed)
		})
	}
}

// TestStartTLS_OldVersions: nothing before TLS 1.2, whatever the configuration
// says.
func TestStartTLS_OldVersions(t *testing.T) {
	a := nbdtest.NewAuthority(t)
	old := a.ServerConfig(false)
	old.MinVersion = tls.VersionTLS10
	hidden := a.ServerConfig(false)
	hidden.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return old, nil }
	for name, config := range map[string]*tls.Config{"MinVersion": old, "GetConfigForClient": hidden} {
		t.Run(name, func(t *testing.T) {
			s := newTLSServer(t, nbd.TLSOptional, config)
			client := a.ClientConfig(false)
			client.MinVersion, client.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
			s.haggle(t, "unix").startTLSFails(client)
			s.failed(t, nbd.NegotiationTLSFailed)
		})
	}
}

// TestStartTLS_ClientCertificates: whose certificate is not verified does not
// get in.
func TestStartTLS_ClientCertificates(t *testing.T) {
	a, other := nbdtest.NewAuthority(t), nbdtest.NewAuthority(t)
	foreign := a.ClientConfig(false)
	foreign.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return &other.ClientCertificate, nil
	}
	server := a.ClientConfig(false)
	server.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return &a.ServerCertificate, nil
	}
	for name, client := range map[string]*tls.Config{
		"none":                 a.ClientConfig(false),
		"of another authority": foreign,
		"a server's":           server,
	} {
		t.Run(name, func(t *testing.T) {
			s := newTLSServer(t, nbd.TLSOptional, a.ServerConfig(true))
			s.haggle(t, "unix").startTLSFails(client)
			s.failed(t, nbd.NegotiationTLSFailed)
		})
	}
}

// TestAllowedNames: an export for certain names exists for no other.
func TestAllowedNames(t *testing.T) {
	a := nbdtest.NewAuthority(t)
	loose := a.ServerConfig(false)
	loose.ClientAuth = tls.RequireAnyClientCert // which anybody can make for any name
	const yes = "EXPORT 4096 0x5ed; ACK"
	tests := []struct {
		name    string
		config  *tls.Config
		show    bool // the client's certificate
		allowed []string
		want    string
	}{
		{"anybody", a.ServerConfig(true), true, nil, yes},
		{"common name", a.ServerConfig(true), true, []string{"x", nbdtest.ClientName}, yes},
		{"DNS", a.ServerConfig(true), true, []string{nbdtest.ClientDNS}, yes},
		{"email", a.ServerConfig(true), true, []string{nbdtest.ClientEmail}, yes},
		{"URI", a.ServerConfig(true), true, []string{nbdtest.ClientURI}, yes},
		{"other name", a.ServerConfig(true), true, []string{"x", "client.example.org"}, "ERR_POLICY"},
		{"other case", a.ServerConfig(true), true, []string{"CLIENT"}, "ERR_POLICY"},
		{"empty name", a.ServerConfig(true), true, []string{""}, "ERR_POLICY"},
		{"no certificate", a.ServerConfig(false), false, []string{nbdtest.ClientName}, "ERR_POLICY"},
		{"not verified", loose, true, []string{nbdtest.ClientName}, "ERR_POLICY"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newServerOf(t, nbd.Limits{MaxPayloadBytes: payloadBytes}, arenaBytes,
				nbd.Export{Name: "named", Device: nbdtest.NewMemory(4096), TLSOnly: true, AllowedNames: tt.allowed})
			s.TLSMode, s.TLSConfig = nbd.TLSRequired, serveTLS(tt.config)
			h := s.haggle(t, "unix")
			h.startTLS(a.ClientConfig(tt.show))
			h.want(structured, nil, "ACK")
			listed, contexts, chosen := "SERVER named (); ACK", "META 0 base:allocation; ACK", metaAck
			if tt.want != yes {
				listed, contexts, chosen = "ACK", tt.want, tt.want
			}
			h.want(list, nil, listed)
			h.want(info, infoData("named"), tt.want)
			h.want(info, infoData(""), tt.want) // the default export is the same
			h.want(listContexts, contextData("named"), contexts)
			h.want(setContexts, contextData("named", "base:allocation"), chosen)
			if tt.want == yes {
				h.want(goTo, infoData("named"), yes)
				st := s.waitStats("transmission", func(st nbd.Stats) bool { return st.Connections[0].Transmitting })
				if got := st.Connections[0].ClientName; got != nbdtest.ClientName {
					t.Errorf("the client is called %q, want %q", got, nbdtest.ClientName)
				}
				return
			}
			h.want(goTo, infoData("named"), tt.want)
			h.write(option(exportName, []byte("named")))
			h.ended()
			s.failed(t, nbd.NegotiationNotAllowed)
		})
	}
}

// TestTLSConfig_Replaced: each handshake asks for the configuration.
func TestTLSConfig_Replaced(t *testing.T) {
	first, second := nbdtest.NewAuthority(t), nbdtest.NewAuthority(t)
	var current atomic.Pointer[tls.Config]
	s := newTLSServer(t, nbd.TLSOptional, nil)
	s.TLSConfig = current.Load
	for _, a := range []*nbdtest.Authority{first, second} {
		current.Store(a.ServerConfig(true))
		h := s.haggle(t, "unix")
		h.startTLS(a.ClientConfig(true))
		h.want(info, infoData("disk0"), diskAck)
	}
	s.haggle(t, "unix").startTLSFails(first.ClientConfig(true))
	current.Store(nil)
	s.haggle(t, "unix").want(startTLS, nil, "ERR_POLICY")
}

// TestStartTLS_Timeout: the time for the handshake covers that of TLS.
func TestStartTLS_Timeout(t *testing.T) {
	a := nbdtest.NewAuthority(t)
	synctest.Test(t, func(t *testing.T) {
		s, _ := synctestServer(t, nbdtest.NewMemory(4096), nbd.Limits{})
		s.TLSMode, s.TLSConfig = nbd.TLSRequired, serveTLS(a.ServerConfig(false))
		begin := time.Now()
		h := &haggler{t: t, nc: pipeTo(s)}
		expect(t, h.nc, hello)
		<-time.After(6 * time.Second)
		h.write(hx(fixedNoZer))
		h.want(startTLS, nil, "ACK")
		h.write([]byte{22, 3, 1}) // a record begins, and that is all
		expectEnd(t, h.nc)
		if d := time.Since(begin); d != 10*time.Second {
			t.Errorf("closed after %v, want 10s", d)
		}
		synctest.Wait()
		if n := s.Snapshot().NegotiationFailures[nbd.NegotiationTimeout]; n != 1 {
			t.Errorf("%d timeouts counted, want 1", n)
		}
	})
}

// TestStartTLS_Shutdown: a client in the middle of TLS does not hold a server
// up.
func TestStartTLS_Shutdown(t *testing.T) {
	a := nbdtest.NewAuthority(t)
	s := newTLSServer(t, nbd.TLSRequired, a.ServerConfig(false))
	h := s.haggle(t, "unix")
	h.want(startTLS, nil, "ACK")
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	h.ended()
	s.failed(t, nbd.NegotiationShutdown)
}

// TestStartTLS_Log: why a client's TLS failed is in the log.
func TestStartTLS_Log(t *testing.T) {
	a := nbdtest.NewAuthority(t)
	var log logLines
	s := newTLSServer(t, nbd.TLSOptional, a.ServerConfig(true))
	s.Log = slog.New(slog.NewTextHandler(&log, nil))
	s.haggle(t, "unix").startTLSFails(a.ClientConfig(false))
	s.failed(t, nbd.NegotiationTLSFailed)
	if text := log.String(); !strings.Contains(text, "reason=tls_failed") || !strings.Contains(text, "certificate") {
		t.Errorf("the log does not say what is wrong:\n%s", text)
	}
}
