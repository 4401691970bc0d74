//go:build interop

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// faultPrelude is what the snippets of faultRows have at hand.
const faultPrelude = `
import nbd, subprocess, time, urllib.request
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
def add(*words): subprocess.run([VHBAD, "fault", "add", *words, "--admin", ADMIN], check=True, stdout=subprocess.DEVNULL)
def rule(): add(*RULE)
def metric(name):
    lines = urllib.request.urlopen(METRICS).read().decode().splitlines()
    return sum(float(l.rpartition(" ")[2]) for l in lines if l.startswith((name + "{", name + " ")))
def many(n):
    bufs = [nbd.Buffer(512) for _ in range(n)]
    for b in bufs: h.aio_pread(b, 0)
    while h.aio_in_flight() > 0: h.poll(-1)
    assert all(b.to_bytearray() == bytearray(b"\x01") * 512 for b in bufs)
`

type faultRow struct{ kind, fields, script, effects string }

// faultRows has each kind of fault with what a client sees of it, and with what
// else the metrics say: which of faultEffects grow, as all others stay as they are.
// The disk is filled with ones when a snippet begins; the rule comes into force where
// it says rule().
var faultRows = []faultRow{
	{"status", "action.sense.key=medium-error asc=0x11 op=read", `rule(); fails(read, "EIO")`, "injected"},
	{"errno", "errno=ENOSPC op=write", `rule(); fails(lambda: write(2), "ENOSPC"); assert is_all(1)`, "injected"},
	{"medium-error", "offset=8KiB length=4KiB", `rule(); assert is_all(1); fails(lambda: read(8192), "EIO"); write(2, 8192); assert is_all(2, 8192)`, "injected"},
	{"busy", "budget=1", `rule(); assert is_all(1)`, "busy"},
	{"task-set-full", "budget=1", `rule(); assert is_all(1)`, "queue-full"},
	{"ring-full", "action.for=300ms op=flush", `
rule()
before = metric("vhbad_miniport_queue_full_total")
while metric("vhbad_miniport_queue_full_total") == before:
    h.flush()
    many(1500)`, "ring-full queue-full"},
	{"not-ready", "op=read", `rule(); fails(read, "EIO")`, "injected"},
	{"unit-attention", "budget=1", `rule(); assert is_all(1)`, ""},
	{"write-protect", "", `rule(); fails(lambda: write(2), "EPERM"); assert is_all(1)`, "injected"},
	{"short-transfer", "keep=512 op=read", `rule(); fails(read, "EIO")`, "injected"},
	{"hang", "op=read", `
def armed(): return metric('vhbad_fault_rules{class="legal",state="armed"}')
assert metric("vhbad_fault_held_commands") == 0 == armed()
rule()
buf, end = nbd.Buffer(B), []
h.aio_pread(buf, 0, completion=lambda e: end.append(e.value) or 1)
while metric("vhbad_fault_held_commands") == 0: h.poll(10)
assert armed() == 1 and not end
subprocess.run([VHBAD, "fault", "release", RULE[0], "--admin", ADMIN], check=True, stdout=subprocess.DEVNULL)
while h.aio_in_flight() > 0: h.poll(-1)
assert end == [0] and buf.to_bytearray() == bytes([1]) * B
assert metric("vhbad_fault_held_commands") == 0`, ""},
	{"gate", "at=after action.for=300ms", `rule(); takes(0.3, read)`, ""},
	{"latency", "mean=200ms op=read", `rule(); takes(0.2, read)`, ""},
	{"stall", "action.for=900ms action.period=1s", `
rule()
def took():
    t = time.monotonic()
    read()
    return time.monotonic() - t
while took() < 0.5: pass`, ""},
	{"rate", "iops=10 burst-ios=1", `rule(); takes(0.3, lambda: [read() for _ in range(5)])`, ""},
	{"queue", "lanes=1 mean=100ms", `
rule()
def four():
    bufs = [nbd.Buffer(B) for _ in range(4)]
    for b in bufs: h.aio_pread(b, 0)
    while h.aio_in_flight() > 0: h.poll(-1)
takes(0.35, four)`, ""},
	{"reorder", "action.for=200ms op=read", `
rule()
order = []
bufs = [nbd.Buffer(B) for _ in range(16)]
for i, b in enumerate(bufs): h.aio_pread(b, i * B, completion=lambda e, i=i: order.append(i) or 1)
while h.aio_in_flight() > 0: h.poll(-1)
assert sorted(order) == list(range(16)) and order != sorted(order), order`, ""},
	{"cut-reply", "op=read after=20", `
mine = nbd.NBD()
mine.connect_uri(h.get_uri())
rule()
fails(lambda: mine.pread(B, 0), None) # "server disconnected unexpectedly", which has no errno
assert not mine.aio_is_ready()
h.flush()`, "injected"},
	{"slow-handshake", "action.for=300ms", `
rule()
mine = nbd.NBD()
takes(0.3, lambda: mine.connect_uri(h.get_uri()))
assert mine.pread(B, 0) == read()`, ""},
	{"reset-fails", "op=reset-lun", `
add("lost", "lost-completion", "disk=d", "op=read", "budget=1", "hostile=true")
rule()
assert is_all(1)`, "timeout reset-lun reset-target executed-again"},
	{"unplug", "action.for=500ms", `
uri = h.get_uri()
rule()
fails(read, "ESHUTDOWN")
while True: # until its connection is closed, which new ones are not before
    try:
        read()
    except nbd.Error as e:
        if e.errno in (None, "ENOTCONN", "EPIPE", "ECONNRESET"): break
        assert e.errno == "ESHUTDOWN", e
while True:
    mine = nbd.NBD()
    try:
        mine.connect_uri(uri)
        break
    except nbd.Error as e:
        assert "no export" in str(e) or "ENOENT" == e.errno, e
assert mine.pread(B, 0) == bytes([1]) * B`, ""},
	{"capacity", "size=64KiB", `
rule()
read()
fails(lambda: [read(1 << 19) for _ in range(2)], "EINVAL", "EIO")`, ""},
	{"power-cut", "op=flush power.policy=none power.off-for=300ms power.drop-connections=false", `
h.flush()
write(2)
rule()
fails(h.flush, "EIO")
while True:
    try:
        assert is_all(1) # the write was not durable
        break
    except nbd.Error as e:
        assert e.errno == "EIO", e`, "injected power-cut"},
	{"disconnect", "op=read", `rule(); fails(read, "ENOTCONN", "ESHUTDOWN", "EIO", "EINVAL"); assert not h.aio_is_ready()`, ""},
	{"flip", "", `rule(); assert not is_all(1)`, ""},
	{"rot", "offset=0 length=4KiB", `rule(); a = read(); assert a != bytes([1]) * B and a == read(); write(2); assert is_all(2)`, ""},
	{"stale-read", "offset=0 length=4KiB", `rule(); write(2); assert is_all(1)`, ""},
	{"lost-write", "", `rule(); write(2); assert is_all(1)`, ""},
	{"misdirected", "shift-blocks=8", `rule(); write(2); assert is_all(1) and is_all(2, 4096)`, ""},
	{"ignore-fua", "", `rule(); write(2, 0, nbd.CMD_FLAG_FUA); assert is_all(2)`, ""},
	{"lie-about-flush", "", `rule(); h.flush(); assert is_all(1)`, ""},
	{"lost-completion", "budget=1 op=read", `rule(); assert is_all(1)`, "timeout reset-lun executed-again"},
	{"duplicate", "op=write", `rule(); [write(2) for _ in range(20)]; assert is_all(2)`, "stale"},
	{"mistagged", "budget=1 op=read", `rule(); assert is_all(1)`, "timeout reset-lun executed-again stale"},
	{"late-completion", "budget=1 op=read action.for=10ms", `rule(); assert is_all(1)`, "timeout reset-lun stale"},
	{"dma-after-reset", "budget=1 action.for=100ms", `rule(); assert is_all(1)`, "timeout reset-lun iommu"},
	{"dma-after-completion", "action.for=100ms", `
rule()
before = metric("vhbad_iommu_faults_total")
while metric("vhbad_iommu_faults_total") == before: assert is_all(1)`, "iommu"},
	{"lost-interrupt", "budget=1 op=read", `rule(); assert is_all(1)`, "timeout reset-lun"},
	{"bad-cookie", "op=read", `rule(); fails(read, None, "EINVAL"); assert not h.aio_is_ready()`, ""},
}

// faultEffects are metrics by which faults are told apart. A name stands for the sum
// of the series whose labels match.
var faultEffects = []struct{ name, metric, labels string }{
	{"injected", "vhbad_requests_total", `result="injected"`},
	{"busy", "vhbad_port_busy_total", `reason="busy"`},
	{"queue-full", "vhbad_port_busy_total", `reason="queue_full"`},
	{"ring-full", "vhbad_miniport_queue_full_total", ""},
	{"timeout", "vhbad_port_timeouts_total", ""},
	{"abandoned", "vhbad_port_abandoned_total", ""},
	{"reset-lun", "vhbad_port_resets_total", `level="unit"`},
	{"reset-target", "vhbad_port_resets_total", `level="target"`},
	{"reset-bus", "vhbad_port_resets_total", `level="bus"`},
	{"stale", "vhbad_miniport_stale_completions_total", ""},
	{"iommu", "vhbad_iommu_faults_total", ""},
	{"power-cut", "vhbad_power_cuts_total", `trigger="rule"`},
}

// timesOut reports whether commands of a row are to run out of time.
func (row *faultRow) timesOut() bool { return slices.Contains(strings.Fields(row.effects), "timeout") }

// A faultyServer is a daemon that is to misbehave.
type faultyServer struct {
	*daemon
	admin, metrics string
}

func startFaulty(t *testing.T, flags ...string) *faultyServer {
	t.Helper()
	limits := filepath.Join(t.TempDir(), "vhbad.yaml")
	// A client may fill a ring, which has 1024 entries.
	if err := os.WriteFile(limits, []byte("limits: {requests: 4096}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	config, command := serve(t, "memory:1MiB", append([]string{
		"--disk", "other=memory:1MiB", "--disk", "cached=memory:1MiB,cache=writeback", "--hostile", "--config", limits,
	}, flags...)...)
	f := &faultyServer{daemon: start(t, config, command), admin: filepath.Join(config.folder, "admin.sock")}
	f.metrics = "http://" + httpOf(t, f.admin) + "/metrics"
	return f
}

// effects are what faultEffects have come to.
func (f *faultyServer) effects(t *testing.T) []float64 {
	t.Helper()
	out := make([]float64, len(faultEffects))
	text := scrape(t, f.metrics)
	for i, e := range faultEffects {
		out[i] = sumOf(t, text, e.metric, e.labels)
	}
	return out
}

// show shows a kind of fault to a client.
func (f *faultyServer) show(t *testing.T, row *faultRow, hostile bool) {
	t.Helper()
	disk := "d"
	if row.kind == "power-cut" {
		disk = "cached"
	}
	rule := append([]string{"f-" + row.kind, row.kind, "disk=" + disk}, strings.Fields(row.fields)...)
	if hostile {
		rule = append(rule, "hostile=true")
	}
	words, err := json.Marshal(rule)
	if err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf("VHBAD, ADMIN, METRICS, RULE = %q, %q, %q, %s\n", vhbadBinary, f.admin, f.metrics, words) +
		faultPrelude + "for i in range(16): write(1, i * B)\n" + row.script + "\n"
	before := f.effects(t)
	in := sumOf(t, scrape(t, f.metrics), "vhbad_hba_dma_bytes_total", `direction="in"`)
	run(t, "nbdsh", "-u", f.uri(disk), "-c", script)
	if n := counter(t, f.metrics, "vhbad_fault_injections_total", `export="`+disk+`".*rule="f-`+row.kind+`"`); n < 1 {
		t.Errorf("the metrics count %v injections, want one at least", n)
	}
	wanted := strings.Fields(row.effects)
	for i, e := range faultEffects {
		want := slices.Contains(wanted, e.name)
		now := f.effects(t)
		for late := time.Now().Add(time.Minute); want && now[i] == before[i] && time.Now().Before(late); {
			now = f.effects(t) // what comes late
		}
		if grown := now[i] - before[i]; (grown > 0) != want {
			t.Errorf("%s{%s} has grown by %v: is it to? %v", e.metric, e.labels, grown, want)
		}
	}
	// The snippets of kinds that have the client wait for a time-out read one
	// block: once, unless the device had executed it for nothing.
	in = sumOf(t, scrape(t, f.metrics), "vhbad_hba_dma_bytes_total", `direction="in"`) - in
	if again := slices.Contains(wanted, "executed-again"); row.timesOut() && (in >= 8192) != again {
		t.Errorf("the device has moved %v bytes for a read of 4096: has it executed it twice? want %v", in, again)
	}
	vhbadDo(t, "fault", "remove", "--all", "--admin", f.admin)
	if n := sumOf(t, scrape(t, f.metrics), "vhbad_fault_injections_total", `kind="`+row.kind+`",rule="f-`+row.kind+`"`); n < 1 {
		t.Errorf("the metrics have forgotten rule f-%s, which has gone", row.kind)
	}
	run(t, "nbdsh", "-u", f.uri("other"), "-c", "assert h.pread(1 << 20, 0) == bytearray(1 << 20)")
}

// TestFaults_EachKind shows a client of libnbd's every kind of fault there is: it sees
// what it should, it is counted, each metric that tells it from others moves and no
// other does, and the other disk is as it was. No command runs out of the minute that it
// has; TestFaults_EachTimeout has those that are to.
func TestFaults_EachKind(t *testing.T) {
	f := startFaulty(t)
	kinds := faultKinds(t)
	for i := range faultRows {
		row := &faultRows[i]
		hostile, ok := kinds[row.kind]
		if !ok {
			t.Errorf("a row for kind %q, which there is not, or a second one", row.kind)
			continue
		}
		delete(kinds, row.kind)
		if !row.timesOut() {
			t.Run(row.kind, func(t *testing.T) { f.show(t, row, hostile) })
		}
	}
	for kind := range kinds {
		t.Errorf("kind %s: want a row that shows it to a client", kind)
	}
	// What fails a reset is told to who asked for it.
	vhbadDo(t, "fault", "add", "r", "reset-fails", "op=reset-lun", "--admin", f.admin)
	if out, err := exec.CommandContext(t.Context(), vhbadBinary, "reset", "d", "--admin", f.admin).CombinedOutput(); err == nil || !strings.Contains(string(out), "reset failed") {
		t.Errorf("a reset that fails: %v\n%s", err, out)
	}
	vhbadDo(t, "fault", "remove", "--all", "--admin", f.admin)
	vhbadDo(t, "reset", "d", "--admin", f.admin)
}

// TestFaults_EachTimeout is TestFaults_EachKind for those that have commands run out of
// time: side by side, each with a daemon of its own, so that the time may be much longer
// than a loaded machine takes for the command that is sent again.
func TestFaults_EachTimeout(t *testing.T) {
	t.Parallel()
	kinds := faultKinds(t)
	for i := range faultRows {
		row := &faultRows[i]
		if !row.timesOut() {
			continue
		}
		t.Run(row.kind, func(t *testing.T) {
			t.Parallel()
			f := startFaulty(t, "--srb-timeout", "6s")
			f.show(t, row, kinds[row.kind])
		})
	}
}

// TestFaults_ResetRoad: a client of libnbd's whose command is never answered gets what it
// asked for once a reset helps, be it the bus's; if none does, it gets an error, as does
// what comes later, and the disk works again without help once the rules have gone. The
// metrics tell how far it came.
func TestFaults_ResetRoad(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		fails  string
		script string
		grow   []string
	}{
		"bus helps": {"reset-lun,reset-target", `rule(); assert is_all(1)`, []string{"timeout", "reset-lun", "reset-target", "reset-bus"}},
		"none helps": {"reset", `
rule()
fails(read, "ESHUTDOWN")
fails(read, "ESHUTDOWN")
fails(lambda: write(2), "ESHUTDOWN")
subprocess.run([VHBAD, "fault", "remove", "--all", "--admin", ADMIN], check=True, stdout=subprocess.DEVNULL)
while True:
    try:
        assert is_all(1)
        break
    except nbd.Error as e:
        assert e.errno in ("ESHUTDOWN", "EIO"), e`, []string{"timeout", "reset-lun", "reset-target", "reset-bus", "abandoned"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := startFaulty(t, "--srb-timeout", "3s", "--reset-timeout", "3s")
			vhbadDo(t, "fault", "add", "road", "reset-fails", "op="+tt.fails, "--admin", f.admin)
			script := fmt.Sprintf("VHBAD, ADMIN, METRICS, RULE = %q, %q, %q, %s\n", vhbadBinary, f.admin, f.metrics,
				`["lost", "lost-completion", "disk=d", "op=read", "budget=1", "hostile=true"]`) + faultPrelude + "for i in range(16): write(1, i * B)\n" + tt.script + "\n"
			run(t, "nbdsh", "-u", f.uri("d"), "-c", script)
			got := f.effects(t)
			for i, e := range faultEffects {
				if want := slices.Contains(tt.grow, e.name); strings.HasPrefix(e.name, "reset") || want {
					if (got[i] > 0) != want {
						t.Errorf("%s{%s} is %v: is it to be more than 0? %v", e.metric, e.labels, got[i], want)
					}
				}
			}
			if n := sumOf(t, scrape(t, f.metrics), "vhbad_fault_injections_total", `kind="reset-fails"`); n < 1 {
				t.Errorf("the metrics count %v resets that were made to fail", n)
			}
			run(t, "nbdsh", "-u", f.uri("other"), "-c", "assert h.pread(1 << 20, 0) == bytearray(1 << 20)")
		})
	}
}

// TestFaults_EachErrno has every error that a rule may give seen by a client, for each
// command that it can send, and nothing done.
func TestFaults_EachErrno(t *testing.T) {
	config, command := serve(t, "memory:1MiB")
	d := start(t, config, command)
	admin := filepath.Join(config.folder, "admin.sock")
	metrics := "http://" + httpOf(t, admin) + "/metrics"
	// The daemon says itself which there are.
	out, err := exec.CommandContext(t.Context(), vhbadBinary, "fault", "add", "r", "errno", "errno=ENONE", "--admin", admin).CombinedOutput()
	_, list, ok := strings.Cut(strings.TrimSpace(string(out)), `action.errno "ENONE": want `)
	list, _, _ = strings.Cut(list, "\n")
	if err == nil || !ok {
		t.Fatalf("an errno that there is not: %v\n%s", err, out)
	}
	errnos := strings.Split(list, ", ")
	if want := []string{"EIO", "EPERM", "ENOSPC", "EINVAL", "ESHUTDOWN"}; !slices.Equal(errnos, want) { // docs/faults.md
		t.Errorf("errnos %v, want %v", errnos, want)
	}
	calls := []struct{ op, call string }{
		{"read", "h.pread(4096, 0)"},
		{"write", "h.pwrite(bytes(4096), 0)"},
		{"flush", "h.flush()"},
		{"trim", "h.trim(4096, 0)"},
		{"zero", "h.zero(4096, 0)"},
		{"cache", "h.cache(4096, 0)"},
		{"status", "h.block_status(4096, 0, lambda *args: 0)"},
	}
	for _, errno := range errnos {
		t.Run(errno, func(t *testing.T) {
			script := "h.pwrite(bytes([1]) * 4096, 0)\n"
			injected := sumOf(t, scrape(t, metrics), "vhbad_requests_total", `result="injected"`)
			vhbadDo(t, "fault", "add", "r", "errno", "errno="+errno, "skip=1", "--admin", admin)
			want := len(calls)
			for _, c := range calls {
				if c.op == "status" && errno == "EINVAL" { // as of a unit that does not know the command
					script += "found = []\nh.block_status(8192, 0, lambda c, at, entries, e: found.extend(entries))\nassert found == [8192, 0], found\n"
					want--
					continue
				}
				script += fmt.Sprintf("try: %s\nexcept nbd.Error as e: assert e.errno == %q, (%q, e)\nelse: raise AssertionError(%q)\n", c.call, errno, c.op, c.op+" is done")
			}
			run(t, "nbdsh", "--base-allocation", "-u", d.uri("d"), "-c", script)
			vhbadDo(t, "fault", "remove", "r", "--admin", admin)
			if n := sumOf(t, scrape(t, metrics), "vhbad_requests_total", `result="injected"`) - injected; int(n) != want {
				t.Errorf("the metrics count %v requests that were answered with an injected fault, want %d", n, want)
			}
			run(t, "nbdsh", "-u", d.uri("d"), "-c", "assert h.pread(4096, 0) == bytearray(b'\\x01') * 4096")
		})
	}
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

// faultKinds are the kinds of faults there are, and whether they are hostile.
func faultKinds(t *testing.T) map[string]bool {
	t.Helper()
	var kinds []struct {
		Kind    string
		Hostile bool
	}
	if err := json.Unmarshal([]byte(vhbadDo(t, "fault", "kinds", "--json")), &kinds); err != nil {
		t.Fatal(err)
	}
	out := make(map[string]bool, len(kinds))
	for _, k := range kinds {
		out[k.Kind] = k.Hostile
	}
	return out
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

// scrape gets the metrics.
func scrape(t *testing.T, url string) string {
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
	return string(text)
}

// counter is the value of the one metric of that name whose labels match.
func counter(t *testing.T, url, name, labels string) float64 {
	t.Helper()
	text := scrape(t, url)
	values := valuesOf(t, text, name, labels)
	if len(values) == 0 {
		t.Fatalf("no %s{%s} in the metrics:\n%s", name, labels, text)
	}
	return values[0]
}

// sumOf adds up the metrics of that name whose labels match; there must be one.
func sumOf(t *testing.T, text, name, labels string) (sum float64) {
	t.Helper()
	values := valuesOf(t, text, name, labels)
	if len(values) == 0 {
		t.Fatalf("no %s{%s} in the metrics:\n%s", name, labels, text)
	}
	for _, v := range values {
		sum += v
	}
	return sum
}

func valuesOf(t *testing.T, text, name, labels string) (values []float64) {
	t.Helper()
	expression := `(?m)^` + name + `(?:\{.*` + labels + `.*\})? (\S+)$`
	if labels != "" {
		expression = strings.Replace(expression, ")?", ")", 1)
	}
	for _, match := range regexp.MustCompile(expression).FindAllStringSubmatch(text, -1) {
		n, err := strconv.ParseFloat(match[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		values = append(values, n)
	}
	return values
}
