package target

// scratchBytes is the size of the buffer for commands that need one of their own.
const scratchBytes = 64 << 10

type scratch [scratchBytes]byte

// scratches keeps a few buffers for later commands. If more such commands run at once,
// they allocate.
var scratches = make(chan *scratch, 8)

func getScratch() *scratch {
	select {
	case s := <-scratches:
		return s
	default:
		return new(scratch)
	}
}

func putScratch(s *scratch) {
	select {
	case scratches <- s:
	default:
	}
}
