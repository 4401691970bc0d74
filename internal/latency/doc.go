// Package latency holds histograms of durations that are cheap to add to and
// that Prometheus can show.
//
// Their buckets are those of a Prometheus native histogram of schema 2, four to
// the octave, from 15 ns to 64 s: a value is known to 19 %. As every fourth
// bound is a power of two seconds, the same counts make a classic histogram with
// a bucket for each power of two.
//
// Adding costs two uncontended atomic additions. Where many processors add, there
// should be several histograms, each on its own cache lines; Counts adds them up.
package latency
