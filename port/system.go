package port

import (
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/vhbad/vhbad/internal/dma"
)

// DefaultMaxProcessors is the number of processors if SystemConfig does not say.
const DefaultMaxProcessors = 4096

// SystemConfig configures a System.
type SystemConfig struct {
	// IOMMU gives devices access to host memory.
	IOMMU *dma.IOMMU
	// MaxProcessors bounds the processors in use at once.
	MaxProcessors int
	// Verify turns the verifier on; Strict makes it panic at a violation.
	Verify, Strict bool
	// HoldLimit is the longest a callback may take before the verifier reports
	// it; Initialize, ResetBus and AdapterControl have ten times as long. Default
	// DefaultHoldLimit.
	HoldLimit time.Duration
	// Clock measures hold times, stages and waits. Default time.Now.
	Clock func() time.Time
	// OnViolation, unless nil, is called for each violation: on any goroutine, at any
	// level, with any lock held, so it must not wait or call the port.
	OnViolation func(Violation)
	// Log may be nil.
	Log *slog.Logger
}

// A System is the machine that adapters are plugged into: its processors, its
// memory and its verifier.
//
// Concurrency: any goroutine. mu is a leaf.
type System struct {
	iommu         *dma.IOMMU
	maxProcessors int
	log           *slog.Logger
	verifier      *Verifier // nil: off
	holdLimit     time.Duration
	now           func() time.Time
	epoch         time.Time // by now, when the system was made
	ownClock      bool      // SystemConfig.Clock
	extensions    extensionPool

	mu sync.Mutex
	// processors holds the processors in use by number.
	// +checklocks:mu
	processors []*Processor
	// +checklocks:mu
	inUse int
	// +checklocks:mu
	freeNumbers []int
}

// NewSystem makes a system without processors or adapters.
func NewSystem(c SystemConfig) *System {
	s := &System{iommu: c.IOMMU, maxProcessors: c.MaxProcessors, log: c.Log, holdLimit: c.HoldLimit, now: c.Clock}
	if s.holdLimit <= 0 {
		s.holdLimit = DefaultHoldLimit
	}
	if s.ownClock = s.now != nil; !s.ownClock {
		s.now = time.Now
	}
	s.epoch = s.now()
	s.extensions.arena = c.IOMMU.Arena()
	if s.maxProcessors <= 0 {
		s.maxProcessors = DefaultMaxProcessors
	}
	if s.log == nil {
		s.log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	if c.Verify {
		s.verifier = &Verifier{strict: c.Strict, log: s.log, tell: c.OnViolation}
		s.iommu.OnFault(func(f dma.Fault) {
			s.verifier.record(Violation{Check: CheckDMA, What: f.String(), Processor: "device"})
		})
	}
	return s
}

// nanos is the clock in nanoseconds; only differences are meaningful.
func (s *System) nanos() int64 {
	if s.ownClock {
		return int64(s.now().Sub(s.epoch))
	}
	return int64(time.Since(s.epoch)) // half the price of time.Now
}

// Verifier returns the verifier, or nil if it is off.
func (s *System) Verifier() *Verifier { return s.verifier }

// MaxProcessors is the bound on processors in use at once.
func (s *System) MaxProcessors() int { return s.maxProcessors }

// NewProcessor makes a processor, which the caller's goroutine owns until Close.
func (s *System) NewProcessor(name string) (*Processor, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := &Processor{sys: s, name: name, verify: s.verifier != nil, held: make([]*spinLock, heldAtFirst)}
	if n := len(s.freeNumbers); n > 0 {
		p.number = s.freeNumbers[n-1]
		s.freeNumbers = s.freeNumbers[:n-1]
		s.processors[p.number] = p
	} else {
		if len(s.processors) >= s.maxProcessors {
			return nil, fmt.Errorf("port: all %d processors are in use", s.maxProcessors)
		}
		p.number = len(s.processors)
		s.processors = append(s.processors, p)
	}
	p.samples = newSampler(p.number)
	s.inUse++
	return p, nil
}

func (s *System) releaseProcessor(p *Processor) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.processors[p.number] = nil
	s.freeNumbers = append(s.freeNumbers, p.number)
	s.inUse--
}

// ProcessorsInUse is the number of processors that are open.
func (s *System) ProcessorsInUse() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inUse
}
