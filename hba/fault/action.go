package fault

// A Kind is what a rule does.
type Kind string

// Kinds of faults that a correct drive may show.
const (
	KindStatus             Kind = "status"               // end with a SCSI status and sense data
	KindErrno              Kind = "errno"                // end with what clients see as this error
	KindMediumError        Kind = "medium-error"         // blocks that cannot be read until they are written
	KindBusy               Kind = "busy"                 // BUSY
	KindTaskSetFull        Kind = "task-set-full"        // TASK SET FULL
	KindRingFull           Kind = "ring-full"            // nothing more is taken from the submission ring
	KindNotReady           Kind = "not-ready"            // becoming ready
	KindUnitAttention      Kind = "unit-attention"       // something has happened since the last command
	KindWriteProtect       Kind = "write-protect"        // refuses what writes
	KindShortTransfer      Kind = "short-transfer"       // moves less than asked for, and says so
	KindHang               Kind = "hang"                 // is not begun until released, aborted or reset
	KindGate               Kind = "gate"                 // is held, before or after it is executed, until released
	KindLatency            Kind = "latency"              // takes longer
	KindStall              Kind = "stall"                // nothing moves for some time, now and then
	KindRate               Kind = "rate"                 // so many bytes and commands each second
	KindQueue              Kind = "queue"                // so many at once, each with its service time
	KindReorder            Kind = "reorder"              // is overtaken by later ones
	KindCutReply           Kind = "cut-reply"            // the reply breaks off, and its connection is gone
	KindSlowHandshake      Kind = "slow-handshake"       // a client waits before it gets the disk
	KindResetFails         Kind = "reset-fails"          // an abort or reset does not work
	KindUnplug             Kind = "unplug"               // is pulled out, and plugged in again
	KindCapacity           Kind = "capacity"             // has another size
	KindPowerCut           Kind = "power-cut"            // loses power
	KindDisconnect         Kind = "disconnect"           // its clients lose their connections
	KindDMAAfterReset      Kind = "dma-after-reset"      // hostile: memory is touched after the reset
	KindDMAAfterCompletion Kind = "dma-after-completion" // hostile: memory is touched after the answer
	KindFlip               Kind = "flip"                 // hostile: read data have wrong bits
	KindRot                Kind = "rot"                  // hostile: blocks have wrong bits until they are written
	KindStaleRead          Kind = "stale-read"           // hostile: reads what was there before the last write
	KindLostWrite          Kind = "lost-write"           // hostile: acknowledged, not done
	KindMisdirected        Kind = "misdirected"          // hostile: written elsewhere
	KindIgnoreFUA          Kind = "ignore-fua"           // hostile: the write stays in the cache
	KindLieAboutFlush      Kind = "lie-about-flush"      // hostile: acknowledged, not done
	KindLostCompletion     Kind = "lost-completion"      // hostile: done, never answered
	KindDuplicate          Kind = "duplicate"            // hostile: answered twice
	KindMistagged          Kind = "mistagged"            // hostile: answered under another tag
	KindLateCompletion     Kind = "late-completion"      // hostile: answered again after an abort or reset
	KindLostInterrupt      Kind = "lost-interrupt"       // hostile: answered without an interrupt
	KindBadCookie          Kind = "bad-cookie"           // hostile: the client gets an answer to what it has not asked
)

// A Place is where in its life a command is held.
type Place string

// Places.
const (
	PlaceBefore Place = "before" // it has arrived, and nothing is done
	PlaceAfter  Place = "after"  // it is done, and not answered
)

// An Action is a kind and those parameters that it takes.
type Action struct {
	Kind Kind `json:"kind" yaml:"kind"`

	// Status is the SCSI status; "check-condition" if there is sense.
	Status string `json:"status,omitempty" yaml:"status,omitempty"`
	Sense  *Sense `json:"sense,omitempty" yaml:"sense,omitempty"`
	// Errno is what clients get.
	Errno string `json:"errno,omitempty" yaml:"errno,omitempty"`
	// Heal has a write repair what it covers. Default true.
	Heal *bool `json:"heal,omitempty" yaml:"heal,omitempty"`
	// Bits is how many bits flip: of a command, or of each rotten block. Default
	// 1.
	Bits uint32 `json:"bits,omitempty" yaml:"bits,omitempty"`
	// Share is how much of the range is bad or rotten, from 0 to 1. Default 1.
	Share *float64 `json:"share,omitempty" yaml:"share,omitempty"`
	// ShiftBlocks is how far a write goes astray; if zero, a place on the disk is drawn.
	ShiftBlocks int64 `json:"shift-blocks,omitempty" yaml:"shift-blocks,omitempty"`
	// Keep is how many bytes are still transferred, rounded down to blocks.
	Keep Size `json:"keep,omitempty" yaml:"keep,omitempty"`
	// After is how many bytes of the reply, as on the wire, still go out. The default is
	// its header and half of what follows; of a reply that is only a header, half.
	After *Size `json:"after,omitempty" yaml:"after,omitempty"`
	// At is where a command is held, and when power fails.
	At Place `json:"at,omitempty" yaml:"at,omitempty"`
	// For is how long the fault lasts: until a hang ends by itself, a disk is plugged in
	// again, a size is restored, a late completion or transfer comes, a ring is looked
	// at again or a client gets the disk, and at most until a reordered command goes on.
	For Duration `json:"for,omitempty" yaml:"for,omitempty"`
	// Period is the time from the beginning of one stall to the beginning of the next.
	Period Duration `json:"period,omitempty" yaml:"period,omitempty"`
	// Latency is how much longer a command takes, or its service time.
	Latency *Latency `json:"latency,omitempty" yaml:"latency,omitempty"`
	// BytesPerSecond is a cap on what commands move.
	BytesPerSecond Size `json:"bytes-per-second,omitempty" yaml:"bytes-per-second,omitempty"`
	// IOPS is a cap on commands per second.
	IOPS uint64 `json:"iops,omitempty" yaml:"iops,omitempty"`
	// Burst is how many bytes may come at once.
	Burst Size `json:"burst,omitempty" yaml:"burst,omitempty"`
	// BurstIOs is how many commands may come at once.
	BurstIOs uint64 `json:"burst-ios,omitempty" yaml:"burst-ios,omitempty"`
	// Lanes is how many commands are served at once.
	Lanes int `json:"lanes,omitempty" yaml:"lanes,omitempty"`
	// Silent makes a reset that fails give no answer at all.
	Silent bool `json:"silent,omitempty" yaml:"silent,omitempty"`
	// Size is the new capacity.
	Size Size `json:"size,omitempty" yaml:"size,omitempty"`
	// Power says how power fails.
	Power *PowerCut `json:"power,omitempty" yaml:"power,omitempty"`
}

// A Sense is what a CHECK CONDITION says.
type Sense struct {
	// Key is a sense key by its name in SPC-4, in lower case with dashes, or by
	// number.
	Key string `json:"key" yaml:"key"`
	// ASC is the additional sense code.
	ASC uint8 `json:"asc,omitempty" yaml:"asc,omitempty"`
	// ASCQ is the qualifier of the additional sense code.
	ASCQ uint8 `json:"ascq,omitempty" yaml:"ascq,omitempty"`
	// LBA adds the first block of the command as information.
	LBA bool `json:"lba,omitempty" yaml:"lba,omitempty"`
}

// A PowerCut says how power fails. The device only passes it on to whoever controls the
// power.
type PowerCut struct {
	// Policy is which of the writes that were not flushed survive.
	Policy string `json:"policy,omitempty" yaml:"policy,omitempty"`
	// Seed is the seed of that choice.
	Seed uint64 `json:"seed,omitempty" yaml:"seed,omitempty"`
	// Tear is the unit in which a write may be torn.
	Tear string `json:"tear,omitempty" yaml:"tear,omitempty"`
	// Damage is what a torn unit holds.
	Damage string `json:"damage,omitempty" yaml:"damage,omitempty"`
	// OffFor is how long power stays away.
	OffFor Duration `json:"off-for,omitempty" yaml:"off-for,omitempty"`
	// DropConnections closes the clients' connections, as a real cut does.
	DropConnections *bool `json:"drop-connections,omitempty" yaml:"drop-connections,omitempty"`
}

// A stage says who carries an action out.
type stage uint8

const (
	stageCommand   stage = iota // the device, on commands
	stageControl                // the device, on aborts and resets
	stageHandshake              // whoever serves the disk, on clients that come
)

// A field is a parameter of an action, a bit each.
type field uint32

const (
	fieldStatus field = 1 << iota
	fieldSense
	fieldErrno
	fieldHeal
	fieldBits
	fieldShare
	fieldShift
	fieldKeep
	fieldAt
	fieldFor
	fieldPeriod
	fieldLatency
	fieldRate
	fieldLanes
	fieldSilent
	fieldSize
	fieldPower
	fieldAfter
)

// A kindInfo describes a kind.
type kindInfo struct {
	kind     Kind
	hostile  bool
	once     bool // a thing that happens to a unit, not a state
	stage    stage
	ops      Op    // what a rule that names no ops applies to
	allowed  Op    // what a rule may name
	optional field // fields it takes
	needs    field // fields it requires
	ranged   bool  // it needs a range, because it keeps something for each block of it
	summary  string
}

// kinds, in the order of the reference.
var kinds = []kindInfo{
	{kind: KindStatus, ops: opsOfUsers, allowed: opsOfScsi, optional: fieldStatus | fieldSense, summary: "end with a SCSI status, and sense data if it is CHECK CONDITION"},
	{kind: KindErrno, ops: opsOfUsers, allowed: opsOfScsi, needs: fieldErrno, summary: "end so that clients get this error"},
	{kind: KindMediumError, ops: OpRead | OpVerify, allowed: opsRanged, optional: fieldHeal | fieldShare, summary: "MEDIUM ERROR at the first bad block of the range, until it is written"},
	{kind: KindBusy, ops: opsOfUsers, allowed: opsOfScsi, summary: "BUSY"},
	{kind: KindTaskSetFull, ops: opsOfUsers, allowed: opsOfScsi, summary: "TASK SET FULL"},
	{kind: KindRingFull, ops: opsOfUsers, allowed: opsOfScsi, needs: fieldFor, summary: "take nothing more from the submission ring for some time, whosever commands are in it, until it is full"},
	{kind: KindNotReady, ops: opsOfUsers | OpReady, allowed: opsOfScsi, optional: fieldSense, summary: "NOT READY, becoming ready"},
	{kind: KindUnitAttention, ops: opsOfUsers, allowed: opsOfScsi, optional: fieldSense, summary: "UNIT ATTENTION, by default power on or reset"},
	{kind: KindWriteProtect, ops: opsWriting, allowed: opsWriting, summary: "DATA PROTECT, write protected"},
	{kind: KindShortTransfer, ops: OpRead | OpWrite, allowed: OpRead | OpWrite, optional: fieldKeep, summary: "transfer less than asked for, and say so"},
	{kind: KindHang, ops: opsOfUsers, allowed: opsOfScsi, optional: fieldFor, summary: "hold before execution, until released, aborted or reset"},
	{kind: KindGate, ops: opsOfUsers, allowed: opsOfScsi, optional: fieldAt | fieldFor, summary: "hold before or after execution, until released, aborted or reset"},
	{kind: KindLatency, ops: opsOfUsers, allowed: opsOfScsi, needs: fieldLatency, optional: fieldAt, summary: "take longer"},
	{kind: KindStall, ops: opsOfUsers, allowed: opsOfScsi, needs: fieldFor | fieldPeriod, summary: "stand still for some time in each period"},
	{kind: KindRate, ops: opsOfUsers, allowed: opsOfScsi, needs: fieldRate, summary: "cap bytes and commands each second, with a burst"},
	{kind: KindQueue, ops: opsOfUsers, allowed: opsOfScsi, needs: fieldLatency | fieldLanes, summary: "serve so many at once, each for its service time"},
	{kind: KindReorder, ops: opsOfUsers, allowed: opsOfScsi, needs: fieldFor, summary: "answer after a random time up to this long, so that later commands overtake"},
	{kind: KindCutReply, ops: opsOfUsers, allowed: opsOfUsers, optional: fieldAfter, summary: "send the beginning of the reply, then close the connection it was for"},
	{kind: KindSlowHandshake, stage: stageHandshake, ops: OpHandshake, allowed: OpHandshake, needs: fieldFor, summary: "let a client wait before it gets the disk"},
	{kind: KindResetFails, stage: stageControl, ops: opsResets, allowed: opsControl, optional: fieldSilent, summary: "aborts and resets fail, or are not answered"},
	{kind: KindUnplug, once: true, ops: opsOfUsers, allowed: opsOfScsi | opsEvents, optional: fieldFor, summary: "pull the disk out, and plug it in again"},
	{kind: KindCapacity, once: true, ops: opsOfUsers, allowed: opsOfScsi | opsEvents, needs: fieldSize, optional: fieldFor, summary: "report a smaller capacity; what lies behind is out of range, and not lost"},
	{kind: KindPowerCut, once: true, ops: opsOfUsers, allowed: opsOfScsi | opsEvents, optional: fieldPower | fieldAt, summary: "cut power"},
	{kind: KindDisconnect, once: true, ops: opsOfUsers, allowed: opsOfScsi | opsEvents, optional: fieldAt, summary: "close the connections of the disk, with what is in flight unanswered"},
	{kind: KindFlip, hostile: true, ops: OpRead, allowed: OpRead, optional: fieldBits, summary: "flip bits of what was read"},
	{kind: KindRot, hostile: true, ops: OpRead, allowed: OpRead, optional: fieldBits | fieldShare | fieldHeal, ranged: true, summary: "blocks read with the same wrong bits each time, until they are written"},
	{kind: KindStaleRead, hostile: true, ops: OpRead, allowed: OpRead, ranged: true, summary: "read what was there before the last write"},
	{kind: KindLostWrite, hostile: true, ops: OpWrite, allowed: opsWriting, summary: "acknowledge a write and do nothing"},
	{kind: KindMisdirected, hostile: true, ops: OpWrite, allowed: OpWrite, optional: fieldShift, summary: "write to another place of the same disk"},
	{kind: KindIgnoreFUA, hostile: true, ops: OpWrite, allowed: OpWrite | OpRead, summary: "take a write with FUA for one without"},
	{kind: KindLieAboutFlush, hostile: true, ops: OpFlush, allowed: OpFlush, summary: "acknowledge a flush and do nothing"},
	{kind: KindLostCompletion, hostile: true, ops: opsOfUsers, allowed: opsOfScsi, summary: "execute and never answer"},
	{kind: KindDuplicate, hostile: true, ops: opsOfUsers, allowed: opsOfScsi, summary: "answer twice"},
	{kind: KindMistagged, hostile: true, ops: opsOfUsers, allowed: opsOfScsi, summary: "answer under a tag that is none, and not under the right one"},
	{kind: KindLateCompletion, hostile: true, ops: opsOfUsers, allowed: opsOfScsi, optional: fieldFor, summary: "hang, and answer after the abort or reset that ended it"},
	{kind: KindDMAAfterReset, hostile: true, ops: OpRead, allowed: OpRead, optional: fieldFor, summary: "hang, and transfer the data after the abort or reset that ended it"},
	{kind: KindDMAAfterCompletion, hostile: true, ops: OpRead, allowed: OpRead, optional: fieldFor, summary: "answer, and transfer the data once more after that"},
	{kind: KindLostInterrupt, hostile: true, ops: opsOfUsers, allowed: opsOfScsi, summary: "answer without an interrupt"},
	{kind: KindBadCookie, hostile: true, ops: opsOfUsers, allowed: opsOfUsers, summary: "reply with a cookie that the client has not sent"},
}

// infoOf finds a kind.
func infoOf(k Kind) (kindInfo, bool) {
	for i := range kinds {
		if kinds[i].kind == k {
			return kinds[i], true
		}
	}
	return kindInfo{}, false
}

// KindDoc describes a kind for people.
type KindDoc struct {
	Kind    Kind   `json:"kind"`
	Hostile bool   `json:"hostile"`
	Summary string `json:"summary"`
	// Fields are the parameters it takes, the required ones first.
	Fields []string `json:"fields,omitempty"`
}

// Kinds describes every kind, in the order of the reference.
func Kinds() []KindDoc {
	out := make([]KindDoc, len(kinds))
	for i, k := range kinds {
		out[i] = KindDoc{Kind: k.kind, Hostile: k.hostile, Summary: k.summary, Fields: append(k.needs.names(), k.optional.names()...)}
	}
	return out
}
