package cache

import "errors"

var (
	// errWouldBlock: the durable medium cannot do it without waiting.
	errWouldBlock = errors.New("would block")
	// errDamaged is the cause of a read of a sector that a cut made unreadable.
	errDamaged = errors.New("damaged when the power was cut; a write heals it")
	// errNoPower makes whoever writes out give up for a cut.
	errNoPower = errors.New("the power is being cut")
)

// notBlocking is err, without the one that says that something would block.
func notBlocking(err error) error {
	if errors.Is(err, errWouldBlock) {
		return nil
	}
	return err
}
