// Package road tests the whole path from a socket to the medium and back, with all layers
// and nothing but the layers.
//
// Transcripts record an SRB's path: each boundary between layers is wrapped so that what
// passes is noted, and the result is compared with testdata/*. A changed line is a changed
// path; after reviewing the difference, rewrite the files with
//
//	go test ./cmd/vhbad/internal/road -run Transcripts -rewrite
//
// The other tests look at the path from outside: they compare random commands with a plain
// byte slice, write parts of blocks from many connections, and check that the steady state
// allocates nothing and leaves nothing behind.
package road
