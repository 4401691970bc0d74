package port

import (
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
)

// Check names one rule that the verifier watches.
type Check uint8

// The checks. The comments say what each catches.
const (
	CheckDoubleCompletion  Check = iota + 1 // V1: an SRB completed twice, or one that the miniport does not own
	CheckStatus                             // V2: completed as PENDING, with QUEUE_FROZEN or with an unknown code
	CheckUseAfterComplete                   // V3: SRB, extension or scatter/gather list written after completion
	CheckBuildIoFalse                       // V4: BuildIo returned false and the SRB is overdue, or started all the same; StartIo returned false and kept the SRB
	CheckBuildIoCompleted                   // V5: BuildIo returned true for an SRB it had completed
	CheckLockRules                          // V6: lock order, re-acquisition, release without acquisition or before a lock taken later, lock or level leaked, token kept
	CheckCallingPlace                       // V7: routine not allowed in this callback or at this level
	CheckSynchronizeAccess                  // V8: SynchronizeAccess nested or from an interrupt handler
	CheckHoldTime                           // V9: a callback or lock held too long
	CheckMSILock                            // V10: message lock without per-message mode
	CheckBusyAfterDevice                    // V11: BUSY after the device may have seen the request
	CheckDMA                                // V12: DMA outside a live mapping
	CheckResetOutstanding                   // V13: a reset succeeded with SRBs of its scope outstanding
	CheckStopOutstanding                    // V14: stopped with SRBs outstanding
	CheckPortLimits                         // V15: queue depth or channel exceeded by the port itself
	CheckRegisterRange                      // V16: register access outside the range
	CheckUntagged                           // V17: a second untagged SRB on a unit
	CheckDpcOverlap                         // V18: a DPC overlaps itself
	CheckNotification                       // V19: unknown notification, timer without a routine
	CheckFindAdapter                        // V20: FindAdapter left mandatory fields unset
	checkEnd
)

// Checks is the number of checks, plus one: a table indexed by Check.
const Checks = int(checkEnd)

var checkNames = [Checks]string{
	"", "double_completion", "status", "use_after_complete", "build_io_false", "build_io_completed", "lock_rules",
	"calling_place", "synchronize_access", "hold_time", "msi_lock", "busy_after_device", "dma", "reset_outstanding",
	"stop_outstanding", "port_limits", "register_range", "untagged", "dpc_overlap", "notification", "find_adapter",
}

func (c Check) String() string {
	if c == 0 || int(c) >= Checks {
		return fmt.Sprintf("check %d", uint8(c))
	}
	return checkNames[c]
}

// A Violation is one breach of the contract between port and miniport.
type Violation struct {
	Check     Check
	What      string // what happened
	Processor string
	Callback  Callback
	Level     Level
	Held      []string // locks held
	SRB       string   // the SRB concerned, or empty
	Trail     []string // the processor's last events, oldest first
}

func (v Violation) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "V%d %s: %s; in %s at %s on %s", v.Check, v.Check, v.What, v.Callback, v.Level, v.Processor)
	if len(v.Held) > 0 {
		fmt.Fprintf(&b, ", holding %s", strings.Join(v.Held, ", "))
	}
	if v.SRB != "" {
		fmt.Fprintf(&b, "; %s", v.SRB)
	}
	if len(v.Trail) > 0 {
		fmt.Fprintf(&b, "; trail: %s", strings.Join(v.Trail, " > "))
	}
	return b.String()
}

// maxViolations bounds the records kept; the counters go on.
const maxViolations = 1024

// A Verifier records violations. A nil Verifier is one that is off.
//
// Concurrency: any goroutine. mu is a leaf.
type Verifier struct {
	strict bool
	log    *slog.Logger
	tell   func(Violation) // may be nil
	counts [Checks]atomic.Uint64
	// edges[a][b] is set once a lock of rank b was taken while one of rank a
	// was held.
	edges [rankCount][rankCount]atomic.Bool

	callbackTimes [callbackCount]holdTimes
	lockTimes     [rankCount]holdTimes

	mu sync.Mutex
	// +checklocks:mu
	violations []Violation
}

// Violations returns the records so far, oldest first.
func (v *Verifier) Violations() []Violation {
	if v == nil {
		return nil
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return append([]Violation(nil), v.violations...)
}

// Count is the number of violations of c so far.
func (v *Verifier) Count(c Check) uint64 {
	if v == nil || int(c) >= Checks {
		return 0
	}
	return v.counts[c].Load()
}

// LockOrder returns the edges of the lock-order graph seen so far, as pairs of
// lock kinds: the second was taken while the first was held.
func (v *Verifier) LockOrder() [][2]string {
	if v == nil {
		return nil
	}
	var out [][2]string
	for from := range rankCount {
		for to := range rankCount {
			if v.edges[from][to].Load() {
				out = append(out, [2]string{rankNames[from], rankNames[to]})
			}
		}
	}
	return out
}

func (v *Verifier) record(x Violation) {
	v.counts[x.Check].Add(1)
	v.mu.Lock()
	if len(v.violations) < maxViolations {
		v.violations = append(v.violations, x)
	}
	v.mu.Unlock()
	v.log.Error("verifier violation", "check", x.Check.String(), "violation", x.String())
	if v.tell != nil {
		v.tell(x)
	}
	if v.strict {
		panic("port: " + x.String())
	}
}

// violate records a violation seen on p. The verifier is on.
func (p *Processor) violate(c Check, srb *SRB, what string) {
	text := ""
	if srb != nil {
		text = srb.String()
	}
	p.violateFor(c, text, what)
}

// violateFor is violate for an SRB that others may be writing to: srb describes the part
// of it that may be read.
func (p *Processor) violateFor(c Check, srb, what string) {
	x := Violation{Check: c, What: what, SRB: srb, Processor: p.name, Callback: p.callback, Level: p.level, Trail: p.trail.list()}
	for i := range p.nheld {
		x.Held = append(x.Held, p.held[i].String())
	}
	p.sys.verifier.record(x)
}

// mayAcquire checks the lock rules before l is taken, and reports whether to take
// it: not if p holds it already, which would hang. A lock out of order may deadlock
// with another processor: the verifier reports it; without the verifier, mayAcquire
// panics.
func (p *Processor) mayAcquire(l *spinLock) bool {
	for i := range p.nheld {
		h := p.held[i]
		if h == l {
			p.breach(l.String() + " taken twice")
			return false
		}
		if p.verify {
			p.sys.verifier.edges[h.rank][l.rank].Store(true)
		}
		outOfOrder := h.a != l.a || h.rank > l.rank || h.rank == l.rank && h.index > l.index
		if outOfOrder && !p.verify {
			panic("port: " + l.String() + " taken while holding " + h.String() + ", which deadlocks with whoever takes them in order")
		}
		if h.a != l.a {
			p.breach(l.String() + " taken while holding " + h.String() + " of another adapter")
		} else if outOfOrder {
			p.breach(l.String() + " taken while holding " + h.String())
		}
	}
	if p.verify && l.rank == rankDpc {
		for i := range p.nheld {
			if h := p.held[i]; h.rank == rankDpc {
				p.breach("second DPC lock taken")
				break
			}
		}
	}
	return true
}

// breach reports a breach of the lock rules, if the verifier is on.
func (p *Processor) breach(what string) {
	if p.verify {
		p.violate(CheckLockRules, nil, what)
	}
}

// A trail holds a processor's last events, for Violation.Trail. It is written only with
// the verifier on.
type trail struct {
	events [16]trailEvent
	n      int
}

type trailEvent struct {
	what string // a constant
	tag  uint32
}

func (t *trail) add(what string, tag uint32) {
	t.events[t.n%len(t.events)] = trailEvent{what, tag}
	t.n++
}

func (t *trail) list() []string {
	var out []string
	for i := max(0, t.n-len(t.events)); i < t.n; i++ {
		e := t.events[i%len(t.events)]
		out = append(out, fmt.Sprintf("%s %d", e.what, e.tag))
	}
	return out
}
