package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/vhbad/vhbad/client"
)

// wrongRules are rules that cannot be right, in the form of a configuration and in that of
// a command line, with what all three ways to set them must say: the value, and what is
// allowed.
var wrongRules = []struct{ rule, words, want string }{
	{`action: {kind: explode}`, `explode`, `action.kind "explode": want status, errno, medium-error`},
	{`action: {kind: busy, errno: EIO}`, `busy errno=EIO`, `action.errno does not belong to busy: its fields are none`},
	{`action: {kind: errno}`, `errno`, `action.errno is missing: errno needs it`},
	{`action: {kind: errno, errno: ENOENT}`, `errno errno=ENOENT`, `action.errno "ENOENT": want EIO, EPERM, ENOSPC, EINVAL, ESHUTDOWN`},
	{`action: {kind: status, status: lazy}`, `status status=lazy`, `action.status "lazy": want check-condition, condition-met`},
	{`action: {kind: status, sense: {key: lazy}}`, `status key=lazy`, `action.sense.key "lazy": want a number below 16, or no-sense`},
	{`action: {kind: status, sense: {key: 3, asc: 256}}`, `status key=3 asc=256`, `action.sense.asc 256: want a whole number from 0 to 255`},
	// Units.
	{`action: {kind: hang, for: 5}`, `hang action.for=5`, `duration "5": want numbers with a unit of ns, us, ms, s, m or h`},
	{`action: {kind: hang, for: 5 fortnights}`, `hang|action.for=5 fortnights`, `duration "5 fortnights": want numbers with a unit`},
	{`action: {kind: hang, for: -1s}`, `hang action.for=-1s`, `duration "-1s": want numbers with a unit`},
	{`action: {kind: latency, latency: {mean: 10%}}`, `latency mean=10%`, `duration "10%": want numbers with a unit`},
	{`action: {kind: rate, bytes-per-second: 1MB}`, `rate bytes-per-second=1MB`, `size "1MB": unit "MB" is not known: want a whole number of bytes, or one with KiB`},
	{`action: {kind: rate, bytes-per-second: -1}`, `rate bytes-per-second=-1`, `size "-1": want a whole number of bytes`},
	{`action: {kind: busy}, match: {offset: 1.5MiB}`, `busy offset=1.5MiB`, `size "1.5MiB": unit ".5MiB" is not known: want a whole number of bytes`},
	// Numbers.
	{`action: {kind: busy}, match: {probability: 1.5}`, `busy probability=1.5`, `match.probability 1.5: want 0 to 1`},
	{`action: {kind: busy}, match: {probability: -0.1}`, `busy probability=-0.1`, `match.probability -0.1: want 0 to 1`},
	{`action: {kind: busy}, match: {probability: "often"}`, `busy probability=often`, `want a number`},
	{`action: {kind: busy}, match: {skip: -1}`, `busy skip=-1`, `match.skip -1: want a whole number from 0`},
	{`action: {kind: busy}, match: {every: 2.5}`, `busy every=2.5`, `match.every 2.5: want a whole number from 0`},
	{`action: {kind: busy}, match: {lba: 1.5}`, `busy lba=1.5`, `match.lba 1.5: want a whole number from 0`},
	{`action: {kind: busy}, match: {connection: 300}`, `busy connection=300`, `match.connection 300: want 1 to 63`},
	{`action: {kind: busy}, match: {fua: 7}`, `busy fua=7`, `match.fua 7: want true or false`},
	{`action: {kind: busy}, budget: -1`, `busy budget=-1`, `budget -1: want a whole number from 0`},
	{`action: {kind: queue, lanes: 5000, latency: {mean: 1ms}}`, `queue lanes=5000 mean=1ms`, `action.lanes 5000: want 1 to 4096`},
	{`action: {kind: flip, bits: 5000}, hostile: true`, `flip bits=5000 hostile=true`, `action.bits 5000: want at most 4096`},
	{`action: {kind: medium-error, share: 2}, match: {lba: 0}`, `medium-error share=2 lba=0`, `action.share 2: want more than 0 and at most 1`},
	// Times.
	{`action: {kind: latency, latency: {distribution: gauss}}`, `latency distribution=gauss`, `action.latency.distribution "gauss": want fixed, normal, lognormal, bimodal, table`},
	{`action: {kind: latency, latency: {distribution: table, table: [{at: 0, latency: 0s}, {at: 0.5}]}}`, `latency|distribution=table|table=[{at: 0, latency: 0s}, {at: 0.5}]`, `action.latency.table[1].latency`},
	{`action: {kind: latency, latency: {distribution: table, table: [{latency: 1ms}]}}`, `latency|distribution=table|table=[{latency: 1ms}]`, `action.latency.table[0].at`},
	{`action: {kind: latency, latency: {mean: 1ms, sigma: 2}}`, `latency mean=1ms sigma=2`, `action.latency.sigma: distribution fixed takes mean, and no more or less`},
	{`action: {kind: latency, latency: {mean: 25h}}`, `latency mean=25h`, `latency of 25h0m0s: want at most 24h0m0s`},
	{`action: {kind: latency, at: never, latency: {mean: 1s}}`, `latency at=never mean=1s`, `action.at "never": want before or after`},
	{`action: {kind: stall, for: 2s, period: 1s}`, `stall action.for=2s action.period=1s`, `action.for 2s: want less than action.period, 1s`},
	{`action: {kind: rate, iops: 5, burst: 1MiB}`, `rate iops=5 burst=1MiB`, `action.burst 1MiB without action.bytes-per-second: want both`},
	{`action: {kind: busy}, match: {period: 1s}`, `busy match.period=1s`, `match.period 1s: want a match.for of at most that`},
	// Matches.
	{`action: {kind: busy}, match: {op: eat}`, `busy op=eat`, `match.op "eat": want read, write, flush`},
	{`action: {kind: lie-about-flush}, match: {op: write}, hostile: true`, `lie-about-flush op=write hostile=true`, `match.op write: lie-about-flush is for flush only`},
	{`action: {kind: busy}, match: {op: flush, lba: 1}`, `busy op=flush lba=1`, `match.op flush has no range of blocks: want none of offset, length, lba and blocks`},
	{`action: {kind: busy}, match: {length: 4KiB}`, `busy length=4KiB`, `match.length without match.offset: want both`},
	{`action: {kind: busy}, match: {after-rule: nobody}`, `busy after-rule=nobody`, `match.after-rule "nobody": no rule has this name`},
	{`action: {kind: busy}, match: {after-rule: x}`, `busy after-rule=x`, `match.after-rule is the rule itself`},
	// Disks.
	{`action: {kind: busy}, disk: e`, `busy disk=e`, `disk "e": there is none of this name: want d, or none for every disk`},
	{`action: {kind: busy}, match: {offset: 1MiB}`, `busy offset=1MiB`, `the range begins at block 2048, and disk "d" has 2048 blocks of 512 bytes`},
	{`action: {kind: busy}, disk: d, match: {lba: 1000000}`, `busy disk=d lba=1000000`, `the range begins at block 1000000, and disk "d" has 2048 blocks of 512 bytes`},
	{`action: {kind: capacity, size: 1MiB}, disk: d`, `capacity size=1MiB disk=d`, `action.size 1MiB: the disk is too small: disk "d" has 1MiB: want less`},
	{`action: {kind: power-cut}`, `power-cut`, `the disk has no write cache, so it would lose nothing: serve it with cache=writeback`},
	{`action: {kind: power-cut, power: {policy: most}}`, `power-cut policy=most`, `action.power.policy "most": want subset, none, all`},
	// Words that have to be said.
	{`action: {kind: lost-write}`, `lost-write`, "action.kind lost-write is hostile: no correct drive does it; say `hostile: true` if that is meant"},
	{`action: {kind: lost-write}, hostile: true`, `lost-write hostile=true`, `hostile rules are not allowed: start the daemon with --hostile`},
}

// TestFault_Wrong: the error about a rule that cannot be right says which value is wrong
// and what is allowed, whether the rule is in a configuration, in a request or on a command
// line; and the rule is not in force.
func TestFault_Wrong(t *testing.T) {
	dir := t.TempDir()
	adminPath := filepath.Join(dir, "a.sock")
	cmd, stderr := startServe(t, "--admin", adminPath, "--listen", "unix://"+filepath.Join(dir, "n.sock"), "--disk", "d=memory:1MiB")
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // nothing else ends it
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(stderr)
		}
	})
	web := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", adminPath)
	}}}
	t.Cleanup(web.CloseIdleConnections)
	for _, tt := range wrongRules {
		t.Run(tt.words, func(t *testing.T) {
			hears := func(way, got string, isWrong bool) {
				t.Helper()
				if !isWrong || !strings.Contains(got, tt.want) {
					t.Errorf("%s: refused: %v\n got %s\nwant %s", way, isWrong, got, tt.want)
				}
			}
			path := filepath.Join(t.TempDir(), "c.yaml")
			text := "disks: [{name: d, memory: 1MiB}]\nfaults: [{name: x, " + tt.rule + "}]\n"
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			serve := exec.Command("vhbad", "serve", "--config", path, "--admin", "none", "--http", "none", "--listen", "unix://"+filepath.Join(t.TempDir(), "n"))
			out, err := serve.CombinedOutput()
			hears("configuration", string(out), err != nil)
			var checked strings.Builder
			code := run(t.Context(), []string{"config", "check", path}, io.Discard, &checked)
			hears("config check", checked.String(), code == exitUsage)

			body := map[string]any{}
			if err := yaml.Unmarshal([]byte("{"+tt.rule+"}"), &body); err != nil {
				t.Fatal(err)
			}
			b, err := json.Marshal(body)
			if err != nil {
				t.Fatal(err)
			}
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://vhbad/v1/faults/x", bytes.NewReader(b))
			if err != nil {
				t.Fatal(err)
			}
			res, err := web.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = res.Body.Close() }()
			answer, err := io.ReadAll(res.Body)
			if err != nil {
				t.Fatal(err)
			}
			var p client.Problem
			if err := json.Unmarshal(answer, &p); err != nil {
				t.Fatal(err)
			}
			hears("API", p.Message, res.StatusCode == http.StatusBadRequest || res.StatusCode == http.StatusConflict)

			words := strings.FieldsFunc(tt.words, func(r rune) bool { return r == '|' })
			if len(words) == 1 {
				words = strings.Fields(tt.words)
			}
			var stdout, stderr strings.Builder
			code = run(t.Context(), append([]string{"fault", "add", "--admin", adminPath, "x"}, words...), &stdout, &stderr)
			hears("command line", stderr.String(), code == exitUsage || code == exitConflict)
		})
	}
	c := client.New(adminPath)
	defer c.Close()
	if all, err := c.Faults(t.Context()); err != nil || len(all.Faults) != 0 {
		t.Errorf("rules in force: %+v, %v, want none", all, err)
	}
}
