package nbd_test

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// The test binary is also the server and the attackers of BenchmarkBystander, each
// in a process of its own, if its environment says so.
const (
	envRole   = "VHBAD_BYSTANDER_ROLE"
	envFolder = "VHBAD_BYSTANDER_FOLDER" // of the socket and the certificates
	envAttack = "VHBAD_BYSTANDER_ATTACK"

	roleServer    = "server"
	roleHeld      = "held"
	roleNonstop   = "nonstop"
	roleReady     = "ready" // what each says when it is
	bystanderSock = "s"
)

func TestMain(m *testing.M) {
	var err error
	switch role := os.Getenv(envRole); role {
	case "":
		os.Exit(m.Run())
	case roleServer:
		err = serveBystander(os.Getenv(envFolder))
	case roleHeld, roleNonstop:
		err = attackBystander(os.Getenv(envFolder), os.Getenv(envAttack), role == roleNonstop)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// serveBystander serves until standard input ends.
func serveBystander(folder string) error {
	certificate, err := tls.LoadX509KeyPair(filepath.Join(folder, "server-cert.pem"), filepath.Join(folder, "server-key.pem"))
	if err != nil {
		return err
	}
	arena, err := dma.NewArena(hostileArenaBytes)
	if err != nil {
		return err
	}
	exports, err := nbd.NewExportSet(hostileExports()...)
	if err != nil {
		return err
	}
	s := &nbd.Server{
		Exports: exports, Arena: arena, Limits: hostileLimits(),
		TLSMode: nbd.TLSOptional, TLSConfig: serveTLS(&tls.Config{Certificates: []tls.Certificate{certificate}}),
	}
	l, err := net.Listen("unix", filepath.Join(folder, bystanderSock))
	if err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	fmt.Println(roleReady)
	_, _ = io.Copy(io.Discard, os.Stdin)
	select {
	case err = <-served:
		return err
	default:
		return nil // the end of the process ends all
	}
}

// attackBystander attacks until standard input ends: once, with connections that
// stay, or over and over.
func attackBystander(folder, name string, nonstop bool) error {
	text, err := os.ReadFile(filepath.Join(folder, "ca-cert.pem"))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(text)
	v := &victim{path: filepath.Join(folder, bystanderSock), tls: &tls.Config{RootCAs: roots, ServerName: "localhost"}}
	all := slices.Concat(attacks(), tlsAttacks())
	at := slices.IndexFunc(all, func(a attack) bool { return a.name == name })
	if at < 0 {
		return fmt.Errorf("no attack %q", name)
	}
	conns, err := all[at].run(v)
	if err != nil {
		return err
	}
	fmt.Println(roleReady)
	halt := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(halt)
	}()
	began, rounds := time.Now(), 0
	for nonstop {
		select {
		case <-halt:
			fmt.Printf("%.3f\n", float64(rounds)/time.Since(began).Seconds())
			return nil
		default:
		}
		for _, c := range conns {
			_ = c.Close() // the server may have been first
		}
		if conns, err = all[at].run(v); err != nil {
			return err
		}
		rounds++
	}
	<-halt
	fmt.Println(0)
	return nil
}

// A helper is a process of BenchmarkBystander.
type helper struct {
	cmd  *exec.Cmd
	in   io.Closer
	said *bufio.Scanner
}

// help starts the test binary in a role and waits until it is ready.
func help(b *testing.B, folder, role, attack string, wrap ...string) *helper {
	b.Helper()
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	words := append(wrap, self)
	h := &helper{cmd: exec.Command(words[0], words[1:]...)}
	h.cmd.Env = append(os.Environ(), envRole+"="+role, envFolder+"="+folder, envAttack+"="+attack)
	h.cmd.Stderr = os.Stderr
	in, inErr := h.cmd.StdinPipe()
	out, outErr := h.cmd.StdoutPipe()
	if err := errors.Join(inErr, outErr, h.cmd.Start()); err != nil {
		b.Fatal(err)
	}
	h.in, h.said = in, bufio.NewScanner(out)
	if !h.said.Scan() || h.said.Text() != roleReady {
		b.Fatalf("%s: %q, want that it is ready; %v", role, h.said.Text(), h.cmd.Wait())
	}
	return h
}

// end has the process end, and returns its last words.
func (h *helper) end(b *testing.B) (words string) {
	b.Helper()
	if err := h.in.Close(); err != nil {
		b.Error(err)
	}
	for h.said.Scan() {
		words = h.said.Text()
	}
	if err := h.cmd.Wait(); err != nil {
		b.Errorf("%v: %v", h.cmd.Args, err)
	}
	return words
}

// quietSteps is how many requests of the good client are measured before the attack:
// what else the machine does differs from one minute to the next.
const quietSteps = 20_000

// quantile returns what permille of the requests took at most, in microseconds.
func (b *bystander) quantile(permille int) float64 {
	sorted := slices.Sorted(slices.Values(b.took))
	return float64(sorted[len(sorted)*permille/1000].Microseconds())
}

// BenchmarkBystander is how long a good client waits for 4 KiB beside an attack that
// lasts (pace=held), and beside one that begins anew as fast as it can
// (pace=nonstop). Client, server and attackers are processes of their own. The
// attackers run where nobody else wants to (SCHED_IDLE): so what is measured is
// what they make the server do, and not that they too need processors. Compare with
// quiet-p99-us, which is of the second before.
func BenchmarkBystander(b *testing.B) {
	authority := nbdtest.NewAuthority(b)
	all := slices.Concat([]attack{{name: "none"}}, attacks(), tlsAttacks())
	for _, pace := range []string{roleHeld, roleNonstop} {
		for _, a := range all {
			b.Run("pace="+pace+"/attack="+a.name, func(b *testing.B) {
				path := filepath.Join(authority.Dir, bystanderSock)
				server := help(b, authority.Dir, roleServer, "")
				nc, err := net.Dial("unix", path)
				if err != nil {
					b.Fatal(err)
				}
				c, err := nbdtest.NewClient(nc, "disk0")
				if err != nil {
					b.Fatal(err)
				}
				good := newBystander(c, 1)
				if err := good.steps(1000); err != nil {
					b.Fatal(err)
				}
				good.took = good.took[:0]
				if err := good.steps(quietSteps); err != nil {
					b.Fatal(err)
				}
				quiet := good.quantile(990)
				var attackers *helper
				if a.run != nil {
					attackers = help(b, authority.Dir, pace, a.name, "chrt", "--idle", "0")
				}
				good.took = good.took[:0]
				for b.Loop() {
					if err := good.step(); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(quiet, "quiet-p99-us")
				b.ReportMetric(good.quantile(500), "p50-us")
				b.ReportMetric(good.quantile(990), "p99-us")
				b.ReportMetric(good.quantile(999), "p99.9-us")
				if attackers != nil {
					var perSecond float64
					if _, err := fmt.Sscan(attackers.end(b), &perSecond); err != nil {
						b.Error(err)
					}
					b.ReportMetric(perSecond, "attacks/s")
				}
				if err := good.c.Close(); err != nil && !errors.Is(err, io.EOF) {
					b.Error(err)
				}
				server.end(b)
				if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
					b.Error(err)
				}
			})
		}
	}
}
