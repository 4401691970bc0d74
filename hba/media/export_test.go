package media

// SlabsLendable is slabsLendable.
const SlabsLendable = slabsLendable
