//go:build race

package road

// Under the race detector everything takes ten times as long.
const (
	raceEnabled  = true
	modelSteps   = 300
	manyRequests = 20_000
)
