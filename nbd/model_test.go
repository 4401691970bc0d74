package nbd_test

import (
	"bytes"
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// TestModel sends random commands over several connections at once, each in its
// own region of one disk, and compares every reply with a plain slice of bytes.
//
// Commands of one round never overlap, because the protocol gives no order to
// those in flight together; rounds follow each other.
func TestModel(t *testing.T) {
	d := dialects()
	simple, structured, extended := d[0], d[1], d[2]
	for _, tt := range []struct {
		network string
		dialect dialect
		tls     bool
		async   bool
	}{
		{"unix", simple, false, false},
		{"unix", simple, false, true},
		{"pipe", structured, false, true},
		{"unix", extended, false, false},
		{"tcp", structured, true, true},
	} {
		t.Run(fmt.Sprintf("%s/%s/tls=%v/async=%v", tt.network, tt.dialect.name, tt.tls, tt.async), func(t *testing.T) {
			var authority *nbdtest.Authority
			if tt.tls {
				authority = nbdtest.NewAuthority(t)
			}
			rapid.Check(t, func(rt *rapid.T) { checkModel(t, rt, tt.network, tt.dialect, authority, tt.async) })
		})
	}
}

const (
	modelConns  = 3
	regionBytes = 512 << 10
	stripeBytes = 16 << 10 // smallest unit of commands that must not overlap
)

func checkModel(t *testing.T, rt *rapid.T, network string, talk dialect, authority *nbdtest.Authority, async bool) {
	d := nbdtest.NewMemory(modelConns * regionBytes)
	d.Async = async
	d.Sparse = rapid.Bool().Draw(rt, "sparse")
	d.Seed = rapid.Uint64().Draw(rt, "seed")
	limits := nbd.Limits{
		MaxRequests:      rapid.SampledFrom([]int{1, 3, 128}).Draw(rt, "MaxRequests"),
		MaxBytesInFlight: rapid.SampledFrom([]int{64 << 10, 1 << 20, 0}).Draw(rt, "MaxBytesInFlight"),
	}
	limits.MaxPayloadBytes = 1 << 20
	s := newServerOf(t, limits, 16<<20, nbd.Export{Name: "disk0", Device: d})
	defer s.close()
	if authority != nil {
		talk = s.secure(talk, authority)
	}
	model := make([]byte, modelConns*regionBytes)
	var clients []*nbdtest.Client
	for range modelConns {
		clients = append(clients, s.speak(network, talk))
	}
	rounds := rapid.IntRange(1, 4).Draw(rt, "rounds")
	for round := range rounds {
		plans := make([][]nbdtest.Command, modelConns)
		for i := range plans {
			plans[i] = drawRound(rt, uint64(i)*regionBytes)
		}
		errs := make(chan error, modelConns)
		for i, c := range clients {
			go func() { errs <- runRound(c, plans[i], model, talk) }()
		}
		for range clients {
			if err := <-errs; err != nil {
				rt.Fatalf("round %d: %v", round, err)
			}
		}
		for _, plan := range plans {
			for _, cmd := range plan {
				apply(model, cmd)
			}
		}
	}
	for _, c := range clients {
		if err := c.Close(); err != nil {
			rt.Fatal(err)
		}
	}
	if !bytes.Equal(d.Bytes(), model) {
		rt.Fatal("the disk differs from the model")
	}
}

// drawRound draws commands that do not overlap, in the region at base.
func drawRound(rt *rapid.T, base uint64) []nbdtest.Command {
	var plan []nbdtest.Command
	for at := uint64(0); at < regionBytes; {
		span := uint64(rapid.SampledFrom([]int{1, 1, 1, 2, 5, 9}).Draw(rt, "stripes")) * stripeBytes
		span = min(span, regionBytes-at)
		skip := uint64(rapid.IntRange(0, 700).Draw(rt, "skip"))
		length := uint64(rapid.IntRange(0, int(span-skip)).Draw(rt, "length"))
		cmd := nbdtest.Command{
			Type:   rapid.SampledFrom([]uint16{0, 0, 0, 1, 1, 1, 3, 4, 5, 6, 7, 9}).Draw(rt, "type"),
			Cookie: at,
			Offset: base + at + skip,
			Length: uint32(length),
		}
		switch {
		case cmd.Type == nbdtest.CmdRead && rapid.IntRange(0, 4).Draw(rt, "df") == 0:
			cmd.Flags = nbdtest.FlagDF
		case cmd.Type == nbdtest.CmdBlockStatus && rapid.Bool().Draw(rt, "one"):
			cmd.Flags = nbdtest.FlagReqOne
		}
		if cmd.Type == nbdtest.CmdWrite {
			cmd.Payload = pattern(int(length), rapid.Byte().Draw(rt, "data"))
			for holes := rapid.IntRange(0, 3).Draw(rt, "holes"); holes > 0 && length > 0; holes-- {
				at := rapid.IntRange(0, int(length)-1).Draw(rt, "hole")
				clear(cmd.Payload[at:min(int(length), at+3000)])
			}
			if rapid.IntRange(0, 9).Draw(rt, "bad") == 0 {
				cmd.Flags = 1 << 15
			}
		}
		plan = append(plan, cmd)
		at += span
	}
	return plan
}

// runRound sends a plan in one stream and checks the replies against model,
// which nobody changes meanwhile.
func runRound(c *nbdtest.Client, plan []nbdtest.Command, model []byte, d dialect) error {
	sent := make(chan error, 1)
	go func() { sent <- c.Send(plan...) }()
	open := make(map[uint64]nbdtest.Command, len(plan))
	for _, cmd := range plan {
		open[cmd.Cookie] = cmd
	}
	for range plan {
		r, err := c.Receive()
		if err != nil {
			return err
		}
		cmd, ok := open[r.Cookie]
		if !ok {
			return fmt.Errorf("reply to %d, which is not in flight", r.Cookie)
		}
		delete(open, r.Cookie)
		if want := wantErrno(cmd, d); r.Errno != want {
			return fmt.Errorf("type %d at %d: got %v, want %v", cmd.Type, cmd.Offset, r.Errno, want)
		}
		if r.Errno != nbd.OK {
			continue
		}
		at := model[cmd.Offset : cmd.Offset+uint64(cmd.Length)]
		switch cmd.Type {
		case nbdtest.CmdRead:
			if !bytes.Equal(r.Data, at) {
				return fmt.Errorf("%v differs from the model", cmd)
			}
		case nbdtest.CmdBlockStatus:
			if err := checkExtents(r.Extents[c.Contexts["base:allocation"]], at); err != nil {
				return fmt.Errorf("%v: %w", cmd, err)
			}
		}
	}
	return <-sent
}

// checkExtents compares extents with the bytes that they begin at.
func checkExtents(extents []nbdtest.Extent, at []byte) error {
	for i, e := range extents {
		if e.Length > uint64(len(at)) {
			return fmt.Errorf("extent %d, %+v, exceeds the request by %d", i, e, e.Length-uint64(len(at)))
		}
		if e.State != 0 && bytes.Count(at[:e.Length], []byte{0}) < int(e.Length) {
			return fmt.Errorf("extent %d, %+v, is not zero", i, e)
		}
		if i > 0 && e.State == extents[i-1].State {
			return fmt.Errorf("extent %d, %+v, is like the one before", i, e)
		}
		at = at[e.Length:]
	}
	return nil
}

func wantErrno(cmd nbdtest.Command, d dialect) nbd.Errno {
	switch chunks := d.Structured || d.Extended; {
	case cmd.Type > nbdtest.CmdBlockStatus,
		cmd.Type == nbdtest.CmdBlockStatus && (!chunks || cmd.Length == 0),
		cmd.Flags == nbdtest.FlagDF && !chunks,
		cmd.Flags == 1<<15:
		return nbd.EINVAL
	}
	return nbd.OK
}

func apply(model []byte, cmd nbdtest.Command) {
	if cmd.Flags == 1<<15 {
		return
	}
	at := model[cmd.Offset : cmd.Offset+uint64(cmd.Length)]
	switch cmd.Type {
	case nbdtest.CmdWrite:
		copy(at, cmd.Payload)
	case nbdtest.CmdTrim, nbdtest.CmdWriteZeroes:
		clear(at)
	}
}
