package progress

import (
	"fmt"
	"io"
	"math"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	// patience is for how long nothing is shown: a task that ends sooner needs no bar.
	patience = 300 * time.Millisecond
	// period is the least time between two lines.
	period = 100 * time.Millisecond
	// cells is the length of the bar itself, if there is room.
	cells = 30
	// leastCells is the length below which it says nothing.
	leastCells = 3
)

// A Unit says in which unit progress is counted.
type Unit uint8

// Units.
const (
	Bytes Unit = iota
	Steps      // which mean nothing to people: only the share is shown
)

// A Bar is one line of progress.
//
// Concurrency: one goroutine at a time.
type Bar struct {
	w     io.Writer
	what  string
	unit  Unit
	now   func() time.Time
	fits  func() int // columns of the terminal, 0 if that is not known
	began time.Time
	drawn time.Time // when the last line was drawn, or zero
	width int       // of the last line
	open  bool      // the cursor is at the end of a line
}

// NewBar begins a bar for what is being done. A nil now means time.Now.
func NewBar(w io.Writer, what string, unit Unit, now func() time.Time) *Bar {
	if now == nil {
		now = time.Now
	}
	return newBar(w, what, unit, now, func() int { return columns(w) })
}

func newBar(w io.Writer, what string, unit Unit, now func() time.Time, fits func() int) *Bar {
	return &Bar{w: w, what: what, unit: unit, now: now, fits: fits, began: now()}
}

// Describe changes what is being done, from the next line on.
func (b *Bar) Describe(what string) { b.what = what }

// Update reports how much is done. When done reaches total, the line ends.
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
	line, width := b.fitted(done, total, now.Sub(b.began))
	b.open = !last
	end := ""
	if last {
		end = "\n"
	}
	// An error is ignored: whoever cannot be shown progress does not need it.
	_, _ = fmt.Fprintf(b.w, "\r%s%s%s", line, strings.Repeat(" ", max(0, b.width-width)), end)
	b.width = width
}

// fitted returns the line, shortened to fit the terminal, and its width. A line that
// reaches the last column would wrap, and \r would not return to its beginning.
func (b *Bar) fitted(done, total int64, taken time.Duration) (line string, width int) {
	share, rest := b.numbers(done, total, taken)
	number := fmt.Sprintf(" %3.0f%%", share*100)
	long := utf8.RuneCountInString(b.what + number + rest)
	room := b.fits() - 1
	if room < 0 {
		room = math.MaxInt
	} else {
		b.width = min(b.width, room) // the terminal may have been wider before
	}
	switch cells := min(cells, room-long-len(" []")); {
	case cells >= leastCells:
		full := int(share * float64(cells))
		line = fmt.Sprintf("%s [%s%s]%s%s", b.what, strings.Repeat("#", full), strings.Repeat("-", cells-full), number, rest)
	case long <= room:
		line = b.what + number + rest
	default:
		line = shortened(b.what, room-len(number)) + number
	}
	if width = utf8.RuneCountInString(line); width <= room {
		return line, width
	}
	if line = strings.TrimLeft(number, " "); len(line) <= room {
		return line, len(line)
	}
	return "", 0 // a part of a number would be another one
}

// shortened returns what fits of s.
func shortened(s string, columns int) string {
	if r := []rune(s); len(r) > columns {
		return string(r[:max(0, columns-1)]) + "…"
	}
	return s
}

// End ends the line of a task that was broken off, leaving the bar where it is, so that
// whatever is printed next, most likely the reason, starts on a line of its own. After the
// last Update, or if nothing was shown, it does nothing.
func (b *Bar) End() {
	if b.open {
		b.open = false
		_, _ = fmt.Fprintln(b.w)
	}
}

// numbers returns the share that is done, and what is said behind it.
func (b *Bar) numbers(done, total int64, taken time.Duration) (share float64, rest string) {
	share = 1.0
	if total > 0 {
		share = min(1, float64(done)/float64(total))
	}
	if b.unit == Bytes {
		rest = " of " + bytes(total)
	}
	if share > 0 && share < 1 {
		left := time.Duration(float64(taken) * (1 - share) / share)
		rest += fmt.Sprintf(", %v left", left.Round(time.Second))
	}
	return share, rest
}

// bytes formats n for people, in powers of 1024.
func bytes(n int64) string {
	value, unit := float64(n), 0
	for value >= 1024 && unit < 5 {
		value /= 1024
		unit++
	}
	return fmt.Sprintf("%.4g %s", value, [...]string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}[unit])
}
