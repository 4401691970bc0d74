package port

import (
	"sync/atomic"
	"time"

	"github.com/vhbad/vhbad/internal/latency"
)

// A lockCount holds a lock's own statistics. Every acquisition is counted, and
// every wait is measured, because a wait costs more than reading the clock. How long
// the lock is held is measured for one acquisition in SampleEvery, or for all with
// the verifier on.
type lockCount struct {
	// The holder's.
	acquired sampler
	timed    bool      // this acquisition is measured
	watch    stopwatch // since when, if it is

	// seen is how many there were when acquisitions last could take the lock.
	seen atomic.Uint64
}

// lockTimes are the histograms of all locks of one kind. Times are added by holders of
// such a lock, and rarely.
type lockTimes struct{ wait, hold latency.Histogram }

// initLock makes l ready for use.
func (a *Adapter) initLock(l *spinLock, rank lockRank, index int) {
	l.a, l.rank, l.index = a, rank, index
	l.acquired = newSampler(int(rank)<<8 + index)
	if a.sys.verifier != nil {
		l.acquired.next()
	}
}

// measure begins to measure an acquisition that the sampler has picked. The caller
// holds the lock.
func (l *spinLock) measure(p *Processor) {
	l.acquired.draw()
	if p.verify {
		l.acquired.next()
	}
	l.timed, l.watch = true, p.startWatch()
}

// measured ends what measure began. The caller still holds the lock.
func (l *spinLock) measured(p *Processor) {
	l.timed = false
	d := l.watch.elapsed(p)
	l.a.lockTimes[l.rank].hold.Add(d)
	if p.verify {
		p.sys.verifier.lockTimes[l.rank].add(d)
	}
}

// waited notes that p, which holds the lock now, has waited for it since began.
func (l *spinLock) waited(p *Processor, began int64) {
	l.a.lockTimes[l.rank].wait.Add(time.Duration(p.sys.nanos() - began))
}

// acquisitions is how often l was acquired or, if l is held now, how often it had been
// when acquisitions last found it free. It never waits, as a lock may be held for as long
// as a device takes to reset.
//
// +checklocksignore: a try may work or not.
func (l *spinLock) acquisitions() uint64 {
	if l.mu.TryLock() {
		l.seen.Store(l.acquired.events())
		l.mu.Unlock()
	}
	return l.seen.Load()
}

// LockStats say how locks of one kind are used.
type LockStats struct {
	// Acquired counts acquisitions. A lock that is held during the call contributes
	// its last known count.
	Acquired uint64
	// Wait is how long contended acquisitions waited. All are measured, so its count is
	// the number of contended acquisitions.
	Wait latency.Counts
	// Hold is how long locks were held, less the time spent in the device: for one
	// acquisition in SampleEvery, or for all with the verifier on.
	Hold latency.Counts
}

// Locks are the statistics of the locks around callbacks, by kind.
type Locks struct {
	StartIo   LockStats
	Channel   LockStats // all channels
	Interrupt LockStats // all messages
}

// Locks returns the use of the adapter's locks.
//
// Level: any.
func (a *Adapter) Locks() *Locks {
	s := new(Locks)
	s.StartIo.Acquired = a.startIoLock.acquisitions()
	for i := range a.channelLocks {
		s.Channel.Acquired += a.channelLocks[i].acquisitions()
	}
	for i := range a.interruptLocks {
		s.Interrupt.Acquired += a.interruptLocks[i].acquisitions()
	}
	for rank, of := range map[lockRank]*LockStats{rankStartIo: &s.StartIo, rankChannel: &s.Channel, rankInterrupt: &s.Interrupt} {
		a.lockTimes[rank].wait.Load(&of.Wait)
		a.lockTimes[rank].hold.Load(&of.Hold)
	}
	return s
}
