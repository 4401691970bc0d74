package grafana

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// Files of deploy/prometheus that hold rules and what they are tested with.
var (
	ruleFiles = []string{"deploy/prometheus/rules.yml", "deploy/prometheus/alerts.yml"}
	testFiles = "deploy/prometheus/tests/*_test.yml"
)

// A rule is a recording rule or an alert.
type rule struct {
	Record      string            `yaml:"record"`
	Alert       string            `yaml:"alert"`
	Expr        string            `yaml:"expr"`
	For         string            `yaml:"for"`
	Labels      map[string]string `yaml:"labels"`
	Annotations map[string]string `yaml:"annotations"`
}

// readYAML reads a file of the repository, and refuses keys that v does not have.
func readYAML(t *testing.T, path string, v any) {
	t.Helper()
	f, err := os.Open(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}()
	d := yaml.NewDecoder(f)
	d.KnownFields(true)
	if err := d.Decode(v); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

func rules(t *testing.T) (all []rule, recorded map[string]bool) {
	t.Helper()
	recorded = make(map[string]bool)
	for _, path := range ruleFiles {
		var f struct {
			Groups []struct {
				Name  string `yaml:"name"`
				Rules []rule `yaml:"rules"`
			} `yaml:"groups"`
		}
		readYAML(t, path, &f)
		for _, g := range f.Groups {
			all = append(all, g.Rules...)
		}
	}
	for _, r := range all {
		if r.Record != "" {
			recorded[r.Record] = true
		}
	}
	return all, recorded
}

// Names of recorded metrics: the labels that are left, the metric, what was done.
var recordForm = regexp.MustCompile(`^[a-z_]+:vhbad_[a-z_]+:[a-z0-9_]+$`)

func TestRules(t *testing.T) {
	known := metrics(t)
	all, recorded := rules(t)
	guide, err := os.ReadFile(filepath.Join(root, "docs/monitoring.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range all {
		name := r.Record + r.Alert
		checkExpr(t, name, r.Expr, known, recorded)
		if r.Record != "" {
			if !recordForm.MatchString(r.Record) {
				t.Errorf("%s: want LEVEL:METRIC:OPERATIONS", name)
			}
			continue
		}
		if severity := r.Labels["severity"]; severity != "critical" && severity != "warning" {
			t.Errorf("%s: severity %q, want critical or warning", name, severity)
		}
		if !strings.HasSuffix(r.Annotations["summary"], ".") || !strings.HasSuffix(r.Annotations["description"], ".") {
			t.Errorf("%s: want a summary and a description in sentences", name)
		}
		if want := "/docs/monitoring.md#" + strings.ToLower(name); !strings.HasSuffix(r.Annotations["runbook_url"], want) {
			t.Errorf("%s: runbook_url %q, want it to end in %s", name, r.Annotations["runbook_url"], want)
		}
		if !strings.Contains(string(guide), "\n### "+name+"\n") {
			t.Errorf("%s: docs/monitoring.md does not say what to do", name)
		}
	}
	for _, m := range regexp.MustCompile(`(?m)^### (Vhbad\w+)$`).FindAllStringSubmatch(string(guide), -1) {
		if !slices.ContainsFunc(all, func(r rule) bool { return r.Alert == m[1] }) {
			t.Errorf("docs/monitoring.md explains %s, which is no alert", m[1])
		}
	}
}

// TestRules_AllTested wants every alert to fire in one test of promtool's and to
// be quiet in another, and every recorded metric to be computed in one.
func TestRules_AllTested(t *testing.T) {
	paths, err := filepath.Glob(filepath.Join(root, testFiles))
	if err != nil {
		t.Fatal(err)
	}
	fires, quiet, computed := make(map[string]bool), make(map[string]bool), make(map[string]bool)
	for _, path := range paths {
		relative, err := filepath.Rel(root, path)
		if err != nil {
			t.Fatal(err)
		}
		var f struct {
			RuleFiles []string `yaml:"rule_files"`
			Every     string   `yaml:"evaluation_interval"`
			Tests     []struct {
				Name     string `yaml:"name"`
				Interval string `yaml:"interval"`
				Series   []any  `yaml:"input_series"`
				Alerts   []struct {
					At   string `yaml:"eval_time"`
					Name string `yaml:"alertname"`
					Want []any  `yaml:"exp_alerts"`
				} `yaml:"alert_rule_test"`
				Exprs []struct {
					Expr string `yaml:"expr"`
					At   string `yaml:"eval_time"`
					Want []any  `yaml:"exp_samples"`
				} `yaml:"promql_expr_test"`
			} `yaml:"tests"`
		}
		readYAML(t, relative, &f)
		for _, c := range f.Tests {
			for _, a := range c.Alerts {
				if len(a.Want) > 0 {
					fires[a.Name] = true
				} else {
					quiet[a.Name] = true
				}
			}
			for _, e := range c.Exprs {
				for _, s := range selectors(e.Expr) {
					computed[s.metric] = computed[s.metric] || len(e.Want) > 0
				}
			}
		}
	}
	all, _ := rules(t)
	for _, r := range all {
		if r.Alert != "" && (!fires[r.Alert] || !quiet[r.Alert]) {
			t.Errorf("%s: fires in a test: %t, is quiet in one: %t; want both", r.Alert, fires[r.Alert], quiet[r.Alert])
		}
		if r.Record != "" && !computed[r.Record] {
			t.Errorf("%s: no test in %s computes it", r.Record, testFiles)
		}
	}
}
