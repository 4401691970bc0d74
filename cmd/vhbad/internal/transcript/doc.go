// Package transcript tests the way of an SRB through all layers: each layer's
// border is wrapped by one that writes down what passes, and the result is
// compared with testdata/*.txt.
//
// A changed line is a changed way. After looking at the difference, write it
// anew with
//
//	go test ./cmd/vhbad/internal/transcript -rewrite
package transcript
