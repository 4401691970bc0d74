package conformance_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"path/filepath"
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
func serve(t *testing.T, network string, mode nbd.TLSMode, exports ...nbd.Export) conformance.Target {
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
	s := &nbd.Server{Exports: set, Arena: arena, Limits: limits, TLSMode: mode}
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

func TestConformance_Unix(t *testing.T) {
	conformance.Run(t, serve(t, "unix", nbd.TLSOff, two(disk(diskBytes))...))
}

func TestConformance_TCP(t *testing.T) {
	d := disk(minDiskBytes)
	d.Async, d.Seed = true, 4 // replies in any order
	d.Description.CanFastZero = true
	conformance.Run(t, serve(t, "tcp", nbd.TLSOff, two(d)...))
}

// TestConformance_OptionalTLS has the rows about what STARTTLS forgets.
func TestConformance_OptionalTLS(t *testing.T) {
	secret := nbd.Export{Name: "secret", Device: nbdtest.NewMemory(minDiskBytes), TLSOnly: true}
	conformance.Run(t, serve(t, "tcp", nbd.TLSOptional, append(two(disk(minDiskBytes)), secret)...))
}

func TestConformance_RequiredTLS(t *testing.T) {
	conformance.Run(t, serve(t, "unix", nbd.TLSRequired, two(disk(minDiskBytes))...))
}

func TestConformance_ReadOnly(t *testing.T) {
	d := nbdtest.NewMemory(minDiskBytes)
	d.Fill([]byte("not to be changed"))
	d.Description.ReadOnly = true
	conformance.Run(t, serve(t, "unix", nbd.TLSOff, two(d)...))
}

// TestConformance_Blocks has a disk whose blocks are not those of bytes.
func TestConformance_Blocks(t *testing.T) {
	d := nbdtest.NewMemory(minDiskBytes)
	d.Description.MinBlockBytes = 4096
	conformance.Run(t, serve(t, "unix", nbd.TLSOff, two(d)...))
}

// TestConformance_Plain has a disk with no optional command.
func TestConformance_Plain(t *testing.T) {
	d := nbdtest.NewMemory(minDiskBytes)
	d.Description = nbd.Info{SizeBytes: minDiskBytes}
	conformance.Run(t, serve(t, "unix", nbd.TLSOff, two(d)...))
}
