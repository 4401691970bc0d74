package hba

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/vhbad/vhbad/internal/pci"
)

// ErrConnected means that interrupts are connected already.
var ErrConnected = errors.New("hba: interrupts are connected")

// ErrNoRunner means that no runner could be made for a goroutine of the device.
var ErrNoRunner = errors.New("hba: no runner")

// Bits of an interrupt message's state word. Everything that decides whether a message
// is delivered, kept or in delivery is in one word, so that each change is one
// compare-and-swap and no edge is lost between two reads.
const (
	messageMasked    uint32 = 1 << iota // the bus has masked it
	messagePending                      // raised, but not delivered yet (PBA bit)
	messageConnected                    // there is somebody to deliver to
	messageLine                         // connected in line mode
	_
	_
	_
	_
	messageCall // one call of the interrupt function under way; counts from here up
)

// An interruptMessage is one MSI-X vector. Words of different messages do not
// share a cache line: queue pairs raise on different processors.
type interruptMessage struct {
	state atomic.Uint32
	_     [60]byte
}

// A source says on whose behalf an interrupt is raised: runner for a borrowed
// goroutine, own for a goroutine of the device.
type source struct {
	runner pci.Runner
	own    int // 1 for the event goroutine, 2 and up for workers; 0: runner
}

const ownEvents = 1

// A connection is what ConnectInterrupt was given. It does not change while a
// call counted in a message's state is under way.
type connection struct {
	mode    pci.InterruptMode
	raise   pci.InterruptFunc
	runners []pci.Runner // by source.own
}

// interrupts is the device's interrupt logic: messages and the line.
//
// Lock order: mu, then lineMu. Neither is held while an interrupt is delivered.
type interrupts struct {
	messages []interruptMessage
	conn     atomic.Pointer[connection]

	// kick wakes the event goroutine to deliver what was kept while no goroutine could
	// deliver it. Capacity 1.
	kick chan struct{}

	mu   sync.Mutex // serialises connecting and disconnecting
	idle sync.Cond  // on mu: broadcast when the last call on a disconnected message ends

	lineMu sync.Mutex
	// +checklocks:lineMu
	cause uint64
	// +checklocks:lineMu
	mask uint64
}

func (x *interrupts) init(messages int) {
	x.messages = make([]interruptMessage, messages)
	x.kick = make(chan struct{}, 1)
	x.idle.L = &x.mu
}

// raise signals message m, or in line mode sets cause. While nobody is connected, or m
// is masked, the signal is kept as one pending bit.
func (x *interrupts) raise(src source, m pci.Message, cause uint64) {
	w := &x.messages[m]
	for {
		yieldPoint("raise: look at the message")
		s := w.state.Load()
		yieldPoint("raise: change the message")
		if s&messageConnected == 0 || s&(messageMasked|messageLine) == messageMasked {
			if w.state.CompareAndSwap(s, s|messagePending) {
				return
			}
			continue
		}
		next := s + messageCall
		if s&messageLine == 0 {
			next &^= messagePending
		}
		if !w.state.CompareAndSwap(s, next) {
			continue
		}
		if s&messageLine == 0 {
			x.call(src, m)
		} else if x.assert(cause) {
			x.deliverLine(src)
		}
		x.leave(w)
		return
	}
}

// call runs the interrupt function. The caller has counted the call.
func (x *interrupts) call(src source, m pci.Message) {
	yieldPoint("deliver")
	c := x.conn.Load()
	r := src.runner
	if src.own != 0 {
		r = c.runners[src.own]
	}
	c.raise(r, m)
}

func (x *interrupts) leave(w *interruptMessage) {
	yieldPoint("delivered")
	if s := w.state.Add(^(messageCall - 1)); s&messageConnected == 0 && s < messageCall {
		yieldLock("lock to tell of the last call", &x.mu)
		x.mu.Lock()
		broadcastCond(&x.idle)
		x.mu.Unlock()
	}
}

// assert sets causes and reports whether the line went up.
func (x *interrupts) assert(cause uint64) bool {
	yieldPoint("assert")
	x.lineMu.Lock()
	defer x.lineMu.Unlock()
	was := x.cause &^ x.mask
	x.cause |= cause
	return was == 0 && x.cause&^x.mask != 0
}

// deliverLine reports that the line went up.
func (x *interrupts) deliverLine(src source) {
	w := &x.messages[0]
	for {
		yieldPoint("line: look at the message")
		s := w.state.Load()
		yieldPoint("line: change the message")
		if s&messageConnected == 0 || s&messageMasked != 0 {
			if w.state.CompareAndSwap(s, s|messagePending) {
				return
			}
			continue
		}
		if w.state.CompareAndSwap(s, s&^messagePending+messageCall) {
			x.call(src, 0)
			x.leave(w)
			return
		}
	}
}

// deliverPending delivers m if it is pending and nothing forbids it, after
// clearing clearBits.
func (x *interrupts) deliverPending(src source, m pci.Message, clearBits uint32) {
	w := &x.messages[m]
	for {
		yieldPoint("pending: look at the message")
		s := w.state.Load()
		yieldPoint("pending: change the message")
		next := s &^ clearBits
		deliver := next&(messagePending|messageConnected|messageMasked) == messagePending|messageConnected
		if deliver {
			next = next&^messagePending + messageCall
		}
		if !w.state.CompareAndSwap(s, next) {
			continue
		}
		if !deliver {
			return
		}
		// If the line went down meanwhile there is nothing to deliver.
		if s&messageLine == 0 || x.asserted() {
			x.call(src, m)
		}
		x.leave(w)
		return
	}
}

// deliverAllPending runs on the event goroutine.
func (x *interrupts) deliverAllPending(src source) {
	for m := range x.messages {
		x.deliverPending(src, pci.Message(m), 0)
	}
}

// wake makes the event goroutine look again.
func (x *interrupts) wake() {
	select {
	case x.kick <- struct{}{}:
	default: // it will look anyway
	}
}

func (x *interrupts) maskMessage(m pci.Message) {
	yieldPoint("mask")
	x.messages[m].state.Or(messageMasked)
}

func (x *interrupts) asserted() bool {
	yieldPoint("is the line up")
	x.lineMu.Lock()
	defer x.lineMu.Unlock()
	return x.cause&^x.mask != 0
}

func (x *interrupts) causes() uint64 {
	x.lineMu.Lock()
	defer x.lineMu.Unlock()
	return x.cause
}

func (x *interrupts) maskedCauses() uint64 {
	x.lineMu.Lock()
	defer x.lineMu.Unlock()
	return x.mask
}

func (x *interrupts) clearCauses(bits uint64) {
	yieldPoint("clear causes")
	x.lineMu.Lock()
	x.cause &^= bits
	x.lineMu.Unlock()
}

// maskCauses stores the line's mask; clearing bits may raise the line.
func (x *interrupts) maskCauses(src source, mask uint64) {
	yieldPoint("mask causes")
	x.lineMu.Lock()
	was := x.cause &^ x.mask
	x.mask = mask
	up := was == 0 && x.cause&^x.mask != 0
	x.lineMu.Unlock()
	if up {
		x.deliverLine(src)
	}
}

// connect routes interrupts to c. causeOf says which causes correspond to a message:
// what was kept in one form is converted into the other.
func (x *interrupts) connect(c *connection, causeOf func(pci.Message) uint64) error {
	yieldLock("lock to connect", &x.mu)
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.conn.Load() != nil {
		return ErrConnected
	}
	x.conn.Store(c)
	yieldPoint("connect: messages")
	if c.mode == pci.MessageSignaled {
		x.connectMessages(causeOf)
	} else {
		x.connectLine(causeOf)
	}
	x.wake()
	return nil
}

// connectMessages turns the causes that were kept into pending messages.
//
// +checklocks:x.mu
func (x *interrupts) connectMessages(causeOf func(pci.Message) uint64) {
	x.lineMu.Lock()
	kept := x.cause
	x.cause = 0
	x.lineMu.Unlock()
	for m := range x.messages {
		yieldPoint("connect: a message")
		bits := messageConnected
		if kept&causeOf(pci.Message(m)) != 0 {
			bits |= messagePending
		}
		x.messages[m].state.Or(bits)
	}
}

// connectLine turns the messages that were kept into causes.
//
// +checklocks:x.mu
func (x *interrupts) connectLine(causeOf func(pci.Message) uint64) {
	var kept uint64
	for m := range x.messages {
		if x.messages[m].toLine() {
			kept |= causeOf(pci.Message(m))
		}
	}
	x.assert(kept)
	if x.asserted() {
		yieldPoint("connect: pending")
		x.messages[0].state.Or(messagePending)
	}
}

// toLine switches w to the line, and reports whether it was pending.
func (w *interruptMessage) toLine() (pending bool) {
	for {
		yieldPoint("connect: look at a message")
		s := w.state.Load()
		yieldPoint("connect: change a message")
		if w.state.CompareAndSwap(s, s&^messagePending|messageConnected|messageLine) {
			return s&messagePending != 0
		}
	}
}

// disconnect stops delivery and waits for calls under way.
func (x *interrupts) disconnect() {
	yieldLock("lock to disconnect", &x.mu)
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.conn.Load() == nil {
		return
	}
	for m := range x.messages {
		yieldPoint("disconnect: a message")
		x.messages[m].state.And(^(messageConnected | messageLine))
	}
	for m := range x.messages {
		for x.messages[m].state.Load() >= messageCall {
			waitCond(&x.idle)
		}
	}
	yieldPoint("disconnect: forget")
	x.conn.Store(nil)
}

// ConnectInterrupt implements pci.Function. What was raised earlier is delivered on the
// device's event goroutine, possibly before ConnectInterrupt returns.
//
// Errors: ErrConnected, ErrClosed, ErrNoRunner, or an unknown mode.
func (d *Device) ConnectInterrupt(mode pci.InterruptMode, raise pci.InterruptFunc, newRunner func(name string) pci.Runner) error {
	if mode != pci.MessageSignaled && mode != pci.Line {
		return fmt.Errorf("hba: interrupt mode %d: want message signaled (%d) or line (%d)", mode, pci.MessageSignaled, pci.Line)
	}
	if d.isClosed() {
		return ErrClosed
	}
	if d.intr.conn.Load() != nil {
		return ErrConnected // before making runners for nothing
	}
	c := &connection{mode: mode, raise: raise, runners: make([]pci.Runner, ownEvents+1+d.workers)}
	c.runners[ownEvents] = newRunner("hba-events")
	for i := range d.workers {
		c.runners[ownEvents+1+i] = newRunner(fmt.Sprintf("hba-worker-%d", i))
	}
	if slices.Contains(c.runners[ownEvents:], nil) {
		return ErrNoRunner
	}
	return d.intr.connect(c, d.causesOfMessage)
}

// causesOfMessage are the line-mode causes of what message m reports.
func (d *Device) causesOfMessage(m pci.Message) uint64 {
	var causes uint64
	if m == d.eventMessage() {
		causes |= CauseEvent
	}
	for i := range d.slots {
		if q := d.slots[i].queue.Load(); q != nil && q.message == m {
			causes |= 1 << i
		}
	}
	return causes
}

// DisconnectInterrupt implements pci.Function. It must not be called from an interrupt
// function of this device, as it would wait for that function.
func (d *Device) DisconnectInterrupt() { d.intr.disconnect() }

// Asserted implements pci.Function.
func (d *Device) Asserted() bool { return d.intr.asserted() }

// MaskMessage implements pci.Function. It does not wait for a call that has begun, just
// as a message already on the bus cannot be called back. In line mode message 0 stands
// for the line.
func (d *Device) MaskMessage(m pci.Message) {
	if int(m) < len(d.intr.messages) {
		d.intr.maskMessage(m)
	}
}

// UnmaskMessage implements pci.Function.
func (d *Device) UnmaskMessage(r pci.Runner, m pci.Message) {
	if int(m) < len(d.intr.messages) {
		d.intr.deliverPending(source{runner: r}, m, messageMasked)
	}
}

// Messages implements pci.Function: one for each queue pair, and last the event message.
func (d *Device) Messages() int { return len(d.intr.messages) }

func (d *Device) eventMessage() pci.Message { return pci.Message(len(d.intr.messages) - 1) }

// events is the body of the event goroutine. It raises what no other goroutine can
// raise: changes of units and status, and interrupts kept from before they were
// connected. It also runs queues that other goroutines have run for long enough.
func (d *Device) events() {
	for {
		select {
		case <-d.stop:
			return
		case <-d.intr.kick:
		}
		d.raiseOwed()
	}
}

// raiseOwed does what the event goroutine has been asked for: it raises interrupts and
// runs queues.
func (d *Device) raiseOwed() {
	src := source{own: ownEvents}
	yieldPoint("events: owed")
	if d.eventRaised.Swap(false) {
		d.intr.raise(src, d.eventMessage(), CauseEvent)
	}
	yieldPoint("events: owed queues")
	d.interruptAll(d.raiseLater.Swap(0), src)
	d.intr.deliverAllPending(src)
	yieldPoint("events: queues to run")
	owed := d.runOwed.Swap(0)
	for i := range d.slots {
		if owed&(1<<i) == 0 {
			continue
		}
		if q := d.slots[i].queue.Load(); q != nil {
			q.run(src) // which hands over to the next round, if it takes long again
		}
	}
}

// signalEvent makes the event goroutine raise the event message.
func (d *Device) signalEvent() {
	d.eventRaised.Store(true)
	d.intr.wake()
}
