// Package lockorder joins the lock-order graphs of all tests, to prove that the
// locks of a system are taken in one order by the whole suite and not only by
// each test for itself. It is for tests.
//
// A test that makes a port.System hands the edges that its verifier saw to
// Record when it ends. Record fails the test if all that its package recorded so
// far has a cycle. With the environment variable VHBAD_LOCK_ORDER, a folder, it
// also writes the package's edges there, one file for each package; the command
// in folder merge reads them all and fails on a cycle, on a package of
// Contributors that recorded nothing, and if there is no edge at all. `make unit`
// does both.
//
// Systems that break the lock rules on purpose are not recorded: the tests of
// the verifier's lock rules, and the mutants of port/porttest/mutants, whose
// wrong orders are each looked for where they are made.
package lockorder
