package archtest

import (
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// TestProfile_Folder: the profile for the build does not say where the program lay that it
// was taken of, which is somebody's machine; `make pgo` takes that out.
func TestProfile_Folder(t *testing.T) {
	f, err := os.Open(filepath.Join(root, "deploy", "vhbad.pgo"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	unpacked, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(unpacked)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(text, []byte("/vhbad/hba.")) {
		t.Error("no function of the HBA: is it a profile?")
	}
	if i := bytes.Index(text, []byte(".cache/")); i >= 0 {
		t.Errorf("%q: want no folder of a machine", text[max(0, i-40):i+20])
	}
}
