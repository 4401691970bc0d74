package conformance

import (
	"context"
	"fmt"
	"time"
)

// defaultPatience is how long any step may take. Only a server that does not
// answer at all takes that long.
const defaultPatience = 10 * time.Second

// patience is how long to wait for the target.
func (t *Target) patience() time.Duration {
	if t.Patience == 0 {
		return defaultPatience
	}
	return t.Patience
}

// A probe is what the check of a row works with. Its methods end the row when
// there is a verdict; a check that returns has passed.
type probe struct {
	ctx    context.Context
	target *Target
	f      *features
	wires  []*wire
	mode   string // prefix of details
}

// outcome is how a row ended before its check returned.
type outcome struct {
	verdict Verdict
	detail  string
}

func (x *probe) end(v Verdict, format string, args ...any) {
	panic(outcome{v, x.mode + fmt.Sprintf(format, args...)})
}

// failf ends the row: the rule is broken.
func (x *probe) failf(format string, args ...any) { x.end(Fail, format, args...) }

// notApplicable ends the row: it turned out that the rule does not apply here.
func (x *probe) notApplicable(format string, args ...any) { x.end(NotApplicable, format, args...) }

// run carries out a check.
func (x *probe) run(check func(x *probe)) (o outcome) {
	o.verdict = Pass
	defer func() {
		for _, w := range x.wires {
			_ = w.nc.Close() // the verdict is made
		}
		switch r := recover().(type) {
		case nil:
		case outcome:
			o = r
		default:
			panic(r)
		}
	}()
	check(x)
	return o
}

// dial connects and sends nothing.
func (x *probe) dial() *wire {
	ctx, cancel := context.WithTimeout(x.ctx, x.target.patience())
	defer cancel()
	nc, err := x.target.Dial(ctx)
	if err != nil {
		x.failf("cannot connect: %v", err)
	}
	w := &wire{x: x, nc: nc, pending: make(map[uint64]*reply)}
	x.wires = append(x.wires, w)
	return w
}

// plain connects and goes through the greeting, without TLS.
func (x *probe) plain() *wire {
	w := x.dial()
	w.greet()
	w.sayFlags(w.handshake & (fixedNewstyle | noZeroes))
	return w
}

// haggle connects and gets ready for the first option, with TLS if the target
// has it.
func (x *probe) haggle() *wire {
	w := x.plain()
	x.secure(w)
	return w
}

// secure turns TLS on if the target has it.
func (x *probe) secure(w *wire) {
	if !x.target.Secure {
		return
	}
	w.sendOption(optStartTLS, nil)
	w.wantReply(optStartTLS, repAck)
	w.handshakeTLS(x.target.tls())
}

// A mode is a format of requests and replies.
type mode uint8

const (
	compact mode = iota
	structured
	extended
	modeCount
)

func (m mode) String() string { return [...]string{"compact", "structured", "extended"}[m] }

// enter goes all the way to transmission, with base:allocation if there is any.
func (x *probe) enter(m mode) *wire {
	w := x.haggle()
	w.upgrade(m)
	if m != compact && x.f.allocation {
		w.setAllocation(x.target.Export)
	}
	w.enter(x.target.Export)
	return w
}

// upgrade negotiates the mode.
func (w *wire) upgrade(m mode) {
	switch m {
	case structured:
		w.wantFinal(optStructured, nil, repAck)
		w.structured = true
	case extended:
		w.wantFinal(optExtended, nil, repAck)
		w.structured, w.extended = true, true
	case compact, modeCount:
	}
}

// inModes runs the check in every mode that the server has.
func (x *probe) inModes(check func(w *wire)) {
	for m := range modeCount {
		if m == structured && !x.f.structured || m == extended && !x.f.extended {
			continue
		}
		x.inMode(m, check)
	}
}

// inMode runs the check in one mode.
func (x *probe) inMode(m mode, check func(w *wire)) {
	x.mode = m.String() + ": "
	w := x.enter(m)
	check(w)
	w.close()
	x.mode = ""
}
