package disk

import (
	"slices"
	"testing"

	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/port"
)

// lossSession is a session of d's, as Open leaves it.
func lossSession(d *Disk) *session {
	s := &session{d: d}
	d.gate.register(s)
	s.told.Store(d.lossesOfOthers())
	return s
}

// enterGate makes a write, let in by the way that leads to h.
func enterGate(t *testing.T, s *session, h hold) *command {
	t.Helper()
	w := &command{s: s, req: &nbd.Request{Op: nbd.OpWrite}, eventsBefore: s.d.lossEvents.Load(), hold: h}
	if h == holdFast && !s.d.gate.enterFast(&s.fast) || h != holdFast && s.d.gate.enterSlow(w, h) != w {
		t.Fatal("the write is not let in")
	}
	return w
}

// flushes returns the answers to a flush by each of the sessions in turn, if the unit's
// flush works.
func flushes(sessions ...*session) (out []nbd.Errno) {
	for _, s := range sessions {
		c := &command{s: s, srb: &port.SRB{}, req: &nbd.Request{Op: nbd.OpFlush}}
		c.sync()
		c.leaveGate()
		out = append(out, c.errno)
	}
	return out
}

// A write that was under way at a loss is settled while it counts as being answered, so
// that a flush that begins then sees it.
func TestLeaveGate_SettlesLast(t *testing.T) {
	d := &Disk{}
	w := enterGate(t, lossSession(d), holdFast)
	d.LostWrites()
	_, wrote := w.leaveGate()
	if n := d.losses.Load(); n != 2 {
		t.Errorf("%d losses, want the write to count as one more", n)
	}
	d.lossMu.Lock()
	defer d.lossMu.Unlock()
	if !d.lossWrites.answering {
		t.Error("it was settled before it had left")
	}
	if w.s.answered(wrote); !d.gate.writes().quiet {
		t.Error("it has not left")
	}
}

// A write that is lost after it has looked for losses and before it is answered is
// reported by the first flush that began after its answer: also to a session that was told
// of that loss before, and to one that opened in between.
func TestFlush_LossBeforeAnswer(t *testing.T) {
	for name, h := range map[string]hold{"fast": holdFast, "shared": holdShared, "exclusive": holdExclusive} {
		t.Run(name, func(t *testing.T) {
			d := &Disk{}
			told := lossSession(d)
			w := enterGate(t, lossSession(d), h)
			_, wrote := w.leaveGate()
			d.LostWrites()
			came := lossSession(d)
			want := func(when string, want ...nbd.Errno) {
				t.Helper()
				if got := flushes(told, came); !slices.Equal(got, want) {
					t.Errorf("the write is %s: flushes %v, want %v", when, got, want)
				}
			}
			want("being answered", nbd.EIO, nbd.EIO)
			w.s.answered(wrote)
			want("answered", nbd.EIO, nbd.EIO)
			want("told of", nbd.OK, nbd.OK)
			if got := flushes(lossSession(d)); got[0] != nbd.OK {
				t.Errorf("flush of who comes then: %v", got)
			}
		})
	}
}

// A loss that has been told of, or that found no write being answered, is none to a
// session that opens while a write is being answered.
func TestFlush_LossOfOthers(t *testing.T) {
	for name, lose := range map[string]func(t *testing.T, s *session){
		"power": func(_ *testing.T, s *session) { s.d.LostWrites() },
		"told again": func(t *testing.T, s *session) {
			loseBeforeAnswer(t, s)
			s.d.TellAgain()
		},
		"told by a flush": func(t *testing.T, s *session) {
			loseBeforeAnswer(t, s)
			if got, want := flushes(s, s), []nbd.Errno{nbd.EIO, nbd.OK}; !slices.Equal(got, want) {
				t.Errorf("flushes %v, want %v", got, want)
			}
		},
		"told by the flush that failed": func(_ *testing.T, s *session) {
			c := &command{s: s, srb: &port.SRB{}, req: &nbd.Request{Op: nbd.OpFlush}}
			c.sync()
			c.errno = nbd.EIO
			c.leaveGate()
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := &Disk{}
			s := lossSession(d)
			lose(t, s)
			_, wrote := enterGate(t, s, holdFast).leaveGate()
			if !wrote {
				t.Fatal("no write is being answered")
			}
			if got := flushes(lossSession(d), lossSession(d)); got[0] != nbd.OK || got[1] != nbd.OK {
				t.Errorf("flushes of two that come then: %v", got)
			}
		})
	}
}

// loseBeforeAnswer loses a write of s that is being answered.
func loseBeforeAnswer(t *testing.T, s *session) {
	t.Helper()
	_, wrote := enterGate(t, s, holdFast).leaveGate()
	s.d.LostWrites()
	s.answered(wrote)
}

// A write counts as being answered until it is answered: the request here belongs to no
// connection, which ends finish where it would be answered.
func TestFinish_IsAnsweringUntilAnswered(t *testing.T) {
	d := &Disk{}
	w := enterGate(t, lossSession(d), holdFast)
	w.srb = &port.SRB{}
	defer func() {
		if recover() == nil {
			t.Error("a request of no connection was answered")
		}
		if n := w.s.fast.Load(); n != fastBegun+writeAnswered {
			t.Errorf("counter %#x, want one begun and being answered", n)
		}
	}()
	w.finish(nil)
}
