// Package sandbox takes away from this process the rights that it does not need: see Enter.
// It owns nothing, and what it does cannot be undone.
//
// It takes away ways to name files and to connect by TCP. Open descriptors stay as they
// are, so images, sockets and logs that are already open need no rule. An image that is to
// be opened later must be within what was left: where the kernel would only refuse, Reaches
// says so in words.
package sandbox
