package grafana

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// Width of the grid, and the usual sizes of panels on it.
const (
	gridColumns = 24
	graphWidth  = 8
	graphHeight = 8
	statWidth   = 4
	statHeight  = 4
)

// Units, by Grafana's names.
const (
	unitBytes    = "bytes" // powers of 1024
	unitBytesPS  = "binBps"
	unitCount    = "short"
	unitEventsPS = "cps"
	unitOpsPS    = "ops"
	unitSeconds  = "s"
	unitShare    = "percentunit"
)

// source is the variable that says which Prometheus to ask.
var source = Datasource{Type: "prometheus", UID: "${datasource}"}

var marks = strings.NewReplacer(
	"<instance>", `job=~"$job", instance=~"$instance"`,
	"<export>", `job=~"$job", instance=~"$instance", export=~"$export"`,
	"<rate>", "$__rate_interval",
)

// A query is an expression with marks (see the package comment) and the legend of its
// series.
type query struct{ expr, legend string }

// Panels of the dashboards' files, before they have a place.
type (
	// A graph shows series over time.
	graph struct {
		title, description, unit string
		stack                    bool
		max                      *float64
		queries                  []query
	}
	// A number shows the last value.
	number struct {
		title, description, unit string
		queries                  []query
		bad                      *float64          // red from this value on, green below
		words                    map[string]Mapped // shown instead of values
	}
	// A heat shows how a histogram changes.
	heat struct{ title, description, unit, expr string }
)

func (g graph) panel() Panel {
	custom := &Custom{FillOpacity: 10, LineWidth: 1, ShowPoints: "never", Stacking: Stacking{Mode: "none", Group: "A"}}
	if g.stack {
		custom.FillOpacity, custom.Stacking.Mode = 40, "normal"
	}
	return Panel{
		Type: "timeseries", Title: g.title, Description: g.description,
		GridPos: GridPos{W: graphWidth, H: graphHeight},
		FieldConfig: &FieldConfig{
			Overrides: []struct{}{},
			Defaults:  FieldDefaults{Unit: g.unit, Min: new(0.0), Max: g.max, Color: &Color{Mode: "palette-classic"}, Custom: custom},
		},
		Options: &Options{
			Legend:  &Legend{DisplayMode: "table", Placement: "bottom", ShowLegend: true, Calcs: []string{"lastNotNull", "max"}},
			Tooltip: &Tooltip{Mode: "multi", Sort: "desc"},
		},
		Targets: targets(g.queries, false),
	}
}

func (n number) panel() Panel {
	d := FieldDefaults{Unit: n.unit, Color: &Color{Mode: "thresholds"}}
	d.Thresholds = &Thresholds{Mode: "absolute", Steps: []Step{{Color: "green"}}}
	if n.bad != nil {
		d.Thresholds.Steps = append(d.Thresholds.Steps, Step{Color: "red", Value: n.bad})
	}
	if n.words != nil {
		d.Mappings = []Mapping{{Type: "value", Options: n.words}}
	}
	return Panel{
		Type: "stat", Title: n.title, Description: n.description,
		GridPos:     GridPos{W: statWidth, H: statHeight},
		FieldConfig: &FieldConfig{Defaults: d, Overrides: []struct{}{}},
		Options: &Options{
			ReduceOptions: &Reduce{Calcs: []string{"lastNotNull"}},
			ColorMode:     "value", GraphMode: "none", TextMode: "auto",
		},
		Targets: targets(n.queries, true),
	}
}

func (h heat) panel() Panel {
	p := Panel{
		Type: "heatmap", Title: h.title, Description: h.description,
		GridPos:     GridPos{W: graphWidth, H: graphHeight},
		FieldConfig: &FieldConfig{Defaults: FieldDefaults{Unit: h.unit}, Overrides: []struct{}{}},
		Options: &Options{
			Calculate: new(false), YAxis: &YAxis{Unit: h.unit},
			Heat: &HeatColours{Mode: "scheme", Scheme: "Oranges", Steps: 64, Scale: "exponential"},
		},
		Targets: targets([]query{{h.expr, "{{le}}"}}, false),
	}
	p.Targets[0].Format = "heatmap"
	return p
}

func targets(queries []query, instant bool) []Target {
	var all []Target
	for i, q := range queries {
		all = append(all, Target{
			RefID: string(rune('A' + i)), Datasource: source, Expr: marks.Replace(q.expr),
			LegendFormat: q.legend, Range: !instant, Instant: instant,
		})
	}
	return all
}

// A row is a titled group of panels.
type row struct {
	title  string
	panels []interface{ panel() Panel }
}

// build gives every panel a number and a place: left to right, row by row.
func build(d Dashboard, exports bool, rows ...row) Dashboard {
	d.Tags = []string{"vhbad"}
	d.GraphTooltip, d.Refresh, d.SchemaVersion, d.Timezone = 1, "30s", schemaVersion, "browser"
	d.Time = TimeRange{From: "now-1h", To: "now"}
	d.Links = []Link{{Title: "vhbad", Type: "dashboards", Tags: d.Tags, AsDropdown: true, IncludeVars: true, KeepTime: true}}
	d.Annotations.List = []Annotation{{
		Name: "Starts", Datasource: source, Enable: true, IconColor: "blue", TitleFormat: "{{instance}} started",
		Expr: marks.Replace("process_start_time_seconds{<instance>} * 1000"), UseValueForTime: "on",
	}}
	if exports {
		d.Annotations.List = append(d.Annotations.List, Annotation{
			Name: "Power cuts", Datasource: source, Enable: true, IconColor: "red", TitleFormat: "{{instance}} {{export}}: power cut by {{trigger}}",
			Expr: marks.Replace("increase(vhbad_power_cuts_total{<export>}[<rate>]) > 0"),
		}, Annotation{
			Name: "Faults", Datasource: source, Enable: true, IconColor: "orange", TitleFormat: "{{instance}} {{export}}: {{kind}} by rule {{rule}}",
			Expr: marks.Replace(`increase(vhbad_fault_injections_total{<instance>, export=~"$export|"}[<rate>]) > 0`),
		})
	}
	d.Templating.List = variables(exports)
	at, id := GridPos{}, 0
	place := func(p Panel) {
		if at.X+p.GridPos.W > gridColumns {
			at.X, at.Y = 0, at.Y+at.H
		}
		id++
		p.ID, p.GridPos.X, p.GridPos.Y = id, at.X, at.Y
		if p.Type != "row" {
			p.Datasource = &source
		}
		at.X, at.H = at.X+p.GridPos.W, p.GridPos.H
		d.Panels = append(d.Panels, p)
	}
	for _, r := range rows {
		place(Panel{Type: "row", Title: r.title, GridPos: GridPos{W: gridColumns, H: 1}, Collapsed: new(false)})
		for _, p := range r.panels {
			place(p.panel())
		}
		if at.X != 0 {
			at = GridPos{Y: at.Y + at.H}
		}
	}
	return d
}

func variables(exports bool) []Variable {
	list := []Variable{{
		Name: "datasource", Label: "Data source", Type: "datasource", Query: "prometheus", Refresh: 1,
		Current: &Current{Text: "default", Value: "default"},
	}}
	choice := func(name, label, query string) {
		list = append(list, Variable{
			Name: name, Label: label, Type: "query", Datasource: &source, Query: query, Definition: query,
			Refresh: 2, Sort: 1, Multi: true, IncludeAll: true, AllValue: ".+",
			Current: &Current{Text: "All", Value: "$__all"},
		})
	}
	choice("job", "Job", "label_values(vhbad_build_info, job)")
	choice("instance", "Instance", `label_values(vhbad_build_info{job=~"$job"}, instance)`)
	if exports {
		choice("export", "Export", `label_values(vhbad_export_info{job=~"$job", instance=~"$instance"}, export)`)
	}
	return list
}

func dashboards() []Dashboard { return []Dashboard{overview(), adapter(), power(), runtime()} }

// Files returns the dashboards' files by name, as deploy/grafana has them.
func Files() (map[string][]byte, error) {
	files := make(map[string][]byte)
	for _, d := range dashboards() {
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false) // queries have < and > in them
		e.SetIndent("", "  ")
		if err := e.Encode(d); err != nil {
			return nil, fmt.Errorf("dashboard %s: %w", d.UID, err)
		}
		files[d.UID+".json"] = b.Bytes()
	}
	return files, nil
}
