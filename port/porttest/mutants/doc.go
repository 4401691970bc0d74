// Package mutants proves that breaches of the Storport contract are noticed. It
// has only tests.
//
// There is one good miniport, the specimen, with a device that a test moves step
// by step. A mutant is that miniport with one thing wrong: a line left out or
// turned round (a gene), a support routine called from where it must not be (a
// hook), or a port that breaks its side of the contract (a wrapper between port
// and specimen). Many are bugs that were reported against public drivers.
//
// Each mutant has a scenario, which runs twice. With the good miniport nothing
// may be noticed, so that a scenario cannot accuse the innocent. With the
// mutant, what the table names must notice: a check of the port's verifier, or
// an oracle of this package, which knows what the driver cannot know. The test
// fails if a mutant gets away.
//
// The oracles see no scheduling: where two processors must meet in a window of
// a few instructions, each waits there a while for the other. Where they exclude
// each other, as they should, the wait ends by itself. Wrong state is atomic, so
// that mutants run under the race detector as well, which would otherwise be the
// one to speak.
//
// docs/mutants.md lists them. It is written by
//
//	go test ./port/porttest/mutants -run TestDocument -write
package mutants
