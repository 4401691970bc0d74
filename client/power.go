package client

import (
	"context"
	"net/http"
	"time"
)

// PowerCutOptions say how the power of a disk is cut. Every field may be left out.
type PowerCutOptions struct {
	// Seed makes the outcome repeatable: the same pending writes and the same
	// options leave the same image. Without a seed, the daemon draws one.
	Seed *uint64 `json:"seed,omitempty"`
	// Policy says which pending writes survive: "subset" (default), "none", "all",
	// "prefix", "reverse" or "one-missing".
	Policy string `json:"policy,omitempty"`
	// Tear is the length of the pieces in which writes may survive in part: "none"
	// (default), "512" or "4096".
	Tear string `json:"tear,omitempty"`
	// Damage is what becomes of a sector that was being written: "old" (default),
	// "garbage" or "unreadable".
	Damage string `json:"damage,omitempty"`
	// LoseFlushed is how many sectors, drawn by the seed, lose what a flush or FUA has
	// promised since the last cut: each then holds what it held at that cut, or zeros.
	// No correct drive does this: it is refused unless the daemon runs with --hostile.
	LoseFlushed int `json:"lose_flushed,omitempty"`
	// OffForSeconds is how long the disk stays without power, at most 3600.
	OffForSeconds float64 `json:"off_for_seconds,omitempty"`
	// DropConnections closes the clients' connections without answering requests in
	// flight.
	DropConnections bool `json:"drop_connections,omitempty"`
}

// PowerReport says what a power cut did.
type PowerReport struct {
	// Number counts the disk's power cuts from 1.
	Number uint64    `json:"number"`
	Disk   string    `json:"disk"`
	Time   time.Time `json:"time"`
	// Trigger is "command", or "rule" followed by the name of the rule.
	Trigger    string  `json:"trigger"`
	OffSeconds float64 `json:"off_seconds"`
	// DroppedConnections is how many clients were cut off.
	DroppedConnections int `json:"dropped_connections"`
	// Seed decided the outcome, together with Policy, Tear and Damage.
	Seed uint64 `json:"seed"`
	// Policy says which pending writes were to survive.
	Policy string `json:"policy"`
	// Tear is the length of the pieces in which writes were to survive in part.
	Tear string `json:"tear"`
	// Damage is what was to become of a sector that was being written.
	Damage string `json:"damage"`
	// LoseFlushed is how many sectors were to be lost; Sectors.LostFlushed is how many
	// were.
	LoseFlushed int `json:"lose_flushed,omitempty"`
	// Class is the kind of drive that the disk has been: "legal" (a correct one),
	// "damaged" (it harmed the sector that it was writing, as requested), "hostile" (it
	// has broken a promise since the previous cut, whether the image shows it or not), or
	// "failed" (unknown, because the medium failed).
	Class string `json:"class"`
	// ImageClass is the kind of drive that would leave such an image, according to the
	// check after the cut. It has the values of Class.
	ImageClass string `json:"image_class"`
	// Hostile counts commands since the previous cut by what was done to them that no
	// correct drive does: "lying-flush", "ignored-fua", "lost-write", "misdirected", or
	// the kind of another hostile rule. "lost-flushed" counts sectors, if the cut was to
	// lose some.
	Hostile map[string]uint64 `json:"hostile,omitempty"`
	// CheckedSectors is how many sectors were checked against what had been promised.
	CheckedSectors int `json:"checked_sectors"`
	// Acts counts sectors by what was done to them that no correct drive does:
	// "torn-sector", "garbage", "unreadable", "lying-flush", "ignored-fua",
	// "lost-write", "misdirected", "lost-flushed" or "defect".
	Acts map[string]int `json:"acts,omitempty"`
	// Findings are the first of those sectors.
	Findings []PowerFinding `json:"findings,omitempty"`
	// Error says how the medium failed during the cut. The medium then does not hold
	// what the seed decided and has not been checked: Sectors and Writes give the
	// intended outcome.
	Error string `json:"error,omitempty"`
	// SectorBytes is the unit of Sectors.
	SectorBytes int `json:"sector_bytes"`
	// Sectors counts the sectors that had pending writes, by outcome.
	Sectors PowerSectors `json:"sectors"`
	// ImageSHA256 is a digest of the sectors that had pending writes, after the cut.
	ImageSHA256 string `json:"image_sha256"`
	// Flushes are the last flushes answered before the cut, oldest first.
	Flushes []PowerFlush `json:"flushes"`
	// Writes are the latest 4096 writes that were pending, in order of arrival.
	Writes []PowerWrite `json:"writes"`
	// WritesOmitted counts the pending writes that are not among Writes.
	WritesOmitted int `json:"writes_omitted,omitempty"`
}

// PowerSectors counts the sectors that had pending writes, by outcome.
type PowerSectors struct {
	Pending int `json:"pending"`
	// Kept sectors hold the newest write.
	Kept int `json:"kept"`
	// Lost sectors hold an older write, or what was durable.
	Lost    int `json:"lost"`
	Torn    int `json:"torn"`
	Garbage int `json:"garbage"`
	// Unreadable sectors cannot be read until they are written or the daemon ends: the
	// medium has garbage there.
	Unreadable int `json:"unreadable"`
	// LostFlushed sectors had no pending writes: they were lost because of LoseFlushed.
	LostFlushed int `json:"lost_flushed,omitempty"`
}

// PowerFinding is a sector in a state that a correct drive would not have left.
type PowerFinding struct {
	OffsetBytes int64  `json:"offset_bytes"`
	Act         string `json:"act"`
	// Write is the id of the write that was promised to be durable there, 0 if none was.
	Write uint64 `json:"write,omitempty"`
}

// PowerFlush is one answered flush. It promised that the acknowledged writes with
// smaller ids than BeforeWrite are durable.
type PowerFlush struct {
	Number      uint64    `json:"number"`
	BeforeWrite uint64    `json:"before_write"`
	Writes      int       `json:"writes"`
	Time        time.Time `json:"time"`
	// Lie is whether the flush did nothing.
	Lie bool `json:"lie,omitempty"`
}

// PowerWrite is one write that was pending when the power was cut.
type PowerWrite struct {
	ID uint64 `json:"id"`
	// Kind is "write", "trim", "zero" or "allocate".
	Kind        string `json:"kind"`
	OffsetBytes int64  `json:"offset_bytes"`
	LengthBytes int64  `json:"length_bytes"`
	FUA         bool   `json:"fua,omitempty"`
	// Acknowledged is whether the device had reported the write as done.
	Acknowledged bool `json:"acknowledged"`
	// Promised is whether the device had falsely reported the write as durable.
	Promised bool `json:"promised,omitempty"`
	// Epoch is how many flushes had been answered before the write arrived.
	Epoch      uint64  `json:"epoch"`
	AgeSeconds float64 `json:"age_seconds"`
	// Fate is "kept", "lost", "torn" or "overwritten" (by a later write that
	// survived).
	Fate string `json:"fate"`
	// SectorsKept is how many of the write's pending sectors hold it.
	SectorsKept int `json:"sectors_kept"`
	// SectorsLost is how many hold what was there before it.
	SectorsLost int `json:"sectors_lost"`
	// SectorsOverwritten is how many hold a later write.
	SectorsOverwritten int `json:"sectors_overwritten"`
	// SectorsDamaged is how many are torn, garbage or unreadable.
	SectorsDamaged int `json:"sectors_damaged"`
}

// Power describes a disk's write cache and its power cuts.
type Power struct {
	// On is whether the disk has power.
	On bool `json:"on"`
	// WriteCache is whether writes may wait in the cache (WCE); hosts can change
	// it.
	WriteCache bool `json:"write_cache"`
	// Eviction is "fifo", "random" or "none".
	Eviction      string `json:"eviction"`
	SizeBytes     int64  `json:"size_bytes"`
	PendingBytes  int64  `json:"pending_bytes"`
	PendingWrites int64  `json:"pending_writes"`
	// OldestPending is when the oldest pending write arrived.
	OldestPending *time.Time `json:"oldest_pending,omitempty"`
	// UnreadableSectors counts the sectors that cuts have made unreadable and that have
	// not been written since.
	UnreadableSectors int64 `json:"unreadable_sectors"`
	// Hostile lists the promises that the disk breaks: "lying-flush", "ignored-fua".
	Hostile []string `json:"hostile"`
	Cuts    uint64   `json:"cuts"`
	// Reports are the reports of the latest power cuts, oldest first.
	Reports []PowerReport `json:"reports"`
	// Trace describes the disk's trace file, absent if there is none.
	Trace *PowerTrace `json:"trace,omitempty"`
}

// PowerTrace is the file that records what a disk does.
type PowerTrace struct {
	Path    string `json:"path"`
	Records uint64 `json:"records"`
	// Bytes is the length of the file.
	Bytes uint64 `json:"bytes"`
	// Waits counts the commands that had to wait for the file.
	Waits uint64 `json:"waits"`
	// Error is why recording has stopped, absent if it has not.
	Error string `json:"error,omitempty"`
}

// CutPower cuts the power of a disk that has a write cache, and returns when the disk has
// power again.
//
// Errors: ErrNotFound; ErrConflict if the disk has no write cache, or no power;
// ErrInvalid for impossible options; ErrUnavailable if the disk has not lost its pending
// writes within 30 s, because a command hangs in the medium or the cut itself takes
// longer. The cut is then made all the same, and Power has the report; if it fails
// without a report, the daemon's log says why.
func (c *Client) CutPower(ctx context.Context, disk string, o PowerCutOptions) (*PowerReport, error) {
	r := &PowerReport{}
	if err := c.call(ctx, http.MethodPost, "/v1/disks/"+segment(disk)+"/power-cut", o, r); err != nil {
		return nil, err
	}
	return r, nil
}

// Power returns the state of a disk's write cache and the reports of its latest power
// cuts.
//
// Errors: ErrNotFound; ErrConflict if the disk has no write cache.
func (c *Client) Power(ctx context.Context, disk string) (*Power, error) {
	p := &Power{}
	if err := c.get(ctx, "/v1/disks/"+segment(disk)+"/power", p); err != nil {
		return nil, err
	}
	return p, nil
}
