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

// TestModel_ExactlyOnce uses, holds back, resets, gives up and removes units in any
// order, partly between BuildIo and StartIo of an SRB, on an adapter that takes few
// SRBs at a time. Once the device answers again, resets work and nothing is held back any
// more, every SRB has completed, once; and also if the adapter is removed instead, in
// whatever state. rapid prints what it did and the seed for it.
func TestModel_ExactlyOnce(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		script := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) operation { return drawOperation(t, everything) }), 1, 40).Draw(rt, "script")
		inBuild := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) operation { return drawOperation(t, holding) }), 0, 8).Draw(rt, "in BuildIo")
		end := rapid.SampledFrom([]string{"settle", "remove", "surprise", "fail"}).Draw(rt, "end")
		var problems []string
		synctest.Test(t, func(t *testing.T) { problems = playModel(t, script, inBuild, end) })
		if len(problems) > 0 {
			rt.Fatal(strings.Join(problems, "\n"))
		}
	})
}

// An operation is one step of a script.
type operation struct {
	Kind   string
	Unit   uint8
	N      int // seconds, SRBs, completions, …
	Action QueueAction
	Flags  Flags
}

func (o operation) String() string {
	return fmt.Sprintf("%s(unit %d, %d, %#x, %#x)", o.Kind, o.Unit, o.N, uint8(o.Action), uint32(o.Flags))
}

// holding are the operations that keep SRBs from StartIo, or change their way to it;
// everything is those and the rest, with those that the rest needs more often.
var (
	holding = []string{
		"pause unit", "pause unit", "pause", "unit busy", "busy", "lock", "link down", "mark failed", "depth", "resume unit", "unlock", "ready", "reset adapter",
	}
	everything = append([]string{
		"submit", "submit", "submit", "submit", "submit", "submit", "complete", "complete", "complete", "refuse", "fail", "wait", "wait",
		"mark failed", "unplug", "unplug", "plug", "plug", "resume", "unit ready", "release", "flush", "link up",
		"reset", "stop", "resets fail", "resets fail", "resets hang", "resets work", "resets work",
	}, holding...)
)

func drawOperation(t *rapid.T, kinds []string) operation {
	return operation{
		Kind:   rapid.SampledFrom(kinds).Draw(t, "kind"),
		Unit:   uint8(rapid.IntRange(0, modelUnits-1).Draw(t, "unit")),
		N:      rapid.IntRange(1, 40).Draw(t, "n"),
		Action: rapid.SampledFrom([]QueueAction{SimpleTag, SimpleTag, SimpleTag, HeadOfQueueTag, OrderedTag}).Draw(t, "action"),
		Flags:  rapid.SampledFrom([]Flags{FlagNoQueueFreeze, FlagNoQueueFreeze, 0, FlagNoQueueFreeze | FlagBypassLockedQueue, FlagBypassFrozenQueue}).Draw(t, "flags"),
	}
}

const modelUnits = 3

// A modelSRB is an SRB and what its owner has been told of it.
type modelSRB struct {
	patient

	srb *SRB
	lu  *LogicalUnit
}

// modelDriver is the miniport: it finds units as a recorder does, takes few SRBs at a
// time, and treats resets as the script says.
type modelDriver struct {
	recorder
	resets string // "work", "fail", "hang"
	hung   []*SRB // resets without an answer
}

func (d *modelDriver) FindAdapter(p *Processor, a *Adapter, c *Config) FindResult {
	result := d.recorder.FindAdapter(p, a, c)
	c.MaxNumberOfIO, c.MaxIOsPerLun, c.InitialLunQueueDepth = 4, 3, 3
	return result
}

// endAll completes what the device has of the units that match, as a reset does.
func (d *modelDriver) endAll(p *Processor, match func(*SRB) bool) {
	var kept []*SRB
	for _, s := range d.take() {
		if match(s) {
			s.Status = StatusBusReset
			d.a.Complete(p, s)
		} else {
			kept = append(kept, s)
		}
	}
	d.mu.Lock()
	d.held = append(kept, d.held...)
	d.mu.Unlock()
}

func (d *modelDriver) StartIo(p *Processor, srb *SRB) bool {
	if !srb.taskManagement() {
		return d.recorder.StartIo(p, srb)
	}
	d.mu.Lock()
	how := d.resets
	if how == "hang" {
		d.hung = append(d.hung, srb)
	}
	d.mu.Unlock()
	switch how {
	case "work":
		d.endAll(p, func(s *SRB) bool { return s.Lun == srb.Lun || srb.Function == FunctionResetDevice })
		d.complete(p, srb)
	case "fail":
		srb.Status = StatusError
		d.a.Complete(p, srb)
	}
	return true
}

func (d *modelDriver) ResetBus(p *Processor, _ uint8) bool {
	d.mu.Lock()
	how := d.resets
	d.mu.Unlock()
	if how != "work" {
		return false
	}
	d.endAll(p, func(*SRB) bool { return true })
	d.endHung(p)
	return true
}

// endHung answers the resets that have had no answer: they have failed.
func (d *modelDriver) endHung(p *Processor) {
	d.mu.Lock()
	hung := d.hung
	d.hung = nil
	d.mu.Unlock()
	for _, s := range hung {
		s.Status = StatusError
		d.a.Complete(p, s)
	}
}

func (d *modelDriver) setResets(how string) {
	d.mu.Lock()
	d.resets = how
	d.mu.Unlock()
}

// A modelPlay is one play of a script.
type modelPlay struct {
	b       *bench
	d       *modelDriver
	srbs    []*modelSRB
	present [modelUnits]bool
	seen    []*LogicalUnit // ever

	mu      sync.Mutex
	inBuild []operation // guarded by mu: a reset that ends dispatches where it ends
}

// next is what to do in BuildIo, the first that is left.
func (m *modelPlay) next() (o operation, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.inBuild) == 0 {
		return o, false
	}
	o, m.inBuild = m.inBuild[0], m.inBuild[1:]
	return o, true
}

func playModel(t *testing.T, script, inBuild []operation, end string) (problems []string) {
	d := &modelDriver{recorder: recorder{driver: driver{model: FullDuplex}, keep: true}, resets: "work"}
	m := &modelPlay{d: d}
	for u := range m.present {
		m.present[u] = true
	}
	d.has(0, 1, 2)
	m.b = bareStage(t, &d.recorder, d)
	if err := m.b.a.Enumerate(m.b.p); err != nil {
		t.Fatal(err)
	}
	m.inBuild = inBuild
	d.buildIo = func(_ *Processor, srb *SRB) bool {
		if _, ours := srb.Completer.(*modelSRB); ours {
			if o, ok := m.next(); ok {
				m.during(o)
			}
		}
		return true
	}
	for _, o := range script {
		m.do(o)
		synctest.Wait()
	}
	d.setResets("work")
	d.endHung(m.b.p) // a reset SRB that the miniport keeps is lost with the adapter
	synctest.Wait()
	for ok := true; ok; {
		_, ok = m.next()
	}
	switch end {
	case "surprise":
		err := m.b.a.SurpriseRemove(m.b.p)
		_ = err // it may be outstanding: the device has it, and gives it back below
	case "fail":
		m.b.a.MarkDeviceFailed(m.b.p, wildcard, wildcard, wildcard, "the end")
		synctest.Wait()
		m.b.a.Remove(m.b.p)
	case "remove":
		m.b.a.Remove(m.b.p)
	case "settle":
		m.settle()
		for _, s := range m.srbs {
			if owner := s.srb.owner.Load(); owner != ownerClass {
				problems = append(problems, fmt.Sprintf("everything works, and %s has owner %d", s.srb, owner))
			}
		}
		m.b.a.Remove(m.b.p)
	}
	synctest.Wait()
	for range len(m.srbs) + 1 { // better late than never
		d.endAll(m.b.p, func(*SRB) bool { return true })
		d.endHung(m.b.p)
		synctest.Wait()
	}
	for i, s := range m.srbs {
		heard := s.list()
		if n := len(heard); n == 0 || n > 2 || strings.HasPrefix(heard[0], "complete") && n != 1 || n == 2 && !strings.HasPrefix(heard[1], "complete") || n == 1 && heard[0] == "abandon" {
			problems = append(problems, fmt.Sprintf("SRB %d on %s: heard %v (%s, owner %d, built %t)", i, s.lu, heard, s.srb, s.srb.owner.Load(), s.srb.built))
		}
	}
	if len(problems) == 0 {
		for _, s := range m.srbs {
			m.b.a.FreeSRB(s.srb)
		}
		m.b.a.release()
		if n := m.b.sys.iommu.WindowsInUse(); n != 0 {
			problems = append(problems, fmt.Sprintf("%d IOMMU windows are left", n))
		}
	}
	for _, v := range m.b.sys.Verifier().Violations() {
		if v.Check != CheckStopOutstanding { // a stop that came too late, or a removal by surprise
			problems = append(problems, v.String())
		}
	}
	return problems
}

// settle ends all that holds SRBs back, and has the device answer what it gets.
func (m *modelPlay) settle() {
	for range 40 {
		m.b.a.Resume(m.b.p)
		m.b.a.Ready(m.b.p)
		m.b.a.LinkUp(m.b.p)
		if m.b.a.state.Load() == adapterStopped {
			m.restart()
		}
		for u := range uint8(modelUnits) {
			m.b.a.ResumeDevice(m.b.p, 0, 0, u)
			m.b.a.DeviceReady(m.b.p, 0, 0, u)
			if lu := m.b.a.unit(0, 0, u); lu != nil {
				m.queue(lu, FunctionReleaseQueue)
				for i := 0; i < 8 && lu.gate.Load()&gateLocked != 0; i++ { // it may wait for a stop to end
					m.queue(lu, FunctionUnlockQueue)
				}
			}
		}
		synctest.Wait()
		for _, s := range m.d.take() {
			m.d.complete(m.b.p, s)
		}
		m.d.endHung(m.b.p)
		<-time.After(10 * time.Second)
		synctest.Wait()
	}
}

func (m *modelPlay) restart() {
	p := m.b.processor("restart")
	defer p.Close()
	_ = m.b.a.Restart(p) // it may be too early
}

// queue submits an SRB for the queue itself.
func (m *modelPlay) queue(lu *LogicalUnit, f Function) {
	m.submit(m.b.p, lu, 1, operation{Action: SimpleTag, Flags: FlagNoQueueFreeze | FlagBypassLockedQueue | FlagBypassFrozenQueue}, f)
}

func (m *modelPlay) submit(p *Processor, lu *LogicalUnit, n int, o operation, f Function) {
	var batch []*SRB
	for range n {
		s := &modelSRB{srb: m.b.srb(&finished{}), lu: lu}
		s.srb.Completer = s
		s.srb.Function, s.srb.QueueAction, s.srb.Flags = f, o.Action, o.Flags
		if o.N%5 != 0 { // or it is untagged
			s.srb.Flags |= FlagQueueActionEnable
		}
		s.srb.TimeoutSecs = 5
		m.srbs = append(m.srbs, s)
		batch = append(batch, s.srb)
	}
	lu.Submit(p, batch)
}

// unit is one that is there, or was.
func (m *modelPlay) unit(u uint8) *LogicalUnit {
	if lu := m.b.a.unit(0, 0, u); lu != nil {
		m.seen = append(m.seen, lu)
		return lu
	}
	for _, lu := range m.seen {
		if lu.lun == u {
			return lu
		}
	}
	return m.b.a.unit(0, 0, 0)
}

// during is what can be between BuildIo and StartIo of an SRB.
func (m *modelPlay) during(o operation) {
	switch o.Kind {
	case "complete", "refuse", "fail", "wait", "reset", "stop", "submit", "flush", "release":
		return
	case "lock", "unlock":
		if lu := m.b.a.unit(0, 0, o.Unit); lu != nil {
			p := m.b.processor("other")
			defer p.Close()
			m.submit(p, lu, 1, operation{Action: SimpleTag, N: 1, Flags: FlagNoQueueFreeze | FlagBypassLockedQueue}, map[string]Function{"lock": FunctionLockQueue, "unlock": FunctionUnlockQueue}[o.Kind])
		}
		return
	}
	p := m.b.processor("other")
	defer p.Close()
	m.hold(p, o)
}

// do is a step of the script.
func (m *modelPlay) do(o operation) {
	a, p := m.b.a, m.b.p
	switch o.Kind {
	case "submit":
		if lu := m.unit(o.Unit); lu != nil {
			m.submit(p, lu, 1+o.N%3, o, FunctionExecuteScsi)
		}
	case "lock", "unlock", "release", "flush":
		if lu := m.unit(o.Unit); lu != nil {
			m.queue(lu, map[string]Function{
				"lock": FunctionLockQueue, "unlock": FunctionUnlockQueue, "release": FunctionReleaseQueue, "flush": FunctionFlushQueue,
			}[o.Kind])
		}
	case "complete", "refuse", "fail":
		held := m.d.take()
		n := min(len(held), 1+o.N%3)
		m.d.mu.Lock()
		m.d.held = append(held[n:len(held):len(held)], m.d.held...)
		m.d.mu.Unlock()
		for _, s := range held[:n] {
			s.Status, s.ScsiStatus = StatusSuccess, scsi.StatusGood
			switch o.Kind {
			case "refuse":
				s.Status, s.ScsiStatus = StatusError, map[bool]scsi.Status{true: scsi.StatusBusy, false: scsi.StatusTaskSetFull}[o.N%2 == 0]
			case "fail":
				s.Status = StatusTimeout
			}
			a.Complete(p, s)
		}
	case "wait":
		<-time.After(time.Duration(o.N) * time.Second)
	case "reset":
		lu := a.unit(0, 0, o.Unit)
		if lu == nil {
			return
		}
		go func() {
			q := m.b.processor("operator")
			defer q.Close()
			_ = a.ResetNow(q, lu, ResetLevel(o.N%int(ResetLevels))) // it may fail
		}()
	case "stop":
		go func() {
			q := m.b.processor("operator")
			defer q.Close()
			_ = a.Stop(q) // it may be stopped
			if o.N%2 == 0 {
				_ = a.Restart(q)
			}
		}()
	default:
		m.hold(p, o)
	}
}

// hold is what may happen at any level.
func (m *modelPlay) hold(p *Processor, o operation) {
	a := m.b.a
	switch o.Kind {
	case "pause":
		a.Pause(p, o.N)
	case "resume":
		a.Resume(p)
	case "pause unit":
		a.PauseDevice(p, 0, 0, o.Unit, 10*o.N)
	case "resume unit":
		a.ResumeDevice(p, 0, 0, o.Unit)
	case "busy":
		a.Busy(p, 1+o.N%4)
	case "ready":
		a.Ready(p)
	case "unit busy":
		a.DeviceBusy(p, 0, 0, o.Unit, 1+o.N%4)
	case "unit ready":
		a.DeviceReady(p, 0, 0, o.Unit)
	case "link down":
		a.LinkDown(p)
	case "link up":
		a.LinkUp(p)
	case "depth":
		a.SetDeviceQueueDepth(p, 0, 0, o.Unit, 1+o.N%3)
	case "mark failed":
		a.MarkDeviceFailed(p, 0, 0, o.Unit, "the script says so")
	case "unplug", "plug":
		if o.Unit != 0 { // which is asked for the others
			m.present[o.Unit] = o.Kind == "plug"
		}
		var units []uint8
		for u, is := range m.present {
			if is {
				units = append(units, uint8(u))
			}
		}
		m.d.has(units...)
		a.BusChangeDetected(p)
	case "reset adapter":
		a.HardwareReset(p)
	case "resets fail", "resets hang", "resets work":
		m.d.setResets(strings.TrimPrefix(o.Kind, "resets "))
	}
}
