// Package cache is a volatile write cache in front of a medium, and the power
// cut that empties it.
//
// A Cache is a media.Media around another, the durable one. A write is done when the
// cache has it; none of it need be on the durable medium yet. The cache promises what a
// correct drive promises, and no more:
//
//   - Flush makes durable every write that was done before the flush began,
//     whoever wrote it.
//   - WriteAtFUA makes its own bytes durable, and nobody else's.
//   - Discard and Zero are writes.
//   - Reads see the newest bytes, durable or not.
//   - A sector is written whole: after a cut it is what some write to it, or the
//     durable medium, had.
//   - Writes to one sector become durable in their order. Writes to different
//     sectors become durable in any.
//
// # State
//
// The state is the durable medium, and a list of pending versions for each sector that
// has any, oldest first, in groups of 64 sectors. A version belongs to a write, and a
// write has an id, in order of arrival. Versions take room, SizeBytes in all. When
// little of it is left, Eviction says which writes become durable early. The choice is
// made when a write comes, and depends on nothing but the calls before it, their order
// and the seed, which makes a run repeatable. A goroutine writes out the chosen writes
// in the background; a power cut lets it finish first. See background.go.
//
// # Power cuts
//
// A cut has three steps: PowerOff makes every call fail, Lose empties the cache, and
// PowerOn lets calls work again. Lose decides for each pending sector what the durable
// medium holds from then on (Decide, a pure function of trace and options), writes it
// there, and forgets everything else. Then it proves what it did, from two sides. Each
// pending sector must hold something that the promises about its versions allow (judge).
// And each sector of the ledger must hold what callers may expect of it (account, rule).
// The ledger records what callers were told, with hashes of what they wrote, and knows
// nothing of the cache's lists, so it can convict the cache as well. It goes back 65536
// writes, and 128 MiB of them. See Report. Close is no power cut: all pending writes go
// to the durable medium first.
//
// # Legal and hostile
//
// All of the above is what a correct drive may do. LieAboutFlush and IgnoreFUA make the
// drive hostile: it makes promises and does not keep them. Its promises are recorded all
// the same, so that a report names the lie by which a write was lost. Damage, and tears
// inside a sector, are neither legal nor hostile: a correct drive does not do them, but
// they break no promise about other sectors. Reports tell the three apart; see Class.
// Damage excuses no lie: where a sector that was promised, and has not been written
// since, has suffered both, the report names both. docs/faults.md has it all for users.
//
// # Recording
//
// A Recorder is told each step that pending writes and the durable medium depend on, in
// the cache's order: which writes come, which become durable, and when the power goes. A
// Replay repeats the steps on another medium. It decides nothing: the moment when a
// write becomes durable is a step, too. So concurrent calls, and evictions and flushes
// that a cut has interrupted, have the same outcome.
//
// # Concurrency
//
// Any goroutine. Calls that are in progress when the power goes, or come before it is
// back, fail with media.ErrPowerLost.
//
// TryReadAt and TryWriteAt never wait for the durable medium, even if other calls do
// meanwhile.
//
// # Lock order
//
// Cache.cutMu, then Cache.outMu, then Cache.syncMu, then Cache.mu, then whatever the
// durable medium takes. The ledger's lock is a leaf.
//
// outMu is held by whoever writes to the durable medium, including the goroutine of
// background.go. mu guards the lists, and is held for memory copies but never across
// I/O. So bytes of the durable medium are read under outMu, before mu is taken; a partly
// written sector, or a COMPARE AND WRITE, is put together from those bytes and, under
// mu, the newer versions.
package cache
