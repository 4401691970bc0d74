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

// A13: without SynchronizeAccess, without it where half duplex holds no lock, and
// with one message's lock alone, exclusion (A1) and ids (A12) are seen to fail.
func TestA13_Mutation(t *testing.T) {
	for _, name := range []string{"port_sync_plain_call", "port_sync_by_model", "port_sync_one_message", "id_outside_sync"} {
		t.Run(name, func(t *testing.T) { bred(t, name) })
	}
}

// A mutant in which nothing is wrong is not caught: what catches the others is
// not the scenario.
func TestMutants_Innocent(t *testing.T) {
	x := mutant{name: "innocent", check: port.CheckDoubleCompletion, oracle: oracleLost, scenario: several}
	if caught, noticed := x.caught(t); caught || len(noticed) > 0 {
		t.Errorf("the good specimen was taken for a mutant: %q", noticed)
	}
}

// test runs the mutant's scenario with the good specimen and with the mutant.
func (x *mutant) test(t *testing.T) {
	t.Helper()
	x.bubble(t, func(t *testing.T) {
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
	if caught, noticed := x.caught(t); !caught {
		t.Errorf("%s got away: nothing was noticed by %s, only %q", x.name, x.by(), noticed)
	}
}

// caught runs the scenario with the mutant. It reports whether what should has
// noticed it, and all that was noticed.
func (x *mutant) caught(t *testing.T) (caught bool, noticed []string) {
	t.Helper()
	x.bubble(t, func(t *testing.T) {
		r, err := newRig(t, x.options(), &x.scenario, x)
		if err == nil {
			x.scenario.run(r)
		}
		caught = r.sys.Verifier().Count(x.check) > 0 || x.oracle != oracleNone && r.failed(x.oracle)
		noticed = r.noticed()
		if err == nil {
			r.teardown()
		}
		r.close(false)
	})
	return caught, noticed
}

// bubble runs f on a fake clock.
func (x *mutant) bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	if x.wallClock {
		f(t)
		return
	}
	synctest.Test(t, f)
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
