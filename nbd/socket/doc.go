// Package socket has stream sockets whose waiting is the server's own business.
//
// A connection of package net is always with the poller of the Go runtime, edge-
// triggered and for both directions. That is costly for a server of many
// small requests: a reader that finds nothing makes three system calls until it
// sleeps; every reply that the client takes out of the socket's buffer is an event, "there is
// room again", that wakes a thread which nobody waits for, and it is the client who does
// the waking; and a reader cannot wait in any other way, as the poller would be woken
// up besides.
//
// Take takes a connection from the runtime. A Conn is a net.Conn all the same,
// with deadlines. It waits in one of two ways:
//
//   - In the system call. One receive call waits and receives, so that a client with one
//     request in flight is served by two system calls a request. The thread is
//     occupied meanwhile, and for a while so is a processor of the scheduler, so there
//     are fewer that may wait so than processors, and only for some milliseconds.
//   - With the package's own poller, an epoll descriptor and a goroutine that waits for
//     it, for one event each. It is there as long as there are connections that it
//     has seen.
//
// The system calls that do not wait are not announced to the scheduler; see
// calls_unsafe.go.
//
// Lock order: Conn.mu before poller.mu.
package socket
