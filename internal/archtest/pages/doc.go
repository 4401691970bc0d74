// Package pages finds the Markdown pages of the repository, for tests of what they
// say.
package pages
