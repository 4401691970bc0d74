// Package socket has stream sockets whose waiting is the server's own business.
//
// A connection of package net is always with the poller of the Go runtime, edge-
// triggered and for both directions. That is costly for a server of many small
// requests: a reader that finds nothing makes three system calls until it sleeps;
// every reply that the client takes out of the socket's buffer is an event, "there
// is room again", that wakes up a thread which nobody waits for, and it is the client
// who does the waking; and a reader cannot wait in any other way, as the poller would
// be woken up besides.
//
// Take takes a connection from the runtime. A Conn is a net.Conn all the same,
// with deadlines. It waits in one of two ways:
//
//   - In the system call. One receive call waits and receives, so that a client with
//     one request in flight is served by two system calls a request. The thread is
//     occupied meanwhile, and for a while so is a processor of the scheduler, so there
//     are fewer that may wait so than processors, and only while it is not for long. The
//     right stays with a connection until it waits in the other way. Who waits for what is
//     on its way does so in the call only while some connection leaves its processor.
//   - With an epoll descriptor of the package's, for one event each time. The runtime
//     waits for that descriptor on behalf of a goroutine, which is there as long as
//     there are connections.
//
// When connections have all processors, neither the scheduler's idle threads nor that
// goroutine look for events. The connections do it themselves then, whenever they let
// others have a turn: before they wait, and in Yield. And they step aside for other
// processes, as clients of the same machine have no processor then, either.
//
// The system calls that do not wait are not announced to the scheduler; see
// calls_unsafe.go. A send call may wait after all, for memory, if the machine has
// none left.
//
// Lock order: poller.lookMu, Conn.mu, poller.mu; side.mu is a leaf. All but the
// first may be taken by whoever closes or pokes a connection.
package socket
