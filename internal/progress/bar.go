package progress

import (
	"fmt"
	"io"
	"strings"
	"time"
)

const (
	// patience is how long nothing is shown: what ends before was not long.
	patience = 300 * time.Millisecond
	// period is the least time between two lines.
	period = 100 * time.Millisecond
	// cells is the length of the bar itself.
	cells = 30
)

// A Unit says in what a whole is given.
type Unit uint8

// Units.
const (
	Bytes Unit = iota
	Steps      // which say nothing to people: only the share is shown
)

// A Bar is one line of progress.
//
// Concurrency: one goroutine at a time.
type Bar struct {
	w     io.Writer
	what  string
	unit  Unit
	now   func() time.Time
	began time.Time
	drawn time.Time // when the last line was, or zero
	width int       // of the last line
	open  bool      // the cursor is at the end of a line
}

// NewBar begins a bar for what is being done. A nil now is time.Now.
func NewBar(w io.Writer, what string, unit Unit, now func() time.Time) *Bar {
	if now == nil {
		now = time.Now
	}
	return &Bar{w: w, what: what, unit: unit, now: now, began: now()}
}

// Describe changes what is being done, from the next line on.
func (b *Bar) Describe(what string) { b.what = what }

// Update tells how much is done. With the last of it the line ends.
func (b *Bar) Update(done, total int64) {
	now := b.now()
	last := done >= total
	switch {
	case b.drawn.IsZero() && (last || now.Sub(b.began) < patience):
		return
	case !last && now.Sub(b.drawn) < period:
		return
	}
	b.drawn = now
	line := b.line(done, total, now.Sub(b.began))
	b.open = !last
	end := ""
	if last {
		end = "\n"
	}
	// Who cannot be shown progress does not need it.
	_, _ = fmt.Fprintf(b.w, "\r%s%s%s", line, strings.Repeat(" ", max(0, b.width-len(line))), end)
	b.width = len(line)
}

// End ends the line of what has been broken off, where it is, so that what is printed
// next, the reason most likely, has its own. After the last Update, or if nothing was
// shown, it does nothing.
func (b *Bar) End() {
	if b.open {
		b.open = false
		_, _ = fmt.Fprintln(b.w)
	}
}

// line is what is shown after so much time.
func (b *Bar) line(done, total int64, taken time.Duration) string {
	share := 1.0
	if total > 0 {
		share = min(1, float64(done)/float64(total))
	}
	full := int(share * cells)
	line := fmt.Sprintf("%s [%s%s] %3.0f%%", b.what, strings.Repeat("#", full), strings.Repeat("-", cells-full), share*100)
	if b.unit == Bytes {
		line += " of " + bytes(total)
	}
	if share > 0 && share < 1 {
		left := time.Duration(float64(taken) * (1 - share) / share)
		line += fmt.Sprintf(", %v left", left.Round(time.Second))
	}
	return line
}

// bytes writes n for people, in powers of 1024.
func bytes(n int64) string {
	value, unit := float64(n), 0
	for value >= 1024 && unit < 5 {
		value /= 1024
		unit++
	}
	return fmt.Sprintf("%.4g %s", value, [...]string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}[unit])
}
