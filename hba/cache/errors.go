package cache

import "errors"

var (
	// errWouldBlock: the durable medium cannot do it without waiting.
	errWouldBlock = errors.New("would block")
	// errDamaged is the cause of a read of a sector that a cut made unreadable.
	errDamaged = errors.New("damaged when the power was cut; a write heals it")
	// errNoPower makes whoever is writing out give up because of a cut.
	errNoPower = errors.New("the power is being cut")
)

// notBlocking returns err, or nil if err says that something would block.
func notBlocking(err error) error {
	if errors.Is(err, errWouldBlock) {
		return nil
	}
	return err
}
