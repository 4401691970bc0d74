package daemon

import (
	"net"
	"strings"
	"testing"

	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// TestReplies: clients get the formats of replies that the configuration lets them
// have, and no others.
func TestReplies(t *testing.T) {
	dialects := map[string]nbdtest.Options{
		"simple":     {},
		"structured": {Structured: true, Meta: []string{"base:allocation"}},
		"extended":   {Extended: true, Meta: []string{"base:allocation"}},
	}
	for replies, want := range map[config.Replies]string{
		"":                       "simple structured extended",
		config.RepliesExtended:   "simple structured extended",
		config.RepliesStructured: "simple structured",
		config.RepliesSimple:     "simple",
	} {
		s := newSettings(t, "d=memory:1MiB")
		s.Replies = replies
		_, stop := s.mustStart(t)
		for name, o := range dialects {
			nc, err := net.Dial("unix", s.socket())
			if err != nil {
				t.Fatal(err)
			}
			c, err := nbdtest.Dial(nc, "d", o)
			if let := strings.Contains(want, name); let != (err == nil) {
				t.Errorf("replies %q: a client that wants %s ones: %v", replies, name, err)
			}
			if err == nil {
				_, err = c.Do(nbdtest.Command{Type: nbdtest.CmdRead, Length: 4096})
			}
			if let := strings.Contains(want, name); let && err != nil {
				t.Errorf("replies %q: a read by a client with %s ones: %v", replies, name, err)
			}
			_ = nc.Close() // it may have been refused
		}
		stop()
	}
}
