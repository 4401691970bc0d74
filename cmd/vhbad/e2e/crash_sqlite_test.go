//go:build kernel

package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
)

const sqliteFile = guestMount + "/db"

// sqliteLoad inserts row after row into a database, each in a transaction of its
// own, and knows which are committed.
type sqliteLoad struct {
	mode string // "wal" or "delete"

	committed int // rows from 1 on
	next      int
	shell     *exec.Cmd
	stdin     io.WriteCloser
	stderr    bytes.Buffer
	group     sync.WaitGroup

	mu   sync.Mutex
	cond sync.Cond // on mu: done has grown, or ended is set
	// done is the last row that the shell said is committed, before the power went.
	done        int
	late, ended bool
}

// pragmas make a commit durable. With a rollback journal FULL is not enough:
// the deletion of the journal is what commits, and only EXTRA syncs the folder.
func (l *sqliteLoad) pragmas() string {
	if l.mode == "wal" {
		return "PRAGMA journal_mode=wal; PRAGMA synchronous=FULL;"
	}
	return "PRAGMA journal_mode=delete; PRAGMA synchronous=EXTRA;"
}

func (l *sqliteLoad) begin(g *guest, enough int) error {
	if l.cond.L == nil {
		l.cond.L = &l.mu
		out, err := g.output("sqlite3", sqliteFile, l.pragmas()+"CREATE TABLE t(i INTEGER PRIMARY KEY, x BLOB, y BLOB); CREATE INDEX u ON t(y);")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		if err := syncFolder(guestMount); err != nil {
			return err
		}
	}
	l.next, l.late, l.ended = l.committed+1, false, false
	l.done = l.committed
	l.shell = exec.Command("sqlite3", sqliteFile)
	l.stderr.Reset()
	l.shell.Stderr = &l.stderr
	var err error
	if l.stdin, err = l.shell.StdinPipe(); err != nil {
		return err
	}
	stdout, err := l.shell.StdoutPipe()
	if err != nil {
		return err
	}
	if err := l.shell.Start(); err != nil {
		return err
	}
	if _, err := io.WriteString(l.stdin, ".bail on\n"+l.pragmas()+"\n"); err != nil {
		return err
	}
	l.group.Go(func() { l.work(stdout) })
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.done < l.committed+enough && !l.ended {
		l.cond.Wait()
	}
	if l.ended {
		return fmt.Errorf("sqlite3 ended before the power went: %s", &l.stderr)
	}
	return nil
}

// work inserts rows, one after the other is committed.
func (l *sqliteLoad) work(stdout io.Reader) {
	lines := bufio.NewScanner(stdout)
	for {
		// The shell answers the SELECT after the INSERT is committed, and sends what
		// it has to say before it reads the next line.
		_, err := fmt.Fprintf(l.stdin, "INSERT INTO t VALUES(%d, randomblob(300), randomblob(40)); SELECT 'committed', %d;\n", l.next, l.next)
		want := fmt.Sprintf("committed|%d", l.next)
		found := false
		for err == nil && !found && lines.Scan() {
			found = lines.Text() == want
		}
		l.mu.Lock()
		if found {
			if !l.late {
				l.done = l.next
			}
			l.next++
		} else {
			l.ended = true
		}
		l.cond.Signal()
		l.mu.Unlock()
		if !found {
			return
		}
	}
}

// cutting: what the kernel says from now on, and with it the shell, may be of a device
// without power. See crashLoad.
func (l *sqliteLoad) cutting() {
	l.mu.Lock()
	l.late = true
	l.mu.Unlock()
}

func (l *sqliteLoad) end() error {
	l.group.Wait() // it ends when the shell fails
	_ = l.stdin.Close()
	var failed *exec.ExitError
	if err := l.shell.Wait(); err != nil && !errors.As(err, &failed) {
		return err
	}
	return nil
}

// check wants the database whole, and every committed row.
func (l *sqliteLoad) check(g *guest) error {
	out, err := g.output("sqlite3", sqliteFile, "PRAGMA integrity_check; SELECT count(*), max(i) FROM t;")
	if err != nil {
		return err
	}
	var count, last int
	integrity, rows, _ := strings.Cut(strings.TrimSpace(out), "\n")
	if integrity != "ok" {
		return fmt.Errorf("integrity_check: %s", out)
	}
	if rows == "0|" {
		rows = "0|0"
	}
	if _, err := fmt.Sscanf(rows, "%d|%d", &count, &last); err != nil {
		return fmt.Errorf("rows %q: %w", rows, err)
	}
	if count != last || last < l.done || last > l.next {
		return fmt.Errorf("%d rows up to %d, %d were committed and %d tried", count, last, l.done, l.next)
	}
	l.committed = last
	return nil
}
