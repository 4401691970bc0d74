package cache

// A Recorder is told what a cache does: every step that its contents, and what a power
// cut leaves, depend on. A Replay repeats the steps.
//
// Record is called in the cache's order, often under its locks, and must not wait;
// Admit, which is called before and may wait, keeps a recorder from filling memory. Both
// may be called by any goroutine, and must not call the cache.
type Recorder interface {
	// Admit waits until there is room for n more bytes. If wait is false, it returns
	// false instead of waiting. Release gives the room back once the steps are recorded.
	Admit(n int64, wait bool) bool
	Release(n int64)
	// Pace waits until what has been recorded leaves room. It is for work that admitted
	// callers wait for.
	Pace()
	// Record takes a step. It does not keep Data.
	Record(s Step)
}

// A StepKind says what a step is.
type StepKind uint8

// Kinds of steps. In brackets are the fields of Step that they use.
const (
	// StepWrite: a write is pending from now on [Write, Op, range, FUA, Lie, Data of
	// OpWrite].
	StepWrite StepKind = iota + 1
	// StepDurable: what a write has in the range is on the durable medium, and older
	// versions of the range are gone [Write, range].
	StepDurable
	// StepThrough: likewise, but the write never was pending [as StepWrite].
	StepThrough
	// StepUnsure: the durable medium failed to write the range, whose contents are now
	// unknown [range].
	StepUnsure
	// StepAnswer: the write is answered, as if with FUA if that is a lie [Write, Op,
	// Failed, Lie].
	StepAnswer
	// StepFlush: a flush comes, which covers those of the writes before Write that were
	// answered [Write, Lie].
	StepFlush
	// StepFlushed: the flush is answered [Write, Covered, Lie, Failed].
	StepFlushed
	// StepLie: the range was answered as if with FUA, according to Cache.PromisedRange
	// [range]. PromisedAll is a StepFlushed without a StepFlush.
	StepLie
	// StepCut: the power goes [Cut].
	StepCut
	// StepImage: the cut is done, and the medium holds the outcome [Failed, Text:
	// Report.ImageSHA256, or the error].
	StepImage
	// StepResize: the medium has another size [LengthBytes].
	StepResize
	// StepMark: somebody has set a mark [Text]. Caches do not record this step.
	StepMark
	// StepBroke: something was done to a command above the cache that no correct drive
	// does [Text: the Act].
	StepBroke
	// StepLeave: a pending write is chosen to become durable, which it does in the
	// background, or at the latest when the power goes [Write].
	StepLeave
	stepKinds
)

// StepKinds is one more than the largest kind.
const StepKinds = int(stepKinds)

var stepNames = [...]string{
	"", "write", "durable", "through", "unsure", "answer", "flush", "flushed", "lie", "cut", "image", "resize", "mark", "broke", "leave",
}

// String is the kind's name.
func (k StepKind) String() string { return stepNames[k] }

// A Step is one thing that a cache did.
type Step struct {
	Kind                     StepKind
	Op                       Kind
	FUA, Lie, Failed         bool
	Write                    uint64
	OffsetBytes, LengthBytes int64
	Covered                  int
	Cut                      CutOptions
	Text                     string
	Data                     []byte
}

// stepBytes is the room of a step without data.
const stepBytes = 64

// admit makes room for a change at the recorder, if there is one.
func (c *Cache) admit(kind Kind, n int64, wait bool) (bytes int64, ok bool) {
	if c.config.Recorder == nil {
		return 0, true
	}
	bytes = 2 * stepBytes
	if kind == KindWrite {
		bytes += n + 2<<c.shift // parts of sectors are recorded whole
	}
	return bytes, c.config.Recorder.Admit(bytes, wait)
}

// told records what the caller is told of its change, and releases what admit has taken.
// It reports whether the answer is a lie about FUA, which counts once however many parts
// the change had. The lie is counted together with its step, so that it belongs to the
// same power cut in a replay.
func (c *Cache) told(bytes int64, x *change, failed bool) (lied bool) {
	lied = x.fua && x.lie && x.id != 0 && !failed
	s := Step{Kind: StepAnswer, Write: x.id, Op: x.kind, Failed: failed, Lie: lied}
	switch {
	case lied:
		c.mu.Lock()
		c.recordStep(s)
		c.record.broke(ActIgnoredFUA)
		c.mu.Unlock()
	case x.id != 0:
		c.recordStep(s)
	}
	if r := c.config.Recorder; r != nil {
		r.Release(bytes)
	}
	return lied
}

// recordWrite records that x is pending, or on the durable medium.
func (c *Cache) recordWrite(kind StepKind, x *change, id uint64) {
	r := c.config.Recorder
	if r == nil {
		return
	}
	s := Step{Kind: kind, Op: x.kind, Write: id, OffsetBytes: x.off, LengthBytes: x.n, FUA: x.fua, Lie: x.lie}
	if x.kind == KindWrite {
		s.Data = x.p[:x.n]
	}
	r.Record(s)
}

// recordRun records that the picks, whose sectors follow each other, are durable.
func (c *Cache) recordRun(run []pick) {
	r := c.config.Recorder
	if r == nil {
		return
	}
	for len(run) > 0 {
		n := 1
		for n < len(run) && run[n].id == run[0].id {
			n++
		}
		r.Record(Step{Kind: StepDurable, Write: run[0].id, OffsetBytes: run[0].sector << c.shift, LengthBytes: int64(n) << c.shift})
		run = run[n:]
	}
}

// recordStep records a step that is not a write.
func (c *Cache) recordStep(s Step) {
	if r := c.config.Recorder; r != nil {
		r.Record(s)
	}
}

// pace waits for the recorder, if there is one.
func (c *Cache) pace() {
	if r := c.config.Recorder; r != nil {
		r.Pace()
	}
}
