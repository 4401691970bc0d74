// Package socket provides stream sockets that wait without the Go runtime's poller.
//
// A connection of package net is registered with that poller all its life, edge-triggered
// and for both directions. A server of many small requests pays for that three times:
//
//   - A reader that finds nothing makes three system calls before it sleeps.
//   - Every reply that the client takes out of the socket's buffer is an event: there
//     is room again. It wakes up a thread although nobody waits for the event, and it is
//     the client that spends the time on waking it.
//   - A reader cannot wait in any other way, as the poller would be woken up as well.
//
// Take takes a connection from the runtime. The resulting Conn is still a net.Conn, with
// deadlines. It waits in one of two ways:
//
//   - In the system call. One receive call waits and receives, so that a client with
//     one request in flight costs two system calls per request. That occupies a thread,
//     and for a while a processor of the scheduler. So fewer connections have the right
//     to wait this way than there are processors. A connection loses the right when it
//     has waited for long, or turns to the poller. For something that is on its way, such
//     as the rest of a payload, a connection waits in the call only if some processor is
//     left without a connection.
//   - With an epoll descriptor of the package's own, for one event each time. The
//     runtime waits for that descriptor on behalf of a goroutine, which lives as long as
//     there are connections.
//
// When connections have all processors, neither the scheduler's idle threads nor that
// goroutine look for events. The connections then do it themselves whenever they give
// others a turn: before they wait, and in Yield. They also step aside for other
// processes, because clients on the same machine have no processor then, either.
//
// System calls that do not wait are not announced to the scheduler; see
// calls_unsafe.go. A send call may wait after all, for memory, if the machine has
// none left.
//
// Lock order: Conn.readMu or Conn.writeMu, which net.Conn's Read and Write hold while
// they wait; poller.lookMu, Conn.mu, poller.mu; side.mu is a leaf. Whoever closes or
// pokes a connection takes none of the first three.
package socket
