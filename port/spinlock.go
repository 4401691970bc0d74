package port

// A KSpinLock is a lock of the miniport's own. Its place in the lock order is
// behind the DPC locks and before the interrupt locks, and among a miniport's own
// locks in the order of their initialization. It does not exclude interrupt
// handlers, which cannot take it.
// Source: storport.h STOR_KSPIN_LOCK.
type KSpinLock struct{ lock spinLock }

// InitializeSpinlock makes l ready for use.
//
// Level: Passive, in FindAdapter or PassiveInitialize.
// Source: storport.h StorPortInitializeSpinlock.
func (a *Adapter) InitializeSpinlock(p *Processor, l *KSpinLock) {
	p.check(routineInitializeSpinlock)
	a.initLock(&l.lock, rankOwned, a.ownedCount)
	a.ownedCount++
}

// AcquireSpinLockEx takes a lock of the miniport's own and raises to Dispatch.
// The port's locks are taken by AcquireSpinLock. ReleaseSpinLock gives it back.
//
// Level: up to Dispatch.
// Source: storport.h StorPortAcquireSpinLockEx with DpcLevelLock.
func (a *Adapter) AcquireSpinLockEx(p *Processor, l *KSpinLock) LockHandle {
	h := LockHandle{lock: &l.lock, old: p.raise(Dispatch)}
	if l.lock.a != a {
		panic("port: AcquireSpinLockEx of a lock that InitializeSpinlock has not seen")
	}
	if !h.lock.acquire(p) {
		p.lower(h.old)
		return LockHandle{}
	}
	return h
}
