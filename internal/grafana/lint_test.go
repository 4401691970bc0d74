package grafana

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestLint_Dashboards holds every dashboard to the rules of Grafana's own linter,
// which cannot be had by the Go command.
func TestLint_Dashboards(t *testing.T) {
	seen := make(map[string]bool)
	for _, d := range dashboards() {
		if d.Editable {
			t.Errorf("%s: editable, but it is provisioned: an edit would be lost", d.UID)
		}
		if d.UID == "" || d.Title == "" || d.Description == "" || seen[d.UID] || seen[d.Title] {
			t.Errorf("dashboard %q %q: want a description, and a UID and a title of its own", d.UID, d.Title)
		}
		seen[d.UID], seen[d.Title] = true, true
		lintVariables(t, d)
		titles := make(map[string]bool)
		ids := make(map[int]bool)
		group := ""
		for _, p := range d.Panels {
			if ids[p.ID] {
				t.Errorf("%s: two panels have number %d", d.UID, p.ID)
			}
			ids[p.ID] = true
			if p.GridPos.X+p.GridPos.W > gridColumns {
				t.Errorf("%s: %s ends at column %d of %d", d.UID, p.Title, p.GridPos.X+p.GridPos.W, gridColumns)
			}
			if p.Type == "row" {
				group = p.Title
				continue
			}
			if name := group + "/" + p.Title; titles[name] {
				t.Errorf("%s: two panels are called %s", d.UID, name)
			} else {
				titles[name] = true
			}
			lintPanel(t, d.UID, p)
		}
		lintOverlap(t, d)
	}
}

func lintVariables(t *testing.T, d Dashboard) {
	t.Helper()
	labels := map[string]string{"datasource": "Data source", "job": "Job", "instance": "Instance", "export": "Export"}
	var names []string
	for _, v := range d.Templating.List {
		names = append(names, v.Name)
		if v.Label != labels[v.Name] {
			t.Errorf("%s: variable %s has the label %q, want %q", d.UID, v.Name, v.Label, labels[v.Name])
		}
		if v.Name == "datasource" {
			if v.Type != "datasource" || v.Query != "prometheus" {
				t.Errorf("%s: variable datasource is %+v, want one that chooses a Prometheus", d.UID, v)
			}
			continue
		}
		if v.Type != "query" || v.Datasource == nil || *v.Datasource != source || !v.Multi || !v.IncludeAll || v.AllValue != ".+" || v.Refresh != 2 {
			t.Errorf("%s: variable %s is %+v, want a query of the chosen source, several values, all as .+, and to follow the time range", d.UID, v.Name, v)
		}
	}
	if want := []string{"datasource", "job", "instance"}; len(names) < len(want) || !slices.Equal(names[:len(want)], want) {
		t.Errorf("%s: variables %v, want to begin with %v", d.UID, names, want)
	}
	for _, p := range d.Panels {
		for _, q := range p.Targets {
			if strings.Contains(q.Expr, "$export") && !slices.Contains(names, "export") {
				t.Errorf("%s: %s uses $export, which is no variable here", d.UID, p.Title)
			}
		}
	}
}

// rangeOf is the range behind a selector.
var rangeOf = regexp.MustCompile(`\[([^\]]*)\]`)

// counterUse is a counter, or what a histogram counts, with what is around it.
var counterUse = regexp.MustCompile(`(\w*)\(?\b\w+_(?:total|bucket|sum|count)\{[^}]*\}(\[)?`)

func lintPanel(t *testing.T, dashboard string, p Panel) {
	t.Helper()
	name := dashboard + ": " + p.Title
	if p.Title == "" || p.Description == "" || !strings.HasSuffix(p.Description, ".") {
		t.Errorf("%s: want a title, and a description in sentences", name)
	}
	if p.Datasource == nil || *p.Datasource != source {
		t.Errorf("%s: source %v, want the variable", name, p.Datasource)
	}
	if p.FieldConfig == nil || p.FieldConfig.Defaults.Unit == "" {
		t.Errorf("%s: no unit", name)
	}
	if len(p.Targets) == 0 {
		t.Errorf("%s: no query", name)
	}
	for _, q := range p.Targets {
		if q.Datasource != source || q.LegendFormat == "" || q.Range == q.Instant {
			t.Errorf("%s: query %s: want the variable source, a legend, and either a range or an instant", name, q.RefID)
		}
		if strings.ContainsAny(q.Expr, "<>") {
			t.Errorf("%s: a mark is left in %s", name, q.Expr)
		}
		for _, r := range rangeOf.FindAllStringSubmatch(q.Expr, -1) {
			if r[1] != "$__rate_interval" && r[1] != "$__range" {
				t.Errorf("%s: range %s, want $__rate_interval: a fixed one is wrong for some zoom or scrape interval", name, r[1])
			}
		}
		for _, use := range counterUse.FindAllStringSubmatch(q.Expr, -1) {
			if (use[1] != "rate" && use[1] != "increase") || use[2] == "" {
				t.Errorf("%s: counter outside rate and increase: %s", name, use[0])
			}
		}
		for _, s := range selectors(q.Expr) {
			if !strings.Contains(s.matchers, `job=~"$job"`) || !strings.Contains(s.matchers, `instance=~"$instance"`) {
				t.Errorf("%s: %s asks all daemons, want the chosen job and instance", name, s.metric)
			}
		}
	}
}

// lintOverlap finds panels that lie on each other.
func lintOverlap(t *testing.T, d Dashboard) {
	t.Helper()
	for i, p := range d.Panels {
		for _, o := range d.Panels[:i] {
			a, b := p.GridPos, o.GridPos
			if a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H {
				t.Errorf("%s: %s lies on %s", d.UID, p.Title, o.Title)
			}
		}
	}
}
