package pci

// A Runner is the virtual processor whose goroutine is running device code.
//
// It is opaque to the device, which only hands it back through an
// InterruptFunc. At any time one goroutine at most runs as a given Runner.
type Runner interface {
	// RunnerName says who runs, for traces and panics.
	RunnerName() string
}

// A Message is the number of an interrupt message (MSI-X vector), from 0.
// A line interrupt is reported as message 0.
type Message uint16

// An InterruptFunc is called by a device to raise an interrupt.
//
// Concurrency: any goroutine; the device holds none of its locks, and the
// callee may access registers of the device before it returns.
type InterruptFunc func(r Runner, m Message)

// An InterruptMode says how a function signals interrupts.
type InterruptMode uint8

const (
	// MessageSignaled delivers each message on its own edge (MSI-X).
	MessageSignaled InterruptMode = iota
	// Line is one level-triggered line for all causes (INTx): asserted until
	// the driver has cleared every cause in the device.
	Line
)

// Registers is one memory range of a device (a BAR).
//
// Offsets are in bytes and must be naturally aligned and inside the range; the
// caller checks. Concurrency: any goroutine, no device lock held by the caller.
// An access may run device code on the caller's goroutine, as r, and may raise
// interrupts before it returns.
type Registers interface {
	// SizeBytes is the length of the range.
	SizeBytes() uint32
	Read32(r Runner, offset uint32) uint32
	Read64(r Runner, offset uint32) uint64
	Write32(r Runner, offset uint32, value uint32)
	Write64(r Runner, offset uint32, value uint64)
}

// Function is a device as the bus shows it to a driver.
type Function interface {
	// ReadConfig copies configuration space from offset on into p and returns
	// the number of bytes copied: fewer than len(p) at the end of the space.
	ReadConfig(offset int, p []byte) int

	// BAR returns memory range n, or nil if the function has no such range.
	BAR(n int) Registers

	// Messages is the number of interrupt messages the function can signal, at
	// least one.
	Messages() int

	// ConnectInterrupt routes interrupts to raise. newRunner makes a Runner for
	// each goroutine that the device starts of its own accord; the device calls it
	// before ConnectInterrupt returns or from the goroutine concerned. If newRunner
	// returns nil, there is no Runner to be had, and ConnectInterrupt fails. If it fails,
	// it has changed nothing.
	ConnectInterrupt(mode InterruptMode, raise InterruptFunc, newRunner func(name string) Runner) error

	// DisconnectInterrupt stops delivery and waits until no call of raise is
	// under way.
	DisconnectInterrupt()

	// Asserted reports whether the interrupt line is up. Line mode only.
	Asserted() bool

	// MaskMessage stops delivery of one message. Interrupts raised meanwhile
	// are kept as one pending bit (MSI-X PBA).
	MaskMessage(m Message)

	// UnmaskMessage resumes delivery, and delivers a pending message on r.
	UnmaskMessage(r Runner, m Message)
}
