package fault

import "math"

// A chance is a source of random numbers that depends only on what it was made from. It
// is splitmix64.
type chance uint64

// chanceOf returns the chance of a rule's k-th match. seed already has the rule's
// name in it.
func chanceOf(seed, k uint64) chance {
	return chance(mix(seed ^ mix(k+0x9e3779b97f4a7c15)))
}

// next draws 64 bits.
func (c *chance) next() uint64 {
	*c += 0x9e3779b97f4a7c15
	return mix(uint64(*c))
}

// unit draws from [0, 1).
func (c *chance) unit() float64 { return float64(c.next()>>11) / (1 << 53) }

// below draws from [0, n). n is not zero. The bias is n in 2^64.
func (c *chance) below(n uint64) uint64 { return c.next() % n }

// normal draws from the standard normal distribution, by Box and Muller.
func (c *chance) normal() float64 {
	u := 1 - c.unit() // not zero
	return math.Sqrt(-2*math.Log(u)) * math.Cos(2*math.Pi*c.unit())
}

// mix is the finaliser of splitmix64.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// seedOf puts a rule's seed and name into one number, the name by FNV-1a.
func seedOf(seed uint64, name string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(name) {
		h = (h ^ uint64(name[i])) * 1099511628211
	}
	return mix(seed ^ mix(h))
}
