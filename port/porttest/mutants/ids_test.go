package mutants

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vhbad/vhbad/internal/scsi"
	"github.com/vhbad/vhbad/port"
)

// idRequests is how many requests TestA12 sends: ten million if VHBAD_SOAK is
// set.
func idRequests() int {
	if os.Getenv("VHBAD_SOAK") != "" {
		return 10_000_000
	}
	return 100_000
}

// A loader keeps a batch of requests going on one processor.
type loader struct {
	r     *rig
	lu    *port.LogicalUnit
	srbs  []*port.SRB
	given []atomic.Bool // the request is out
	left  atomic.Int32
	done  chan struct{}
	total atomic.Int64
}

// A loaderSlot is one request of a loader.
type loaderSlot struct {
	l *loader
	i int
}

// CompleteSRB implements port.Completer.
func (s *loaderSlot) CompleteSRB(_ *port.Processor, srb *port.SRB) {
	l := s.l
	if !l.given[s.i].Swap(false) {
		l.r.fail(oracleTwice, "tag %d", srb.Tag)
	}
	lba, _, _ := scsi.BlockRange(&srb.CDB)
	var want [1]byte
	stamp(want[:], srb.Lun, lba)
	if srb.Status != port.StatusSuccess || srb.DataTransferBytes != blockBytes || srb.DataBuffer[0] != want[0] {
		l.r.fail(oracleStatus, "%s", srb)
	}
	l.total.Add(1)
	if l.left.Add(-1) == 0 {
		l.done <- struct{}{}
	}
}

func newLoader(r *rig, lu *port.LogicalUnit, depth int) *loader {
	l := &loader{r: r, lu: lu, given: make([]atomic.Bool, depth), done: make(chan struct{}, 1)}
	for i := range depth {
		q := r.read(int(lu.Lun()), uint64(i))
		q.completions.Add(1) // it is not the rig's to wait for
		q.srb.Completer = &loaderSlot{l, i}
		l.srbs = append(l.srbs, q.srb)
	}
	return l
}

func (l *loader) run(p *port.Processor, rounds int) {
	for round := range rounds {
		for i, srb := range l.srbs {
			l.given[i].Store(true)
			srb.CDBBytes = uint8(scsi.PutRead16(&srb.CDB, uint64((round+i)%badMediumLBA), 1, false, false))
			srb.DataTransferBytes = blockBytes
		}
		l.left.Store(int32(len(l.srbs)))
		l.lu.Submit(p, l.srbs)
		<-l.done
	}
}

// A12: ids from a pool that BuildIo takes from on every processor, that StartIo
// uses on every channel and that the interrupt handler gives back to are unique
// among the requests outstanding, and each request completes once.
func TestA12_UniqueIDs(t *testing.T) {
	for _, c := range []struct {
		name string
		o    options
	}{{"channels", perMessage}, {"full duplex", all}, {"half duplex", half}} {
		t.Run(c.name, func(t *testing.T) {
			s := &scenario{options: c.o}
			r, err := newRig(t, c.o, s, nil)
			if err != nil {
				t.Fatal(err)
			}
			const workers, depth = 4, 8
			rounds := idRequests()/(3*workers*depth) + 1
			var wg sync.WaitGroup
			var loaders []*loader
			for w := range workers {
				l := newLoader(r, r.units[w%unitCount], depth)
				loaders = append(loaders, l)
				p := r.processor(fmt.Sprintf("worker %d", w))
				wg.Go(func() {
					l.run(p, rounds)
					p.Close()
				})
			}
			wg.Wait()
			for _, l := range loaders {
				if n := l.total.Load(); n != int64(rounds*depth) {
					t.Errorf("%d completions, want %d", n, rounds*depth)
				}
			}
			for _, s := range r.noticed() {
				t.Error(s)
			}
			r.teardown()
			r.close(true)
		})
	}
}
