package progress

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestBar(t *testing.T) {
	const gib = 1 << 30
	var out strings.Builder
	now := time.Unix(1000, 0)
	b := NewBar(&out, "preallocating disk db", Bytes, func() time.Time { return now })
	step := func(after time.Duration, done int64, want string) {
		t.Helper()
		out.Reset()
		now = now.Add(after)
		b.Update(done, 4*gib)
		if out.String() != want {
			t.Errorf("%d bytes after %v more: %q, want %q", done, after, out.String(), want)
		}
	}
	step(100*time.Millisecond, gib/2, "") // it may be done soon
	step(900*time.Millisecond, gib, "\rpreallocating disk db [#######-----------------------]  25% of 4 GiB, 3s left")
	step(50*time.Millisecond, 3*gib/2, "") // too soon after the last
	step(950*time.Millisecond, 2*gib, "\rpreallocating disk db [###############---------------]  50% of 4 GiB, 2s left")
	step(time.Millisecond, 4*gib, "\rpreallocating disk db [##############################] 100% of 4 GiB         \n")
}

// Steps are no bytes, and what is being done may change on the way.
func TestBar_Steps(t *testing.T) {
	var out strings.Builder
	now := time.Unix(1000, 0)
	b := NewBar(&out, "first", Steps, func() time.Time { return now })
	now = now.Add(time.Minute)
	b.Update(1, 3)
	b.Describe("a")
	now = now.Add(time.Minute)
	b.Update(2, 3)
	now = now.Add(time.Minute)
	b.Update(3, 3)
	want := "\rfirst [##########--------------------]  33%, 2m0s left" +
		"\ra [####################----------]  67%, 1m0s left    " +
		"\ra [##############################] 100%           \n"
	if out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
}

// What ends at once leaves the terminal alone.
func TestBar_Short(t *testing.T) {
	var out strings.Builder
	b := NewBar(&out, "short", Bytes, nil)
	b.Update(1, 2)
	b.Update(2, 2)
	if out.Len() != 0 {
		t.Errorf("%q, want nothing", out.String())
	}
}

// What is broken off leaves the line to what comes next, once; what has ended, or was
// not shown, has no line to leave.
func TestBar_End(t *testing.T) {
	var out strings.Builder
	now := time.Unix(1000, 0)
	b := NewBar(&out, "copying", Bytes, func() time.Time { return now })
	end := func(when, want string) {
		t.Helper()
		out.Reset()
		b.End()
		if out.String() != want {
			t.Errorf("end of what %s: %q, want %q", when, out.String(), want)
		}
	}
	b.Update(1, 4)
	end("was not shown", "")
	now = now.Add(time.Second)
	b.Update(2, 4)
	end("was shown", "\n")
	end("has ended", "")
	now = now.Add(time.Second)
	b.Update(3, 4)
	now = now.Add(time.Second)
	b.Update(4, 4)
	end("is done", "")
}

// A line that does not fit into the terminal would be drawn below the last each time: the
// bar is shorter there or gone, then what is left goes, and at last the end of what is being
// done: the share is what a person waits for.
func TestBar_Narrow(t *testing.T) {
	const gib = 1 << 30
	var out strings.Builder
	now := time.Unix(1000, 0)
	columns := 0
	b := newBar(&out, "preallocating disk größe", Bytes, func() time.Time { return now }, func() int { return columns })
	for i, tt := range []struct {
		columns int
		want    string
	}{
		{0, "preallocating disk größe [#######-----------------------]  25% of 4 GiB, 3s left"},
		{81, "preallocating disk größe [#######-----------------------]  25% of 4 GiB, 6s left"},
		{80, "preallocating disk größe [#######----------------------]  25% of 4 GiB, 9s left"},
		{61, "preallocating disk größe [##-------]  25% of 4 GiB, 12s left"},
		{54, "preallocating disk größe  25% of 4 GiB, 15s left"},
		{48, "preallocating disk größe  25%"},
		{30, "preallocating disk größe  25%"},
		{20, "preallocating…  25%"},
		{7, "…  25%"},
		{6, "25%"},
		{3, ""},
		{1, ""},
	} {
		out.Reset()
		now = now.Add(time.Second)
		columns = tt.columns
		b.Update(gib, 4*gib)
		want := tt.want
		got, _ := strings.CutPrefix(out.String(), "\r")
		if n := utf8.RuneCountInString(got); tt.columns > 0 && n >= tt.columns {
			t.Errorf("%d columns: a line of %d", tt.columns, n)
		}
		if got = strings.TrimRight(got, " "); got != want {
			t.Errorf("%d, %d columns: %q, want %q", i, columns, got, want)
		}
	}
}
