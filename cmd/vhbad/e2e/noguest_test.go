//go:build interop && !kernel

package e2e

// guestMain has no scenarios to run without the kernel tag.
func guestMain() bool { return false }
