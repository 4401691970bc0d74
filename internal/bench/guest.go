package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vhbad/vhbad/internal/guest"
)

// Rows of the guest: both servers and all clients run in one guest kernel, where clients
// reach the servers through /dev/nbd0 and /dev/nbd1. guestinit.go is what runs inside.

const (
	// guestDiskBytes is small, because each page that a guest's process touches is a
	// mapping of its own on the host.
	guestDiskBytes = 128 * mib
	// guestMemory is for two disks, two daemons, the tree and the page cache.
	guestMemory = "1024M"
	// guestRunTime bounds a run of fio, so that a boot is over in minutes.
	guestRunTime = 2 * time.Second
	// guestDeadline bounds one boot.
	guestDeadline = 10 * time.Minute

	// envGuest tells process 1 of a guest which file has its order.
	envGuest = "VHBAD_BENCH_GUEST"

	guestUntar = "guest-untar"
	// untarShare is how many times as many rounds the untar row gets, because one is short.
	untarShare = 2
)

// guestRows are loads on the kernel's own NBD client.
func guestRows() []row {
	peers := []kind{nbdkitMemory}
	return []row{
		{
			name: "guest-read-4k-d32", ours: vhbadMemory, peers: peers,
			load:    load{rw: "randread", blockBytes: 4 * kib, depth: 32, connections: 1},
			targets: []target{{nbdkitMemory, iops, 0.9}},
		},
		{
			name: "guest-write-4k-d32", ours: vhbadMemory, peers: peers,
			load:    load{rw: "randwrite", blockBytes: 4 * kib, depth: 32, connections: 1},
			targets: []target{{nbdkitMemory, iops, 1.3}},
		},
		{
			name: guestUntar, ours: vhbadMemory, peers: peers,
			targets: []target{{nbdkitMemory, seconds, 1}},
		},
	}
}

// A guestOrder says what a guest is to do. The guest reads it from a file of the host.
type guestOrder struct {
	Vhbad   string        `json:"vhbad"`
	Tree    string        `json:"tree"` // the tar file
	Rows    []string      `json:"rows"`
	Alone   bool          `json:"alone"`
	Rounds  int           `json:"rounds"`
	RunTime time.Duration `json:"run_time"`
}

// rounds is how many rounds a row has.
func (o *guestOrder) rounds(row string) int {
	if row == guestUntar {
		return untarShare * o.Rounds
	}
	return o.Rounds
}

// servers are the kinds that take part in a row.
func (o *guestOrder) servers() []kind {
	if o.Alone {
		return []kind{vhbadMemory}
	}
	return []kind{vhbadMemory, nbdkitMemory}
}

// A guestReport is one line that a guest writes: a result, with the kernel's name in the
// first, or why there are no more.
type guestReport struct {
	Kernel string  `json:"kernel,omitempty"`
	Row    string  `json:"row,omitempty"`
	Server kind    `json:"server,omitempty"`
	Result *result `json:"result,omitempty"`
	Error  string  `json:"error,omitempty"`
	Done   bool    `json:"done,omitempty"`
}

// measureGuest boots a guest and has it measure rows.
func (b *bench) measureGuest(rows []row) []outcome {
	outcomes := make([]outcome, len(rows))
	order := guestOrder{
		Vhbad: b.shop.vhbad, Tree: filepath.Join(b.shop.dir, "tree.tar"),
		Alone: b.alone, Rounds: b.rounds, RunTime: min(b.runTime, guestRunTime),
	}
	for i, r := range rows {
		outcomes[i] = outcome{row: r, results: make(map[kind][]result), runTime: order.RunTime}
		order.Rows = append(order.Rows, r.name)
	}
	if err := b.runGuest(&order, outcomes); err != nil {
		for i := range outcomes {
			outcomes[i].err = err
		}
	}
	return outcomes
}

// runGuest boots a guest with an order and sorts what it reports into outcomes.
func (b *bench) runGuest(order *guestOrder, outcomes []outcome) (err error) {
	kernel, err := exec.LookPath(guest.Kernel)
	if err != nil {
		return fmt.Errorf("%w: install it with: apt-get install --no-install-recommends %s", err, guest.Package)
	}
	if err := makeTree(order.Tree); err != nil {
		return err
	}
	orders := filepath.Join(b.shop.dir, "guest.json")
	text, err := json.Marshal(order)
	if err != nil {
		return err
	}
	if err := os.WriteFile(orders, text, 0o644); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	few := guest.RaiseMapCount() // matters if something else goes wrong
	console := new(bytes.Buffer)
	m, err := guest.Boot(guest.Config{
		Kernel: kernel, Init: self, Memory: guestMemory, Folder: b.shop.dir, Console: console, Pinned: true,
		Environment: []string{envGuest + "=" + orders},
	})
	if err != nil {
		return err
	}
	done := make(chan struct{})
	defer close(done)
	ctx, cancel := context.WithTimeout(context.Background(), guestDeadline)
	defer cancel()
	stop := context.AfterFunc(ctx, m.Kill)
	// A guest is in a process group of its own and would outlive this program.
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(ended)
	go func() {
		select {
		case <-ended:
			m.Kill()
			os.Exit(1)
		case <-done:
		}
	}()
	err = b.listen(m, order, outcomes)
	err = errors.Join(err, m.Wait(), ctx.Err())
	stop()
	if err != nil {
		err = errors.Join(fmt.Errorf("%w; console of the guest: %s", err, console), few)
	}
	return err
}

// listen reads what the guest reports until it is done.
func (b *bench) listen(m *guest.Machine, order *guestOrder, outcomes []outcome) error {
	lines := bufio.NewScanner(m.Reports)
	lines.Buffer(nil, mib)
	got, all := 0, 0
	for i := range outcomes {
		all += order.rounds(outcomes[i].row.name) * len(order.servers())
	}
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if !strings.HasPrefix(line, "{") {
			continue // a console may print escape codes of its own
		}
		var r guestReport
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			return fmt.Errorf("guest reports %q: %w", line, err)
		}
		switch {
		case r.Error != "":
			return fmt.Errorf("guest: %s", r.Error)
		case r.Done:
			return nil
		case r.Kernel != "":
			for i := range outcomes {
				outcomes[i].machine = "in a guest of one processor, " + r.Kernel + " (User-Mode Linux)"
			}
			continue
		case r.Result == nil:
			return fmt.Errorf("guest reports %q: want a result", line)
		}
		at := slices.IndexFunc(outcomes, func(o outcome) bool { return o.row.name == r.Row })
		if at < 0 {
			return fmt.Errorf("guest reports a row %q, which it was not asked for", r.Row)
		}
		o := &outcomes[at]
		o.results[r.Server] = append(o.results[r.Server], *r.Result)
		got++
		b.work.at(float64(got) / float64(all))
		if n := len(o.results[r.Server]); o.roundComplete(order.servers(), n) {
			b.work.note("%s: round %d of %d: %s", r.Row, n, order.rounds(r.Row), o.lastRound())
		}
	}
	return errors.Join(lines.Err(), errors.New("the guest ended before it was done"))
}

// roundComplete reports whether all servers have n results.
func (o *outcome) roundComplete(kinds []kind, n int) bool {
	return !slices.ContainsFunc(kinds, func(k kind) bool { return len(o.results[k]) != n })
}

// The tree that is unpacked: small files in folders of fifty, as a source tree has.
const (
	treeFiles       = 4000
	treeFolderFiles = 50
	treeMeanBytes   = 4 * kib
	treeSeed        = 1
)

// makeTree writes the tar file. Names, sizes and contents follow from the seed.
func makeTree(path string) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriter(f)
	t := tar.NewWriter(w)
	r := rand.New(rand.NewPCG(treeSeed, 0))
	content := make([]byte, 16*treeMeanBytes)
	for i := range treeFiles {
		folder := fmt.Sprintf("tree/%03d/", i/treeFolderFiles)
		if i%treeFolderFiles == 0 {
			if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: folder, Mode: 0o755}); err != nil {
				return err
			}
		}
		// Most files are small, and a few large.
		n := min(int(r.ExpFloat64()*treeMeanBytes), len(content))
		for j := range n {
			content[j] = byte(r.Uint32())
		}
		if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("%sfile%02d", folder, i%treeFolderFiles), Mode: 0o644, Size: int64(n)}); err != nil {
			return err
		}
		if _, err := t.Write(content[:n]); err != nil {
			return err
		}
	}
	return errors.Join(t.Close(), w.Flush())
}
