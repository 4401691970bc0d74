package grafana

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A service of the compose file, as far as the parts must fit together.
type service struct {
	Image       string            `yaml:"image"`
	Command     []string          `yaml:"command"`
	Volumes     []string          `yaml:"volumes"`
	Ports       []string          `yaml:"ports"`
	Environment map[string]string `yaml:"environment"`
	DependsOn   []string          `yaml:"depends_on"`
	Others      map[string]any    `yaml:",inline"`
}

// TestCompose checks that what the files say of each other is so: no engine is at
// hand to try them.
func TestCompose(t *testing.T) {
	var compose struct {
		Name     string             `yaml:"name"`
		Services map[string]service `yaml:"services"`
		Volumes  map[string]any     `yaml:"volumes"`
	}
	readYAML(t, "deploy/compose/compose.yml", &compose)
	inside := make(map[string]string) // of containers: path -> that in the repository
	for name, s := range compose.Services {
		if s.Image != "" && (!strings.Contains(s.Image, ":") || strings.HasSuffix(s.Image, ":latest")) {
			t.Errorf("%s: image %s is not pinned", name, s.Image)
		}
		for _, p := range s.Ports {
			if !strings.HasPrefix(p, "127.0.0.1:") {
				t.Errorf("%s: port %s is open to other hosts", name, p)
			}
		}
		for _, v := range s.Volumes {
			from, rest, _ := strings.Cut(v, ":")
			to, _, _ := strings.Cut(rest, ":")
			if !strings.HasPrefix(from, ".") {
				if _, ok := compose.Volumes[from]; !ok {
					t.Errorf("%s: volume %s is not declared", name, from)
				}
				continue
			}
			inside[to] = filepath.Join("deploy/compose", from)
			if _, err := os.Stat(filepath.Join(root, inside[to])); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	exists := func(path string) {
		t.Helper()
		for to, from := range inside {
			if rest, ok := strings.CutPrefix(path, to); ok {
				if _, err := os.Stat(filepath.Join(root, from, rest)); err != nil {
					t.Errorf("%s in a container: %v", path, err)
				}
				return
			}
		}
		t.Errorf("%s is in no volume", path)
	}
	exists("/etc/prometheus/prometheus.yml")
	exists(compose.Services["grafana"].Environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])

	var boards struct {
		APIVersion int `yaml:"apiVersion"`
		Providers  []struct {
			Options struct {
				Path string `yaml:"path"`
			} `yaml:"options"`
			Others map[string]any `yaml:",inline"`
		} `yaml:"providers"`
	}
	readYAML(t, "deploy/compose/grafana/dashboards/vhbad.yml", &boards)
	for _, p := range boards.Providers {
		exists(p.Options.Path)
	}

	// Who names another service, and a port of it, names one that is there.
	var scrapes struct {
		Configs []struct {
			Job    string `yaml:"job_name"`
			Static []struct {
				Targets []string `yaml:"targets"`
			} `yaml:"static_configs"`
		} `yaml:"scrape_configs"`
		Others map[string]any `yaml:",inline"`
	}
	readYAML(t, "deploy/prometheus/prometheus.yml", &scrapes)
	if len(scrapes.Configs) != 1 || scrapes.Configs[0].Job != "vhbad" || len(scrapes.Configs[0].Static) != 1 {
		t.Fatalf("prometheus.yml scrapes %+v, want the one job vhbad", scrapes.Configs)
	}
	for _, target := range scrapes.Configs[0].Static[0].Targets {
		host, port, _ := strings.Cut(target, ":")
		if !slices.Contains(compose.Services[host].Command, "--http=:"+port) {
			t.Errorf("Prometheus asks %s, where no service answers", target)
		}
	}
	var sources struct {
		APIVersion int `yaml:"apiVersion"`
		Sources    []struct {
			Type   string         `yaml:"type"`
			URL    string         `yaml:"url"`
			Others map[string]any `yaml:",inline"`
		} `yaml:"datasources"`
	}
	readYAML(t, "deploy/compose/grafana/datasources/prometheus.yml", &sources)
	if len(sources.Sources) != 1 || sources.Sources[0].URL != "http://prometheus:9090" || compose.Services["prometheus"].Image == "" {
		t.Errorf("Grafana asks %+v, want the service prometheus", sources.Sources)
	}
}
