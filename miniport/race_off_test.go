//go:build !race

package miniport_test

const raceEnabled = false
