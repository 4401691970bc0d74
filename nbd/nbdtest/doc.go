// Package nbdtest helps to test what uses package nbd: Memory is a device that
// needs nothing else, Manual one whose requests the test completes itself,
// Client a small client that can also speak out of turn, and Authority issues
// certificates for TLS.
package nbdtest
