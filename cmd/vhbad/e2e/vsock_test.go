//go:build kernel

package e2e

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/mdlayher/vsock"

	machine "github.com/vhbad/vhbad/internal/guest"
)

const (
	vsockPort = 10809
	// vsockPeerLimit is how many connections the server takes from one context.
	vsockPeerLimit = 6
	vsockURI       = "nbd+vsock://1:10809/" + exportName // VMADDR_CID_LOCAL
)

// vsockModules are the guest's, in the order in which they need each other.
var vsockModules = []string{"vsock.ko", "vmw_vsock_virtio_transport_common.ko", "vsock_loopback.ko"}

// vsockScenario has clients come by vsock, which the guest's kernel can loop back as
// few hosts' can.
func vsockScenario() scenario {
	s := scenario{name: "vsock"}
	add := func(name string, run func(g *guest) error) { s.steps = append(s.steps, step{name, run}) }
	add("modules", func(*guest) error {
		for _, name := range vsockModules {
			if err := machine.LoadModule(filepath.Join("net/vmw_vsock", name), ""); err != nil {
				return err
			}
		}
		return nil
	})
	add("start", func(g *guest) error {
		config := serverConfig{
			kind: g.kind, binary: g.binary, listen: fmt.Sprintf("vsock://any:%d", vsockPort), disk: "memory:64MiB", folder: "/run",
			extra: []string{"--connections-per-peer", strconv.Itoa(vsockPeerLimit)},
		}
		server, err := config.command()
		if err != nil {
			return err
		}
		if err := g.launch(server); err != nil {
			return err
		}
		return waitFor("server accepts by vsock", func() bool {
			c, err := dialVsock()
			return err == nil && c.Close() == nil
		})
	})
	add("nbdinfo", func(g *guest) error {
		out, err := g.output("nbdinfo", "--size", vsockURI)
		if err == nil && strings.TrimSpace(out) != strconv.Itoa(64<<20) {
			err = fmt.Errorf("nbdinfo --size says %q", out)
		}
		return err
	})
	add("nbdcopy", func(g *guest) error {
		const from, to = "/run/tmp/from", "/run/tmp/to"
		f, err := os.Create(from)
		if err != nil {
			return err
		}
		random := rand.NewChaCha8([32]byte(fmt.Appendf(nil, "%32d", g.seed)))
		_, err = io.CopyN(f, random, 16<<20)
		if err := errors.Join(err, f.Close(), os.Truncate(from, 64<<20)); err != nil {
			return err
		}
		if err := g.run("nbdcopy", "--connections=4", "--flush", from, vsockURI); err != nil {
			return err
		}
		if err := g.run("nbdcopy", "--connections=4", vsockURI, to); err != nil {
			return err
		}
		return g.run("cmp", from, to)
	})
	add("limit_of_peer", wantVsockLimit)
	add("status", func(g *guest) error {
		var c net.Conn
		// The server has to see first that the others have gone.
		err := waitFor("server accepts another client", func() bool {
			var err error
			c, err = dialVsock()
			return err == nil
		})
		if err != nil {
			return err
		}
		out, statusErr := g.output(g.binary, "status", "--json", "--admin", "/run/admin.sock")
		if statusErr == nil && !strings.Contains(out, "local(1):") {
			statusErr = fmt.Errorf("status does not show a client by vsock:\n%s", out)
		}
		return errors.Join(statusErr, c.Close())
	})
	add("stop", (*guest).stopServer)
	return s
}

// dialVsock connects to the server and reads its greeting.
func dialVsock() (net.Conn, error) {
	c, err := vsock.Dial(vsock.Local, vsockPort, nil)
	if err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(c, make([]byte, 18)); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// wantVsockLimit wants that a context gets as many connections as it may have, and
// no more.
func wantVsockLimit(*guest) error {
	var held []net.Conn
	defer func() {
		for _, c := range held {
			_ = c.Close() // it has done its part
		}
	}()
	// Earlier clients may still be on their way out.
	err := waitFor(fmt.Sprintf("%d connections from one context", vsockPeerLimit), func() bool {
		c, err := dialVsock()
		if err == nil {
			held = append(held, c)
		}
		return len(held) == vsockPeerLimit
	})
	if err != nil {
		return err
	}
	if c, err := dialVsock(); err == nil {
		return errors.Join(fmt.Errorf("a connection more than %d was served", vsockPeerLimit), c.Close())
	}
	return nil
}
