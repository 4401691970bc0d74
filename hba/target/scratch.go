package target

// scratchBytes is what commands that need a buffer of their own work in.
const scratchBytes = 64 << 10

type scratch [scratchBytes]byte

// scratches keeps a few buffers for the next command. A longer queue of such
// commands than that allocates.
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
