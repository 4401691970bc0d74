package road

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sort"
	"testing"

	"github.com/anishathalye/porcupine"
)

// An access is one read or write of a register: when the client asked, when it
// had the answer, and the value. No two writes have one value.
type access struct {
	write     bool
	value     uint64
	call, ret int64
	client    int
}

// A zone is where all accesses of one value have to be: a forward zone from the
// first answer to the last question, in which the register surely has the value;
// or a backward zone, from the last question to the first answer, within which
// there is a moment at which it has.
type zone struct {
	value    uint64
	from, to int64
}

// linearizable says what is wrong with a register's history, whose first value is
// initial. Unlike a search it takes time n log n, because the values tell which
// write each read saw.
//
// Source: Gibbons and Korach, "Testing Shared Memories", SIAM J. Computing 26
// (1997), section 4: values known, one write each.
func linearizable(initial uint64, history []access) error {
	type cluster struct {
		written           bool
		writeCall         int64
		firstRet, lastAsk int64
	}
	clusters := map[uint64]*cluster{initial: {written: true, writeCall: math.MinInt64, firstRet: math.MinInt64, lastAsk: math.MinInt64}}
	for _, a := range history {
		c := clusters[a.value]
		if c == nil {
			c = &cluster{firstRet: math.MaxInt64, lastAsk: math.MinInt64}
			clusters[a.value] = c
		}
		if a.write {
			if c.written {
				return fmt.Errorf("value %#x is written twice: the test is wrong", a.value)
			}
			c.written, c.writeCall = true, a.call
		}
		c.firstRet, c.lastAsk = min(c.firstRet, a.ret), max(c.lastAsk, a.call)
	}
	var forward, backward []zone
	for value, c := range clusters {
		switch {
		case !c.written:
			return fmt.Errorf("value %#x was read and never written", value)
		case c.firstRet < c.writeCall:
			return fmt.Errorf("value %#x was read before anybody wrote it", value)
		case c.firstRet < c.lastAsk:
			forward = append(forward, zone{value, c.firstRet, c.lastAsk})
		default:
			backward = append(backward, zone{value, c.lastAsk, c.firstRet})
		}
	}
	slices.SortFunc(forward, func(a, b zone) int { return cmp.Or(cmp.Compare(a.from, b.from), cmp.Compare(a.to, b.to)) })
	for i := 1; i < len(forward); i++ {
		if a, b := forward[i-1], forward[i]; b.from < a.to {
			return fmt.Errorf("values %#x and %#x were both current: one from %d to %d, the other from %d to %d", a.value, b.value, a.from, a.to, b.from, b.to)
		}
	}
	for _, z := range backward {
		// Forward zones do not overlap, so only one can be around z.
		i := sort.Search(len(forward), func(i int) bool { return forward[i].from >= z.from }) - 1
		if i >= 0 && z.to < forward[i].to {
			return fmt.Errorf("value %#x was current from %d to %d at some moment, but there %#x was", z.value, z.from, z.to, forward[i].value)
		}
	}
	return nil
}

// register is what porcupine knows of a register.
var register = porcupine.Model{
	Init: func() any { return uint64(0) },
	Step: func(state, input, output any) (bool, any) {
		a := input.(access)
		if a.write {
			return true, a.value
		}
		return state == output, state
	},
}

func operations(history []access) []porcupine.Operation {
	out := make([]porcupine.Operation, len(history))
	for i, a := range history {
		out[i] = porcupine.Operation{ClientId: a.client, Input: a, Call: a.call, Output: a.value, Return: a.ret}
	}
	return out
}

// The quick check agrees with a search through all orders, on histories good and
// bad.
func TestLinearizable_AgreesWithSearch(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	var good, bad int
	for range 20_000 {
		history := randomHistory(rng)
		want := porcupine.CheckOperations(register, operations(history))
		err := linearizable(0, history)
		if (err == nil) != want {
			t.Fatalf("linearizable says %v, porcupine %t: %+v", err, want, history)
		}
		if want {
			good++
		} else {
			bad++
		}
	}
	if good < 1000 || bad < 1000 {
		t.Errorf("%d good and %d bad histories: too few of one", good, bad)
	}
}

// randomHistory has a few clients whose accesses overlap. No two moments are
// the same: who breaks a tie is nobody's business here.
func randomHistory(rng *rand.Rand) []access {
	clients, each := 1+rng.IntN(3), 1+rng.IntN(3)
	moments := rng.Perm(2 * clients * each)
	var history []access
	var values []uint64
	for c := range clients {
		mine := moments[2*c*each : 2*(c+1)*each]
		slices.Sort(mine)
		for i := range each {
			a := access{write: rng.IntN(2) == 0, call: int64(mine[2*i]), ret: int64(mine[2*i+1]), client: c}
			if a.write {
				a.value = uint64(len(history) + 1)
				values = append(values, a.value)
			}
			history = append(history, a)
		}
	}
	for i := range history {
		if a := &history[i]; !a.write && len(values) > 0 && rng.IntN(4) > 0 {
			a.value = values[rng.IntN(len(values))]
		}
	}
	return history
}
