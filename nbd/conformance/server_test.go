package conformance_test

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/conformance"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// A payload of 32 MiB must be taken; the disk is a little larger.
const (
	payloadBytes = 32 << 20
	diskBytes    = payloadBytes + 1<<20
	minDiskBytes = 4 << 20

	// patience is met by a failing test only, however slow the machine.
	patience = 4 * time.Minute
)

// serve serves devices on a socket of the network until the end of the test, and
// returns how to reach them.
func serve(t *testing.T, replies nbd.Replies, network string, mode nbd.TLSMode, exports ...nbd.Export) conformance.Target {
	t.Helper()
	limits := nbd.Limits{MaxPayloadBytes: minDiskBytes}
	if exports[0].Device.SizeBytes() > payloadBytes {
		limits.MaxPayloadBytes = payloadBytes
	}
	arena, err := dma.NewArena(4 * limits.MaxPayloadBytes)
	if err != nil {
		t.Fatal(err)
	}
	set, err := nbd.NewExportSet(exports...)
	if err != nil {
		t.Fatal(err)
	}
	address := "127.0.0.1:0"
	if network == "unix" {
		address = filepath.Join(t.TempDir(), "s")
	}
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	s := &nbd.Server{Exports: set, Arena: arena, Limits: limits, Replies: replies, TLSMode: mode}
	target := conformance.Target{Name: network, Export: exports[0].Name, Secure: mode == nbd.TLSRequired, Patience: patience}
	if mode != nbd.TLSOff {
		a := nbdtest.NewAuthority(t)
		s.TLSConfig = func() *tls.Config { return a.ServerConfig(false) }
		target.TLS = a.ClientConfig(false)
	}
	target.Dial = func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, l.Addr().String())
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
			return
		}
		if err := <-served; !errors.Is(err, nbd.ErrServerClosed) {
			t.Errorf("Serve returned %v", err)
		}
		if err := arena.Close(); err != nil {
			t.Errorf("memory leak: %v", err)
		}
	})
	return target
}

func disk(sizeBytes int) *nbdtest.Memory {
	d := nbdtest.NewMemory(sizeBytes)
	d.Description.Description = "a disk to write to"
	return d
}

// Two exports: some rows are about telling them apart.
func two(d nbd.Device) []nbd.Export {
	return []nbd.Export{{Name: "disk0", Device: d}, {Name: "disk1", Device: nbdtest.NewMemory(minDiskBytes)}}
}

// unapplied are the rows that have no case with any of our targets, and why.
var unapplied = map[string]string{
	"handshake/client-flag-unoffered":     "both handshake flags are always offered",
	"flags/df-honest":                     "DF always works",
	"list/refused":                        "LIST is always answered",
	"block-size/told":                     "block sizes are always told",
	"tls/selective-no-info":               "unknown exports are not hidden",
	"write-zeroes/fast-refused-unchanged": "zeroes are always fast here: TestRows_FastZero has another device",
	"extended/zeroes-beyond-4-GiB":        "the disk would take 5 GiB of memory: make compare has one",
	"extended/status-beyond-4-GiB":        "the disk would take 5 GiB of memory: make compare has one",
}

// TestConformance holds our server to every row, in all transports and with
// devices that offer much and little.
func TestConformance(t *testing.T) {
	with := func(sizeBytes int, change func(d *nbdtest.Memory)) []nbd.Export {
		d := disk(sizeBytes)
		change(d)
		return two(d)
	}
	as := func(*nbdtest.Memory) {}
	all, old := nbd.RepliesExtended, nbd.RepliesSimple
	targets := []struct {
		name, network string
		replies       nbd.Replies
		mode          nbd.TLSMode
		exports       []nbd.Export
	}{
		{"Unix", "unix", all, nbd.TLSOff, with(diskBytes, as)},
		{"TCP", "tcp", all, nbd.TLSOff, with(minDiskBytes, func(d *nbdtest.Memory) {
			d.Async, d.Seed = true, 4 // replies in any order
			d.Description.CanFastZero = true
		})},
		// What STARTTLS forgets, and what it is not needed for.
		{"OptionalTLS", "tcp", all, nbd.TLSOptional, append(with(minDiskBytes, as), nbd.Export{
			Name: "secret", Device: nbdtest.NewMemory(minDiskBytes), TLSOnly: true,
		})},
		{"RequiredTLS", "unix", all, nbd.TLSRequired, with(minDiskBytes, as)},
		{"ReadOnly", "unix", all, nbd.TLSOff, with(minDiskBytes, func(d *nbdtest.Memory) {
			d.Fill([]byte("not to be changed"))
			d.Description.ReadOnly = true
		})},
		// Blocks that are not bytes.
		{"Blocks", "unix", all, nbd.TLSOff, with(minDiskBytes, func(d *nbdtest.Memory) { d.Description.MinBlockBytes = 4096 })},
		// No format of replies but the first, or but the last.
		{"SimpleReplies", "unix", old, nbd.TLSOff, with(minDiskBytes, as)},
		{"SimpleRepliesTLS", "tcp", old, nbd.TLSRequired, with(minDiskBytes, as)},
		{"StructuredReplies", "unix", nbd.RepliesStructured, nbd.TLSOff, with(minDiskBytes, as)},
		// No optional command.
		{"Plain", "unix", all, nbd.TLSOff, with(minDiskBytes, func(d *nbdtest.Memory) { d.Description = nbd.Info{SizeBytes: minDiskBytes} })},
	}
	applied := map[string]bool{}
	for _, tt := range targets {
		t.Run(tt.name, func(t *testing.T) {
			for _, name := range conformance.Run(t, serve(t, tt.replies, tt.network, tt.mode, tt.exports...)) {
				applied[name] = true
			}
		})
	}
	if strings.Contains(flag.Lookup("test.run").Value.String(), "/") {
		return // not all of them ran
	}
	for _, row := range conformance.Rows() {
		if _, known := unapplied[row.Name]; applied[row.Name] == known {
			t.Errorf("row %s: that it has a case with one of the targets is %v; unapplied says otherwise", row.Name, applied[row.Name])
		}
	}
}
