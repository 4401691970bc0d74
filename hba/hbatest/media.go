package hbatest

import (
	"errors"
	"math"
	"sync"

	"github.com/vhbad/vhbad/hba/media"
)

// ErrInjected is the error that a Media injects.
var ErrInjected = errors.New("hbatest: injected error")

// MediaConfig says how a Media misbehaves. Whether a call fails depends on the
// seed, the kind of the call and its offset alone, so that a run repeats however
// its goroutines interleave.
type MediaConfig struct {
	Seed uint64
	// ErrorRate and TornRate are probabilities: a call that does nothing and
	// fails, and a write that stores its first half and fails.
	ErrorRate, TornRate float64
	// Inline makes the medium claim that it never blocks.
	Inline bool
}

// A Media is a medium that misbehaves on demand. It may always block, so that a
// device hands each command to a worker; with Inline, a device's engine runs
// them, and a call that is held holds the engine. It may be used from any
// goroutine.
type Media struct {
	media  media.Media
	config MediaConfig

	mu sync.Mutex
	// +checklocks:mu
	hold bool
	// +checklocks:mu
	holding int // calls that wait
	// +checklocks:mu
	permits int // calls that may pass although hold is on
	// +checklocks:mu
	running int
	// +checklocks:mu
	peak int

	changed sync.Cond // on mu: broadcast when anything above changes
}

var (
	_ media.Media        = (*Media)(nil)
	_ media.NeverBlocker = (*Media)(nil)
)

// NewMedia wraps m.
func NewMedia(m media.Media, c MediaConfig) *Media {
	x := &Media{media: m, config: c}
	x.changed.L = &x.mu
	return x
}

// Hold makes calls from now on wait.
func (m *Media) Hold() {
	m.mu.Lock()
	m.hold = true
	m.mu.Unlock()
}

// Release lets all calls go, those that wait and those to come.
func (m *Media) Release() {
	m.mu.Lock()
	m.hold = false
	m.permits = 0
	m.changed.Broadcast()
	m.mu.Unlock()
}

// ReleaseOne lets one call go that waits or is to come.
func (m *Media) ReleaseOne() {
	m.mu.Lock()
	m.permits++
	m.changed.Broadcast()
	m.mu.Unlock()
}

// WaitHeld waits until n calls at least are waiting that ReleaseOne has let none of go.
func (m *Media) WaitHeld(n int) {
	m.mu.Lock()
	for m.holding-m.permits < n {
		m.changed.Wait()
	}
	m.mu.Unlock()
}

// Peak is the largest number of calls that ever ran at once.
func (m *Media) Peak() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.peak
}

func (m *Media) enter() {
	m.mu.Lock()
	m.running++
	m.peak = max(m.peak, m.running)
	if m.hold {
		m.holding++
		m.changed.Broadcast()
		for m.hold && m.permits == 0 {
			m.changed.Wait()
		}
		m.holding--
		if m.permits > 0 {
			m.permits--
		}
	}
	m.mu.Unlock()
}

func (m *Media) leave() {
	m.mu.Lock()
	m.running--
	m.mu.Unlock()
}

// roll draws a number from 0 to 1 for a call.
func (m *Media) roll(kind byte, off int64) float64 {
	x := m.config.Seed ^ uint64(off)*0x9e3779b97f4a7c15 ^ uint64(kind)<<56
	// The finaliser of splitmix64.
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return float64(x^x>>31) / math.MaxUint64
}

// ReadAt implements media.Media.
func (m *Media) ReadAt(p []byte, off int64) (int, error) {
	m.enter()
	defer m.leave()
	if m.roll('r', off) < m.config.ErrorRate {
		return 0, ErrInjected
	}
	return m.media.ReadAt(p, off)
}

// WriteAt implements media.Media.
func (m *Media) WriteAt(p []byte, off int64) (int, error) {
	m.enter()
	defer m.leave()
	if m.roll('w', off) < m.config.ErrorRate {
		return 0, ErrInjected
	}
	if m.roll('t', off) < m.config.TornRate {
		n, err := m.media.WriteAt(p[:len(p)/2], off)
		return n, errors.Join(ErrInjected, err)
	}
	return m.media.WriteAt(p, off)
}

// Flush implements media.Media.
func (m *Media) Flush() error {
	m.enter()
	defer m.leave()
	if m.roll('f', 0) < m.config.ErrorRate {
		return ErrInjected
	}
	return m.media.Flush()
}

// NeverBlocks implements media.NeverBlocker.
func (m *Media) NeverBlocks() bool { return m.config.Inline }

// Size implements media.Media.
func (m *Media) Size() int64 { return m.media.Size() }

// Close implements media.Media.
func (m *Media) Close() error { return m.media.Close() }
