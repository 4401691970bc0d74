package grafana

// schemaVersion is the version of Grafana's JSON that these types follow, that of Grafana
// 11. Later versions of Grafana migrate it when they read it.
const schemaVersion = 39

// A Dashboard is what Grafana imports.
type Dashboard struct {
	UID           string      `json:"uid"`
	Title         string      `json:"title"`
	Description   string      `json:"description"`
	Tags          []string    `json:"tags"`
	Editable      bool        `json:"editable"`
	GraphTooltip  int         `json:"graphTooltip"` // 1: one crosshair over all panels
	Refresh       string      `json:"refresh"`
	SchemaVersion int         `json:"schemaVersion"`
	Time          TimeRange   `json:"time"`
	Timezone      string      `json:"timezone"`
	Links         []Link      `json:"links"`
	Annotations   Annotations `json:"annotations"`
	Templating    Templating  `json:"templating"`
	Panels        []Panel     `json:"panels"`
}

// A TimeRange is the range that is shown at first.
type TimeRange struct {
	From string `json:"from"`
	To   string `json:"to"`
}

// A Link leads to all dashboards with a tag.
type Link struct {
	Title       string   `json:"title"`
	Type        string   `json:"type"`
	Tags        []string `json:"tags"`
	AsDropdown  bool     `json:"asDropdown"`
	IncludeVars bool     `json:"includeVars"`
	KeepTime    bool     `json:"keepTime"`
}

// Annotations are marks over all graphs of a dashboard.
type Annotations struct {
	List []Annotation `json:"list"`
}

// An Annotation marks the times that a query returns.
type Annotation struct {
	Name            string     `json:"name"`
	Datasource      Datasource `json:"datasource"`
	Enable          bool       `json:"enable"`
	Expr            string     `json:"expr"`
	IconColor       string     `json:"iconColor"`
	TitleFormat     string     `json:"titleFormat"`
	UseValueForTime string     `json:"useValueForTime,omitempty"` // "on": the value is the time, in milliseconds
}

// Templating lists the variables.
type Templating struct {
	List []Variable `json:"list"`
}

// A Variable is a choice at the head of a dashboard.
type Variable struct {
	Name       string      `json:"name"`
	Label      string      `json:"label"`
	Type       string      `json:"type"` // "datasource" or "query"
	Datasource *Datasource `json:"datasource,omitempty"`
	Query      string      `json:"query"`
	Definition string      `json:"definition,omitempty"`
	Refresh    int         `json:"refresh"` // 1: on load; 2: when the time range changes
	Sort       int         `json:"sort"`    // 1: alphabetical
	Multi      bool        `json:"multi"`
	IncludeAll bool        `json:"includeAll"`
	AllValue   string      `json:"allValue,omitempty"`
	Current    *Current    `json:"current,omitempty"`
}

// Current is the initial value of a variable.
type Current struct {
	Text  string `json:"text"`
	Value string `json:"value"`
}

// A Datasource says where a query goes.
type Datasource struct {
	Type string `json:"type"`
	UID  string `json:"uid"`
}

// A Panel is a graph, a number, or the title of a row.
type Panel struct {
	ID          int          `json:"id"`
	Type        string       `json:"type"` // "row", "timeseries", "stat" or "heatmap"
	Title       string       `json:"title"`
	Description string       `json:"description,omitempty"`
	GridPos     GridPos      `json:"gridPos"`
	Collapsed   *bool        `json:"collapsed,omitempty"` // of a row
	Datasource  *Datasource  `json:"datasource,omitempty"`
	FieldConfig *FieldConfig `json:"fieldConfig,omitempty"`
	Options     *Options     `json:"options,omitempty"`
	Targets     []Target     `json:"targets,omitempty"`
}

// A GridPos is a place on the grid, 24 columns wide.
type GridPos struct {
	H int `json:"h"`
	W int `json:"w"`
	X int `json:"x"`
	Y int `json:"y"`
}

// A FieldConfig says how values are shown.
type FieldConfig struct {
	Defaults  FieldDefaults `json:"defaults"`
	Overrides []struct{}    `json:"overrides"`
}

// FieldDefaults apply to all series of a panel.
type FieldDefaults struct {
	Unit       string      `json:"unit"`
	Min        *float64    `json:"min,omitempty"`
	Max        *float64    `json:"max,omitempty"`
	Decimals   *int        `json:"decimals,omitempty"`
	Mappings   []Mapping   `json:"mappings,omitempty"`
	Thresholds *Thresholds `json:"thresholds,omitempty"`
	Color      *Color      `json:"color,omitempty"`
	Custom     *Custom     `json:"custom,omitempty"`
}

// A Mapping shows values as words.
type Mapping struct {
	Type    string            `json:"type"` // "value"
	Options map[string]Mapped `json:"options"`
}

// Mapped is the word for a value.
type Mapped struct {
	Text  string `json:"text"`
	Color string `json:"color"`
	Index int    `json:"index"`
}

// Thresholds colour a number.
type Thresholds struct {
	Mode  string `json:"mode"`
	Steps []Step `json:"steps"`
}

// A Step is the colour from a value upwards; nil is below all others.
type Step struct {
	Color string   `json:"color"`
	Value *float64 `json:"value"`
}

// Color says where the colour of a series comes from.
type Color struct {
	Mode string `json:"mode"`
}

// Custom is how a graph is drawn.
type Custom struct {
	FillOpacity int      `json:"fillOpacity"`
	LineWidth   int      `json:"lineWidth"`
	ShowPoints  string   `json:"showPoints"`
	SpanNulls   bool     `json:"spanNulls"`
	Stacking    Stacking `json:"stacking"`
}

// Stacking puts series on top of each other.
type Stacking struct {
	Mode  string `json:"mode"` // "none" or "normal"
	Group string `json:"group"`
}

// Options of a panel; each type has its own.
type Options struct {
	// Graphs.
	Legend  *Legend  `json:"legend,omitempty"`
	Tooltip *Tooltip `json:"tooltip,omitempty"`
	// Numbers.
	ReduceOptions *Reduce `json:"reduceOptions,omitempty"`
	ColorMode     string  `json:"colorMode,omitempty"`
	GraphMode     string  `json:"graphMode,omitempty"`
	TextMode      string  `json:"textMode,omitempty"`
	// Heat maps.
	Calculate *bool        `json:"calculate,omitempty"`
	YAxis     *YAxis       `json:"yAxis,omitempty"`
	Heat      *HeatColours `json:"color,omitempty"`
}

// A Legend names the series of a graph.
type Legend struct {
	DisplayMode string   `json:"displayMode"`
	Placement   string   `json:"placement"`
	ShowLegend  bool     `json:"showLegend"`
	Calcs       []string `json:"calcs"`
}

// A Tooltip is shown under the pointer.
type Tooltip struct {
	Mode string `json:"mode"`
	Sort string `json:"sort"`
}

// Reduce makes one number of a series.
type Reduce struct {
	Calcs  []string `json:"calcs"`
	Fields string   `json:"fields"`
	Values bool     `json:"values"`
}

// A YAxis is the vertical axis of a heat map.
type YAxis struct {
	Unit string `json:"unit"`
}

// HeatColours of a heat map.
type HeatColours struct {
	Mode   string `json:"mode"`
	Scheme string `json:"scheme"`
	Steps  int    `json:"steps"`
	Scale  string `json:"scale"`
}

// A Target is one query of a panel.
type Target struct {
	RefID        string     `json:"refId"`
	Datasource   Datasource `json:"datasource"`
	Expr         string     `json:"expr"`
	LegendFormat string     `json:"legendFormat"`
	Range        bool       `json:"range"`
	Instant      bool       `json:"instant"`
	Format       string     `json:"format,omitempty"` // "heatmap" or empty
}
