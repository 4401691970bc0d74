//go:build !race

package road

const (
	raceEnabled  = false
	modelSteps   = 1500
	manyRequests = 100_000
)
