package pages

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// fewest is the least number of pages that there must be. Tests of fewer prove nothing.
const fewest = 20

// A Page is one Markdown file.
type Page struct {
	Path string // from the root of the repository
	Text string
}

// Read reads every page under root, except other people's and those of tests: pages in
// dist, in testdata and in folders whose name begins with a dot.
//
// Errors: a page cannot be read; there are so few pages that root must be wrong.
func Read(root string) ([]Page, error) {
	var out []Page
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := entry.Name()
		if entry.IsDir() && path != root && (strings.HasPrefix(name, ".") || name == "testdata" || name == "dist") {
			return filepath.SkipDir
		}
		if entry.IsDir() || !strings.HasSuffix(name, ".md") {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(root, path)
		out = append(out, Page{relative, string(text)})
		return err
	})
	if err == nil && len(out) < fewest {
		err = fmt.Errorf("only %d pages under %s", len(out), root)
	}
	return out, err
}
