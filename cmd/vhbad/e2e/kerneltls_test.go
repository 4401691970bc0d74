//go:build kernel

package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// guestCertificates is where the guest keeps its certificates.
const guestCertificates = "/run/pki"

// tlsScenario has nbd-client speak TLS to a daemon that wants it, in a process of
// its own beside the kernel, and vhbad attach refuse what the kernel cannot do.
func tlsScenario() scenario {
	s := scenario{name: "tls"}
	add := func(name string, run func(g *guest) error) { s.steps = append(s.steps, step{name, run}) }
	files := treeFiles / 20
	add("certificates", func(*guest) error {
		if err := os.Mkdir(guestCertificates, 0o700); err != nil {
			return err
		}
		return makeCertificates(guestCertificates)
	})
	add("start", func(g *guest) error {
		return g.startServer(overTCP, "memory:"+diskSize,
			"--tls-certificates", guestCertificates, "--tls", "required", "--tls-verify-peer")
	})
	add("plain_refused", func(g *guest) error {
		out, err := g.output(g.binary, "attach", overTCP.uri(), guestDevice)
		if err == nil || !strings.Contains(out, "wants TLS") || !strings.Contains(out, "nbd-client") {
			return fmt.Errorf("attach to a server that wants TLS: %w\n%s", err, out)
		}
		return nil
	})
	for _, round := range []string{"", "again/"} {
		add(round+"attach", func(g *guest) error { return g.attach(nbdClientOverTLS, overTCP, 1) })
		if round == "" {
			add("mkfs", func(g *guest) error { return g.run("mkfs.ext4", "-q", guestDevice) })
		} else {
			add("again/fsck", func(g *guest) error { return g.run(ext4.check[0], append(ext4.check[1:], guestDevice)...) })
		}
		add(round+"mount", func(g *guest) error { return g.mount(ext4.name) })
		if round == "" {
			add("files", func(g *guest) error { return tree{g.seed, files}.write(guestMount) })
		} else {
			add("again/files", func(g *guest) error { return tree{g.seed, files}.check(guestMount) })
		}
		add(round+"unmount", (*guest).unmount)
		add(round+"detach", func(g *guest) error { return g.detach(nbdClientOverTLS) })
	}
	add("no_errors", (*guest).wantNoErrors)
	add("stop", (*guest).stopServer)
	return s
}

// nbdClientOverTLS is nbd-client with a certificate. The process that does TLS
// stays, and keeps what it has as output: so that is a file, and no pipe.
var nbdClientOverTLS = client{
	name: "nbd-client-tls",
	attach: func(*guest, transport, int) error {
		const output = "/run/nbd-client.log"
		log, err := os.Create(output)
		if err != nil {
			return err
		}
		command := exec.Command("nbd-client", nbdClientTLS(guestCertificates, certifiedHost, "10809", guestDevice, "-N", exportName)...)
		command.Stdout, command.Stderr = log, log
		if err := errors.Join(command.Run(), log.Close()); err != nil {
			content, readErr := os.ReadFile(output)
			return errors.Join(fmt.Errorf("%v: %w\n%s", command.Args, err, tail(content)), readErr)
		}
		return nil
	},
	detach: nbdClient.detach,
}
