// Package pci is the border between a device and the software that drives it:
// registers, interrupt messages and configuration space, as a PCI bus offers them.
//
// It is a leaf. The device (package hba) implements Function; the port driver
// (package port) uses it. Neither imports the other, and nothing here knows
// what a command or a request is.
//
// # Borrowed goroutines
//
// A real device has its own clock. This one has none: it runs on whatever
// goroutine touches it. A Runner names the virtual processor of that goroutine.
// The port passes a Runner with each register access and the device hands it
// back when it raises an interrupt, so that the port knows on which processor
// the interrupt arrived. The device never looks inside.
package pci
