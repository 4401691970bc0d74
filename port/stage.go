package port

import (
	"time"

	"github.com/vhbad/vhbad/internal/latency"
	"github.com/vhbad/vhbad/internal/scsi"
)

// Where the time of SRBs goes. One SRB in SampleEvery, picked at random, is
// followed: at each stage that it reaches, the time since the previous one is
// added to a histogram. For the others each stage costs a look at one byte.

// SampleEvery is the sampling interval: on average, one SRB, and one acquisition of a
// lock, in so many is timed.
const SampleEvery = 512

// A Stage is a part of an SRB's way through the port.
type Stage uint8

// Stages, in their order.
const (
	stageNone      Stage = iota // the SRB is not followed
	StageQueue                  // from Submit, in the unit's queue
	StageBuild                  // DMA mapping and BuildIo
	StageStart                  // until StartIo, under its lock or channel, has sent it
	StageDevice                 // until the interrupt handler takes the completion
	StageInterrupt              // until the DPC completes it
	StageComplete               // until its Completer is called
	stageDone
	Stages = stageDone // one more than the last
)

// String returns the stage as a metric label.
func (s Stage) String() string {
	return [...]string{"none", "queue", "build", "start", "device", "interrupt", "complete", "done"}[min(s, stageDone)]
}

// An Operation is what a followed SRB does.
type Operation uint8

// Operations; an SRB that does anything else is not followed.
const (
	OperationRead Operation = iota
	OperationWrite
	OperationFlush
	OperationTrim
	OperationWriteZeroes
	OperationCache
	OperationBlockStatus
	Operations // number of operations, for tables
)

// String returns the operation as a metric label: its name as clients of the disk know
// it.
func (o Operation) String() string {
	return [...]string{"read", "write", "flush", "trim", "write_zeroes", "cache", "block_status", "none"}[min(o, Operations)]
}

// operation returns what s does. False: SRBs that do this are not followed.
func (s *SRB) operation() (Operation, bool) {
	if s.Function != FunctionExecuteScsi {
		return 0, false
	}
	// Whatever else there is.
	//exhaustive:ignore
	switch scsi.Opcode(s.CDB[0]) {
	case scsi.OpRead6, scsi.OpRead10, scsi.OpRead12, scsi.OpRead16:
		return OperationRead, true
	case scsi.OpWrite6, scsi.OpWrite10, scsi.OpWrite12, scsi.OpWrite16:
		return OperationWrite, true
	case scsi.OpSynchronizeCache10, scsi.OpSynchronizeCache16:
		return OperationFlush, true
	case scsi.OpUnmap:
		return OperationTrim, true
	case scsi.OpWriteSame10, scsi.OpWriteSame16:
		return OperationWriteZeroes, true
	case scsi.OpPreFetch10, scsi.OpPreFetch16:
		return OperationCache, true
	case scsi.OpServiceActionIn16:
		return OperationBlockStatus, scsi.ServiceAction(s.CDB[1]&0x1f) == scsi.ActionGetLBAStatus
	}
	return 0, false
}

// A sampler picks one event in SampleEvery on average, at random: a fixed step
// might always pick the same place in a batch.
type sampler struct {
	left uint32 // events until the next one is picked
	seed uint32
	upTo uint64 // the number of events by then
}

func newSampler(seed int) sampler {
	s := sampler{seed: uint32(seed)*2654435761 + 1}
	s.draw()
	return s
}

// due counts an event, and reports whether to pick it.
func (s *sampler) due() bool {
	s.left--
	return s.left == 0
}

// draw chooses which event is picked next: the 1st to (2*SampleEvery-1)th from now. It
// is called for each event that was picked.
func (s *sampler) draw() {
	s.seed = s.seed*1664525 + 1013904223
	s.left = (s.seed>>16)%(2*SampleEvery-1) + 1
	s.upTo += uint64(s.left)
}

// next makes the next event the one that is picked.
func (s *sampler) next() {
	s.upTo -= uint64(s.left) - 1
	s.left = 1
}

// events is how many were counted.
func (s *sampler) events() uint64 { return s.upTo - uint64(s.left) }

// follow begins to follow s, which has been submitted.
func (p *Processor) follow(s *SRB) {
	p.samples.draw()
	if op, ok := s.operation(); ok {
		s.op, s.stage, s.stageAt = op, StageQueue, p.sys.nanos()
	}
}

// SentToDevice notes that the device is about to see s. A miniport that cares about
// statistics calls it in StartIo; without the call, StageStart goes on.
//
// Level: any. Ownership: s is the miniport's.
// It is ours: the vendor has no such routine.
func (s *SRB) SentToDevice(p *Processor) {
	if s.stage != stageNone {
		s.reached(p, StageDevice)
	}
}

// TakenFromDevice notes that the interrupt handler has found s completed. A miniport
// that cares about statistics calls it; without the call, StageDevice goes on.
//
// Level: Device. Ownership: s is the miniport's.
// It is ours: the vendor has no such routine.
func (s *SRB) TakenFromDevice(p *Processor) {
	if s.stage != stageNone {
		s.reached(p, StageInterrupt)
	}
}

// reached ends the stage that s is in. The caller owns s, and has seen that it is
// followed.
func (s *SRB) reached(p *Processor, stage Stage) {
	now := p.sys.nanos()
	shards := s.adapter.stageTimes
	shards[p.number&(len(shards)-1)][s.op][s.stage].Add(time.Duration(now - s.stageAt))
	s.stage, s.stageAt = stage, now
}

// TakeSample reports, once, whether s was followed to its end, so that its owner may
// go on following the request.
//
// Ownership: s is the class driver's.
func (s *SRB) TakeSample() bool {
	followed := s.stage == stageDone
	s.stage = stageNone
	return followed
}

// stageShard has the histograms of some of the processors.
type stageShard [Operations][Stages]latency.Histogram

// maxStageShards bounds the memory for them: 45 KB each.
const maxStageShards = 16

// newStageShards makes shards for the given number of threads; their number is a power
// of two.
func newStageShards(threads int) []*stageShard {
	n := 1
	for n < threads && n < maxStageShards {
		n *= 2
	}
	shards := make([]*stageShard, n)
	for i := range shards {
		shards[i] = new(stageShard)
	}
	return shards
}

// StageTimes are histograms by operation and stage, of one SRB in SampleEvery.
type StageTimes [Operations][Stages]latency.Counts

// StageTimes returns the times of the SRBs that were followed. An SRB that was
// turned away as BUSY, or parked before StartIo, goes through stages twice.
//
// Level: any.
func (a *Adapter) StageTimes() *StageTimes {
	t := new(StageTimes)
	for _, shard := range a.stageTimes {
		for op := range shard {
			for stage := StageQueue; stage < Stages; stage++ {
				shard[op][stage].Load(&t[op][stage])
			}
		}
	}
	return t
}
