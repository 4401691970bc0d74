package mutants

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/vhbad/vhbad/port"
)

// Every mutant is caught by what the table names, and the good specimen passes
// the same scenario unnoticed.
func TestMutants(t *testing.T) {
	if len(mutants) < 25 {
		t.Fatalf("%d mutants, want at least 25", len(mutants))
	}
	for i := range mutants {
		t.Run(mutants[i].name, func(t *testing.T) { mutants[i].test(t) })
	}
}

// test runs the mutant's scenario with the good specimen and with the mutant.
func (x *mutant) test(t *testing.T) {
	t.Helper()
	run := synctest.Test
	if x.wallClock {
		run = func(t *testing.T, f func(t *testing.T)) { f(t) }
	}
	run(t, func(t *testing.T) {
		r, err := newRig(t, x.options(), &x.scenario, nil)
		if err != nil {
			t.Fatal(err)
		}
		x.scenario.run(r)
		for _, s := range r.noticed() {
			t.Errorf("the good specimen was accused: %s", s)
		}
		r.teardown()
		r.close(true)
	})
	if t.Failed() {
		return
	}
	run(t, func(t *testing.T) {
		r, err := newRig(t, x.options(), &x.scenario, x)
		if err == nil {
			x.scenario.run(r)
		}
		caught := r.sys.Verifier().Count(x.check) > 0 || x.oracle != oracleNone && r.failed(x.oracle)
		noticed := r.noticed()
		if !caught {
			t.Errorf("%s got away: nothing was noticed by %s, only %q", x.name, x.by(), noticed)
		}
		if err == nil {
			r.teardown()
		}
		r.close(false)
	})
}

// options are the scenario's; full duplex with messages if it does not say.
func (x *mutant) options() options {
	o := x.scenario.options
	if o == (options{}) || o == (options{suppress: true}) {
		o.model, o.interrupts = port.FullDuplex, port.InterruptSynchronizeAll
	}
	return o
}

// by names what catches the mutant.
func (x *mutant) by() string {
	if x.check != 0 {
		return fmt.Sprintf("verifier V%d %s", x.check, x.check)
	}
	return "oracle: " + x.oracle.String()
}

// noticed is everything that the verifier and the oracles have to say.
func (r *rig) noticed() []string {
	var list []string
	for _, v := range r.sys.Verifier().Violations() {
		list = append(list, v.String())
	}
	return append(list, r.failuresSeen()...)
}

// failuresSeen is what the oracles have to say.
func (r *rig) failuresSeen() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []string
	for o, what := range r.failures {
		list = append(list, fmt.Sprintf("%s: %s", o, strings.Join(what, "; ")))
	}
	slices.Sort(list)
	return list
}
