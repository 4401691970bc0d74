package archtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/vhbad/vhbad/"

// A layer is a folder and everything below it, with what it may import from this module and
// from others. A name that ends in a slash also allows everything below it.
type layer struct {
	folder string
	allow  []string // besides itself and the standard library
	tests  []string // what its tests may import besides
	reason string
}

const sys = "golang.org/x/sys/"

// testModules are for tests in any layer, and never for the program.
var testModules = []string{
	module + "internal/interleave", module + "internal/lockorder",
	"pgregory.net/rapid", "github.com/google/go-cmp/", "github.com/cockroachdb/datadriven", "github.com/rogpeppe/go-internal/",
}

// layers are in order of precedence: the first folder that matches decides.
var layers = []layer{
	{
		folder: "internal/archtest",
		reason: "a test of the repository needs nothing of it",
	},
	{
		folder: "internal/aside",
		allow:  []string{sys},
		reason: "a turn of other processes is a leaf: whoever waits for microseconds may give one",
	},
	{
		folder: "internal/dma",
		allow:  []string{sys, module + "internal/pci"},
		reason: "host memory is a leaf: every layer stands on it",
	},
	{
		folder: "internal/grafana",
		tests:  []string{"go.yaml.in/"},
		reason: "dashboards know metrics by their names, as Prometheus does, and no layer that counts",
	},
	{
		folder: "internal/guest",
		allow:  []string{sys},
		reason: "a guest kernel is for tests and benchmarks, and runs any program",
	},
	{
		folder: "internal/interleave",
		reason: "a helper of tests is a leaf: any layer's tests may use it, and no layer's code",
	},
	{
		folder: "internal/latency",
		reason: "a histogram is a leaf: every layer that counts time may use it",
	},
	{
		folder: "internal/lockorder",
		reason: "a helper of tests is a leaf: it knows locks by name and no port",
	},
	{
		folder: "internal/pci",
		reason: "the bus is a leaf: it knows neither devices nor drivers",
	},
	{
		folder: "internal/progress",
		allow:  []string{sys},
		reason: "a line on a terminal is a leaf: whatever takes long may show one",
	},
	{
		folder: "internal/quantity",
		reason: "sizes and spans of time are a leaf: files, flags and requests all have them",
	},
	{
		folder: "internal/scsi",
		reason: "layouts are a leaf: both ends of a command read them",
	},
	{
		folder: "port/porttest",
		allow:  []string{module + "port", module + "internal/scsi", module + "internal/dma", module + "internal/lockorder", module + "internal/pci", sys},
		reason: "what tests miniports knows the port, and no miniport",
	},
	{
		folder: "port/disk",
		allow:  []string{module + "port", module + "nbd", module + "internal/scsi", module + "internal/dma", module + "internal/pci", sys},
		tests:  []string{module + "nbd/", module + "port/"},
		reason: "the class driver joins the wire and the port, and knows no adapter: it works with any miniport",
	},
	{
		folder: "port",
		allow:  []string{module + "internal/scsi", module + "internal/dma", module + "internal/latency", module + "internal/pci", sys},
		reason: "the port driver knows neither the wire nor any adapter, as storport.sys knows no vendor",
	},
	{
		folder: "miniport",
		allow:  []string{module + "port", module + "port/porttest", module + "hba", module + "internal/scsi", module + "internal/dma", module + "internal/pci", sys},
		tests:  []string{module + "hba/", module + "port/"},
		reason: "the miniport joins the port and its adapter, and nothing else",
	},
	{
		folder: "hba/media",
		allow:  []string{module + "internal/aside", module + "internal/dma", "github.com/pojntfx/go-nbd/pkg/backend", sys},
		reason: "bytes at rest know no commands",
	},
	{
		folder: "hba/fault",
		allow:  []string{module + "internal/scsi", module + "internal/quantity"},
		tests:  []string{"go.yaml.in/"},
		reason: "rules decide and the device acts: they know commands, and no device",
	},
	{
		folder: "hba",
		allow:  []string{module + "internal/scsi", module + "internal/dma", module + "internal/pci", sys},
		reason: "hardware never imports software: it knows registers, rings and SCSI, no driver and no wire",
	},
	{
		folder: "nbd/socket",
		allow:  []string{module + "internal/aside", sys},
		tests:  []string{"golang.org/x/net/nettest"},
		reason: "it waits for sockets, whatever is spoken over them",
	},
	{
		folder: "nbd",
		allow:  []string{module + "nbd/socket", module + "internal/dma", module + "internal/latency", "github.com/pojntfx/go-nbd/pkg/protocol", sys},
		reason: "the wire never imports SCSI: it would serve any device",
	},
	{
		folder: "client",
		allow:  []string{module + "hba/fault", sys},
		reason: "programs import the client; it must not bring the daemon with it",
	},
	{
		folder: "cmd/vhbad/internal/config",
		allow:  []string{module + "hba/fault", module + "internal/quantity", "gopkg.in/yaml.v3", "go.yaml.in/", "github.com/goccy/go-yaml", sys},
		tests:  []string{"github.com/invopop/jsonschema", "github.com/santhosh-tekuri/jsonschema/"}, // make and try the schema
		reason: "checking a file must need no layer of the daemon",
	},
	{
		folder: "deploy",
		tests:  []string{sys},
		reason: "what tests files and packages looks at them, and at the program, from outside",
	},
	{
		folder: "cmd/vhbad",
		allow:  []string{""},
		reason: "the command knows all layers",
	},
}

// A listed is what `go list -json` says about a package.
type listed struct {
	ImportPath                         string
	Imports, TestImports, XTestImports []string
}

// TestImports_Direction checks every import of ours against the table of layers.
func TestImports_Direction(t *testing.T) {
	for _, p := range packages(t) {
		folder := strings.TrimPrefix(p.ImportPath, module)
		l, ok := layerOf(folder)
		if !ok {
			t.Errorf("%s belongs to no layer: add its folder to layers, and a reason, or put it below one", folder)
			continue
		}
		for _, path := range p.Imports {
			if !l.allows(path, l.allow) {
				t.Errorf("%s imports %s, but %s may not: %s", folder, path, l.folder, l.reason)
			}
		}
		for _, path := range append(p.TestImports, p.XTestImports...) {
			if !l.allows(path, l.allow) && !l.allows(path, l.tests) && !l.allows(path, testModules) {
				t.Errorf("a test of %s imports %s, but %s may not: %s", folder, path, l.folder, l.reason)
			}
		}
	}
}

// packages returns the module's own packages among all that `./...` depends on.
func packages(t *testing.T) []listed {
	t.Helper()
	list := exec.Command("go", "list", "-e", "-deps", "-tags=interop,kernel,interleave,ship",
		"-json=ImportPath,Imports,TestImports,XTestImports", "./...")
	list.Dir = root
	var stderr bytes.Buffer
	list.Stderr = &stderr
	out, err := list.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.Bytes())
	}
	var ours []listed
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(p.ImportPath, module) {
			ours = append(ours, p)
		}
	}
	if len(ours) == 0 {
		t.Fatal("go list found no package of ours")
	}
	return ours
}

func layerOf(folder string) (layer, bool) {
	for _, l := range layers {
		if folder == l.folder || strings.HasPrefix(folder, l.folder+"/") {
			return l, true
		}
	}
	return layer{}, false
}

// allows reports whether the layer may import path: it belongs to the standard library or
// to the layer itself, or is named in a list.
func (l layer) allows(path string, list []string) bool {
	first, _, _ := strings.Cut(path, "/")
	own := module + l.folder
	if !strings.Contains(first, ".") || path == own || strings.HasPrefix(path, own+"/") {
		return true
	}
	for _, name := range list {
		if path == strings.TrimSuffix(name, "/") || (strings.HasSuffix(name, "/") || name == "") && strings.HasPrefix(path, name) {
			return true
		}
	}
	return false
}

// TestImports_TableBites checks the table itself, with imports that must fail.
func TestImports_TableBites(t *testing.T) {
	for _, tt := range []struct {
		folder, path string
		want         bool
	}{
		{"nbd", module + "port", false},
		{"nbd", module + "internal/scsi", false},
		{"nbd", module + "internal/dma", true},
		{"hba", module + "port", false},
		{"hba/target", module + "nbd", false},
		{"hba/target", module + "hba/media", true},
		{"hba/media", module + "internal/scsi", false},
		{"port", module + "hba", false},
		{"port/disk", module + "nbd", true},
		{"port/disk", module + "miniport", false},
		{"miniport", module + "hba", true},
		{"miniport", module + "nbd", false},
		{"client", module + "cmd/vhbad/internal/admin", false},
		{"cmd/vhbad/internal/daemon", module + "hba", true},
		{"nbd", "github.com/pojntfx/go-nbd/pkg/protocol", true},
		{"nbd", "github.com/pojntfx/go-nbd/pkg/server", false},
		{"port", "pgregory.net/rapid", false},
	} {
		l, ok := layerOf(tt.folder)
		if got := ok && l.allows(tt.path, l.allow); got != tt.want {
			t.Errorf("%s may import %s: got %v, want %v", tt.folder, tt.path, got, tt.want)
		}
	}
}
