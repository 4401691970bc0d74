//go:build interop

package e2e

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const diskBytes = 64 << 20

// overBoth runs a test against a fresh memory disk over each transport.
func overBoth(t *testing.T, test func(t *testing.T, d *daemon)) {
	t.Helper()
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			test(t, startDaemon(t, newServerConfig(t, network, "memory:64MiB")))
		})
	}
}

// image makes a file of random bytes.
func image(t *testing.T, sizeBytes int) string {
	t.Helper()
	content := make([]byte, sizeBytes)
	if _, err := rand.Read(content); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestNbdinfo_Abilities(t *testing.T) {
	overBoth(t, func(t *testing.T, d *daemon) {
		t.Helper()
		var info struct {
			Protocol string `json:"protocol"`
			Exports  []struct {
				Name       string `json:"export-name"`
				SizeBytes  int64  `json:"export-size"`
				IsReadOnly bool   `json:"is_read_only"`
				Cache      bool   `json:"can_cache"`
				Flush      bool   `json:"can_flush"`
				FUA        bool   `json:"can_fua"`
				MultiConn  bool   `json:"can_multi_conn"`
				Trim       bool   `json:"can_trim"`
				Zero       bool   `json:"can_zero"`
			} `json:"exports"`
		}
		if err := json.Unmarshal([]byte(run(t, "nbdinfo", "--json", d.uri(exportName))), &info); err != nil {
			t.Fatal(err)
		}
		if info.Protocol != "newstyle-fixed" || len(info.Exports) != 1 {
			t.Fatalf("got %+v, want one export over newstyle-fixed", info)
		}
		e := info.Exports[0]
		if e.Name != exportName || e.SizeBytes != diskBytes || e.IsReadOnly {
			t.Errorf("got export %q of %d bytes, read-only %v; want %q of %d, writable", e.Name, e.SizeBytes, e.IsReadOnly, exportName, diskBytes)
		}
		for ability, ok := range map[string]bool{
			"cache": e.Cache, "flush": e.Flush, "FUA": e.FUA, "multi-conn": e.MultiConn, "trim": e.Trim, "write zeroes": e.Zero,
		} {
			if !ok {
				t.Errorf("the disk does not advertise %s", ability)
			}
		}
	})
}

func TestNbdinfo_Exports(t *testing.T) {
	overBoth(t, func(t *testing.T, d *daemon) {
		t.Helper()
		if got := strings.TrimSpace(run(t, "nbdinfo", "--size", d.uri(""))); got != strconv.Itoa(diskBytes) {
			t.Errorf("size of the default export: got %s, want %d", got, diskBytes)
		}
		if *serverFlag != serverVhbad {
			return // others know no names
		}
		if got := run(t, "nbdinfo", "--list", d.uri("")); !strings.Contains(got, `export="`+exportName+`"`) {
			t.Errorf("export %q is not listed:\n%s", exportName, got)
		}
		if out, err := try(t, "nbdinfo", d.uri("nosuch")); err == nil {
			t.Errorf("an export that does not exist could be opened:\n%s", out)
		}
	})
}

func TestNbdcopy_BothWays(t *testing.T) {
	overBoth(t, func(t *testing.T, d *daemon) {
		t.Helper()
		for _, options := range [][]string{
			nil,
			{"--connections=4", "--requests=64", "--request-size=1048576", "--flush"},
			{"--connections=1", "--requests=1", "--request-size=4096"},
		} {
			in, out := image(t, diskBytes), filepath.Join(t.TempDir(), "out")
			run(t, "nbdcopy", append(options, in, d.uri(exportName))...)
			run(t, "nbdcopy", append(options, d.uri(exportName), out)...)
			run(t, "cmp", in, out)
		}
	})
}

func TestNbdsh_Requests(t *testing.T) {
	overBoth(t, func(t *testing.T, d *daemon) {
		t.Helper()
		nbdsh(t, d.uri(exportName), "requests.py")
	})
}

func TestQemuImg_ConvertCompare(t *testing.T) {
	overBoth(t, func(t *testing.T, d *daemon) {
		t.Helper()
		in, back := image(t, diskBytes), filepath.Join(t.TempDir(), "back.qcow2")
		run(t, "qemu-img", "convert", "-n", "-W", "-f", "raw", "-O", "raw", in, d.uri(exportName))
		run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", in, d.uri(exportName))
		run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", d.uri(exportName), back)
		run(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", in, back)
		run(t, "qemu-img", "bench", "-f", "raw", "-w", "-c", "5000", "-d", "32", "-s", "4096", d.uri(exportName))
		if out, err := try(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", in, d.uri(exportName)); err == nil {
			t.Errorf("the benchmark wrote, yet the images still compare equal:\n%s", out)
		}
	})
}

func TestQemuIo_Patterns(t *testing.T) {
	overBoth(t, func(t *testing.T, d *daemon) {
		t.Helper()
		commands := []string{
			"write -P 0x11 0 64k", "read -P 0x11 0 64k",
			"write -f -P 0x22 64k 4k", "read -P 0x22 64k 4k", "read -P 0x11 0 64k",
			"write -P 0x33 1M 2M", "write -z 1M 512k", "read -P 0 1M 512k", "read -P 0x33 1536k 1536k",
			"write -z -u 2M 512k", "read -P 0 2M 512k", "read -P 0x33 2560k 512k",
			"write -P 0x44 4097 513", "read -P 0x44 4097 513", "read -P 0x11 4096 1", "read -P 0x11 4610 1",
			"discard 1M 2M", "flush",
			"aio_write -P 0x55 8M 1M", "aio_write -P 0x66 9M 1M", "aio_flush",
			"read -P 0x55 8M 1M", "read -P 0x66 9M 1M",
			"write -P 0x77 32M 32M", "read -P 0x77 32M 32M",
		}
		args := []string{"-f", "raw", d.uri(exportName)}
		for _, c := range commands {
			args = append(args, "-c", c)
		}
		out := run(t, "qemu-io", args...)
		for _, bad := range []string{"failed", "error"} {
			if strings.Contains(strings.ToLower(out), bad) {
				t.Fatalf("qemu-io says %q:\n%s", bad, out)
			}
		}
	})
}

func TestFio_Verify(t *testing.T) {
	overBoth(t, func(t *testing.T, d *daemon) {
		t.Helper()
		seed, err := rand.Int(rand.Reader, big.NewInt(1<<31))
		if err != nil {
			t.Fatal(err)
		}
		for _, mix := range []string{"randwrite", "randrw"} {
			// Each job is a connection and has a quarter of the disk to itself.
			run(t, "fio", "--name=verify", "--ioengine=nbd", "--uri="+d.uri(exportName), "--rw="+mix, "--bsrange=512-128k",
				"--iodepth=32", "--numjobs=4", "--size=16m", "--offset_increment=16m", "--fsync=128",
				"--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--do_verify=1", fmt.Sprintf("--randseed=%d", seed))
		}
	})
}
