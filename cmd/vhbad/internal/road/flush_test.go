package road

import (
	"testing"

	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// A byHand medium's flushes and writes end when the test says so.
type byHand struct {
	*media.Memory
	// flushes and writes get from each call what ends it.
	flushes, writes chan chan error
}

// NeverBlocks implements media.NeverBlocker.
func (*byHand) NeverBlocks() bool { return false }

// TryWriteAt implements media.NonBlockingWriter.
func (*byHand) TryWriteAt([]byte, int64) (bool, error) { return false, nil }

// WriteAt implements media.Media.
func (m *byHand) WriteAt(p []byte, off int64) (int, error) {
	end := make(chan error)
	m.writes <- end
	if err := <-end; err != nil {
		return 0, err
	}
	return m.Memory.WriteAt(p, off)
}

// Flush implements media.Media.
func (m *byHand) Flush() error {
	end := make(chan error)
	m.flushes <- end
	return <-end
}

// newHandRoad is a road to a medium by hand.
func newHandRoad(t *testing.T) (w *road, m *byHand) {
	w = newRoad(t, shape{queues: 2, workers: 16, sizeBytes: 1 << 20, medium: func(memory *media.Memory) media.Media {
		m = &byHand{memory, make(chan chan error), make(chan chan error)}
		return m
	}})
	return w, m
}

// errByHand is a medium that has lost writes.
var errByHand = &media.Error{Op: "flush", Name: "by hand", Kind: media.ErrMedium}

// begin sends a command; what comes is its end.
func begin(t *testing.T, client *nbdtest.Client, x nbdtest.Command) <-chan nbd.Errno {
	done := make(chan nbd.Errno, 1)
	go func() { done <- do(t, client, x).Errno }()
	return done
}

// TestFlush_LossAfterLoss: two flushes are under way and both fail. The second may tell
// of the same loss, or of a write that came after the first had failed, of whichever
// connection: a flush covers those of all. Who was told of the first is told again,
// unless nobody can have written meanwhile.
func TestFlush_LossAfterLoss(t *testing.T) {
	for _, tt := range []struct {
		name string
		// writer is the client that writes when one flush has failed and another has
		// not; -1 is none. early: its write begins before either of them.
		writer int
		early  bool
		want   nbd.Errno
	}{
		{"who was told", 0, false, nbd.EIO},
		{"another", 2, false, nbd.EIO},
		{"another, before", 2, true, nbd.EIO},
		{"nobody", -1, false, nbd.OK},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, m := newHandRoad(t)
			loss := errByHand
			clients := []*nbdtest.Client{w.client(), w.client(), w.client()}
			begin := func(client int, x nbdtest.Command) <-chan nbd.Errno { return begin(t, clients[client], x) }
			flush := nbdtest.Command{Type: nbdtest.CmdFlush}
			write := nbdtest.Command{Type: nbdtest.CmdWrite, Length: 4096, Payload: make([]byte, 4096)}
			writer, writes := max(tt.writer, 0), tt.writer >= 0
			var written <-chan nbd.Errno
			var endWrite chan error
			if tt.early {
				written = begin(writer, write)
				endWrite = <-m.writes
			}
			second := begin(1, flush)
			endSecond := <-m.flushes
			first := begin(0, flush)
			endFirst := <-m.flushes
			endFirst <- loss
			if errno := <-first; errno != nbd.EIO {
				t.Errorf("first flush: %v, want EIO", errno)
			}
			if writes && !tt.early {
				written = begin(writer, write)
				endWrite = <-m.writes
			}
			if writes {
				endWrite <- nil
				if errno := <-written; errno != nbd.OK {
					t.Errorf("write: %v", errno)
				}
			}
			endSecond <- loss
			if errno := <-second; errno != nbd.EIO {
				t.Errorf("second flush: %v, want EIO", errno)
			}
			for i, want := range []nbd.Errno{tt.want, nbd.OK} {
				again := begin(0, flush)
				(<-m.flushes) <- nil
				if errno := <-again; errno != want {
					t.Errorf("flush %d of who was told first: %v, want %v", i+1, errno, want)
				}
			}
		})
	}
}

// TestFlush_WriteMeanwhile: what is answered while a flush is under way that tells of a
// loss is not what that flush was for. If it may be lost, the next flush, which is for
// it, tells as well.
func TestFlush_WriteMeanwhile(t *testing.T) {
	for _, tt := range []struct {
		name      string
		writes    bool
		lostPower bool  // the loss is that of a power cut; if not, the flush is told of it
		end       error // of the flush
		want      nbd.Errno
	}{
		{"told by the medium", true, false, errByHand, nbd.EIO},
		{"told by the medium, nobody writes", false, false, errByHand, nbd.OK},
		{"power lost, the flush fails", true, true, errByHand, nbd.EIO},
		{"power lost, the flush works", true, true, nil, nbd.EIO},
		{"power lost, nobody writes", false, true, nil, nbd.OK},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, m := newHandRoad(t)
			client, another := w.client(), w.client()
			flush := nbdtest.Command{Type: nbdtest.CmdFlush}
			first := begin(t, client, flush)
			endFirst := <-m.flushes
			if tt.writes {
				written := begin(t, another, nbdtest.Command{Type: nbdtest.CmdWrite, Length: 4096, Payload: make([]byte, 4096)})
				(<-m.writes) <- nil
				if errno := <-written; errno != nbd.OK {
					t.Errorf("write: %v", errno)
				}
			}
			if tt.lostPower {
				w.disk.LostWrites()
			}
			endFirst <- tt.end
			if errno := <-first; errno != nbd.EIO {
				t.Errorf("the flush under way: %v, want EIO", errno)
			}
			for i, want := range []nbd.Errno{tt.want, nbd.OK} {
				again := begin(t, client, flush)
				(<-m.flushes) <- nil
				if errno := <-again; errno != want {
					t.Errorf("flush %d after that: %v, want %v", i+1, errno, want)
				}
			}
		})
	}
}

// TestFlush_WriteUnderWayAtLoss: a write that the medium may have had when it lost what
// it had, and that is answered when a flush has told of that, is told of by the next.
func TestFlush_WriteUnderWayAtLoss(t *testing.T) {
	w, m := newHandRoad(t)
	client, another := w.client(), w.client()
	written := begin(t, another, nbdtest.Command{Type: nbdtest.CmdWrite, Length: 4096, Payload: make([]byte, 4096)})
	endWrite := <-m.writes
	w.disk.LostWrites()
	for i, want := range []nbd.Errno{nbd.EIO, nbd.OK, nbd.EIO, nbd.OK} {
		if i == 2 {
			endWrite <- nil
			if errno := <-written; errno != nbd.OK {
				t.Errorf("write: %v", errno)
			}
		}
		again := begin(t, client, nbdtest.Command{Type: nbdtest.CmdFlush})
		(<-m.flushes) <- nil
		if errno := <-again; errno != want {
			t.Errorf("flush %d: %v, want %v", i+1, errno, want)
		}
	}
}

// TestFlush_WritesFollowEachOther: with a write always under way, the flush after the
// one that told of a loss works when those have ended that were under way at the loss.
func TestFlush_WritesFollowEachOther(t *testing.T) {
	w, m := newHandRoad(t)
	client, writers := w.client(), []*nbdtest.Client{w.client(), w.client()}
	write := func(block uint64) (written <-chan nbd.Errno, end chan<- error) {
		written = begin(t, writers[block%2], nbdtest.Command{Type: nbdtest.CmdWrite, Offset: block * 4096, Length: 4096, Payload: make([]byte, 4096)})
		return written, <-m.writes
	}
	written, end := write(0)
	w.disk.LostWrites()
	for i, want := range []nbd.Errno{nbd.EIO, nbd.OK, nbd.OK} {
		nextWritten, nextEnd := write(uint64(i + 1))
		end <- nil
		if errno := <-written; errno != nbd.OK {
			t.Errorf("write: %v", errno)
		}
		written, end = nextWritten, nextEnd
		again := begin(t, client, nbdtest.Command{Type: nbdtest.CmdFlush})
		(<-m.flushes) <- nil
		if errno := <-again; errno != want {
			t.Errorf("flush %d: %v, want %v", i+1, errno, want)
		}
	}
	end <- nil
	if errno := <-written; errno != nbd.OK {
		t.Errorf("write: %v", errno)
	}
}

// TestFUA_Loss: zeroes are written, and then synced. What is lost in between is not
// promised; and that the sync fails says nothing of other writes.
func TestFUA_Loss(t *testing.T) {
	for name, end := range map[string]error{"the sync works": nil, "the sync fails": errByHand} {
		t.Run(name, func(t *testing.T) {
			w, m := newHandRoad(t)
			client := w.client()
			zeroes := begin(t, client, nbdtest.Command{Type: nbdtest.CmdWriteZeroes, Flags: nbdtest.FlagFUA, Length: 4096})
			endSync := <-m.flushes
			if end == nil {
				w.disk.LostWrites()
			}
			endSync <- end
			if errno := <-zeroes; errno != nbd.EIO {
				t.Errorf("zeroes with FUA that are lost: %v, want EIO", errno)
			}
			for i, want := range []nbd.Errno{nbd.EIO, nbd.OK} {
				again := begin(t, client, nbdtest.Command{Type: nbdtest.CmdFlush})
				(<-m.flushes) <- nil
				if errno := <-again; errno != want {
					t.Errorf("flush %d: %v, want %v", i+1, errno, want)
				}
			}
		})
	}
}

// TestFlush_OfNoClient: a flush that no client has asked for, as before a removal, uses up the
// medium's one report of a loss. Clients that come later are told in its place until one has
// heard of it: their own flush would have told them.
func TestFlush_OfNoClient(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  error
		want nbd.Errno
	}{
		{"it fails", errByHand, nbd.EIO},
		{"it works", nil, nbd.OK},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, m := newHandRoad(t)
			written := begin(t, w.client(), nbdtest.Command{Type: nbdtest.CmdWrite, Length: 4096, Payload: make([]byte, 4096)})
			(<-m.writes) <- nil
			if errno := <-written; errno != nbd.OK {
				t.Fatal(errno)
			}
			w.server.Drop("disk0")
			p, err := w.system.NewProcessor("flush")
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			flushed := make(chan error, 1)
			go func() { flushed <- w.disk.Flush(p) }()
			(<-m.flushes) <- tt.end
			if err := <-flushed; (err != nil) != (tt.end != nil) {
				t.Errorf("flush: %v, the medium said %v", err, tt.end)
			}
			flush := func(client *nbdtest.Client, who string, want nbd.Errno) {
				t.Helper()
				done := begin(t, client, nbdtest.Command{Type: nbdtest.CmdFlush})
				(<-m.flushes) <- nil
				if errno := <-done; errno != want {
					t.Errorf("flush of %s: %v, want %v", who, errno, want)
				}
			}
			w.client() // and no flush
			one, two := w.client(), w.client()
			flush(one, "who came", tt.want)
			flush(one, "who was told", nbd.OK)
			flush(two, "who was there before anybody was told", tt.want)
			flush(w.client(), "who comes when it has been told", nbd.OK)
		})
	}
}
