// Package sandbox takes from this process what it does not need: see Enter. It
// owns nothing, and cannot be undone.
//
// It takes away ways to name files and to connect by TCP. Descriptors that are open
// stay as they are, so images, sockets and logs need no rule. An image that is to be
// opened later has to be in what was left: where the kernel would only refuse,
// Reaches says so in words.
package sandbox
