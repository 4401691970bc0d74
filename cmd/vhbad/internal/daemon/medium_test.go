package daemon

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vhbad/vhbad/client"
)

// A failureWriter is the file of a log. It hands each line about a medium that failed to
// whoever receives it, and until then its writer waits.
type failureWriter chan string

func (w failureWriter) Write(b []byte) (int, error) {
	if strings.Contains(string(b), "the medium failed") {
		w <- string(b)
	}
	return len(b), nil
}

// TestLog_MediumFails: the log tells of which disk the medium has failed, where and why; the
// client learns of an EIO alone, and does so even while nothing can be logged.
func TestLog_MediumFails(t *testing.T) {
	s := newSettings(t, "good=memory:1MiB", "bad=file:$DIR/bad.img,size=1MiB")
	o := s.options(t)
	log := make(failureWriter)
	o.Log = slog.New(slog.NewTextHandler(log, nil))
	d, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stopper(t, d))
	path := filepath.Join(s.dir, "bad.img")
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	c := open(t, s.socket(), "bad")
	if _, err := c.do(cmdRead, 8192, 4096, nil); err == nil {
		t.Error("a read of what has been cut off succeeds")
	}
	select {
	case line := <-log:
		for _, want := range []string{"level=ERROR", "disk=bad", path, "4096 bytes at 8192", "others_untold=0"} {
			if !strings.Contains(line, want) {
				t.Errorf("no %s in %s", want, line)
			}
		}
	case <-time.After(time.Minute):
		t.Error("no line in the log")
	}
}

// TestLog_LastFailures: what the log has not told of a disk's failures it tells when the disk
// is removed, and when the daemon ends.
func TestLog_LastFailures(t *testing.T) {
	s := newSettings(t, "a=file:$DIR/a.img,size=1MiB", "b=file:$DIR/b.img,size=1MiB")
	o := s.options(t)
	log := make(failureWriter, 16)
	o.Log = slog.New(slog.NewTextHandler(log, nil))
	d, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	stop := stopper(t, d)
	t.Cleanup(stop)
	fail := func(disk string) {
		t.Helper()
		if err := os.Truncate(filepath.Join(s.dir, disk+".img"), 0); err != nil {
			t.Fatal(err)
		}
		c := open(t, s.socket(), disk)
		for range 3 {
			if _, err := c.do(cmdRead, 0, 4096, nil); err == nil {
				t.Error("a read of what has been cut off succeeds")
			}
		}
	}
	expect := func(disk, others string) {
		t.Helper()
		select {
		case line := <-log:
			if !strings.Contains(line, "disk="+disk) || !strings.Contains(line, others) {
				t.Errorf("want a line about %s with %s: %s", disk, others, line)
			}
		case <-time.After(failureInterval / 2):
			t.Errorf("no line about %s", disk)
		}
	}
	fail("a")
	expect("a", "others_untold=0")
	if _, err := d.RemoveDisk(t.Context(), "a", client.RemoveOptions{Force: true}); err != nil {
		t.Error(err)
	}
	expect("a", "others_untold=1")
	fail("b")
	expect("b", "others_untold=0")
	stop()
	expect("b", "others_untold=1")
}

// TestFailureLog: a medium that fails every request does not fill the log, and no failure is
// forgotten.
func TestFailureLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lockedBuffer
		f := &failureLog{log: slog.New(slog.NewTextHandler(&log, nil))}
		lines := func(n int, last string) {
			t.Helper()
			synctest.Wait()
			got := strings.Split(strings.TrimSpace(log.String()), "\n")
			if len(got) != n || !strings.HasSuffix(got[len(got)-1], last) {
				t.Errorf("want %d lines, the last with %s:\n%s", n, last, log.String())
			}
		}
		for range 1000 {
			f.tell(errors.New("boom"))
		}
		lines(1, "error=boom others_untold=0")
		<-time.After(failureInterval - 1)
		f.tell(errors.New("bang"))
		lines(1, "error=boom others_untold=0")
		<-time.After(1)
		lines(2, "error=bang others_untold=999")
		f.tell(errors.New("boom"))
		lines(2, "error=bang others_untold=999")
		<-time.After(failureInterval)
		lines(3, "error=boom others_untold=0")
		<-time.After(failureInterval + 1)
		f.tell(errors.New("bang"))
		lines(4, "error=bang others_untold=0")
		f.tell(errors.New("last"))
		f.end()
		lines(5, "error=last others_untold=0")
		f.end()
		<-time.After(failureInterval)
		lines(5, "error=last others_untold=0")
	})
}
