// Package metrics exposes the layers' counters to Prometheus, and the daemon's health to
// whoever asks.
//
// The layers count for themselves, each where it is cheapest; nothing here is on a
// request's path. At each scrape a Collector asks its Source for one Snapshot and turns it
// into constant metrics.
//
// Names begin with vhbad_, units are seconds and bytes, counters end in _total. The one
// identity label is export, the disk's name; every other label has a small fixed set of
// values. testdata/names.txt lists all names: changing one breaks dashboards, so it must be
// changed there, too.
//
// Latency histograms have both kinds of buckets: native ones for a server that scrapes
// those, and classic ones, one per power of two, for a server that does not. The histograms
// of requests and of waits for locks have every event; those of stages and of lock holds
// are samples, and their help says at which rate.
//
// What a scrape costs is in docs/monitoring.md; BenchmarkScrape measures it.
package metrics
