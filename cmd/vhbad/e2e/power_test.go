//go:build interop

package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	api "github.com/vhbad/vhbad/client"
)

// powerPrelude is what the snippets of these tests have besides faultPrelude.
const powerPrelude = faultPrelude + `
import subprocess
def vhbad(*args): subprocess.run(VHBAD[:1] + list(args) + VHBAD[1:], check=True, stdout=subprocess.DEVNULL)
def gone(fn):
    try:
        fn()
    except nbd.Error:
        assert not h.aio_is_ready(), "an error, but the connection is there"
        return
    raise AssertionError("answered, though the power went")
def until_gone(fn):
    while h.aio_is_ready():
        try: fn()
        except nbd.Error: pass
`

// powerScript is a snippet for nbdsh, with the command line of vhbad at hand.
func powerScript(t *testing.T, admin, script string) string {
	t.Helper()
	words, err := json.Marshal([]string{vhbadBinary, "--admin", admin})
	if err != nil {
		t.Fatal(err)
	}
	return "VHBAD = " + string(words) + "\n" + powerPrelude + script + "\n"
}

// wantBlocks checks what the 4096 bytes at some offsets are, byte for byte.
func wantBlocks(t *testing.T, uri string, blocks map[int64]byte) {
	t.Helper()
	script := faultPrelude
	for off, b := range blocks {
		script += fmt.Sprintf("assert is_all(%d, %d), read(%[2]d)[:1]\n", b, off)
	}
	run(t, "nbdsh", "-u", uri, "-c", script)
}

// TestPower_RulesThatLie: where a rule answers a flush in the disk's place, or
// drops FUA, a power cut takes what was promised, and the report says who lied. The
// same without the rule keeps it.
func TestPower_RulesThatLie(t *testing.T) {
	config, command := serve(t, "memory:1MiB,cache=writeback", "--hostile")
	d := start(t, config, command)
	admin := filepath.Join(config.folder, "admin.sock")
	for _, tt := range []struct{ name, kind, script, act string }{
		{"flush", "", "write(2); h.flush()", ""},
		{"flush, by a lie", "lie-about-flush", "write(2); h.flush()", "lying-flush"},
		{"FUA", "", "write(2, 0, nbd.CMD_FLAG_FUA)", ""},
		{"FUA, ignored", "ignore-fua", "write(2, 0, nbd.CMD_FLAG_FUA)", "ignored-fua"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			run(t, "nbdsh", "-u", d.uri("d"), "-c", powerScript(t, admin, "write(1); h.flush()"))
			if tt.kind != "" {
				vhbadDo(t, "fault", "add", "lie", tt.kind, "disk=d", "hostile=true", "--admin", admin)
				defer vhbadDo(t, "fault", "remove", "lie", "--admin", admin)
			}
			run(t, "nbdsh", "-u", d.uri("d"), "-c", powerScript(t, admin, tt.script+"; assert is_all(2)"))
			var r api.PowerReport
			if err := json.Unmarshal([]byte(vhbadDo(t, "power", "cut", "d", "--policy", "none", "--json", "--admin", admin)), &r); err != nil {
				t.Fatal(err)
			}
			class, acts, left := "legal", map[string]int(nil), byte(2)
			if tt.act != "" {
				class, acts, left = "hostile", map[string]int{tt.act: 8}, 1
			}
			if r.Class != class || !maps.Equal(r.Acts, acts) {
				t.Errorf("the power cut was %s: %v, want %s: %v", r.Class, r.Acts, class, acts)
			}
			if len(r.Findings) != acts[tt.act] || len(r.Findings) > 0 && (r.Findings[0].Act != tt.act || r.Findings[0].Write == 0) {
				t.Errorf("findings: %+v", r.Findings)
			}
			wantBlocks(t, d.uri("d"), map[int64]byte{0: left})
		})
	}
}

// TestPower_Triggers cuts the power by a rule of each trigger, under a client that
// then finds its connection gone, and looks at the report and at what is left.
func TestPower_Triggers(t *testing.T) {
	config, command := serve(t, "memory:1MiB,cache=writeback")
	d := start(t, config, command)
	admin := filepath.Join(config.folder, "admin.sock")
	a := api.New(admin)
	defer a.Close()
	cuts := uint64(0)
	for _, tt := range []struct {
		name, fields, script string
		pending              []int64 // offsets of the writes that were pending
		flushes              int     // that were answered since the last cut
		left                 map[int64]byte
	}{
		{"third write", "op=write skip=2", "rule(); write(2); write(3, B); gone(lambda: write(4, 2 * B))", []int64{0, 4096}, 0, nil},
		{"third write, after it", "op=write skip=2 at=after", "rule(); write(2); write(3, B); gone(lambda: write(4, 2 * B))", []int64{0, 4096, 8192}, 0, nil},
		{"second flush", "op=flush skip=1", "rule(); write(2); h.flush(); write(3, B); gone(h.flush)", []int64{4096}, 1, map[int64]byte{0: 2}},
		{"second flush, after it", "op=flush skip=1 at=after", "rule(); write(2); h.flush(); write(3, B); gone(h.flush)", nil, 2, map[int64]byte{0: 2, 4096: 3}},
		{"FUA", "op=write fua=true", "rule(); write(2); gone(lambda: write(3, B, nbd.CMD_FLAG_FUA))", []int64{0}, 0, nil},
		{"FUA, after it", "op=write fua=true at=after", "rule(); write(2); gone(lambda: write(3, B, nbd.CMD_FLAG_FUA))", []int64{0}, 0, map[int64]byte{4096: 3}},
		{"LBA", "op=write lba=16 blocks=8", "rule(); write(2); write(3, B); gone(lambda: write(4, 2 * B))", []int64{0, 4096}, 0, nil},
		{"mark", "op=mark at-mark=here", "rule(); write(2); vhbad('mark', 'there'); assert is_all(2); vhbad('mark', 'here'); until_gone(read)", []int64{0}, 0, nil},
		{"time", "op=time start=50ms", "write(2); rule(); until_gone(read)", []int64{0}, 0, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			run(t, "nbdsh", "-u", d.uri("d"), "-c", powerScript(t, admin, "for i in range(3): write(1, i * B)\nh.flush()"))
			before, err := a.Power(t.Context(), "d")
			if err != nil {
				t.Fatal(err)
			}
			var words []string
			for _, w := range append([]string{"fault", "add", "cut", "power-cut", "disk=d", "budget=1", "power.policy=none", "power.seed=7"}, strings.Fields(tt.fields)...) {
				words = append(words, "'"+w+"'")
			}
			run(t, "nbdsh", "-u", d.uri("d"), "-c", powerScript(t, admin, "def rule(): vhbad("+strings.Join(words, ", ")+")\n"+tt.script))
			cuts++
			power := before
			for power.Cuts < cuts || !power.On { // the client knows before the power is back
				runtime.Gosched()
				if power, err = a.Power(t.Context(), "d"); err != nil {
					t.Fatal(err)
				}
			}
			r := power.Reports[len(power.Reports)-1]
			if r.Number != cuts || r.Trigger != "rule cut" || r.Policy != "none" || r.Seed != 7 || r.DroppedConnections != 1 {
				t.Errorf("report %d of %s: policy %s, seed %d, %d connections dropped", r.Number, r.Trigger, r.Policy, r.Seed, r.DroppedConnections)
			}
			if r.Class != "legal" || len(r.Acts) != 0 || r.CheckedSectors < 24 {
				t.Errorf("it was %s, %v, and %d sectors were checked, want those of three blocks", r.Class, r.Acts, r.CheckedSectors)
			}
			if n := 8 * len(tt.pending); r.Sectors.Pending != n || r.Sectors.Lost != n || len(r.Writes) != len(tt.pending) {
				t.Errorf("sectors: %+v, writes: %+v", r.Sectors, r.Writes)
			}
			for i, off := range tt.pending[:min(len(tt.pending), len(r.Writes))] {
				if w := r.Writes[i]; w.OffsetBytes != off || w.LengthBytes != 4096 || w.Fate != "lost" || !w.Acknowledged {
					t.Errorf("write %d: %+v, want one at %d that is lost", i, w, off)
				}
			}
			flushes := 0
			for _, f := range r.Flushes {
				if len(before.Reports) == 0 || f.Time.After(before.Reports[len(before.Reports)-1].Time) {
					flushes++
				}
			}
			if flushes != 1+tt.flushes { // and the one above
				t.Errorf("flushes: %+v, want %d since the last cut", r.Flushes, 1+tt.flushes)
			}
			left := map[int64]byte{0: 1, 4096: 1, 8192: 1}
			maps.Copy(left, tt.left)
			wantBlocks(t, d.uri("d"), left)
			vhbadDo(t, "fault", "remove", "cut", "--admin", admin)
		})
	}
}

// TestPower_HeldWriteIsForgotten: a write that a rule holds when the power goes does
// not overwrite, when it is let go, what the next client has written and flushed. Nor does
// that client wait for it to time out, which takes longer than commands of a test may.
func TestPower_HeldWriteIsForgotten(t *testing.T) {
	config, command := serve(t, "memory:1MiB,cache=writeback", "--srb-timeout", "1h")
	d := start(t, config, command)
	admin := filepath.Join(config.folder, "admin.sock")
	vhbadDo(t, "fault", "add", "hold", "hang", "disk=d", "op=write", "budget=1", "--admin", admin)
	run(t, "nbdsh", "-u", d.uri("d"), "-c", powerScript(t, admin, `
h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([2]) * B), 0)
assert is_all(0) # which the disk has answered after it got the write
vhbad("power", "cut", "d", "--drop-connections")
until_gone(read)`))
	run(t, "nbdsh", "-u", d.uri("d"), "-c", powerScript(t, admin, `write(3); h.flush(); vhbad("fault", "release", "hold"); assert is_all(3)`))
	vhbadDo(t, "power", "cut", "d", "--policy", "all", "--admin", admin)
	wantBlocks(t, d.uri("d"), map[int64]byte{0: 3})
}
