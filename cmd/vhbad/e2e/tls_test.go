//go:build interop

package e2e

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// startTLS starts a daemon that wants TLS and a certificate from every client. The
// folder has the certificates of both sides.
func startTLS(t *testing.T) (d *daemon, folder string) {
	t.Helper()
	folder = socketFolder(t)
	if err := makeCertificates(folder); err != nil {
		t.Fatal(err)
	}
	config := newServerConfig(t, "tcp", "memory:64MiB,allow="+certifiedClient)
	config.extra = []string{
		"--disk", "other=memory:1MiB,allow=somebody.else",
		"--tls-certificates", folder, "--tls", "required", "--tls-verify-peer",
	}
	return startDaemon(t, config), folder
}

// tlsURI is the URI of an export over TLS, by the name in the server's certificate.
func (d *daemon) tlsURI(export string) string {
	_, port, _ := strings.Cut(strings.TrimPrefix(d.listen, "tcp://"), ":")
	return "nbds://" + certifiedHost + ":" + port + "/" + export
}

// withCertificates is what libnbd's programs take behind a URI.
func withCertificates(folder string) string { return "?tls-certificates=" + folder }

func TestTLS_Libnbd(t *testing.T) {
	d, folder := startTLS(t)
	uri := d.tlsURI(exportName) + withCertificates(folder)
	var info struct {
		TLS        bool `json:"TLS"`
		Structured bool `json:"structured"`
	}
	if err := json.Unmarshal([]byte(run(t, "nbdinfo", "--json", uri)), &info); err != nil {
		t.Fatal(err)
	}
	if !info.TLS || !info.Structured {
		t.Errorf("nbdinfo says %+v, want TLS and structured replies", info)
	}
	in, out := image(t, diskBytes), filepath.Join(t.TempDir(), "out")
	run(t, "nbdcopy", "--threads=4", "--connections=4", in, uri)
	run(t, "nbdcopy", "--threads=4", "--connections=4", uri, out)
	run(t, "cmp", in, out)
	nbdshScript(t, "requests.py", "-c", "h.set_uri_allow_local_file(True); h.connect_uri('"+uri+"')")
}

func TestTLS_Refusals(t *testing.T) {
	d, folder := startTLS(t)
	stranger := socketFolder(t)
	if err := makeCertificates(stranger); err != nil {
		t.Fatal(err)
	}
	for name, uri := range map[string]string{
		"no TLS":                  d.uri(exportName),
		"another authority":       d.tlsURI(exportName) + withCertificates(stranger),
		"a name that is not let":  d.tlsURI("other") + withCertificates(folder),
		"an export there is none": d.tlsURI("none") + withCertificates(folder),
	} {
		if out, err := try(t, "nbdinfo", "--size", uri); err == nil {
			t.Errorf("%s: could connect: %s", name, out)
		}
	}
	if got := strings.TrimSpace(run(t, "nbdinfo", "--size", d.tlsURI(exportName)+withCertificates(folder))); got != "67108864" {
		t.Errorf("size after the refusals: %s", got)
	}
}

func TestTLS_Qemu(t *testing.T) {
	d, folder := startTLS(t)
	_, port, _ := strings.Cut(strings.TrimPrefix(d.listen, "tcp://"), ":")
	credentials := "tls-creds-x509,id=tls0,endpoint=client,verify-peer=on,dir=" + folder
	options := "driver=raw,file.driver=nbd,file.host=" + certifiedHost + ",file.port=" + port + ",file.export=" + exportName + ",file.tls-creds=tls0"
	in := image(t, diskBytes)
	run(t, "qemu-img", "convert", "-n", "--object", credentials, "-f", "raw", "--target-image-opts", in, options)
	back := filepath.Join(t.TempDir(), "back")
	run(t, "qemu-img", "convert", "--object", credentials, "--image-opts", "-O", "raw", options, back)
	run(t, "cmp", in, back)
	out := run(t, "qemu-io", "--object", credentials, "--image-opts", options,
		"-c", "write -P 0x5a 1M 4M", "-c", "read -P 0x5a 1M 4M", "-c", "write -z -u 2M 1M", "-c", "read -P 0 2M 1M", "-c", "flush")
	if strings.Contains(strings.ToLower(out), "failed") {
		t.Errorf("qemu-io:\n%s", out)
	}
}

// fio cannot be told where certificates are: libnbd looks in the home folder, but
// not in that of root.
func TestTLS_FioVerify(t *testing.T) {
	d, folder := startTLS(t)
	home := socketFolder(t)
	pki := filepath.Join(home, ".pki", "libnbd")
	if err := os.MkdirAll(filepath.Dir(pki), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(folder, pki); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
	defer cancel()
	command := peer(ctx, t, "fio", "--name=verify", "--ioengine=nbd", "--uri="+d.tlsURI(exportName), "--rw=randrw", "--bsrange=512-128k",
		"--iodepth=32", "--numjobs=4", "--thread", "--size=8m", "--offset_increment=16m", "--fsync=128",
		"--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--do_verify=1")
	command.Env = append(command.Env, "HOME="+home)
	command.Dir = home
	if os.Geteuid() == 0 {
		const nobody = 65534
		for _, path := range []string{home, filepath.Dir(pki), pki} {
			if err := os.Chmod(path, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range []string{"ca-cert.pem", "client-cert.pem", "client-key.pem"} {
			if err := os.Chmod(filepath.Join(pki, name), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		command.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", command.Args, err, out)
	}
}

// nbd-client negotiates TLS in a process of its own.
func TestTLS_NbdClientList(t *testing.T) {
	d, folder := startTLS(t)
	_, port, _ := strings.Cut(strings.TrimPrefix(d.listen, "tcp://"), ":")
	out := filepath.Join(t.TempDir(), "out")
	f, err := os.Create(out)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
	defer cancel()
	command := peer(ctx, t, "nbd-client", nbdClientTLS(folder, "-l", certifiedHost, port)...)
	command.Stdout, command.Stderr = f, f // a pipe would wait for the process that does TLS
	if err := command.Run(); err != nil {
		t.Errorf("%v: %v", command.Args, err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	content, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(content), "\n"+exportName+"\n") {
		t.Errorf("nbd-client -l does not list %q:\n%s", exportName, content)
	}
}
