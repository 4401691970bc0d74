// Package metrics shows the layers' counters to Prometheus, and the daemon's
// health to whoever asks.
//
// The layers count for themselves, each where it is cheapest; nothing here is
// on a request's way. At each scrape a Collector asks its Source for one
// Snapshot and turns it into constant metrics.
//
// Names begin with vhbad_, units are seconds and bytes, counters end in _total.
// The one identity label is export, the disk's name; every other label has a
// small fixed set of values. testdata/names.txt lists all names: changing one
// breaks dashboards, so it changes there too.
//
// Latency histograms are both: native for a server that scrapes them so, and
// classic with a bucket per power of two for one that does not. Those of requests
// and of waits for locks have every event; those of stages and of lock holds are
// samples, and their help says at which rate.
//
// What a scrape costs is in docs/monitoring.md; BenchmarkScrape measures it.
package metrics
