// Package example is a program with a bug that no test finds without a power cut, and
// the test that finds it. docs/tutorial-go-test.md goes through it.
package example
