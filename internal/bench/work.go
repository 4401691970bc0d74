package main

import (
	"fmt"
	"io"
	"time"

	"github.com/vhbad/vhbad/internal/progress"
)

// A work shows people how far the whole run is: by a bar on a terminal, and by a line for
// each round elsewhere.
type work struct {
	out   io.Writer
	bar   *progress.Bar // nil if there is no terminal
	total time.Duration // of all parts, as guessed
	done  time.Duration // of the parts that are over
	part  time.Duration // of the current part
}

func newWork(out io.Writer, total time.Duration) *work {
	w := &work{out: out, total: total}
	if progress.IsTerminal(out) {
		w.bar = progress.NewBar(out, "bench", progress.Steps, nil)
	}
	return w
}

// begin ends the current part and begins another, which is guessed to take guess.
func (w *work) begin(what string, guess time.Duration) {
	w.done += w.part
	w.part = guess
	if w.bar != nil {
		w.bar.Describe(what)
	}
	w.at(0)
}

// at reports how much of the part is done, from 0 to 1.
func (w *work) at(share float64) {
	if w.bar != nil {
		// The last line is for end to print.
		w.bar.Update(min(int64(w.done)+int64(share*float64(w.part)), int64(w.total)-1), int64(w.total))
	}
}

// end ends the run, or leaves the bar where it is when the run failed.
func (w *work) end(err error) {
	switch {
	case w.bar == nil:
	case err != nil:
		w.bar.End()
	default:
		w.bar.Describe("bench")
		w.bar.Update(int64(w.total), int64(w.total))
	}
}

// note prints something about the part where there is no bar, for whoever keeps the output.
func (w *work) note(format string, args ...any) {
	if w.bar == nil {
		_, _ = fmt.Fprintf(w.out, format+"\n", args...)
	}
}
