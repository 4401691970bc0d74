// Package events remembers what has happened in the daemon and reports it to whoever asks:
// connections that come and go, resets, disks added and removed, reloads, and what other
// packages publish.
//
// A Log is a ring of the newest events. Publish never waits: it overwrites the oldest one.
// A reader keeps the number of the last event that it has seen and asks for later ones; a
// reader that is too slow is told how many it has lost. So readers cost the publisher
// nothing, however many there are and whatever they do.
//
// The events themselves are client.Event, whose types are the list of what can happen. To
// add one, add its client.EventType, publish it where it happens, and add its row to
// docs/control.md.
package events
