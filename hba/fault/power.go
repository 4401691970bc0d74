package fault

import (
	"fmt"
	"slices"
	"time"
)

// The values that the fields of a PowerCut may have. They are the words of the disks'
// write caches; empty leaves the choice to the cache.
var (
	PowerPolicies = []string{"subset", "none", "all", "prefix", "reverse", "one-missing"}
	PowerTears    = []string{"none", "512", "4096"}
	PowerDamages  = []string{"old", "garbage", "unreadable"}
)

// MaxPowerOff is how long a disk may be without power.
const MaxPowerOff = Duration(time.Hour)

// check names the first thing that is wrong with p.
func (p *PowerCut) check() error {
	for _, word := range []struct {
		name, value string
		known       []string
	}{
		{"policy", p.Policy, PowerPolicies},
		{"tear", p.Tear, PowerTears},
		{"damage", p.Damage, PowerDamages},
	} {
		if word.value != "" && !slices.Contains(word.known, word.value) {
			return fmt.Errorf("power.%s %q: want %s", word.name, word.value, oneOf(word.known))
		}
	}
	if p.OffFor < 0 || p.OffFor > MaxPowerOff {
		return fmt.Errorf("power.off-for %s: want at most %s", p.OffFor, MaxPowerOff)
	}
	return nil
}
