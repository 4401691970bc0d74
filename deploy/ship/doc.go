// Package ship has the tests of what is shipped: the packages that `make package`
// has built, the units, the image's recipe. It builds nothing; run it with
//
//	make package
package ship
