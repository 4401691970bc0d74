package nbd_test

import (
	"testing"

	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// TestReplies_Options: what a server does not offer is as unknown as any option that
// there never was, whatever its data, and leaves the client in step.
func TestReplies_Options(t *testing.T) {
	const contextsAck = "META 0 base:allocation; ACK"
	tests := []struct {
		replies nbd.Replies
		asked   []asked
	}{
		{nbd.RepliesExtended, []asked{
			{listContexts, contextData("disk0"), contextsAck},
			{extended, nil, "ACK"},
			{info, infoData("disk0"), "EXPORT 65536 0x15ed; ACK"},
		}},
		{nbd.RepliesStructured, []asked{
			{extended, nil, "ERR_UNSUP"},
			{extended, []byte{0}, "ERR_UNSUP"},
			{extended, make([]byte, 6000), "ERR_UNSUP"},
			{listContexts, contextData("disk0"), contextsAck},
			{structured, nil, "ACK"},
			{structured, nil, "ERR_INVALID"},
			{extended, nil, "ERR_UNSUP"},
			{setContexts, contextData("disk0", "base:allocation"), metaAck},
			{info, infoData("disk0"), "EXPORT 65536 0x5ed; ACK"}, // SEND_DF, and no BLOCK_STATUS_PAYLOAD
		}},
		{nbd.RepliesSimple, []asked{
			{structured, nil, "ERR_UNSUP"},
			{structured, []byte{0}, "ERR_UNSUP"},
			{structured, make([]byte, 6000), "ERR_UNSUP"},
			{extended, nil, "ERR_UNSUP"},
			{listContexts, contextData("disk0"), "ERR_UNSUP"},
			{listContexts, make([]byte, 6000), "ERR_UNSUP"},
			{setContexts, contextData("disk0", "base:allocation"), "ERR_UNSUP"},
			{setContexts, nil, "ERR_UNSUP"},
			{info, infoData("disk0"), diskAck}, // no SEND_DF
		}},
	}
	for _, tt := range tests {
		s := newServerOf(t, nbd.Limits{MaxPayloadBytes: payloadBytes, MaxOptionBytes: 5000}, arenaBytes, twoExports()...)
		s.Replies = tt.replies
		h := s.haggle(t, "unix")
		for _, a := range tt.asked {
			h.want(a.id, a.data, a.want)
		}
		h.want(abort, nil, "ACK")
		h.ended()
	}
}

// TestReplies_SimpleAfterRefusal: a client that was refused structured replies goes on
// with simple ones, errors among them, and without what needs the others.
func TestReplies_SimpleAfterRefusal(t *testing.T) {
	s := newServer(t, holed(), nbd.Limits{})
	s.Replies = nbd.RepliesSimple
	h := s.haggle(t, "unix")
	h.want(structured, nil, "ERR_UNSUP")
	h.want(setContexts, contextData("disk0", "base:allocation"), "ERR_UNSUP")
	h.want(goTo, infoData("disk0"), diskAck)
	command := func(flags, typ, offset, length string) string {
		return reqMagic + flags + typ + cookie + offset + length
	}
	reply := func(errno string, data ...string) []byte {
		return append(hx(repMagic, errno, cookie), hx(data...)...)
	}
	for _, tt := range []struct {
		name, request string
		want          []byte
	}{
		{"READ across a hole", command("0000", "0000", "00000000000007ff", "00000002"), reply("00000000", "00ff")},
		{"READ with DF", command("0004", "0000", "0000000000000000", "00000001"), reply("00000016")},
		{"READ beyond the end", command("0000", "0000", "0000000000010000", "00000001"), reply("00000016")},
		{"BLOCK_STATUS", command("0000", "0007", "0000000000000000", "00000001"), reply("00000016")},
	} {
		h.write(hx(tt.request))
		t.Run(tt.name, func(t *testing.T) { expect(t, h.nc, tt.want) })
	}
	h.write(nbdtest.Command{Type: nbdtest.CmdDisc}.Append(nil))
	h.ended()
}
