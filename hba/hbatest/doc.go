// Package hbatest tests the device without a driver and without a disk.
//
// Driver plays the driver: it builds rings in an arena, creates queue pairs
// through the registers, submits commands, rings doorbells, and consumes
// completions. Media stands between a unit and its medium: it holds calls until
// the test lets them go, and fails or tears them by a seed.
//
// Nothing here sleeps or looks at a clock: a test says what waits for what.
package hbatest
