package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vhbad/vhbad/internal/guest"
)

// TestMakeTree: the tree is the same each time, or rows of different days could not
// be compared.
func TestMakeTree(t *testing.T) {
	var content [2][]byte
	for i := range content {
		path := filepath.Join(t.TempDir(), "tree.tar")
		if err := makeTree(path); err != nil {
			t.Fatal(err)
		}
		var err error
		if content[i], err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(content[0], content[1]) {
		t.Error("two trees of one seed differ")
	}
	if n := len(content[0]); n < treeFiles*treeMeanBytes/2 || n > guestDiskBytes/2 {
		t.Errorf("a tree of %d bytes", n)
	}
}

// TestListen: results come in lines among whatever else a console prints, and a
// guest that ends before it is done has failed.
func TestListen(t *testing.T) {
	const hello = "{\"kernel\":\"Linux 6.1\"}\r\n"
	const first = "\x1b[0m\r\n{\"row\":\"guest-untar\",\"server\":\"vhbad\",\"result\":{\"seconds\":2}}\r\n"
	const second = "{\"row\":\"guest-untar\",\"server\":\"nbdkit memory\",\"result\":{\"seconds\":4}}\r\n"
	for _, tt := range []struct{ name, lines, want string }{
		{"all", hello + first + second + first + second + "{\"done\":true}\n", ""},
		{"no end", hello + first, "ended before"},
		{"failed", hello + first + "{\"error\":\"mkfs.ext4: no space\"}\n", "mkfs.ext4: no space"},
		{"another row", "{\"row\":\"x\",\"server\":\"vhbad\",\"result\":{}}\n", "row \"x\""},
		{"no result", "{\"row\":\"guest-untar\"}\n", "want a result"},
		{"no JSON", "{row\n", "{row"},
	} {
		reports, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.WriteString(tt.lines); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		b := &bench{work: newWork(&out, 1)}
		order := &guestOrder{Rounds: 1}
		outcomes := []outcome{{row: matchingName(t, guestUntar), results: make(map[kind][]result)}}
		err = b.listen(&guest.Machine{Reports: reports}, order, outcomes)
		if err := reports.Close(); err != nil {
			t.Fatal(err)
		}
		switch {
		case tt.want != "":
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: error %v, want one with %q", tt.name, err, tt.want)
			}
		case err != nil:
			t.Errorf("%s: %v", tt.name, err)
		default:
			v := outcomes[0].verdict(outcomes[0].row.targets[0])
			if v.Ratio != 0.5 || !v.Met || !strings.Contains(outcomes[0].machine, "Linux 6.1") {
				t.Errorf("%s: verdict %+v of %q", tt.name, v, outcomes[0].machine)
			}
			if want := "guest-untar: round 1 of 2:   [vhbad 2.00 s, 0.00 s CPU]  [nbdkit memory 4.00 s, 0.00 s CPU]\n"; !strings.HasPrefix(out.String(), want) {
				t.Errorf("%s: progress %q, want %q", tt.name, out.String(), want)
			}
		}
	}
}

func matchingName(t *testing.T, name string) row {
	for _, r := range allRows() {
		if r.name == name {
			return r
		}
	}
	t.Fatalf("no row %s", name)
	return row{}
}
