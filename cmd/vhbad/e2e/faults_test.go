//go:build interop

package e2e

import (
	"encoding/json"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// faultPrelude is what the snippets of faultRows have at hand.
const faultPrelude = `
import nbd, time
B = 4096
def fails(fn, *names):
    try:
        fn()
    except nbd.Error as e:
        assert e.errno in names, e
        return
    raise AssertionError("no error, want one of %r" % (names,))
def takes(seconds, fn):
    t = time.monotonic()
    fn()
    t = time.monotonic() - t
    assert t >= seconds, "took %f s, want %f at least" % (t, seconds)
def write(c, at=0, flags=0): h.pwrite(bytes([c]) * B, at, flags)
def read(at=0): return h.pread(B, at)
def is_all(c, at=0): return read(at) == bytes([c]) * B
`

// faultRows has each kind of fault with what a client sees of it. The disk d is
// filled with ones when a snippet begins; the rule comes into force where it says
// rule().
var faultRows = []struct{ kind, fields, script string }{
	{"status", "action.sense.key=medium-error asc=0x11 op=read", `rule(); fails(read, "EIO")`},
	{"errno", "errno=ENOSPC op=write", `rule(); fails(lambda: write(2), "ENOSPC"); assert is_all(1)`},
	{"medium-error", "offset=8KiB length=4KiB", `rule(); assert is_all(1); fails(lambda: read(8192), "EIO"); write(2, 8192); assert is_all(2, 8192)`},
	{"busy", "budget=1", `rule(); assert is_all(1)`},
	{"task-set-full", "budget=1", `rule(); assert is_all(1)`},
	{"not-ready", "op=read", `rule(); fails(read, "EIO")`},
	{"unit-attention", "budget=1", `rule(); assert is_all(1)`},
	{"write-protect", "", `rule(); fails(lambda: write(2), "EPERM"); assert is_all(1)`},
	{"short-transfer", "keep=512 op=read", `rule(); fails(read, "EIO")`},
	{"hang", "action.for=300ms", `rule(); takes(0.3, read)`},
	{"gate", "at=after action.for=300ms", `rule(); takes(0.3, read)`},
	{"latency", "mean=200ms op=read", `rule(); takes(0.2, read)`},
	{"stall", "action.for=900ms action.period=1s", `
rule()
def took():
    t = time.monotonic()
    read()
    return time.monotonic() - t
while took() < 0.5: pass`},
	{"rate", "iops=10 burst-ios=1", `rule(); takes(0.3, lambda: [read() for _ in range(5)])`},
	{"queue", "lanes=1 mean=100ms", `
rule()
def four():
    bufs = [nbd.Buffer(B) for _ in range(4)]
    for b in bufs: h.aio_pread(b, 0)
    while h.aio_in_flight() > 0: h.poll(-1)
takes(0.35, four)`},
	{"reorder", "action.for=200ms op=read", `
rule()
order = []
bufs = [nbd.Buffer(B) for _ in range(16)]
for i, b in enumerate(bufs): h.aio_pread(b, i * B, completion=lambda e, i=i: order.append(i) or 1)
while h.aio_in_flight() > 0: h.poll(-1)
assert sorted(order) == list(range(16)) and order != sorted(order), order`},
	{"cut-reply", "op=read after=20", `
mine = nbd.NBD()
mine.connect_uri(h.get_uri())
rule()
fails(lambda: mine.pread(B, 0), None) # "server disconnected unexpectedly", which has no errno
assert not mine.aio_is_ready()
h.flush()`},
	{"slow-handshake", "action.for=300ms", `
rule()
mine = nbd.NBD()
takes(0.3, lambda: mine.connect_uri(h.get_uri()))
assert mine.pread(B, 0) == read()`},
	{"unplug", "action.for=500ms", `
uri = h.get_uri()
rule()
fails(read, "ESHUTDOWN")
while True:
    mine = nbd.NBD()
    try:
        mine.connect_uri(uri)
        break
    except nbd.Error as e:
        assert "no export" in str(e) or "ENOENT" == e.errno, e
fails(read, None, "ENOTCONN", "EPIPE", "ECONNRESET") # its connection was closed
assert mine.pread(B, 0) == bytes([1]) * B`},
	{"capacity", "size=64KiB", `
rule()
read()
fails(lambda: [read(1 << 19) for _ in range(2)], "EINVAL", "EIO")`},
	{"disconnect", "op=read", `rule(); fails(read, "ENOTCONN", "ESHUTDOWN", "EIO", "EINVAL"); assert not h.aio_is_ready()`},
	{"flip", "", `rule(); assert not is_all(1)`},
	{"rot", "offset=0 length=4KiB", `rule(); a = read(); assert a != bytes([1]) * B and a == read(); write(2); assert is_all(2)`},
	{"stale-read", "offset=0 length=4KiB", `rule(); write(2); assert is_all(1)`},
	{"lost-write", "", `rule(); write(2); assert is_all(1)`},
	{"misdirected", "shift-blocks=8", `rule(); write(2); assert is_all(1) and is_all(2, 4096)`},
	{"ignore-fua", "", `rule(); write(2, 0, nbd.CMD_FLAG_FUA); assert is_all(2)`},
	{"lie-about-flush", "", `rule(); h.flush(); assert is_all(1)`},
	{"lost-completion", "budget=1 op=read", `rule(); assert is_all(1)`},
	{"duplicate", "", `rule(); [write(2) for _ in range(20)]; assert is_all(2)`},
	{"mistagged", "budget=1 op=read", `rule(); assert is_all(1)`},
	{"late-completion", "budget=1 op=read action.for=10ms", `rule(); assert is_all(1); assert is_all(1)`},
	{"dma-after-reset", "budget=1 action.for=10ms", `rule(); assert is_all(1); assert is_all(1)`},
	{"lost-interrupt", "budget=1 op=read", `rule(); assert is_all(1)`},
	{"bad-cookie", "op=read", `rule(); fails(read, None, "EINVAL"); assert not h.aio_is_ready()`},
}

// TestFaults_EachKind shows a client of libnbd's every kind of fault: it sees what
// it should, it is counted, and the other disk is as it was.
func TestFaults_EachKind(t *testing.T) {
	config, command := serve(t, "memory:1MiB", "--disk", "other=memory:1MiB", "--hostile", "--srb-timeout", "1s", "--reset-timeout", "1s")
	d := start(t, config, command)
	admin := filepath.Join(config.folder, "admin.sock")
	metrics := "http://" + httpOf(t, admin) + "/metrics"
	for _, row := range faultRows {
		t.Run(row.kind, func(t *testing.T) {
			add := append([]string{vhbadBinary, "fault", "add", "f-" + row.kind, row.kind, "disk=d", "--admin", admin}, strings.Fields(row.fields)...)
			if isHostile(t, row.kind) {
				add = append(add, "hostile=true")
			}
			words, err := json.Marshal(add)
			if err != nil {
				t.Fatal(err)
			}
			script := faultPrelude + "import subprocess\ndef rule(): subprocess.run(" + string(words) + ", check=True, stdout=subprocess.DEVNULL)\n" +
				"for i in range(16): write(1, i * B)\n" + row.script + "\n"
			timeouts := counter(t, metrics, "vhbad_port_timeouts_total", `export="d"`)
			run(t, "nbdsh", "-u", d.uri("d"), "-c", script)
			if n := counter(t, metrics, "vhbad_fault_injections_total", `export="d".*rule="f-`+row.kind+`"`); n < 1 {
				t.Errorf("the metrics count %v injections, want one at least", n)
			}
			if n := counter(t, metrics, "vhbad_port_timeouts_total", `export="d"`) - timeouts; row.kind == "lost-completion" && n < 1 {
				t.Errorf("the metrics count %v timeouts, want one at least: nothing else brings the command back", n)
			}
			vhbadDo(t, "fault", "remove", "--all", "--admin", admin)
			run(t, "nbdsh", "-u", d.uri("other"), "-c", "assert h.pread(1 << 20, 0) == bytearray(1 << 20)")
		})
	}
	// What holds commands can be told to let them go; what fails a reset is told.
	vhbadDo(t, "fault", "add", "r", "reset-fails", "op=reset-lun", "--admin", admin)
	if out, err := exec.CommandContext(t.Context(), vhbadBinary, "reset", "d", "--admin", admin).CombinedOutput(); err == nil || !strings.Contains(string(out), "reset failed") {
		t.Errorf("a reset that fails: %v\n%s", err, out)
	}
	vhbadDo(t, "fault", "remove", "--all", "--admin", admin)
	vhbadDo(t, "reset", "d", "--admin", admin)
}

// vhbadDo runs vhbad, which must succeed.
func vhbadDo(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), vhbadBinary, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("vhbad %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func isHostile(t *testing.T, kind string) bool {
	t.Helper()
	var kinds []struct {
		Kind    string
		Hostile bool
	}
	if err := json.Unmarshal([]byte(vhbadDo(t, "fault", "kinds", "--json")), &kinds); err != nil {
		t.Fatal(err)
	}
	for _, k := range kinds {
		if k.Kind == kind {
			return k.Hostile
		}
	}
	t.Fatalf("there is no kind %q", kind)
	return false
}

// httpOf is where a daemon's metrics are.
func httpOf(t *testing.T, admin string) string {
	t.Helper()
	var status struct{ HTTP string }
	if err := json.Unmarshal([]byte(vhbadDo(t, "status", "--json", "--admin", admin)), &status); err != nil {
		t.Fatal(err)
	}
	return status.HTTP
}

// counter is the value of the one metric of that name whose labels match.
func counter(t *testing.T, url, name, labels string) float64 {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	match := regexp.MustCompile(`(?m)^` + name + `\{.*` + labels + `.*\} (\S+)$`).FindSubmatch(text)
	if match == nil {
		t.Fatalf("no %s{%s} in the metrics:\n%s", name, labels, text)
	}
	n, err := strconv.ParseFloat(string(match[1]), 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
