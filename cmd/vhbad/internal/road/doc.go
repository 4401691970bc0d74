// Package road tests the whole road from a socket to the medium and back, with
// nothing left out and nothing but the layers themselves.
//
// Transcripts write down an SRB's way: each layer's border is wrapped by one
// that notes what passes, and the result is compared with testdata/*. A changed
// line is a changed way; after looking at the difference, write it anew with
//
//	go test ./cmd/vhbad/internal/road -run Transcripts -rewrite
//
// The other tests look at the road from outside: random commands against a
// plain byte slice, writes of parts of blocks from many connections, and that
// the steady state allocates nothing and leaves nothing behind.
package road
