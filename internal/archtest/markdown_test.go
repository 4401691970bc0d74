package archtest

import (
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"unicode"

	"github.com/vhbad/vhbad/internal/archtest/pages"
)

// A page is one Markdown file of ours.
type page struct {
	pages.Page
	lines   []string // but for code
	anchors map[string]bool
}

// readPages reads every Markdown file of the repository.
func readPages(t *testing.T) map[string]page {
	t.Helper()
	all, err := pages.Read(root)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]page{}
	for _, found := range all {
		p := page{Page: found, anchors: map[string]bool{}}
		fenced := false
		for line := range strings.Lines(p.Text) {
			if strings.HasPrefix(line, "```") {
				fenced = !fenced
				continue
			}
			if fenced || strings.HasPrefix(line, "    ") {
				continue // code
			}
			p.lines = append(p.lines, line)
			if heading, ok := strings.CutPrefix(strings.TrimLeft(line, "#"), " "); ok && strings.HasPrefix(line, "#") {
				p.anchors[anchor(heading)] = true
			}
		}
		out[p.Path] = p
	}
	return out
}

// anchor is how a heading is linked to.
func anchor(heading string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(strings.TrimSpace(heading)) {
		switch {
		case unicode.IsLetter(r), unicode.IsDigit(r), r == '-', r == '_':
			b.WriteRune(r)
		case r == ' ':
			b.WriteByte('-')
		}
	}
	return b.String()
}

// TestMarkdown_Links: every link and picture between our pages leads to a file that
// exists and, where it has one, to a heading.
func TestMarkdown_Links(t *testing.T) {
	all := readPages(t)
	code := regexp.MustCompile("`[^`]*`")
	link := regexp.MustCompile(`\]\(([^)\s]+)\)|(?:src|srcset|href)="([^"]+)"`)
	seen := 0
	for _, p := range all {
		for _, line := range p.lines {
			for _, m := range link.FindAllStringSubmatch(code.ReplaceAllString(line, "``"), -1) {
				target, err := url.Parse(m[1] + m[2])
				if err != nil {
					t.Errorf("%s: %s: %v", p.Path, m[0], err)
					continue
				}
				if target.IsAbs() {
					continue
				}
				seen++
				to := p.Path
				if target.Path != "" {
					to = filepath.Join(filepath.Dir(p.Path), target.Path)
				}
				if _, err := os.Stat(filepath.Join(root, to)); err != nil || strings.HasPrefix(to, "..") {
					t.Errorf("%s: link to %s: there is no such file", p.Path, target)
					continue
				}
				if target.Fragment != "" && !all[to].anchors[target.Fragment] {
					t.Errorf("%s: link to %s: the page has no such heading", p.Path, target)
				}
			}
		}
	}
	if seen < 30 {
		t.Errorf("only %d links found", seen)
	}
}

// made are folders that are there once something has been put into them.
var made = map[string]bool{"docs/benchmarks/": true, "nbd/testdata/fuzz": true}

// TestMarkdown_Files: whatever a page says of a file of ours, by its path in code
// type, is there.
func TestMarkdown_Files(t *testing.T) {
	span := regexp.MustCompile("`([A-Za-z0-9_./@-]+)`")
	ours := map[string]bool{}
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() && !strings.HasPrefix(e.Name(), ".") && e.Name() != "bin" && e.Name() != "dist" {
			ours[e.Name()] = true
		}
	}
	seen := 0
	for _, p := range readPages(t) {
		for _, line := range p.lines {
			for _, m := range span.FindAllStringSubmatch(line, -1) {
				first, _, isPath := strings.Cut(m[1], "/")
				if !isPath || !ours[first] || made[m[1]] {
					continue
				}
				seen++
				if _, err := os.Stat(filepath.Join(root, m[1])); err != nil {
					t.Errorf("%s: `%s`: there is no such file", p.Path, m[1])
				}
			}
		}
	}
	if seen < 50 {
		t.Errorf("only %d paths found", seen)
	}
}

// TestMarkdown_Packages: the table of packages in docs/ARCHITECTURE.md has each
// package that is part of the program, once.
func TestMarkdown_Packages(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "docs/ARCHITECTURE.md"))
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile("(?m)^\\| `([a-z/]+)` \\|")
	rows := map[string]int{}
	for _, m := range row.FindAllStringSubmatch(string(text), -1) {
		rows[m[1]]++
	}
	needed := map[string]bool{}
	for _, p := range packages(t) {
		folder := strings.TrimPrefix(p.ImportPath, module)
		for _, i := range append([]string{p.ImportPath}, p.Imports...) {
			if ours, ok := strings.CutPrefix(i, module); ok && partOfProgram(folder) && partOfProgram(ours) {
				needed[ours] = true
			}
		}
	}
	for folder := range needed {
		if rows[folder] != 1 {
			t.Errorf("docs/ARCHITECTURE.md: the table of packages has %s %d times, want one row that says what it holds", folder, rows[folder])
		}
	}
	for folder := range rows {
		if _, err := os.Stat(filepath.Join(root, folder)); err != nil {
			t.Errorf("docs/ARCHITECTURE.md: there is no package %s", folder)
		}
	}
}

// partOfProgram says whether a package is linked into vhbad, and not for tests,
// measurements or files that are written once.
func partOfProgram(folder string) bool {
	for _, not := range []string{
		"internal/archtest", "internal/bench", "internal/grafana", "internal/interleave", "internal/lockorder", "internal/package", "internal/tools",
		"port/porttest", "hba/hbatest", "hba/media/mediatest", "nbd/nbdtest", "nbd/conformance", "cmd/vhbad/internal/road", "cmd/vhbad/e2e", "deploy",
	} {
		if folder == not || strings.HasPrefix(folder, not+"/") {
			return false
		}
	}
	return true
}

// TestMarkdown_Excerpts: what a page shows of a file, by `sed -n 'A,Bp' FILE`, is
// what stands there.
func TestMarkdown_Excerpts(t *testing.T) {
	command := regexp.MustCompile(`(?m)^    \$ sed -n '(\d+),(\d+)p' (\S+)\n((?:    .*\n)*)`)
	seen := 0
	for name, p := range readPages(t) {
		for _, m := range command.FindAllStringSubmatch(p.Text, -1) {
			seen++
			from, _ := strconv.Atoi(m[1]) // digits
			to, _ := strconv.Atoi(m[2])
			content, err := os.ReadFile(filepath.Join(root, m[3]))
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			lines := strings.Split(string(content), "\n")
			if from < 1 || to > len(lines) || from > to {
				t.Errorf("%s: lines %d to %d of %s, which has %d", name, from, to, m[3], len(lines))
				continue
			}
			shown := regexp.MustCompile(`(?m)^    `).ReplaceAllString(m[4], "")
			if want := strings.Join(lines[from-1:to], "\n") + "\n"; !strings.HasPrefix(shown+"\n", want) {
				t.Errorf("%s shows of %s:\n%s\nbut there stands:\n%s", name, m[3], shown, want)
			}
		}
	}
	if seen == 0 {
		t.Error("no excerpt found")
	}
}
