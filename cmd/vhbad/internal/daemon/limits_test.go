package daemon

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// fromFile loads a configuration file with one disk, "d", of 16 MiB, which gets the
// keys of disk, and these limits.
func fromFile(t *testing.T, disk, limits string) *settings {
	t.Helper()
	s := &settings{dir: t.TempDir()}
	path := filepath.Join(s.dir, "vhbad.yaml")
	text := fmt.Sprintf("http: none\nadmin: %s/a.sock\nlisten: ['unix://%s']\ndisks: [{name: d, memory: 16MiB%s}]\n"+
		"hba: {verify: true}\nlimits: {memory: 32MiB%s}\n", s.dir, s.socket(), disk, limits)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	s.File = *f
	return s
}

// hello begins a handshake.
func (s *settings) hello(t *testing.T) *nbdConn {
	t.Helper()
	nc, err := net.Dial("unix", s.socket())
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.SetDeadline(time.Now().Add(deadline)); err != nil {
		t.Fatal(err)
	}
	c, err := greet(t, nc)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// deadline is less than the default of any time limit that these tests set but that of
// the handshake.
const deadline = 30 * time.Second

// wantEnd wants the server to close the connection.
func wantEnd(t *testing.T, err error) {
	t.Helper()
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v, want the end of the connection", err)
	}
}

// counts wants the daemon to have counted something once.
func counts(t *testing.T, d *Daemon, what string, count func(nbd.Stats) uint64) {
	t.Helper()
	eventually(t, func() string {
		snap, _ := d.Snapshot()
		if n := count(snap.NBD); n != 1 {
			return fmt.Sprintf("%d %s, want 1", n, what)
		}
		return ""
	})
}

func failed(why nbd.NegotiationFailure) func(nbd.Stats) uint64 {
	return func(s nbd.Stats) uint64 { return s.NegotiationFailures[why] }
}

func closed(why nbd.CloseReason) func(nbd.Stats) uint64 {
	return func(s nbd.Stats) uint64 { return s.Closes[why] }
}

// TestLimits_File: each limit of a configuration file does what it says to a client.
func TestLimits_File(t *testing.T) {
	for _, tt := range []struct {
		disk, limits string
		check        func(t *testing.T, s *settings, d *Daemon)
	}{
		{"", "options: 3", func(t *testing.T, s *settings, d *Daemon) {
			c := s.hello(t)
			for range 3 {
				if typ, err := c.option(optUnknown, nil); typ != errUnsup {
					t.Fatalf("an option within the limit: %v", err)
				}
			}
			_, err := c.option(optUnknown, nil)
			wantEnd(t, err)
			counts(t, d, "clients with too many options", failed(nbd.NegotiationTooManyOptions))
		}},
		{"", "option-bytes: 8KiB", func(t *testing.T, s *settings, _ *Daemon) {
			c := s.hello(t)
			if typ, err := c.option(optInfo, make([]byte, 8<<10)); typ != errInvalid {
				t.Errorf("INFO of 8 KiB: %v, want ERR_INVALID", err)
			}
			if typ, err := c.option(optInfo, make([]byte, 8<<10+1)); typ != errTooBig {
				t.Errorf("INFO of 8 KiB and a byte: %v, want ERR_TOO_BIG", err)
			}
			if _, err := c.option(optGo, exportData("d")); err != nil {
				t.Errorf("GO after that: %v", err)
			}
		}},
		{"", "handshake-timeout: 10ms", func(t *testing.T, s *settings, d *Daemon) {
			nc, err := net.Dial("unix", s.socket())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = nc.Close() }()
			if err := nc.SetDeadline(time.Now().Add(9 * time.Second)); err != nil { // less than the default
				t.Fatal(err)
			}
			if _, err := io.ReadFull(nc, make([]byte, 19)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("a silent client: %v, want the end", err)
			}
			counts(t, d, "clients that took too long", failed(nbd.NegotiationTimeout))
		}},
		{"", "reply-timeout: 10ms", func(t *testing.T, s *settings, d *Daemon) {
			c := s.hello(t)
			if _, err := c.option(optGo, exportData("d")); err != nil {
				t.Fatal(err)
			}
			c.write(nbdtest.Command{Type: nbdtest.CmdFlush}.Append(nil)[:20])
			_, err := c.tryRead(1)
			wantEnd(t, err)
			counts(t, d, "requests that were not finished", closed(nbd.CloseRequestTimeout))

			c = s.hello(t)
			if _, err := c.option(optGo, exportData("d")); err != nil {
				t.Fatal(err)
			}
			var reads []byte
			for i := range 16 { // more than a socket holds
				reads = nbdtest.Command{Type: nbdtest.CmdRead, Cookie: uint64(i), Length: 4 << 20}.Append(reads)
			}
			c.write(reads)
			counts(t, d, "clients that did not take replies", closed(nbd.CloseReplyTimeout))
		}},
		{"", "idle-timeout: 10ms", func(t *testing.T, s *settings, d *Daemon) {
			c := s.hello(t)
			if _, err := c.option(optGo, exportData("d")); err != nil {
				t.Fatal(err)
			}
			_, err := c.tryRead(1)
			wantEnd(t, err)
			counts(t, d, "idle clients", closed(nbd.CloseIdle))
		}},
		{"", "connections: 2", func(t *testing.T, s *settings, d *Daemon) {
			s.hello(t)
			s.hello(t)
			wantEnd(t, s.refused(t, "d"))
			counts(t, d, "clients too many", failed(nbd.NegotiationTooManyConnections))
		}},
		{"", "connections-per-peer: 2", func(t *testing.T, s *settings, d *Daemon) {
			s.hello(t)
			s.hello(t)
			wantEnd(t, s.refused(t, "d"))
			counts(t, d, "clients too many of one user", failed(nbd.NegotiationTooManyOfPeer))
		}},
		{"connections: 2", "", func(t *testing.T, s *settings, _ *Daemon) {
			for range 2 {
				if _, err := s.hello(t).option(optGo, exportData("d")); err != nil {
					t.Fatal(err)
				}
			}
			if typ, err := s.hello(t).option(optGo, exportData("d")); typ != errPolicy || !strings.Contains(err.Error(), "connections") {
				t.Errorf("a third client of the disk: %v, want ERR_POLICY and the reason", err)
			}
		}},
		{"", "connection-rate: 1", func(t *testing.T, s *settings, d *Daemon) {
			const burst = 16
			began := time.Now()
			for range burst + 1 {
				s.hello(t) // the last waits
			}
			for range 20 {
				nc, err := net.Dial("unix", s.socket())
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = nc.Close() }()
			}
			snap, _ := d.Snapshot()
			n := int(snap.NBD.ConnectionsTotal)
			if most := burst + 1 + int(time.Since(began)/time.Second); n > most || time.Since(began) < time.Second/2 {
				t.Errorf("%d connections in %v, want at most %d", n, time.Since(began), most)
			}
		}},
		{"", "payload: 1MiB", func(t *testing.T, s *settings, _ *Daemon) {
			for _, f := range formats {
				c := s.speak(t, "d", f)
				if c.MaxPayloadBytes != 1<<20 {
					t.Errorf("%s: largest payload %d", f.name, c.MaxPayloadBytes)
				}
				ask(t, c, nbdtest.Command{Type: nbdtest.CmdRead, Length: 1 << 20}, nbd.OK)
				ask(t, c, nbdtest.Command{Type: nbdtest.CmdRead, Length: 1<<20 + 1}, nbd.EINVAL)
				ask(t, c, nbdtest.Command{Type: nbdtest.CmdWrite, Length: 1<<20 + 1, Payload: make([]byte, 1<<20+1)}, nbd.EINVAL)
				ask(t, c, nbdtest.Command{Type: nbdtest.CmdFlush}, nbd.OK)
			}
		}},
		{"", "", func(t *testing.T, _ *settings, d *Daemon) {
			if snap, _ := d.Snapshot(); snap.Arena.SizeBytes != 32<<20 {
				t.Errorf("memory of %d bytes, want 32 MiB", snap.Arena.SizeBytes)
			}
		}},
	} {
		t.Run(tt.limits+tt.disk, func(t *testing.T) {
			if tt.disk != "" {
				tt.disk = ", " + tt.disk
			}
			if tt.limits != "" {
				tt.limits = ", " + tt.limits
			}
			s := fromFile(t, tt.disk, tt.limits)
			d, _ := s.mustStart(t)
			tt.check(t, s, d)
			noViolations(t, machineOf(d))
		})
	}
}

// A gatedMedium keeps writes until its gate is closed.
type gatedMedium struct {
	media.Media
	gate chan struct{}
}

func (m *gatedMedium) WriteAt(p []byte, off int64) (int, error) {
	<-m.gate
	return m.Media.WriteAt(p, off)
}

// TestLimits_InFlight: of a client that sends without end so many requests, and so
// many bytes, are in flight as the configuration file says, and no more. The rest waits
// in its socket, and all get their replies in the end.
func TestLimits_InFlight(t *testing.T) {
	const bytesLimit = 1 << 20
	for _, tt := range []struct {
		limits          string
		writes, length  int
		value           func(nbd.ConnStats) int
		atLeast, atMost int
	}{
		{", requests: 128", 600, 512, func(c nbd.ConnStats) int { return int(c.InFlight) }, 128, 128},
		{", bytes-in-flight: 1MiB", 200, 64 << 10, func(c nbd.ConnStats) int { return c.HeldBytes }, bytesLimit / 2, bytesLimit},
	} {
		t.Run(tt.limits, func(t *testing.T) {
			inner, err := media.NewMemory(media.MemoryConfig{SizeBytes: 16 << 20})
			if err != nil {
				t.Fatal(err)
			}
			md := &gatedMedium{inner, make(chan struct{})}
			s := fromFile(t, "", tt.limits)
			d := s.startOn(t, md)
			c := s.speak(t, "d", formats[0])
			sent := make(chan error, 1)
			go func() {
				payload := make([]byte, tt.length)
				var err error
				for i := range tt.writes {
					err = errors.Join(err, c.Send(nbdtest.Command{Type: nbdtest.CmdWrite, Cookie: uint64(i), Length: uint32(tt.length), Payload: payload}))
				}
				sent <- err
			}()
			value := func() int {
				snap, _ := d.Snapshot()
				return tt.value(snap.NBD.Connections[0])
			}
			eventually(t, func() string {
				if n := value(); n < tt.atLeast {
					return fmt.Sprintf("%d in flight, want %d at least", n, tt.atLeast)
				}
				return ""
			})
			for range 200 { // time for it to become more
				if n := value(); n > tt.atMost {
					t.Fatalf("%d in flight, want %d at most", n, tt.atMost)
				}
			}
			close(md.gate)
			for range tt.writes {
				if r, err := c.Receive(); err != nil || r.Errno != nbd.OK {
					t.Fatalf("%s, %v", r.Errno, err)
				}
			}
			if err := <-sent; err != nil {
				t.Error(err)
			}
			noViolations(t, machineOf(d))
		})
	}
}

// TestLimits_Defaults is the table of the limits that hold if the file says nothing; those
// that can be counted are tried as well.
func TestLimits_Defaults(t *testing.T) {
	f, err := config.Parse("vhbad.yaml", nil)
	if err != nil {
		t.Fatal(err)
	}
	c, err := f.Resolve("/run/vhbad.sock", false)
	if err != nil {
		t.Fatal(err)
	}
	want := config.Limits{
		Memory:             512 << 20,
		Connections:        256,
		ConnectionsPerPeer: 0, // no limit of its own
		ConnectionRate:     500,
		Requests:           256, // Linux keeps up to 128 in flight
		BytesInFlight:      68 << 20,
		Payload:            64 << 20,
		Options:            64,
		OptionBytes:        64 << 10,
		HandshakeTimeout:   config.Duration(10 * time.Second),
		ReplyTimeout:       config.Duration(time.Minute),
		IdleTimeout:        0, // never
		DrainTimeout:       config.Duration(30 * time.Second),
	}
	if diff := cmp.Diff(want, c.Limits); diff != "" {
		t.Errorf("limits, -want +got\n%s", diff)
	}
	if n := c.Disks[0].Connections; n != 0 {
		t.Errorf("%d connections per disk, want no limit", n)
	}

	s := fromFile(t, "", "")
	d, _ := s.mustStart(t)
	counted := s.hello(t)
	for i := range want.Options {
		if typ, err := counted.option(optUnknown, nil); typ != errUnsup {
			t.Fatalf("option %d: %v", i, err)
		}
	}
	_, err = counted.option(optUnknown, nil)
	wantEnd(t, err)
	counts(t, d, "clients with too many options", failed(nbd.NegotiationTooManyOptions))

	long := s.hello(t)
	for _, x := range []struct {
		what string
		data []byte
		want uint32
	}{
		{"64 KiB of data", make([]byte, 64<<10), errInvalid},
		{"a name of 4096 bytes", exportData(strings.Repeat("n", 4096)), errUnknown},
		{"a name of 4097 bytes", exportData(strings.Repeat("n", 4097)), errInvalid},
	} {
		if typ, err := long.option(optInfo, x.data); typ != x.want {
			t.Errorf("INFO with %s: %v, want %#x", x.what, err, x.want)
		}
	}
	_, err = long.option(optInfo, make([]byte, 64<<10+1))
	wantEnd(t, err)
	counts(t, d, "options too long", failed(nbd.NegotiationOptionTooLong))
}
