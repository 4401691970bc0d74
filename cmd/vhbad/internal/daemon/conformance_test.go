package daemon

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
	"github.com/vhbad/vhbad/nbd/conformance"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// TestConformance holds the whole road, from the socket to the medium and back, to
// the rules of the specification, over each transport.
func TestConformance(t *testing.T) {
	for _, tt := range []struct {
		name, listen, disk string
		tls                config.TLSMode
		replies            config.Replies
		readOnly           bool
	}{
		{name: "unix", disk: "d=memory:8MiB,description=a disk"},
		{name: "TCP", listen: "tcp://127.0.0.1:0", disk: "d=file:$DIR/i.img,size=8MiB"},
		{name: "optional TLS", listen: "tcp://127.0.0.1:0", disk: "d=memory:8MiB,block-size=4096", tls: config.TLSOptional},
		{name: "required TLS", listen: "tcp://127.0.0.1:0", disk: "d=memory:8MiB", tls: config.TLSRequired},
		{name: "simple replies", disk: "d=memory:8MiB", replies: config.RepliesSimple},
		{name: "read-only", disk: "d=memory:4MiB", readOnly: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			disks := []string{tt.disk, "other=memory:4MiB"}
			if tt.tls != "" {
				disks = append(disks, "secret=memory:4MiB,tls-only")
			}
			s := newSettings(t, disks...)
			s.ReadOnly, s.Replies = tt.readOnly, tt.replies
			if tt.listen != "" {
				a, err := config.ParseAddress(tt.listen)
				if err != nil {
					t.Fatal(err)
				}
				s.Listen = []config.Address{a}
			}
			target := conformance.Target{Name: tt.name, Export: "d", Secure: tt.tls == config.TLSRequired, Patience: 4 * time.Minute}
			if tt.tls != "" {
				a := nbdtest.NewAuthority(t)
				s.TLS = config.TLS{Certificates: a.Dir, Mode: tt.tls}
				target.TLS = a.ClientConfig(false)
			}
			d, _ := s.mustStart(t)
			network, address, _ := strings.Cut(d.Endpoints()[0].URI, "://")
			target.Dial = func(ctx context.Context) (net.Conn, error) {
				var dialer net.Dialer
				return dialer.DialContext(ctx, network, address)
			}
			conformance.Run(t, target)
		})
	}
}
