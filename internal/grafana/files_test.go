package grafana

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// root is the repository as seen from this package's folder, where tests run.
const root = "../.."

// Who edits the JSON by hand learns here that the next run would undo it.
func TestFiles_UpToDate(t *testing.T) {
	files, err := Files()
	if err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(root, "deploy/grafana")
	for name, want := range files {
		path := filepath.Join(folder, name)
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is not what this package says: run go run ./internal/grafana/generate deploy/grafana", path)
		}
	}
	present, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range present {
		if _, ok := files[entry.Name()]; !ok {
			t.Errorf("%s is no dashboard of this package: remove it, or say it in Go", entry.Name())
		}
	}
}
