package quantity

import (
	"fmt"
	"math"
	"reflect"
)

// Want says what a value of type t must be, for an error about one that is not, as in "want
// a whole number from 0 to 255".
func Want(t reflect.Type) string {
	switch k := t.Kind(); {
	case k == reflect.Bool:
		return "true or false"
	case k >= reflect.Int && k <= reflect.Int64:
		return "a whole number"
	case k >= reflect.Uint && k <= reflect.Uint64:
		return fmt.Sprintf("a whole number from 0 to %d", uint64(math.MaxUint64)>>(64-t.Bits()))
	case k == reflect.Float32 || k == reflect.Float64:
		return "a number"
	}
	return "a " + t.Kind().String()
}
