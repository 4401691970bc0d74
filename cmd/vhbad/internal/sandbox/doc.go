// Package sandbox takes from this process what it does not need: see Enter. It
// owns nothing, and cannot be undone.
//
// What is taken are ways to name files. Descriptors that are open stay as they
// are, so images, sockets and logs need no rule.
package sandbox
