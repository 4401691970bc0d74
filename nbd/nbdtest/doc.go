// Package nbdtest helps to test users of package nbd: Memory is a self-contained device,
// Manual a device whose requests the test completes itself, Client a small client that can
// also break the protocol, and Authority issues certificates for TLS.
package nbdtest
