package example

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/client/vhbadtest"
)

// A doomed disk loses its power when a program syncs for the n-th time: when it has
// written all that it wants to be durable, and nothing of it need be.
type doomed struct {
	*vhbadtest.Conn
	n   int
	cut func()
}

func (d *doomed) Sync() error {
	if d.n--; d.n == 0 {
		d.cut()
	}
	return d.Conn.Sync()
}

var entries = []string{"coffee", "tea", "milk"}

// broken lists the ways in which a ledger breaks its word: for each Sync at which the power
// can go, and for some seeds, which decide what the disk has saved by then.
func broken(t *testing.T, careless bool) (ways []string) {
	d := vhbadtest.Start(t, vhbadtest.Disk{SizeBytes: 1 << 20, Cache: vhbadtest.Writeback})
	for n := 1; n <= 2*len(entries); n++ {
		for seed := range uint64(4) {
			blank := d.Dial()
			if _, err := blank.WriteAt(make([]byte, 4*blockBytes), 0); err != nil {
				t.Fatal(err)
			}
			l, err := Format(blank)
			if err != nil {
				t.Fatal(err)
			}
			l.Careless = careless
			l.disk = &doomed{Conn: blank, n: n, cut: func() {
				d.CutPower(client.PowerCutOptions{Seed: &seed, DropConnections: true})
			}}
			promised := 0
			for _, text := range entries {
				if l.Add(text) != nil {
					break // the power has gone
				}
				promised++
			}
			after, err := Open(d.Dial())
			switch {
			case err != nil:
				ways = append(ways, fmt.Sprintf("power cut at Sync %d, seed %d: %v", n, seed, err))
			case after.Len() < promised:
				ways = append(ways, fmt.Sprintf("power cut at Sync %d, seed %d: %d entries of %d", n, seed, after.Len(), promised))
			}
			_ = blank.Close() // it may have been cut off
		}
	}
	return ways
}

// TestLedger: a ledger keeps its word, wherever the power goes.
func TestLedger(t *testing.T) {
	for _, way := range broken(t, false) {
		t.Error(way)
	}
}

// TestLedger_Careless: the test above is one: it finds the Sync that is missing.
func TestLedger_Careless(t *testing.T) {
	ways := broken(t, true)
	if len(ways) == 0 {
		t.Error("a ledger without its Sync passes the test")
	}
	for _, way := range ways {
		t.Log(way)
	}
}

// TestMain makes the program, so that the example runs in this tree as it is. Tests of
// yours find it in the PATH.
func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "example-")
	if err == nil {
		path := filepath.Join(dir, "vhbad")
		if err = exec.Command("go", "build", "-o", path, "github.com/vhbad/vhbad/cmd/vhbad").Run(); err == nil {
			err = os.Setenv(vhbadtest.Variable, path)
		}
	}
	if err != nil {
		panic(err)
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}
