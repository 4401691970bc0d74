package nbd_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// asked is one option and what must come back, in words.
type asked struct {
	id   uint32
	data []byte
	want string
}

// twoExports are disk0 of 64 KiB, described, and tiny of 4 KiB in blocks of 512.
func twoExports() []nbd.Export {
	disk := nbdtest.NewMemory(64 << 10)
	disk.Description.Description = "the disk"
	tiny := nbdtest.NewMemory(4 << 10)
	tiny.Description.MinBlockBytes = 512
	return []nbd.Export{{Name: "disk0", Device: disk}, {Name: "tiny", Device: tiny}}
}

const (
	metaAck = "META 1 base:allocation; ACK"
	diskAck = "EXPORT 65536 0x56d; ACK"
)

func TestOptions(t *testing.T) {
	raw := func(hexadecimal ...string) []byte { return hx(hexadecimal...) }
	tests := []struct {
		name  string
		asked []asked
	}{
		{"STRUCTURED_REPLY", []asked{
			{structured, raw("00"), "ERR_INVALID"},
			{structured, nil, "ACK"},
			{structured, nil, "ERR_INVALID"},
			{info, infoData("disk0"), "EXPORT 65536 0x5ed; ACK"}, // and SEND_DF
		}},
		{"DF only with STRUCTURED_REPLY", []asked{{info, infoData("disk0"), diskAck}}},
		{"EXTENDED_HEADERS", []asked{
			{extended, raw("00"), "ERR_INVALID"},
			{extended, nil, "ACK"},
			{extended, nil, "ERR_INVALID"},
			{structured, nil, "ERR_EXT_HEADER_REQD"},
			{structured, raw("00"), "ERR_INVALID"},
			{info, infoData("disk0"), "EXPORT 65536 0x15ed; ACK"}, // and BLOCK_STATUS_PAYLOAD
			{setContexts, contextData("disk0", "base:allocation"), metaAck},
		}},
		{"EXTENDED_HEADERS after STRUCTURED_REPLY", []asked{
			{structured, nil, "ACK"},
			{extended, nil, "ACK"},
		}},
		{"LIST_META_CONTEXT", []asked{
			{listContexts, contextData("disk0"), "META 0 base:allocation; ACK"}, // even without structured replies
			{structured, nil, "ACK"},
			{listContexts, contextData("disk0"), "META 0 base:allocation; ACK"},
			{listContexts, contextData(""), "META 0 base:allocation; ACK"}, // the default export
			{listContexts, contextData("disk0", "base:"), "META 0 base:allocation; ACK"},
			{listContexts, contextData("disk0", "base:allocation"), "META 0 base:allocation; ACK"},
			{listContexts, contextData("disk0", "base:", "base:allocation", "base:"), "META 0 base:allocation; ACK"},
			{listContexts, contextData("disk0", "base:allocatio"), "ACK"},
			{listContexts, contextData("disk0", "base:allocation:"), "ACK"},
			{listContexts, contextData("disk0", "base"), "ACK"},
			{listContexts, contextData("disk0", "qemu:", "x-unknown:leaf", ""), "ACK"},
			{listContexts, contextData("nix"), "ERR_UNKNOWN"},
		}},
		{"SET_META_CONTEXT", []asked{
			{setContexts, contextData("disk0", "base:allocation"), "ERR_INVALID"}, // no structured replies
			{structured, nil, "ACK"},
			{setContexts, contextData("disk0", "base:allocation"), metaAck},
			{setContexts, contextData("disk0", "x:y", "base:allocation", "base:allocation"), metaAck},
			{setContexts, contextData("disk0", "base:"), "ACK"},
			{setContexts, contextData("disk0"), "ACK"},
			{setContexts, contextData("disk0", "qemu:dirty-bitmap:b"), "ACK"},
			{setContexts, contextData("nix", "base:allocation"), "ERR_UNKNOWN"},
		}},
		{"inner lengths of meta contexts", []asked{
			{structured, nil, "ACK"},
			{setContexts, nil, "ERR_INVALID"},
			{setContexts, raw("000000"), "ERR_INVALID"},
			{setContexts, raw("00000001", "00000000"), "ERR_INVALID"},                                        // name overlaps the count
			{setContexts, raw("ffffffff", "00000000"), "ERR_INVALID"},                                        // name overruns
			{setContexts, raw("00000000", "0000"), "ERR_INVALID"},                                            // no count
			{setContexts, raw("00000000", "00000001"), "ERR_INVALID"},                                        // no query
			{setContexts, raw("00000000", "ffffffff", "00000000"), "ERR_INVALID"},                            // far fewer queries
			{setContexts, raw("00000000", "00000001", "00000002", "61"), "ERR_INVALID"},                      // query overruns
			{setContexts, raw("00000000", "00000001", "ffffffff", "61"), "ERR_INVALID"},                      // by much
			{setContexts, raw("00000000", "00000000", "00"), "ERR_INVALID"},                                  // a byte too many
			{setContexts, append(contextData("disk0", "base:allocation"), 0), "ERR_INVALID"},                 // likewise
			{setContexts, raw("00000003", "610062", "00000000"), "ERR_INVALID"},                              // NUL in the name
			{setContexts, contextData("disk0", "base:\x00"), "ERR_INVALID"},                                  // NUL in a query
			{setContexts, contextData("disk0", "x:\xc3\x28"), "ERR_INVALID"},                                 // not UTF-8
			{setContexts, contextData("disk0", "x:"+strings.Repeat("y", 4095)), "ERR_INVALID"},               // too long
			{setContexts, contextData("disk0", "x:"+strings.Repeat("y", 4094)), "ACK"},                       // not
			{setContexts, contextData(strings.Repeat("y", 4097)), "ERR_INVALID"},                             // too long
			{setContexts, contextData("disk0", make([]string, 1025)...), "ERR_TOO_BIG"},                      //
			{setContexts, contextData("disk0", append(make([]string, 1023), "base:allocation")...), metaAck}, //
			{listContexts, raw("00000000", "00000000", "00"), "ERR_INVALID"},
			{listContexts, contextData("disk0", make([]string, 1025)...), "ERR_TOO_BIG"},
		}},
		{"INFO with every kind", []asked{{
			info, infoData("", 0, 1, 2, 3, 3, 77),
			"EXPORT 65536 0x56d; NAME disk0; DESCRIPTION the disk; BLOCK_SIZE 1 4096 1048576; ACK",
		}}},
		{"LIST", []asked{
			{list, nil, "SERVER disk0 (the disk); SERVER tiny (); ACK"},
			{list, raw("00"), "ERR_INVALID"},
		}},
		{"unknown option with data", []asked{
			{unknownOption, raw("01020304"), "ERR_UNSUP"},
			{info, infoData("disk0"), diskAck},
		}},
		{"block sizes", []asked{
			{info, infoData("tiny"), "BLOCK_SIZE 512 4096 1048576; ERR_BLOCK_SIZE_REQD"},
			{info, infoData("tiny", 3), "EXPORT 4096 0x56d; BLOCK_SIZE 512 4096 1048576; ACK"},
			{info, infoData("tiny"), "EXPORT 4096 0x56d; ACK"},
		}},
	}
	for _, network := range []string{"unix", "pipe"} {
		for _, tt := range tests {
			t.Run(network+"/"+tt.name, func(t *testing.T) {
				s := newServerOf(t, nbd.Limits{MaxPayloadBytes: payloadBytes}, arenaBytes, twoExports()...)
				h := s.haggle(t, network)
				for _, a := range tt.asked {
					h.want(a.id, a.data, a.want)
				}
				h.want(abort, nil, "ACK") // still in step
				h.ended()
			})
		}
	}
}

// TestGo_SameInfo: GO tells what INFO told.
func TestGo_SameInfo(t *testing.T) {
	for name, before := range map[string]uint32{"simple": 0, "structured": structured, "extended": extended} {
		t.Run(name, func(t *testing.T) {
			d := nbdtest.NewMemory(64 << 10)
			d.Description.CanFastZero = true
			s := newServer(t, d, nbd.Limits{})
			h := s.haggle(t, "unix")
			if before != 0 {
				h.want(before, nil, "ACK")
				h.want(setContexts, contextData("", "base:allocation"), metaAck)
			}
			data := infoData("disk0", 1, 2, 3)
			first := h.ask(info, data)
			if want := map[string]string{
				"simple": "EXPORT 65536 0xd6d; ", "structured": "EXPORT 65536 0xded; ", "extended": "EXPORT 65536 0x1ded; ",
			}[name]; !strings.HasPrefix(first, want) {
				t.Errorf("INFO tells %s, want %s", first, want)
			}
			h.want(goTo, data, first)
			st := s.waitStats("transmission", func(st nbd.Stats) bool { return st.Connections[0].Transmitting })
			if got := st.Connections[0].Replies; got != name {
				t.Errorf("replies are %s, want %s", got, name)
			}
		})
	}
}

// TestInfo_BlockSizes: whatever the device wants and the server allows, block sizes are such as
// the protocol lets a server tell: the maximum is a multiple of the minimum, and not less than
// the preferred one.
func TestInfo_BlockSizes(t *testing.T) {
	for _, tt := range []struct {
		least, preferred, most uint32 // the device's
		limit                  int
		want                   string
	}{
		{0, 0, 0, 1 << 20, "1 4096 1048576"},
		{512, 0, 0, 1 << 20, "512 4096 1048576"},
		{64 << 10, 0, 0, 1 << 20, "65536 65536 1048576"},
		{1, 512, 8192, 1 << 20, "1 512 8192"},
		{1, 64 << 10, 0, 4096, "1 4096 4096"},
		{512, 1 << 20, 1 << 20, 100_000, "512 65536 99840"},
		{4096, 64 << 10, 0, 10_000, "4096 8192 8192"},
		{1, 4096, 0, 5000, "1 4096 5000"},
		{64 << 10, 64 << 10, 0, 4096, "65536 65536 65536"},
	} {
		d := nbdtest.NewManual(1 << 20)
		d.Description.MinBlockBytes, d.Description.PreferredBlockBytes, d.Description.MaxPayloadBytes = tt.least, tt.preferred, tt.most
		h := newServer(t, d, nbd.Limits{MaxPayloadBytes: tt.limit}).haggle(t, "unix")
		for _, id := range []uint32{info, goTo} {
			got := h.ask(id, infoData("disk0", 3))
			if want := "; BLOCK_SIZE " + tt.want + "; ACK"; !strings.HasSuffix(got, want) {
				t.Errorf("device %d %d %d, limit %d: option %d tells %s, want %s", tt.least, tt.preferred, tt.most, tt.limit, id, got, want)
			}
		}
	}
}

// TestSetMetaContext_Effect: what was set last holds, for the export that it
// was set for.
func TestSetMetaContext_Effect(t *testing.T) {
	const (
		status      = 5
		failure     = 0x8001
		optionBytes = 20_000
	)
	set := asked{setContexts, contextData("disk0", "base:allocation"), metaAck}
	tests := []struct {
		name  string
		asked []asked
		goTo  string
		want  uint16
	}{
		{"set", []asked{set}, "disk0", status},
		{"never set", nil, "disk0", failure},
		{"set by the other name of the default", []asked{{setContexts, contextData("", "base:allocation"), metaAck}}, "disk0", status},
		{"another export", []asked{set}, "disk1", failure},
		{"another export in between", []asked{set, {goTo, infoData("nix"), "ERR_UNKNOWN"}, {info, infoData("disk1"), "EXPORT 4096 0x5ed; ACK"}}, "disk0", status},
		{"set for another since", []asked{set, {setContexts, contextData("disk1", "base:allocation"), metaAck}}, "disk0", failure},
		{"replaced by none", []asked{set, {setContexts, contextData("disk0"), "ACK"}}, "disk0", failure},
		{"replaced by the unknown", []asked{set, {setContexts, contextData("disk0", "x:"), "ACK"}}, "disk0", failure},
		{"replaced by a failure", []asked{set, {setContexts, contextData("nix"), "ERR_UNKNOWN"}}, "disk0", failure},
		{"replaced by nonsense", []asked{set, {setContexts, []byte{1}, "ERR_INVALID"}}, "disk0", failure},
		{"replaced by too many", []asked{set, {setContexts, contextData("disk0", make([]string, 2000)...), "ERR_TOO_BIG"}}, "disk0", failure},
		{"replaced by too long a one", []asked{set, {setContexts, make([]byte, optionBytes+1), "ERR_TOO_BIG"}}, "disk0", failure},
		{"a list does not replace", []asked{set, {listContexts, contextData("disk0", "x:"), "ACK"}}, "disk0", status},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newServerOf(t, nbd.Limits{MaxPayloadBytes: payloadBytes, MaxOptionBytes: optionBytes}, arenaBytes,
				nbd.Export{Name: "disk0", Device: nbdtest.NewMemory(64 << 10)}, nbd.Export{Name: "disk1", Device: nbdtest.NewMemory(4096)})
			h := s.haggle(t, "unix")
			h.want(structured, nil, "ACK")
			for _, a := range tt.asked {
				h.want(a.id, a.data, a.want)
			}
			if got := h.ask(goTo, infoData(tt.goTo)); !strings.HasSuffix(got, "ACK") {
				t.Fatalf("GO: %s", got)
			}
			if got := h.chunkType(); got != tt.want {
				t.Errorf("BLOCK_STATUS is answered by chunk type %#x, want %#x", got, tt.want)
			}
		})
	}
}

// TestExportName_AfterOptions: the old way in works with structured replies, but
// not with extended headers.
func TestExportName_AfterOptions(t *testing.T) {
	s := newServer(t, nbdtest.NewMemory(64<<10), nbd.Limits{})
	h := s.haggle(t, "unix")
	h.want(structured, nil, "ACK")
	h.want(setContexts, contextData("disk0", "base:allocation"), metaAck)
	h.write(option(exportName, []byte("disk0")))
	expect(t, h.nc, hx("0000000000010000", "05ed"))
	if got := h.chunkType(); got != 5 {
		t.Errorf("BLOCK_STATUS is answered by chunk type %#x", got)
	}
	if err := h.nc.Close(); err != nil {
		t.Fatal(err)
	}

	h = s.haggle(t, "unix")
	h.want(extended, nil, "ACK")
	h.write(option(exportName, []byte("disk0")))
	h.ended()
	s.failed(t, nbd.NegotiationExtendedName)
}

// TestOptions_Overlong: data beyond the limit is thrown away if that is cheap.
func TestOptions_Overlong(t *testing.T) {
	limits := nbd.Limits{MaxPayloadBytes: payloadBytes, MaxOptionBytes: 5000}
	tests := []struct {
		name   string
		id     uint32
		length int
		want   string // "" means that the server hangs up
		reason nbd.NegotiationFailure
	}{
		{"at the limit", unknownOption, 5000, "ERR_UNSUP", nbd.NegotiationFailureCount},
		{"just beyond", info, 5001, "ERR_TOO_BIG", nbd.NegotiationFailureCount},
		{"meta contexts", setContexts, 64 << 10, "ERR_TOO_BIG", nbd.NegotiationFailureCount},
		{"without data", list, 64 << 10, "ERR_INVALID", nbd.NegotiationFailureCount},
		{"unknown", unknownOption, 64 << 10, "ERR_UNSUP", nbd.NegotiationFailureCount},
		{"too much", unknownOption, 64<<10 + 1, "", nbd.NegotiationOptionTooLong},
		{"no error reply", exportName, 5001, "", nbd.NegotiationOptionTooLong},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newServerOf(t, limits, arenaBytes, twoExports()...)
			h := s.haggle(t, "unix")
			if tt.want == "" {
				h.write(option(tt.id, make([]byte, tt.length))[:16]) // the server does not wait for the rest
				h.ended()
			} else {
				h.want(tt.id, make([]byte, tt.length), tt.want)
				h.want(abort, make([]byte, 6000), "ACK")
				h.ended()
			}
			s.failed(t, tt.reason)
		})
	}
}

// TestOptions_ListAllowance: a client may ask after every export that it was
// told of, and listing again does not prolong that.
func TestOptions_ListAllowance(t *testing.T) {
	var exports []nbd.Export
	for i := range 10 {
		exports = append(exports, nbd.Export{Name: fmt.Sprintf("disk%d", i), Device: nbdtest.NewMemory(4096)})
	}
	exports = append(exports, nbd.Export{Name: "secret", Device: nbdtest.NewMemory(4096), Hidden: true})
	s := newServerOf(t, nbd.Limits{MaxPayloadBytes: payloadBytes, MaxOptions: 4}, arenaBytes, exports...)
	h := s.haggle(t, "unix")
	for range 2 {
		h.ask(list, nil)
	}
	for i := range 11 {
		name := fmt.Sprintf("disk%d", i%10)
		h.want(info, infoData(name), "EXPORT 4096 0x56d; ACK")
		h.want(listContexts, contextData(name), "META 0 base:allocation; ACK")
	}
	h.write(option(list, nil)) // the 25th of 4 and twice 10
	h.ended()
	s.failed(t, nbd.NegotiationTooManyOptions)
}

// TestList_Description: a description that is too long is cut between
// characters.
func TestList_Description(t *testing.T) {
	d := nbdtest.NewMemory(4096)
	d.Description.Description = strings.Repeat("x", 4095) + "é"
	s := newServer(t, d, nbd.Limits{})
	s.haggle(t, "unix").want(list, nil, "SERVER disk0 ("+strings.Repeat("x", 4095)+"); ACK")
}

// TestExports_Access: who may see and use what without TLS.
func TestExports_Access(t *testing.T) {
	device := nbdtest.NewMemory(4096)
	for _, mode := range []nbd.TLSMode{nbd.TLSOff, nbd.TLSOptional} {
		t.Run(mode.String(), func(t *testing.T) {
			s := newServerOf(t, nbd.Limits{MaxPayloadBytes: payloadBytes}, arenaBytes,
				nbd.Export{Name: "open", Device: device},
				nbd.Export{Name: "hidden", Device: device, Hidden: true},
				nbd.Export{Name: "tls", Device: device, TLSOnly: true},
				nbd.Export{Name: "named", Device: device, AllowedNames: []string{nbdtest.ClientName}})
			s.TLSMode = mode
			s.TLSConfig = serveTLS(nbdtest.NewAuthority(t).ServerConfig(true))
			h := s.haggle(t, "unix")
			h.want(list, nil, "SERVER open (); ACK")
			h.want(structured, nil, "ACK")
			h.want(info, infoData("hidden"), "EXPORT 4096 0x5ed; ACK")
			no := "ERR_TLS_REQD"
			if mode == nbd.TLSOff {
				no = "ERR_POLICY"
			}
			for _, name := range []string{"tls", "named"} {
				h.want(info, infoData(name), no)
				h.want(goTo, infoData(name), no)
				// These do not enter an export: TLS_REQD is not for them.
				h.want(listContexts, contextData(name), "ERR_POLICY")
				h.want(setContexts, contextData(name, "base:allocation"), "ERR_POLICY")
			}
			h.write(option(exportName, []byte("tls")))
			h.ended()
			s.failed(t, nbd.NegotiationTLSRequired)
		})
	}
}

// TestExport_MaxConnections: an export that is full can be looked at but not
// entered, and has room again when a connection ends.
func TestExport_MaxConnections(t *testing.T) {
	shut := nbdtest.NewManual(4096)
	shut.OpenErr = errors.New("closed for repairs")
	s := newServerOf(t, nbd.Limits{MaxPayloadBytes: payloadBytes}, arenaBytes,
		nbd.Export{Name: "disk0", Device: nbdtest.NewMemory(4096), MaxConnections: 2},
		nbd.Export{Name: "other", Device: nbdtest.NewMemory(4096)},
		nbd.Export{Name: "shut", Device: shut, MaxConnections: 1})
	first, second := s.client("unix"), s.client("unix")
	h := s.haggle(t, "unix")
	h.want(info, infoData("disk0"), "EXPORT 4096 0x56d; ACK")
	h.want(goTo, infoData("disk0"), "ERR_POLICY")
	h.want(goTo, infoData(""), "ERR_POLICY")      // the default export is the same
	h.want(goTo, infoData("shut"), "ERR_UNKNOWN") // does not use the place up
	h.want(goTo, infoData("shut"), "ERR_UNKNOWN")
	h.want(goTo, infoData("disk0"), "ERR_POLICY")
	h.want(abort, nil, "ACK")
	h.ended()
	old := s.haggle(t, "unix")
	old.write(option(exportName, []byte("disk0")))
	old.ended()
	st := s.waitStats("end", func(st nbd.Stats) bool { return st.ConnectionsOpen == 2 })
	if n := st.NegotiationFailures[nbd.NegotiationTooManyOfExport]; n != 2 {
		t.Errorf("%d connections refused, want 2", n)
	}
	for _, c := range []*nbdtest.Client{first, second} { // those inside are not disturbed
		must(t, c, nbdtest.Command{Type: nbdtest.CmdFlush, Cookie: 1}, nbd.OK)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	s.waitStats("room", func(st nbd.Stats) bool { return st.ConnectionsOpen == 1 })
	must(t, s.client("unix"), nbdtest.Command{Type: nbdtest.CmdFlush, Cookie: 1}, nbd.OK)
}

// TestServer_MaxConnectionsPerPeer: all connections of this test come from one
// address, and from one user.
func TestServer_MaxConnectionsPerPeer(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			var log logLines
			s := newServer(t, nbdtest.NewMemory(4096), nbd.Limits{MaxConnectionsPerPeer: 2})
			s.Log = slog.New(slog.NewTextHandler(&log, nil))
			first := s.client(network)
			second := s.haggle(t, network) // counts while it negotiates
			for range 3 {
				expectEnd(t, s.dial(network))
			}
			s.dial("pipe") // is nobody's
			if err := first.Close(); err != nil {
				t.Fatal(err)
			}
			s.waitStats("room", func(st nbd.Stats) bool { return st.ConnectionsOpen == 2 })
			must(t, s.client(network), nbdtest.Command{Type: nbdtest.CmdFlush, Cookie: 1}, nbd.OK)
			second.want(list, nil, "SERVER disk0 (); ACK")
			if n := s.Snapshot().NegotiationFailures[nbd.NegotiationTooManyOfPeer]; n != 3 {
				t.Errorf("%d connections refused, want 3", n)
			}
			if n := strings.Count(log.String(), "reason=too_many_of_peer"); n < 1 || n > 3 {
				t.Errorf("%d log lines of refused connections, want one, or one a second:\n%s", n, log.String())
			}
		})
	}
}

// logLines collects what a server logs.
type logLines struct {
	mu sync.Mutex
	// +checklocks:mu
	text bytes.Buffer
}

func (l *logLines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logLines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// TestHandshake_Log: a client that was turned away leaves a line with the
// reason; one that has said nothing leaves none.
func TestHandshake_Log(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log logLines
		s, _ := synctestServer(t, nbdtest.NewMemory(4096), nbd.Limits{})
		s.Log = slog.New(slog.NewTextHandler(&log, nil))
		for _, said := range []string{"", "000000", "49484156454f5054"} {
			nc := pipeTo(s)
			expect(t, nc, hello)
			if len(said) > 6 {
				said = fixedNoZer + said
			}
			if _, err := nc.Write(hx(said)); err != nil {
				t.Fatal(err)
			}
			expectEnd(t, nc) // after HandshakeTimeout
			synctest.Wait()
			if got := strings.Contains(log.String(), "reason=timeout"); got != (said != "") {
				t.Errorf("after saying %q a line about it: %v\n%s", said, got, log.String())
			}
			log.text.Reset()
		}
		nc := pipeTo(s)
		expect(t, nc, hello)
		h := &haggler{t: t, nc: nc}
		h.write(hx(fixedNoZer))
		h.want(goTo, infoData("nix"), "ERR_UNKNOWN")
		if err := nc.Close(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if !strings.Contains(log.String(), "reason=no_export") || !strings.Contains(log.String(), "nix") {
			t.Errorf("no line about the export that there is not:\n%s", log.String())
		}
		if n := s.Snapshot().NegotiationFailures[nbd.NegotiationNoExport]; n != 1 {
			t.Errorf("%d clients without an export, want 1", n)
		}
	})
}

// TestHandshake_Shutdown: a client in the middle of an option learns that the
// server drains; one that says nothing more is closed soon.
func TestHandshake_Shutdown(t *testing.T) {
	a := nbdtest.NewAuthority(t)
	askInfo, tooLong := option(info, infoData("disk0")), option(info, make([]byte, 6000))
	for name, tt := range map[string]struct {
		whole  []byte
		before int // bytes of the option sent before the drain
		after  int // and in all
		tls    bool
	}{
		"between options":     {askInfo, 0, len(askInfo), false},
		"in a header":         {askInfo, 5, len(askInfo), false},
		"in the data":         {askInfo, 20, len(askInfo), false},
		"within TLS":          {askInfo, 20, len(askInfo), true},
		"silent":              {askInfo, 0, 0, false},
		"silent after":        {askInfo, 20, 20, false},
		"too long":            {tooLong, 20, len(tooLong), false},
		"too long within TLS": {tooLong, 20, len(tooLong), true},
		"silent in too long":  {tooLong, 5020, 5020, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				whole := tt.whole
				s, _ := synctestServer(t, nbdtest.NewMemory(4096), nbd.Limits{MaxOptionBytes: 5000})
				s.TLSMode, s.TLSConfig = nbd.TLSOptional, serveTLS(a.ServerConfig(false))
				h := &haggler{t: t, nc: pipeTo(s)}
				expect(t, h.nc, hello)
				h.write(hx(fixedNoZer))
				if tt.tls {
					h.startTLS(a.ClientConfig(false))
				}
				if tt.before > 0 {
					h.write(whole[:tt.before])
				}
				synctest.Wait()
				begin := time.Now()
				drained := make(chan error, 1)
				go func() { drained <- s.Shutdown(t.Context()) }()
				synctest.Wait()
				if tt.after > tt.before {
					h.write(whole[tt.before:tt.after])
				}
				if tt.after == len(whole) {
					if typ, data := readReply(t, h.nc, info); replyInWords(t, typ, data) != "ERR_SHUTDOWN" {
						t.Errorf("reply %s, want ERR_SHUTDOWN", replyInWords(t, typ, data))
					}
				}
				h.ended()
				if err := <-drained; err != nil {
					t.Error(err)
				}
				if d := time.Since(begin); d > time.Second {
					t.Errorf("the drain took %v", d)
				}
				if n := s.Snapshot().NegotiationFailures[nbd.NegotiationShutdown]; n != 1 {
					t.Errorf("%d clients counted as shut out, want 1", n)
				}
			})
		})
	}
}

// TestHandshake_ShutdownUnread: a client that takes no replies does not hold up a drain of the
// server, nor one of the device that it is about to get.
func TestHandshake_ShutdownUnread(t *testing.T) {
	for name, tt := range map[string]struct {
		id     uint32
		data   []byte
		device bool // the drain is of the device
	}{
		"LIST":             {list, nil, false},
		"INFO":             {info, infoData("disk0"), false},
		"GO":               {goTo, infoData("disk0"), false},
		"EXPORT_NAME":      {exportName, []byte("disk0"), false},
		"GO, device":       {goTo, infoData("disk0"), true},
		"EXPORT_NAME, too": {exportName, []byte("disk0"), true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := nbdtest.NewMemory(4096)
				s, arena := synctestServer(t, d, nbd.Limits{})
				h := &haggler{t: t, nc: pipeTo(s)}
				expect(t, h.nc, hello)
				h.write(hx(fixedNoZer))
				h.write(option(tt.id, tt.data))
				synctest.Wait() // it cannot get rid of its reply
				begin := time.Now()
				if tt.device {
					if err := s.Exports.(*nbd.ExportSet).Replace(); err != nil {
						t.Fatal(err)
					}
					if killed, err := s.DrainDevice(t.Context(), d); killed != 0 || err != nil {
						t.Errorf("%d killed, %v", killed, err)
					}
				} else if err := s.Shutdown(t.Context()); err != nil {
					t.Error(err)
				}
				if took := time.Since(begin); took > time.Second {
					t.Errorf("the drain took %v", took)
				}
				h.ended()
				synctest.Wait()
				if n := s.Snapshot().NegotiationFailures[nbd.NegotiationShutdown]; n != 1 {
					t.Errorf("%d clients counted as shut out, want 1", n)
				}
				if err := arena.Close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestHandshake_ShutdownAbort: nor does a client that sends ABORT and does not take the answer,
// even over TLS, which would send a farewell of its own and has 5 s for it.
func TestHandshake_ShutdownAbort(t *testing.T) {
	a := nbdtest.NewAuthority(t)
	synctest.Test(t, func(t *testing.T) {
		s, _ := synctestServer(t, nbdtest.NewMemory(4096), nbd.Limits{})
		s.TLSMode, s.TLSConfig = nbd.TLSOptional, serveTLS(a.ServerConfig(false))
		h := &haggler{t: t, nc: pipeTo(s)}
		expect(t, h.nc, hello)
		h.write(hx(fixedNoZer))
		h.startTLS(a.ClientConfig(false))
		h.write(option(abort, nil))
		synctest.Wait()
		begin := time.Now()
		if err := s.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if took := time.Since(begin); took > time.Second {
			t.Errorf("the drain took %v", took)
		}
	})
}

// TestHandshake_ShutdownAborted: a client that leaves by ABORT while the server drains gets the
// ACK that is the only answer to it, before it has been refused something and after.
func TestHandshake_ShutdownAborted(t *testing.T) {
	for name, late := range map[string]bool{"at once": false, "an option later": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &slow{Memory: nbdtest.NewMemory(4096), wait: time.Hour}
				s, _ := synctestServer(t, d, nbd.Limits{})
				h := &haggler{t: t, nc: pipeTo(s)}
				expect(t, h.nc, hello)
				h.write(hx(fixedNoZer))
				if late {
					h.write(option(goTo, infoData("disk0")))
				}
				synctest.Wait()
				drained := make(chan error, 1)
				go func() { drained <- s.Shutdown(t.Context()) }()
				if late {
					if typ, data := readReply(t, h.nc, goTo); replyInWords(t, typ, data) != "ERR_SHUTDOWN" {
						t.Errorf("reply %s, want ERR_SHUTDOWN", replyInWords(t, typ, data))
					}
				}
				synctest.Wait()
				h.want(abort, nil, "ACK")
				h.ended()
				if err := <-drained; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestHandshake_ShutdownHaggle: clients take an error reply to an option that they can do without
// for a server that does not know it, and go on. They learn why they get no export, and end the
// handshake in good order, within the moment that they have.
func TestHandshake_ShutdownHaggle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := synctestServer(t, nbdtest.NewMemory(4096), nbd.Limits{})
		h := &haggler{t: t, nc: pipeTo(s)}
		expect(t, h.nc, hello)
		h.write(hx(fixedNoZer))
		synctest.Wait()
		drained := make(chan error, 1)
		go func() { drained <- s.Shutdown(t.Context()) }()
		synctest.Wait()
		h.want(extended, nil, "ERR_SHUTDOWN")
		h.want(structured, nil, "ERR_SHUTDOWN")
		h.want(unknownOption, make([]byte, 100), "ERR_SHUTDOWN")
		h.want(goTo, infoData("disk0"), "ERR_SHUTDOWN")
		h.want(abort, nil, "ACK")
		h.ended()
		if err := <-drained; err != nil {
			t.Error(err)
		}
		if n := s.Snapshot().NegotiationFailures[nbd.NegotiationShutdown]; n != 1 {
			t.Errorf("failures %v, want one because of the drain", s.Snapshot().NegotiationFailures)
		}
	})
}

// A quickPipe has its reader act on a poke before whoever poked goes on.
type quickPipe struct{ net.Conn }

func (q quickPipe) SetReadDeadline(at time.Time) error {
	err := q.Conn.SetReadDeadline(at)
	if at.Before(time.Now()) {
		synctest.Wait()
	}
	return err
}

// TestHandshake_ShutdownLate: a client that speaks in the last moment it is given has one more to
// take the answer, however soon the connection knows of the drain.
func TestHandshake_ShutdownLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := synctestServer(t, nbdtest.NewMemory(4096), nbd.Limits{})
		ours, theirs := net.Pipe()
		go func() { _ = s.ServeConn(quickPipe{theirs}) }()
		h := &haggler{t: t, nc: ours}
		expect(t, h.nc, hello)
		h.write(hx(fixedNoZer))
		synctest.Wait()
		drained := make(chan error, 1)
		go func() { drained <- s.Shutdown(t.Context()) }()
		time.Sleep(240 * time.Millisecond)
		h.write(option(info, infoData("disk0")))
		time.Sleep(200 * time.Millisecond)
		if typ, data := readReply(t, h.nc, info); replyInWords(t, typ, data) != "ERR_SHUTDOWN" {
			t.Errorf("reply %s, want ERR_SHUTDOWN", replyInWords(t, typ, data))
		}
		h.ended()
		if err := <-drained; err != nil {
			t.Error(err)
		}
	})
}

// TestIdleTimeout: a connection without requests is closed; one that waits for
// the device, or asks now and then, is not.
func TestIdleTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := nbdtest.NewManual(4096)
		s, _ := synctestServer(t, d, nbd.Limits{IdleTimeout: 20 * time.Second, ReplyTimeout: 5 * time.Second})
		c, err := nbdtest.NewClient(pipeTo(s), "disk0")
		if err != nil {
			t.Fatal(err)
		}
		flush := nbdtest.Command{Type: nbdtest.CmdFlush, Cookie: 1}
		if err := c.Send(flush); err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Hour) // the device takes its time
		r := <-d.Requests
		if r.Complete(nbd.OK) {
			go r.Conn().Flush()
		}
		if _, err := c.Receive(); err != nil {
			t.Fatal(err)
		}
		for range 10 {
			<-time.After(15 * time.Second)
			if err := c.Send(flush); err != nil {
				t.Fatal(err)
			}
			r := <-d.Requests
			conn := r.Conn()
			if r.Complete(nbd.OK) {
				go conn.Flush()
			}
			if _, err := c.Receive(); err != nil {
				t.Fatal(err)
			}
		}
		begin := time.Now()
		expectEnd(t, c.Conn)
		if d := time.Since(begin); d < 20*time.Second || d > 23*time.Second {
			t.Errorf("closed after %v, want a little more than 20s", d)
		}
		synctest.Wait()
		if n := s.Snapshot().Closes[nbd.CloseIdle]; n != 1 {
			t.Errorf("closes %v, want one for being idle", s.Snapshot().Closes)
		}
	})
}

func TestServer_BadAccessLimits(t *testing.T) {
	tests := []struct {
		name  string
		spoil func(*nbd.Server)
	}{
		{"MaxConnectionsPerPeer", func(s *nbd.Server) { s.Limits.MaxConnectionsPerPeer = -1 }},
		{"IdleTimeout", func(s *nbd.Server) { s.Limits.IdleTimeout = -time.Second }},
		{"Replies", func(s *nbd.Server) { s.Replies = nbd.RepliesSimple + 1 }},
		{"TLSMode", func(s *nbd.Server) { s.TLSMode = nbd.TLSRequired + 1 }},
		{"TLSConfig", func(s *nbd.Server) { s.TLSMode = nbd.TLSOptional }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newServerOf(t, nbd.Limits{MaxPayloadBytes: payloadBytes}, arenaBytes, twoExports()...)
			tt.spoil(s.Server)
			ours, theirs := net.Pipe()
			if err := s.ServeConn(theirs); err == nil || !strings.Contains(err.Error(), tt.name) {
				t.Errorf("error %v, want one that names %s", err, tt.name)
			}
			expectEnd(t, ours)
		})
	}
}

// FuzzOption sends one option with any data, with structured replies agreed on
// before, and listens to the end.
func FuzzOption(f *testing.F) {
	for _, id := range []uint32{exportName, abort, list, startTLS, info, goTo, structured, listContexts, setContexts, extended, unknownOption} {
		f.Add(id, []byte(nil))
		f.Add(id, infoData("disk0", 0, 1, 2, 3))
		f.Add(id, contextData("disk0", "base:allocation", "base:", "x:y"))
		f.Add(id, binary.BigEndian.AppendUint32(nil, 1<<32-1))
	}
	f.Fuzz(func(t *testing.T, id uint32, data []byte) {
		if len(data) > 70_000 {
			return
		}
		input := append(hx(fixedNoZer), option(structured, nil)...)
		input = append(input, option(id, data)...)
		input = append(input, option(setContexts, data)...)
		s := fuzzServer(t)
		nc := s.dial("unix")
		feed(t, s, nc, raw(nc, input), answersTo(input))
	})
}
