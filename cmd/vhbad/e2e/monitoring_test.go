//go:build interop

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Where the dashboards and rules are that the tests try.
const (
	grafanaFolder    = "../../../deploy/grafana"
	prometheusFolder = "../../../deploy/prometheus"
)

// dataTimeout is how long the expressions may take to have data.
const dataTimeout = 90 * time.Second

func TestMonitoring_Rules(t *testing.T) {
	file := func(name string) string { return filepath.Join(prometheusFolder, name) }
	tests, err := filepath.Glob(file("tests/*_test.yml"))
	if err != nil || len(tests) == 0 {
		t.Fatalf("tests of rules: got %v, %v", tests, err)
	}
	run(t, "promtool", "check", "config", file("prometheus.yml"))
	run(t, "promtool", "check", "rules", "--lint-fatal", file("rules.yml"), file("alerts.yml"))
	run(t, "promtool", append([]string{"test", "rules"}, tests...)...)
}

// Every expression of every panel, variable, annotation and rule gives data when a
// real Prometheus watches a daemon under load.
func TestMonitoring_EveryExpressionHasData(t *testing.T) {
	folder := socketFolder(t)
	if err := makeCertificates(folder); err != nil {
		t.Fatal(err)
	}
	config := newServerConfig(t, "tcp", "memory:64MiB")
	config.extra = []string{
		"--disk", "quiet=memory:16MiB,cache=writeback,trace=" + filepath.Join(t.TempDir(), "quiet.trace"),
		"--disk", "file=file:" + filepath.Join(t.TempDir(), "image") + ",size=16MiB,cache=writeback",
		"--tls-certificates", folder, "--tls", "optional", "--verify",
	}
	d := startDaemon(t, config)
	watched := awaitMatch(t, d, regexp.MustCompile(`"http":"([^"]+)"`))
	checkMetrics(t, watched)
	p := startPrometheus(t, watched)

	p.await(t, []wanted{{"the first scrape", `up{job="vhbad"} == 1`}, {"the counters before the load", "vhbad_requests_total"}})
	stop := load(t, d)
	nbdsh(t, d.uri("quiet"), "requests.py") // each command, and errors; it reads back what it wrote, so no load there
	run(t, vhbadBinary, "fault", "add", "tail", "latency", "disk=file", "op=read", "mean=1ms", "probability=0.2",
		"--admin", filepath.Join(config.folder, "admin.sock"))
	stopCuts := powerCuts(t, config.folder, "quiet")

	all := []wanted{
		{"load", `rate(vhbad_requests_total{op="read", result="ok"}[10s]) > 0`},
		{"errors", `increase(vhbad_requests_total{op="read", result="error"}[1m]) > 0`},
	}
	all = append(all, dashboardExpressions(t)...)
	all = append(all, p.ruleExpressions(t)...)
	p.await(t, all)
	p.healthyRules(t)
	stopCuts()
	stop()
}

// powerCuts cuts the power of a disk every second until its result is called.
func powerCuts(t *testing.T, folder, disk string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		again := time.NewTicker(time.Second)
		defer again.Stop()
		for {
			cut := exec.Command(vhbadBinary, "power", "cut", disk, "--admin", filepath.Join(folder, "admin.sock"))
			if out, err := cut.CombinedOutput(); err != nil {
				t.Errorf("%s: %v\n%s", cut, err, out)
				return
			}
			select {
			case <-again.C:
			case <-ctx.Done():
				return
			}
		}
	}()
	stop = func() {
		cancel()
		<-done
	}
	t.Cleanup(stop)
	return stop
}

// load keeps two disks busy until its result is called.
func load(t *testing.T, d *daemon) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	progress := newOutput()
	var jobs []*exec.Cmd
	for _, export := range []string{exportName, "file"} {
		// Gently: the machine has other tests to run.
		fio := peer(ctx, t, "fio", "--name=load", "--ioengine=nbd", "--uri="+d.uri(export), "--rw=randrw", "--bs=4k", "--fsync=8", "--thread",
			"--iodepth=8", "--size=16m", "--rate_iops=200", "--time_based", "--runtime=600", "--status-interval=200ms")
		fio.Stdout, fio.Stderr = progress, progress
		if err := fio.Start(); err != nil {
			t.Fatal(err)
		}
		jobs = append(jobs, fio)
	}
	var ended bool
	stop = func() {
		if ended {
			return
		}
		ended = true
		cancel()
		for _, fio := range jobs {
			if err := fio.Wait(); err == nil {
				t.Errorf("fio ended by itself:\n%s", progress)
			}
		}
	}
	t.Cleanup(stop)
	awaitLoad(t, progress)
	return stop
}

// awaitMatch waits until the server has printed what the form matches, and returns
// the first group.
func awaitMatch(t *testing.T, d *daemon, form *regexp.Regexp) string {
	t.Helper()
	match, err := watchFor(d.output, d.exited, form)
	if err != nil {
		t.Fatalf("server: %v\n%s", err, d.output)
	}
	return match
}

func watchFor(o *output, exited <-chan struct{}, form *regexp.Regexp) (string, error) {
	timeout := time.After(startTimeout)
	for {
		text, more := o.snapshot()
		if match := form.FindStringSubmatch(text); match != nil {
			return match[1], nil
		}
		select {
		case <-more:
		case <-exited:
			return "", errors.New("it ended")
		case <-timeout:
			return "", fmt.Errorf("it has not printed %s after %v", form, startTimeout)
		}
	}
}

// checkMetrics has promtool judge one scrape.
func checkMetrics(t *testing.T, watched string) {
	t.Helper()
	scrape, err := get(t.Context(), "http://"+watched+"/metrics")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
	defer cancel()
	command := peer(ctx, t, "promtool", "check", "metrics")
	command.Stdin = bytes.NewReader(scrape)
	if out, err := command.CombinedOutput(); err != nil {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
}

func get(ctx context.Context, address string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, http.NoBody)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(response.Body)
	if err := errors.Join(err, response.Body.Close()); err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s: %s", address, response.Status, body)
	}
	return body, nil
}

// A prometheus is a server with our rules that watches one daemon.
type prometheus struct{ base string }

func startPrometheus(t *testing.T, watched string) prometheus {
	t.Helper()
	folder := t.TempDir()
	rules, err := filepath.Abs(prometheusFolder)
	if err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf(`
global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}
rule_files: [%q, %q]
scrape_configs:
  - job_name: vhbad
    static_configs: [{targets: [%q]}]
`, filepath.Join(rules, "rules.yml"), filepath.Join(rules, "alerts.yml"), watched)
	path := filepath.Join(folder, "prometheus.yml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	out := newOutput()
	command := exec.Command(tool(t, "prometheus"), "--config.file="+path,
		"--storage.tsdb.path="+filepath.Join(folder, "data"), "--web.listen-address=127.0.0.1:0")
	command.Stdout, command.Stderr = out, out
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	var exitErr error
	go func() {
		exitErr = command.Wait()
		close(exited)
	}()
	t.Cleanup(func() {
		if err := command.Process.Signal(syscall.SIGTERM); err != nil {
			t.Errorf("SIGTERM to Prometheus: %v", err)
		}
		select {
		case <-exited:
			if exitErr != nil {
				t.Errorf("Prometheus after SIGTERM: %v", exitErr)
			}
		case <-time.After(stopTimeout):
			t.Errorf("Prometheus still runs %v after SIGTERM", stopTimeout)
			if err := command.Process.Kill(); err != nil {
				t.Error(err)
			}
			<-exited
		}
		if t.Failed() {
			t.Logf("output of Prometheus:\n%s", out)
		}
	})
	// The first such line has the address that was asked for, the second the real one.
	address, err := watchFor(out, exited, regexp.MustCompile(`msg="Listening on" address=(\S+)`))
	if err != nil {
		t.Fatalf("Prometheus: %v\n%s", err, out)
	}
	return prometheus{base: "http://" + address}
}

// api asks for a part of Prometheus' API and reads the data of its answer.
func (p prometheus) api(ctx context.Context, path string, data any) error {
	body, err := get(ctx, p.base+"/api/v1/"+path)
	if err != nil {
		return err
	}
	answer := struct {
		Data any `json:"data"`
	}{data}
	return json.Unmarshal(body, &answer)
}

// A wanted is an expression that must have data.
type wanted struct{ where, expr string }

// await waits until every expression has had data once.
func (p prometheus) await(t *testing.T, all []wanted) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), dataTimeout)
	defer cancel()
	again := time.NewTicker(500 * time.Millisecond)
	defer again.Stop()
	count := len(all)
	for {
		var left []wanted
		var last error
		for _, w := range all {
			ok, err := p.hasData(ctx, w.expr)
			if err != nil {
				last = fmt.Errorf("%s: %w", w.expr, err)
			}
			if !ok {
				left = append(left, w)
			}
		}
		if all = left; len(all) == 0 {
			return
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			for _, w := range all {
				t.Errorf("no data after %v: %s: %s", dataTimeout, w.where, w.expr)
			}
			t.Fatalf("%d of %d expressions have no data; last error: %v", len(all), count, last)
		}
	}
}

// hasData says whether the answer to a query has a number in it.
func (p prometheus) hasData(ctx context.Context, expr string) (bool, error) {
	var data struct {
		ResultType string `json:"resultType"`
		Result     []struct {
			Value [2]any `json:"value"` // seconds, "number"
		} `json:"result"`
	}
	if err := p.api(ctx, "query?query="+url.QueryEscape(expr), &data); err != nil {
		return false, err
	}
	if data.ResultType != "vector" {
		return false, fmt.Errorf("a %s, want a vector", data.ResultType)
	}
	for _, r := range data.Result {
		text, _ := r.Value[1].(string)
		if value, err := strconv.ParseFloat(text, 64); err == nil && value == value { // not NaN
			return true, nil
		}
	}
	return false, nil
}

// chosen stands for what a viewer of a dashboard has chosen.
var chosen = strings.NewReplacer(
	"$job", "vhbad", "$instance", ".+", "$export", ".+", "$__rate_interval", "10s", "$__range", "1m",
)

// labelValues is the query of a variable.
var labelValues = regexp.MustCompile(`^label_values\((.+), (\w+)\)$`)

// dashboardExpressions are those of all panels, variables and annotations.
func dashboardExpressions(t *testing.T) []wanted {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(grafanaFolder, "*.json"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("dashboards: got %v, %v", paths, err)
	}
	var all []wanted
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var board struct {
			Panels []struct {
				Title   string `json:"title"`
				Targets []struct {
					Expr string `json:"expr"`
				} `json:"targets"`
			} `json:"panels"`
			Annotations struct {
				List []struct {
					Name string `json:"name"`
					Expr string `json:"expr"`
				} `json:"list"`
			} `json:"annotations"`
			Templating struct {
				List []struct{ Name, Type, Query string } `json:"list"`
			} `json:"templating"`
		}
		if err := json.Unmarshal(text, &board); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		before := len(all)
		for _, p := range board.Panels {
			for _, q := range p.Targets {
				all = append(all, wanted{filepath.Base(path) + ": " + p.Title, chosen.Replace(q.Expr)})
			}
		}
		if len(all) == before {
			t.Errorf("%s has no query", path)
		}
		for _, a := range board.Annotations.List {
			all = append(all, wanted{filepath.Base(path) + ": annotation " + a.Name, chosen.Replace(a.Expr)})
		}
		for _, v := range board.Templating.List {
			if v.Type != "query" {
				continue
			}
			match := labelValues.FindStringSubmatch(chosen.Replace(v.Query))
			if match == nil {
				t.Errorf("%s: variable %s: %s is no label_values", path, v.Name, v.Query)
				continue
			}
			// Series that have the label, and not an empty one.
			all = append(all, wanted{
				filepath.Base(path) + ": variable " + v.Name,
				"count(count by (" + match[2] + ") (" + match[1] + ") and count by (" + match[2] + ") ({" + match[2] + `!="",__name__=~"vhbad_.+"}))`,
			})
		}
	}
	return all
}

// A rule as Prometheus has loaded it.
type rule struct {
	Type      string `json:"type"` // "recording" or "alerting"
	Name      string `json:"name"`
	Query     string `json:"query"`
	Health    string `json:"health"`
	LastError string `json:"lastError"`
}

func (p prometheus) rules(t *testing.T) []rule {
	t.Helper()
	var data struct {
		Groups []struct {
			Rules []rule `json:"rules"`
		} `json:"groups"`
	}
	if err := p.api(t.Context(), "rules", &data); err != nil {
		t.Fatal(err)
	}
	var all []rule
	for _, g := range data.Groups {
		all = append(all, g.Rules...)
	}
	if len(all) == 0 {
		t.Fatal("Prometheus has loaded no rules")
	}
	return all
}

// series is a metric with its matchers.
var series = regexp.MustCompile(`\b(?:up|(?:\w+:)?(?:vhbad|go|process)_\w+(?::\w+)?)\b(?:\{[^}]*\})?`)

// ruleExpressions are those of recording rules, what they record, and what alerts
// look at: their conditions have no data as long as all is well.
func (p prometheus) ruleExpressions(t *testing.T) []wanted {
	t.Helper()
	var all []wanted
	for _, r := range p.rules(t) {
		if r.Type == "recording" {
			all = append(all, wanted{"rule", r.Query}, wanted{"record", r.Name})
			continue
		}
		selectors := series.FindAllString(r.Query, -1)
		if len(selectors) == 0 {
			t.Errorf("alert %s looks at nothing: %s", r.Name, r.Query)
		}
		for _, s := range selectors {
			all = append(all, wanted{"alert " + r.Name, s})
		}
	}
	return all
}

// healthyRules waits until every rule was evaluated, and fails if one could not be.
func (p prometheus) healthyRules(t *testing.T) {
	t.Helper()
	timeout := time.After(dataTimeout)
	again := time.NewTicker(500 * time.Millisecond)
	defer again.Stop()
	for {
		waits := ""
		for _, r := range p.rules(t) {
			switch r.Health {
			case "ok":
			case "unknown":
				waits = r.Name
			default:
				t.Errorf("rule %s is %s: %s", r.Name, r.Health, r.LastError)
			}
		}
		if waits == "" || t.Failed() {
			return
		}
		select {
		case <-again.C:
		case <-timeout:
			t.Fatalf("rule %s was not evaluated within %v", waits, dataTimeout)
		}
	}
}
