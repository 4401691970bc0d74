package grafana

import (
	"bufio"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// namesFile lists the daemon's metrics: NAME{LABEL,…} TYPE.
const namesFile = "cmd/vhbad/internal/metrics/testdata/names.txt"

// A metric is what namesFile says of one.
type metric struct {
	labels []string
	kind   string
}

func metrics(t *testing.T) map[string]metric {
	t.Helper()
	f, err := os.Open(filepath.Join(root, namesFile))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}()
	known := make(map[string]metric)
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		name, rest, ok := strings.Cut(lines.Text(), "{")
		labels, kind, ok2 := strings.Cut(rest, "} ")
		if !ok || !ok2 {
			t.Fatalf("%s: cannot read %q", namesFile, lines.Text())
		}
		m := metric{kind: kind}
		if labels != "" {
			m.labels = strings.Split(labels, ",")
		}
		known[name] = m
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	if len(known) == 0 {
		t.Fatalf("%s lists nothing", namesFile)
	}
	return known
}

// A selector is a metric in an expression, with its matchers.
type selector struct{ metric, matchers string }

// Metrics of ours, of the runtime and of Prometheus, and recorded ones.
var (
	selectorForm = regexp.MustCompile(`\b((?:up|(?:\w+:)?(?:vhbad|go|process)_\w+(?::\w+)?)\b)(?:\{([^}]*)\})?`)
	stringForm   = regexp.MustCompile(`"[^"]*"`)
	matcherForm  = regexp.MustCompile(`(\w+)\s*(?:=~|!~|!=|=)`)
	groupForm    = regexp.MustCompile(`\b(?:by|on|without|ignoring|group_left|group_right) \(([^)]*)\)`)
)

func selectors(expr string) []selector {
	var all []selector
	for _, m := range selectorForm.FindAllStringSubmatch(expr, -1) {
		all = append(all, selector{m[1], m[2]})
	}
	return all
}

// checkExpr fails if an expression names a metric that the daemon does not export,
// or a label that none of its metrics has. recorded are the recorded metrics.
func checkExpr(t *testing.T, where, expr string, known map[string]metric, recorded map[string]bool) {
	t.Helper()
	found := selectors(expr)
	if len(found) == 0 {
		t.Errorf("%s: no metric in %s", where, expr)
	}
	labels := []string{"job", "instance"}
	for _, s := range found {
		own := []string{"job", "instance"}
		switch level, _, isRecorded := strings.Cut(s.metric, ":"); {
		case isRecorded:
			if !recorded[s.metric] {
				t.Errorf("%s: no rule records %s", where, s.metric)
			}
			own = append(own, strings.Split(level, "_")...)
		case strings.HasPrefix(s.metric, "vhbad_"):
			name, m := find(known, s.metric)
			if name == "" {
				t.Errorf("%s: the daemon has no metric %s", where, s.metric)
				continue
			}
			own = append(own, m.labels...)
			if m.kind == "histogram" && strings.HasSuffix(s.metric, "_bucket") {
				own = append(own, "le")
			}
		case strings.HasPrefix(s.metric, "go_gc_duration_seconds"):
			own = append(own, "quantile")
		}
		for _, m := range matcherForm.FindAllStringSubmatch(stringForm.ReplaceAllString(s.matchers, `""`), -1) {
			if !slices.Contains(own, m[1]) {
				t.Errorf("%s: %s has no label %s", where, s.metric, m[1])
			}
		}
		labels = append(labels, own...)
	}
	for _, g := range groupForm.FindAllStringSubmatch(expr, -1) {
		for label := range strings.SplitSeq(g[1], ",") {
			if label = strings.TrimSpace(label); label != "" && !slices.Contains(labels, label) {
				t.Errorf("%s: grouped by %s, which no metric there has: %s", where, label, expr)
			}
		}
	}
}

// find looks a series' name up, which for histograms has an ending.
func find(known map[string]metric, series string) (string, metric) {
	if m, ok := known[series]; ok && m.kind != "histogram" {
		return series, m
	}
	for _, ending := range []string{"_bucket", "_sum", "_count"} {
		if name, ok := strings.CutSuffix(series, ending); ok && known[name].kind == "histogram" {
			return name, known[name]
		}
	}
	return "", metric{}
}

func TestNames_Dashboards(t *testing.T) {
	known := metrics(t)
	for _, d := range dashboards() {
		for _, v := range d.Templating.List {
			if v.Type == "query" {
				checkExpr(t, d.UID+": variable "+v.Name, v.Query, known, nil)
			}
		}
		for _, a := range d.Annotations.List {
			checkExpr(t, d.UID+": annotation "+a.Name, a.Expr, known, nil)
		}
		for _, p := range d.Panels {
			for _, q := range p.Targets {
				checkExpr(t, d.UID+": "+p.Title, q.Expr, known, nil)
			}
		}
	}
}

// notShown are the metrics that are on no dashboard, and why.
var notShown = map[string]string{
	"vhbad_fault_left_out_total": "only hostile rules that find no room in the device have it: its graph is empty nearly always",
	"vhbad_export_info":          "what an export is does not change: the choice of exports is made from it",
}

// TestNames_Shown: every metric is where a person looks for it, or in notShown.
func TestNames_Shown(t *testing.T) {
	known := metrics(t)
	shown := make(map[string]bool)
	for _, d := range dashboards() {
		for _, p := range d.Panels {
			for _, q := range p.Targets {
				for _, s := range selectors(q.Expr) {
					name, _ := find(known, s.metric)
					shown[name] = true
				}
			}
		}
	}
	for name := range known {
		if why, ok := notShown[name]; ok == shown[name] {
			t.Errorf("%s: on a dashboard is %t, but notShown says %q", name, shown[name], why)
		}
	}
	for name := range notShown {
		if known[name].kind == "" {
			t.Errorf("notShown names %s, which the daemon does not have", name)
		}
	}
}

// legendLabel is a label in a legend, which must be one that the query keeps.
var legendLabel = regexp.MustCompile(`\{\{(\w+)\}\}`)

func TestNames_Legends(t *testing.T) {
	for _, d := range dashboards() {
		for _, p := range d.Panels {
			for _, q := range p.Targets {
				var kept []string
				for _, g := range groupForm.FindAllStringSubmatch(q.Expr, -1) {
					kept = append(kept, strings.Split(g[1], ", ")...)
				}
				for _, l := range legendLabel.FindAllStringSubmatch(q.LegendFormat, -1) {
					if !slices.Contains(kept, l[1]) {
						t.Errorf("%s: %s: the legend names %s, which %s has not", d.UID, p.Title, l[1], q.Expr)
					}
				}
			}
		}
	}
}
