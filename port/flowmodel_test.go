package port

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/vhbad/vhbad/internal/scsi"
)

// TestModel_Flow closes and opens the gates of two units and their adapter in any order,
// partly in the miniport's callbacks, and keeps account of the reasons why an SRB may have to
// wait. Nothing starts that has to wait; and what waits has a reason each time that all has
// been done: nobody needs a further event to have it looked at. rapid prints what it did and
// the seed for it.
func TestModel_Flow(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		script := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) flowStep { return drawFlowStep(t, flowSteps, nil) }), 1, 30).Draw(rt, "script")
		inside := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) flowStep { return drawFlowStep(t, flowInside, flowPlaces) }), 0, 12).Draw(rt, "inside")
		var problems []string
		synctest.Test(t, func(t *testing.T) { problems = playFlow(t, script, inside) })
		if len(problems) > 0 {
			rt.Fatal(strings.Join(problems, "\n"))
		}
	})
}

// A flowStep is one step of a script, or what happens inside a callback.
type flowStep struct {
	Place string // the callback, for steps inside one
	Kind  string
	Unit  int
	N     int
	SRBs  []flowRequest
}

func (s flowStep) String() string {
	return fmt.Sprintf("%s %s(unit %d, %d, %v)", s.Place, s.Kind, s.Unit, s.N, s.SRBs)
}

// A flowRequest is what an SRB of a step is like.
type flowRequest struct {
	Function Function
	Action   QueueAction
	Flags    Flags
}

func (r flowRequest) String() string {
	return fmt.Sprintf("{%s %#x %#x}", r.Function, uint8(r.Action), uint32(r.Flags))
}

const flowUnits = 2

// The limits that the model's miniport has.
const (
	flowMaxIO     = 4
	flowMaxPerLun = 3
	flowDepth     = 2
	flowBusyPause = 3 * time.Second
	flowLinkDown  = 20 * time.Second
	flowTries     = 3
)

var (
	flowPlaces = []string{"BuildIo", "StartIo", "CommitIo", "CompleteSRB"}
	// flowCalls are what a miniport may call at any level.
	flowCalls = []string{
		"pause", "resume", "pause unit", "resume unit", "busy", "ready", "unit busy", "unit ready",
		"link down", "link up", "depth",
	}
	flowInside = append([]string{"complete", "complete", "fail", "refuse", "submit", "submit", "submit", "self", "self", "keep"}, flowCalls...)
	flowSteps  = append([]string{
		"submit", "submit", "submit", "submit", "submit", "submit", "submit", "submit",
		"complete", "complete", "complete", "fail", "refuse", "refuse", "refuse", "wait", "wait", "reset", "depth", "depth",
	}, flowCalls...)
	flowFunctions = []Function{
		FunctionExecuteScsi, FunctionExecuteScsi, FunctionExecuteScsi, FunctionExecuteScsi, FunctionExecuteScsi, FunctionExecuteScsi, FunctionExecuteScsi,
		FunctionLockQueue, FunctionUnlockQueue, FunctionReleaseQueue, FunctionFlushQueue, FunctionQuiesceDevice,
		FunctionAbortCommand, FunctionResetLogicalUnit,
	}
)

func drawFlowStep(t *rapid.T, kinds, places []string) flowStep {
	s := flowStep{
		Kind: rapid.SampledFrom(kinds).Draw(t, "kind"),
		Unit: rapid.IntRange(0, flowUnits-1).Draw(t, "unit"),
		N:    rapid.IntRange(0, 19).Draw(t, "n"),
	}
	if places != nil {
		s.Place = rapid.SampledFrom(places).Draw(t, "place")
	}
	if s.Kind == "submit" {
		s.SRBs = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) flowRequest {
			return flowRequest{
				Function: rapid.SampledFrom(flowFunctions).Draw(t, "function"),
				Action:   rapid.SampledFrom([]QueueAction{SimpleTag, SimpleTag, SimpleTag, HeadOfQueueTag, OrderedTag}).Draw(t, "action"),
				Flags: rapid.SampledFrom([]Flags{0, 0, FlagNoQueueFreeze, FlagBypassLockedQueue, FlagBypassFrozenQueue, FlagBypassFrozenQueue | FlagBypassLockedQueue}).Draw(t, "flags") |
					rapid.SampledFrom([]Flags{FlagQueueActionEnable, FlagQueueActionEnable, FlagQueueActionEnable, 0}).Draw(t, "tagged"),
			}
		}), 1, 4).Draw(t, "srbs")
	}
	return s
}

// Where an SRB of the model is.
const (
	flowWaits  = "waits"
	flowBuilt  = "built"  // BuildIo has run: on its way to StartIo, or parked
	flowOut    = "out"    // at the miniport
	flowLeaves = "leaves" // the miniport has completed it
	flowApart  = "concerns the queue"
	flowIsDone = "done"
)

// flowUnknown is the state of a gate that may be open or closed.
const flowUnknown = 2

// A flowSRB is an SRB as its owner and the miniport see it.
type flowSRB struct {
	m           *flowModel
	srb         *SRB
	unit        int
	seq         int
	where       string
	startedIn   int // the step
	requeued    bool
	completions int
}

func (s *flowSRB) String() string {
	return fmt.Sprintf("#%d on unit %d (%s, action %#x, flags %#x)", s.seq, s.unit, s.srb.Function, uint8(s.srb.QueueAction), uint32(s.srb.Flags))
}

// isTM, alone, head, bypass: what kind of SRB it is, by the contract.
func (s *flowSRB) isTM() bool {
	return s.srb.Function == FunctionAbortCommand || s.srb.Function == FunctionResetLogicalUnit
}

func (s *flowSRB) alone() bool {
	return !s.isTM() && (s.srb.Flags&FlagQueueActionEnable == 0 || s.srb.QueueAction == OrderedTag)
}

func (s *flowSRB) head() bool {
	return !s.alone() && s.srb.QueueAction == HeadOfQueueTag
}

func (s *flowSRB) bypasses() bool {
	return s.srb.Flags&(FlagBypassFrozenQueue|FlagBypassLockedQueue) != 0
}

// A flowGate are the reasons to wait that a unit has, or its adapter. They end at a
// time, or once a number of SRBs have completed; of the latter, the model knows only the least
// and the most, while SRBs are on their way to StartIo.
type flowGate struct {
	paused     time.Time
	linkDown   time.Time
	busyUntil  time.Time // BUSY: at most
	least      int       // completions that are left of Busy
	most       int
	frozen     int // 0, 1, flowUnknown
	froze      int // the step in which it last froze, or was released
	locks      int
	depth      int
	depthInUse int // the largest in this step
}

type flowModel struct {
	mu sync.Mutex // see handOver

	b       *bench
	d       *driver
	units   [flowUnits]*LogicalUnit
	gates   [flowUnits]flowGate
	adapter flowGate
	srbs    []*flowSRB
	inside  []flowStep
	step    int
	flushed bool // a queue has been flushed in this step, and owners may not know yet
	hooked  bool // something has happened inside a callback in this step
	fault   []string
}

// handOver passes the model on between the goroutine of the script, which waits, and the
// timer's, which works meanwhile: synctest.Wait is for the way back.
func (m *flowModel) handOver() {
	m.mu.Lock()
	defer m.mu.Unlock()
}

// wait lets time pass: never as long as a pause, to the millisecond.
func (m *flowModel) wait(seconds int) {
	m.handOver()
	<-time.After(time.Duration(seconds)*time.Second + time.Millisecond)
	synctest.Wait()
}

func (m *flowModel) problem(format string, args ...any) {
	m.fault = append(m.fault, fmt.Sprintf("step %d: ", m.step)+fmt.Sprintf(format, args...))
}

func playFlow(t *testing.T, script, inside []flowStep) []string {
	d := &driver{model: FullDuplex, features: func(c *Config) {
		c.MaxNumberOfIO, c.MaxIOsPerLun, c.InitialLunQueueDepth = flowMaxIO, flowMaxPerLun, flowDepth
		c.Features = FeatureAbortCommand
	}}
	m := &flowModel{d: d}
	d.buildIo, d.startIo = m.buildIo, m.startIo
	d.commitIo = func(*Processor, int) {
		m.handOver()
		m.happen("CommitIo", nil, nil)
	}
	m.b = newUncheckedBench(t, d, AdapterOptions{BusyPauseTime: flowBusyPause, LinkDownTimeout: flowLinkDown, BusyRetryCount: flowTries}, SystemConfig{})
	for u := range m.units {
		m.units[u] = m.b.a.unitAt(0, 0, uint8(u))
		m.gates[u].depth = flowDepth
	}
	m.inside = inside
	for i, s := range script {
		m.begin(i)
		m.do(m.b.p, s)
		m.look()
	}
	m.inside = nil
	m.settle(len(script))
	if len(m.fault) == 0 {
		for _, s := range m.srbs {
			m.b.a.FreeSRB(s.srb)
		}
		if n := m.b.a.outstanding.Load(); n != 0 {
			m.problem("%d are charged at the end", n)
		}
	}
	m.open()
	m.b.a.Remove(m.b.p)
	return m.fault
}

// open has everything complete, whatever holds it back: or the removal waits.
func (m *flowModel) open() {
	m.d.startIo = func(p *Processor, srb *SRB) bool { m.d.complete(p, srb); return true }
	m.d.buildIo, m.d.commitIo = nil, nil
	for _, lu := range m.units {
		lu.mu.Lock()
		lu.setGateLocked(0)
		lu.mu.Unlock()
	}
	for range len(m.srbs) + 1 {
		m.b.a.Resume(m.b.p)
		for _, s := range m.d.take() {
			m.d.complete(m.b.p, s)
		}
	}
}

// begin begins a step.
func (m *flowModel) begin(step int) {
	m.step, m.flushed, m.hooked = step, false, false
	for u := range m.gates {
		m.gates[u].depthInUse = m.gates[u].depth
	}
}

// settle waits until the time of all pauses is over, with SRBs completing as they come; after
// that it opens what time does not.
func (m *flowModel) settle(step int) {
	for round := range 2*len(m.srbs) + 30 {
		m.begin(step + round)
		switch {
		case round == 12:
			for u := range m.units {
				m.submit(m.b.p, u, 0, []flowRequest{{Function: FunctionReleaseQueue}})
				m.look()
			}
		case round == 13:
			for u := range m.units {
				for m.gates[u].locks > 0 {
					m.submit(m.b.p, u, 0, []flowRequest{{Function: FunctionUnlockQueue}})
					m.look()
				}
			}
		case round%2 == 0:
			m.wait(10)
		default:
			m.answer(m.b.p, flowStep{Kind: "complete", N: round}, flowMaxIO)
		}
		m.look()
	}
	for _, s := range m.srbs {
		if s.completions != 1 {
			m.problem("%s completed %d times, at the end it %s", s, s.completions, s.where)
		}
	}
}

// happen does what is to happen at place, if it is the next. self is the SRB of the callback.
// It reports whether self has been dealt with.
func (m *flowModel) happen(place string, p *Processor, self *flowSRB) (dealt bool) {
	if len(m.inside) == 0 || m.inside[0].Place != place {
		return false
	}
	s := m.inside[0]
	m.inside = m.inside[1:]
	m.hooked = true
	if place == "StartIo" {
		switch s.Kind {
		case "submit":
			return false // not with the lock held
		case "self":
			m.end(p, self, s.N)
			return true
		case "keep":
			return false
		}
		m.do(p, s)
		return false
	}
	switch {
	case s.Kind == "self" && place == "BuildIo":
		m.end(p, self, s.N)
		return true
	case s.Kind == "keep" && place == "BuildIo":
		self.where = flowOut
		m.d.mu.Lock()
		m.d.held = append(m.d.held, self.srb)
		m.d.mu.Unlock()
		return true
	case s.Kind == "self" || s.Kind == "keep":
		return false
	}
	other := m.b.processor("other")
	defer other.Close()
	m.do(other, s)
	return false
}

func (m *flowModel) buildIo(p *Processor, srb *SRB) bool {
	m.handOver()
	s, ours := srb.Completer.(*flowSRB)
	if !ours {
		return true
	}
	if s.where != flowWaits {
		m.problem("BuildIo of %s, which is %s", s, s.where)
	}
	s.where, s.startedIn = flowBuilt, m.step
	return !m.happen("BuildIo", p, s)
}

func (m *flowModel) startIo(p *Processor, srb *SRB) bool {
	m.handOver()
	s, ours := srb.Completer.(*flowSRB)
	if !ours { // a reset of the port's
		m.endOthers(p, int(srb.Lun), StatusBusReset, nil)
		m.d.complete(p, srb)
		return true
	}
	if s.where != flowBuilt {
		m.problem("StartIo of %s, which is %s", s, s.where)
	}
	m.mayStart(s)
	s.where, s.startedIn = flowOut, m.step
	if m.happen("StartIo", p, s) {
		return false
	}
	switch {
	case s.srb.Function == FunctionAbortCommand && s.seq%3 != 0:
		m.endOthers(p, s.unit, StatusAborted, s.srb.VictimSRB)
		m.end(p, s, 0)
	case s.srb.Function == FunctionResetLogicalUnit && s.seq%3 != 0:
		m.endOthers(p, s.unit, StatusBusReset, nil)
		m.end(p, s, 0)
	default: // resets and aborts may take a while
		m.d.mu.Lock()
		m.d.held = append(m.d.held, srb)
		m.d.mu.Unlock()
	}
	return true
}

// endOthers completes what the miniport has of a unit, as an abort or a reset does.
func (m *flowModel) endOthers(p *Processor, unit int, status Status, only *SRB) {
	var kept []*SRB
	for _, x := range m.d.take() {
		s := x.Completer.(*flowSRB)
		if s.unit != unit || s.isTM() || only != nil && x != only {
			kept = append(kept, x)
			continue
		}
		s.leaves()
		x.Status, x.ScsiStatus = status, 0
		m.b.a.Complete(p, x)
	}
	m.d.mu.Lock()
	m.d.held = append(kept, m.d.held...)
	m.d.mu.Unlock()
}

// leaves notes that the miniport gives s back, for good.
func (s *flowSRB) leaves() {
	m := s.m
	s.where = flowLeaves
	m.gates[s.unit].least--
	m.gates[s.unit].most--
	if !s.isTM() {
		m.adapter.least--
		m.adapter.most--
	}
	m.endBusy(s.unit, false)
}

// endBusy ends Busy where nothing is out; and for sure if all has been done.
func (m *flowModel) endBusy(unit int, sure bool) {
	for g, out := range map[*flowGate]int{&m.gates[unit]: m.out(unit), &m.adapter: m.charged()} {
		if out > 0 {
			continue
		}
		g.least = 0
		if sure {
			g.most = 0
		}
	}
}

// charged is how many SRBs of the adapter the miniport has.
func (m *flowModel) charged() int {
	return m.count(-1, func(s *flowSRB) bool { return s.where == flowOut && !s.isTM() })
}

// end completes s with one of the statuses, by n.
func (m *flowModel) end(p *Processor, s *flowSRB, n int) {
	s.srb.Status, s.srb.ScsiStatus = StatusSuccess, scsi.StatusGood
	switch n % 6 {
	case 1:
		s.srb.Status = StatusBusy
	case 2:
		s.srb.Status, s.srb.ScsiStatus = StatusError, scsi.StatusTaskSetFull
	case 3:
		s.srb.Status, s.srb.ScsiStatus = StatusBusy, scsi.StatusTaskSetFull
	case 4:
		s.srb.Status, s.srb.ScsiStatus = StatusError, scsi.StatusCheckCondition
	case 5:
		s.srb.Status = StatusLinkDown
	}
	busy := n%6 != 0 && n%6 != 4
	if !busy || s.isTM() {
		s.leaves()
		m.b.a.Complete(p, s.srb)
		return
	}
	// It waits again, or goes to its owner if it has often done so.
	s.where, s.requeued = flowWaits, true
	g := &m.gates[s.unit]
	g.busyUntil = time.Now().Add(flowBusyPause)
	g.least = 0
	m.endBusy(s.unit, false)
	if out := m.out(s.unit); s.srb.ScsiStatus == scsi.StatusTaskSetFull && (out > 0 || m.hooked) {
		g.most = max(g.most, flowMaxPerLun)
		if !m.hooked && p == m.b.p && p.level == Passive {
			g.most = max(1, out*25/100)
			g.busyUntil = time.Time{}
		}
	} else if !m.hooked && p == m.b.p && p.level == Passive {
		g.most = 0
	}
	m.b.a.Complete(p, s.srb)
}

// CompleteSRB is the owner's part.
func (s *flowSRB) CompleteSRB(p *Processor, _ *SRB) {
	m := s.m
	m.handOver()
	s.completions++
	if s.where == flowIsDone {
		m.problem("%s completes again", s)
	}
	if s.where == flowOut || s.where == flowBuilt && s.srb.Status.Code() != StatusNoDevice {
		m.problem("%s completes and was %s", s, s.where)
	}
	s.where = flowIsDone
	g := &m.gates[s.unit]
	switch s.srb.Status.Code() {
	case StatusError, StatusBusReset, StatusAborted:
		frozen := s.srb.Flags&FlagNoQueueFreeze == 0
		if frozen != (s.srb.Status&StatusQueueFrozen != 0) {
			m.problem("%s completes with %s, want frozen %t", s, s.srb.Status, frozen)
		}
		if frozen {
			g.setFrozen(m, 1)
		}
	}
	m.happen("CompleteSRB", p, s)
}

// setFrozen notes that the queue freezes, or is released: in one step the order of the two
// may be any.
func (g *flowGate) setFrozen(m *flowModel, to int) {
	if m.hooked && g.froze == m.step && g.frozen != to {
		to = flowUnknown
	}
	g.frozen, g.froze = to, m.step
}

// count counts the unit's SRBs that match.
func (m *flowModel) count(unit int, match func(s *flowSRB) bool) (n int) {
	for _, s := range m.srbs {
		if (unit < 0 || s.unit == unit) && match(s) {
			n++
		}
	}
	return n
}

// out is how many SRBs of the unit the miniport has.
func (m *flowModel) out(unit int) int {
	return m.count(unit, func(s *flowSRB) bool { return s.where == flowOut })
}

// held says why a gate holds back s; empty: it does not. sure: it must.
func (m *flowModel) held(s *flowSRB, sure bool) string {
	if s.isTM() {
		return ""
	}
	now := time.Now()
	g := &m.gates[s.unit]
	busy := func(g *flowGate, out int) bool {
		if sure {
			return g.least > 0 && out > 0
		}
		return g.most > 0 && out > 0 || now.Before(g.busyUntil)
	}
	charged := m.charged()
	switch {
	case now.Before(g.paused):
		return "unit paused"
	case now.Before(m.adapter.paused):
		return "adapter paused"
	case now.Before(m.adapter.linkDown):
		return "link down"
	case g.locks > 0 && s.srb.Flags&FlagBypassLockedQueue == 0:
		return "locked"
	case (g.frozen == 1 || g.frozen == flowUnknown && !sure) && s.srb.Flags&FlagBypassFrozenQueue == 0:
		return "frozen"
	case busy(g, m.out(s.unit)):
		return "unit busy"
	case busy(&m.adapter, charged):
		return "adapter busy"
	}
	return ""
}

// mayStart checks an SRB that the port starts.
func (m *flowModel) mayStart(s *flowSRB) {
	if why := m.held(s, true); why != "" {
		m.problem("%s starts: %s", s, why)
	}
	if s.isTM() {
		return
	}
	out, all := 0, 0
	for _, x := range m.srbs {
		if x.where == flowOut && !x.isTM() {
			all++
			if x.unit == s.unit {
				out++
				switch {
				case x.alone(), s.alone():
					m.problem("%s starts beside %s", s, x)
				case x.head() && !s.head() && x.startedIn < s.startedIn && x.startedIn < m.step && !m.hooked:
					m.problem("%s starts while head of queue %s is out", s, x)
				}
			}
		}
		if x.unit == s.unit && x.seq < s.seq && (x.where == flowWaits || x.where == flowBuilt) && !x.isTM() &&
			!m.flushed && !x.requeued && !s.requeued && !s.head() && !s.bypasses() && (x.alone() || s.alone()) {
			m.problem("%s starts before %s", s, x)
		}
	}
	if out >= m.gates[s.unit].depthInUse {
		m.problem("%s starts beyond the depth", s)
	}
	if all >= flowMaxIO {
		m.problem("%s starts beyond MaxNumberOfIO", s)
	}
}

// look checks that whatever waits has a reason for it.
func (m *flowModel) look() {
	synctest.Wait()
	all := m.charged()
	for u := range m.units {
		m.endBusy(u, true)
		out := m.out(u)
		anyAlone := m.count(u, func(s *flowSRB) bool { return s.where == flowOut && s.alone() }) > 0
		heads := m.count(u, func(s *flowSRB) bool { return s.where == flowOut && s.srb.QueueAction == HeadOfQueueTag && !s.alone() }) > 0
		var passing []*flowSRB
		own := map[*flowSRB]string{} // why it waits, for its own part
		for _, s := range m.srbs {
			if s.unit == u && s.where == flowApart && (s.srb.Function != FunctionQuiesceDevice || out == 0) {
				m.problem("%s waits", s)
			}
			if s.unit != u || s.where != flowWaits && s.where != flowBuilt || m.held(s, false) != "" {
				continue
			}
			passing = append(passing, s)
			switch {
			case s.isTM():
			case out >= m.gates[u].depth:
				own[s] = "depth"
			case all >= flowMaxIO:
				own[s] = "MaxNumberOfIO"
			case anyAlone:
				own[s] = "one is out that runs alone"
			case s.alone() && out > 0:
				own[s] = "others are out"
			case !s.head() && heads:
				own[s] = "a head of queue is out"
			}
		}
		for _, s := range passing {
			waits := own[s] != ""
			for _, x := range passing {
				waits = waits || x != s && own[x] != "" && mayBeBehind(s, x)
			}
			if !waits {
				m.problem("%s waits (%s), and may start: unit gate %#x, adapter gate %#x, %d out, %d on the adapter, stats %+v", s, s.where, m.units[u].gate.Load(), m.b.a.gate.Load(), out, all, m.units[u].Stats())
			}
		}
	}
}

// mayBeBehind reports whether s may be behind x in the queue.
func mayBeBehind(s, x *flowSRB) bool {
	switch {
	case s.isTM():
		return false
	case x.requeued || x.where == flowBuilt:
		return true
	case s.requeued || s.where == flowBuilt:
		return x.head() || x.bypasses()
	case s.head():
		return x.head() || x.bypasses()
	case x.head() || x.bypasses():
		return true
	}
	return x.seq < s.seq
}

// submit submits SRBs to a unit.
func (m *flowModel) submit(p *Processor, unit, n int, requests []flowRequest) {
	var batch []*SRB
	g := &m.gates[unit]
	for _, r := range requests {
		if r.Function == FunctionFlushQueue && len(requests) > 1 {
			r.Function = FunctionExecuteScsi // the others would not know of it yet
		}
		s := &flowSRB{m: m, srb: m.b.srb(&finished{}), unit: unit, seq: len(m.srbs), where: flowWaits}
		s.srb.Completer, s.srb.Function, s.srb.QueueAction, s.srb.Flags = s, r.Function, r.Action, r.Flags
		s.srb.TimeoutSecs = 100000
		if r.Function == FunctionAbortCommand {
			s.srb.VictimSRB = m.oneOut(n)
			if s.srb.VictimSRB == nil {
				s.srb.Function = FunctionResetLogicalUnit
			}
		}
		if isQueueFunction(r.Function) {
			s.where = flowApart
		}
		m.srbs = append(m.srbs, s)
		batch = append(batch, s.srb)
		switch r.Function {
		case FunctionLockQueue:
			g.locks++
		case FunctionUnlockQueue:
			g.locks = max(0, g.locks-1)
		case FunctionReleaseQueue, FunctionFlushQueue:
			g.setFrozen(m, 0)
			m.flushed = true
		}
	}
	m.units[unit].Submit(p, batch)
}

// oneOut is an SRB that the miniport has, by n; nil: it has none.
func (m *flowModel) oneOut(n int) *SRB {
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	if len(m.d.held) == 0 {
		return nil
	}
	return m.d.held[n%len(m.d.held)]
}

// answer completes up to n SRBs that the miniport has.
func (m *flowModel) answer(p *Processor, s flowStep, n int) {
	for i := range n {
		held := m.d.take()
		if len(held) == 0 {
			return
		}
		k := (s.N + i) % len(held)
		x := held[k]
		m.d.mu.Lock()
		m.d.held = append(append(append([]*SRB(nil), held[:k]...), held[k+1:]...), m.d.held...)
		m.d.mu.Unlock()
		how := 0
		switch s.Kind {
		case "fail":
			how = 4
		case "refuse":
			how = []int{1, 2, 3, 5}[s.N%4]
		}
		m.end(p, x.Completer.(*flowSRB), how)
	}
}

// do is one step.
func (m *flowModel) do(p *Processor, s flowStep) {
	a, u, lun := m.b.a, s.Unit, uint8(s.Unit)
	g := &m.gates[u]
	now := time.Now()
	pause := max(1, s.N) // one of no time would end beside this step, and the model is not made for that
	switch s.Kind {
	case "submit":
		m.submit(p, u, s.N, s.SRBs)
	case "complete":
		m.answer(p, s, 1+s.N%3)
	case "fail", "refuse":
		m.answer(p, s, 1)
	case "wait":
		m.wait(s.N % 10)
	case "reset":
		q := m.b.processor("operator")
		defer q.Close()
		if err := a.ResetNow(q, m.units[u], ResetUnit); err != nil {
			m.problem("reset: %v", err)
		}
	case "pause":
		m.adapter.paused = now.Add(time.Duration(pause) * time.Second)
		a.Pause(p, pause)
	case "resume":
		m.adapter.paused = time.Time{}
		a.Resume(p)
	case "pause unit":
		g.paused = now.Add(time.Duration(pause) * time.Second)
		a.PauseDevice(p, 0, 0, lun, pause)
	case "resume unit":
		g.paused = time.Time{}
		a.ResumeDevice(p, 0, 0, lun)
	case "busy":
		out := m.charged()
		m.adapter.close(1+s.N%4, out, m.hooked)
		a.Busy(p, 1+s.N%4)
	case "ready":
		m.adapter.least, m.adapter.most = 0, 0
		a.Ready(p)
	case "unit busy":
		g.close(1+s.N%4, m.out(u), m.hooked)
		a.DeviceBusy(p, 0, 0, lun, 1+s.N%4)
	case "unit ready":
		g.least = 0
		if !m.hooked { // or the port has not seen yet what was BUSY
			g.most, g.busyUntil = 0, time.Time{}
		}
		a.DeviceReady(p, 0, 0, lun)
	case "link down":
		m.adapter.linkDown = now.Add(flowLinkDown)
		a.LinkDown(p)
	case "link up":
		m.adapter.linkDown = time.Time{}
		a.LinkUp(p)
	case "depth":
		g.depth = 1 + s.N%flowMaxPerLun
		g.depthInUse = max(g.depthInUse, g.depth)
		a.SetDeviceQueueDepth(p, 0, 0, lun, g.depth)
	default:
		panic(s.Kind)
	}
}

// close notes a Busy for n completions while out SRBs are out. Inside callbacks more may be
// outstanding, on their way to StartIo, or fewer, which have completed and nobody has looked.
func (g *flowGate) close(n, out int, hooked bool) {
	switch {
	case hooked:
		g.least, g.most = 0, max(g.most, n)
	case out > 0:
		g.least, g.most = min(n, out), min(n, out)
		g.busyUntil = time.Time{} // nothing ends it but those
	}
}
