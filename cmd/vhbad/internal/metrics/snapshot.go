package metrics

import (
	"time"

	"github.com/vhbad/vhbad/hba"
	"github.com/vhbad/vhbad/hba/cache"
	"github.com/vhbad/vhbad/hba/fault"
	"github.com/vhbad/vhbad/hba/trace"
	"github.com/vhbad/vhbad/internal/dma"
	"github.com/vhbad/vhbad/miniport"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/port"
)

// A Snapshot is every layer's counters at about one time.
type Snapshot struct {
	Disks   []Disk
	NBD     nbd.Stats
	Adapter port.AdapterStats
	Stages  *port.StageTimes
	Locks   *port.Locks
	Driver  []miniport.QueueStats
	Device  hba.Stats
	Arena   dma.Stats
	Windows int // IOMMU windows in use
	Faults  uint64
	// Rules are the fault rules in force; Hostile is whether hostile ones are allowed;
	// Injected counts what these and earlier rules have injected.
	Rules    []Fault
	Hostile  bool
	Injected []fault.Injection
	Verify   bool
	Verifier *port.Verifier // nil-safe
	// ReloadedAt is when the configuration in force was read; Reloaded is whether the last
	// attempt to read it succeeded.
	ReloadedAt time.Time
	Reloaded   bool
	// CertificateNotAfter is when the server's certificate ends, zero without TLS.
	CertificateNotAfter time.Time
}

// A Fault is a fault rule in force.
type Fault struct {
	Rule, Class, State string
	Held               int64
}

// A Disk is one export with the logical unit behind it.
type Disk struct {
	Name      string
	Backend   string
	SizeBytes uint64
	ReadOnly  bool
	Unit      port.LUStats
	Cache     *Cache       // nil if the disk has no write cache
	Trace     *trace.Stats // nil if nothing is recorded
}

// A Cache is the write cache of a disk, and what its power cuts did.
type Cache struct {
	cache.Stats
	// Hostile says that the disk breaks promises, or has since its power was last cut.
	Hostile bool
	// CutsByCommand and CutsByRule count power cuts by the class in their reports.
	CutsByCommand, CutsByRule PowerCuts
}

// PowerCuts counts power cuts by class; the last element counts those that failed.
type PowerCuts [cache.Classes + 1]uint64

// A Source gives snapshots.
type Source interface {
	// Snapshot may be called from any goroutine. It returns false while there is nothing to
	// report, yet or any more.
	Snapshot() (Snapshot, bool)
}
