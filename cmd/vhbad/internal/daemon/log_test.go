package daemon

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
)

// TestLog_NotPerRequest: a client with a thousand requests, failing ones among
// them, leaves as many lines as one that goes at once, at whatever level.
func TestLog_NotPerRequest(t *testing.T) {
	lines := func(requests int) []string {
		s := newSettings(t, "a=memory:1MiB")
		o := s.options(t)
		var log bytes.Buffer // of a handler that locks; read after the end
		o.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{
			Level: slog.LevelDebug,
			ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
				if a.Key == slog.MessageKey || a.Key == slog.LevelKey {
					return a
				}
				return slog.Attr{}
			},
		}))
		d, err := Start(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		stop := stopper(t, d)
		c := open(t, s.socket(), "a")
		for i := range requests {
			if _, err := c.do(cmdWrite, uint64(i%256)*4096, 4096, make([]byte, 4096)); err != nil {
				t.Error(err)
			}
			if _, err := c.do(cmdRead, 1<<20, 4096, nil); err == nil {
				t.Error("a read beyond the end succeeds")
			}
		}
		c.write([]byte("\x25\x60\x95\x13\x00\x00\x00\x02" + strings.Repeat("\x00", 20))) // DISC
		if n, err := c.Read(make([]byte, 1)); err == nil {
			t.Errorf("%d bytes after the end", n)
		}
		stop()
		all := strings.Split(strings.TrimSpace(log.String()), "\n")
		slices.Sort(all) // the end of a client and of the daemon have no order
		return all
	}
	few, many := lines(0), lines(500)
	if strings.Join(few, "\n") != strings.Join(many, "\n") {
		t.Errorf("%d lines with no request, %d with a thousand:\n%s\n\n%s", len(few), len(many), strings.Join(few, "\n"), strings.Join(many, "\n"))
	}
	for _, want := range []string{"msg=connected", "msg=disconnected"} {
		if n := strings.Count(strings.Join(many, "\n"), want); n != 1 {
			t.Errorf("%s: %d lines, want 1", want, n)
		}
	}
}

// TestLog_Nothing: absent values are empty in the log: the address of a client on a unix
// socket, lists, and errors.
func TestLog_Nothing(t *testing.T) {
	s := newSettings(t, "a=memory:1MiB", "b=memory:1MiB")
	o := s.options(t)
	var log bytes.Buffer // of a handler that locks; read after the end
	o.Log = slog.New(slog.NewJSONHandler(&log, nil))
	o.Reload = func() (*config.Config, error) { return s.Resolve(client.DefaultPath(), false) }
	d, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	stop := stopper(t, d)
	if _, err := open(t, s.socket(), "a").do(cmdRead, 0, 512, nil); err != nil { // it is connected
		t.Error(err)
	}
	if _, err := d.Reload(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := d.RemoveDisk(t.Context(), "b", client.RemoveOptions{}); err != nil {
		t.Error(err)
	}
	stop()
	for _, want := range []string{
		`"msg":"connected","conn":1,"remote":""`,
		`"msg":"configuration reloaded","disks_added":[],"disks_removed":[],"disks_changed":[],"listeners_added":[],"listeners_removed":[]`,
		`"msg":"disk removed","disk":"b","connections_closed":0,"connections_killed":0,"flush_error":"","error":""`,
	} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("no %s in\n%s", want, log.String())
		}
	}
}

// TestLog_Format: an image of another format than raw is served as it is, and the log says
// so.
func TestLog_Format(t *testing.T) {
	begins := map[string]string{
		"raw": "", "qcow": "QFI\xfb\x00\x00\x00\x01", "qcow2": "QFI\xfb\x00\x00\x00\x02", "qcow3": "QFI\xfb\x00\x00\x00\x03", "vmdk": "KDMV", "vhdx": "vhdxfile",
	}
	s := newSettings(t)
	for name, begin := range begins {
		path := filepath.Join(s.dir, name)
		if err := os.WriteFile(path, append([]byte(begin), make([]byte, 4096-len(begin))...), 0o600); err != nil {
			t.Fatal(err)
		}
		s.Disks = append(s.Disks, config.Disk{Name: name, File: path})
	}
	o := s.options(t)
	var log bytes.Buffer // of a handler that locks; read after the end
	o.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))
	d, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	stopper(t, d)()
	for name, format := range map[string]string{"raw": "", "qcow": "qcow", "qcow2": "qcow2", "qcow3": "qcow2", "vmdk": "vmdk", "vhdx": "vhdx"} {
		want := "disk=" + name + " file=" + filepath.Join(s.dir, name) + " format=" + format + "\n"
		if strings.Contains(log.String(), want) != (format != "") {
			t.Errorf("%s: want %q; log: %s", name, want, log.String())
		}
	}
	if n := strings.Count(log.String(), "no raw one"); n != len(begins)-1 {
		t.Errorf("%d remarks; log: %s", n, log.String())
	}
}
