// Package example is a program with a bug that only a power cut reveals, and the test
// that finds it. docs/tutorial-go-test.md walks through it.
package example
