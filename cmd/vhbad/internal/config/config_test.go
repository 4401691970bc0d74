package config

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vhbad/vhbad/hba/fault"
)

func TestParseAddress(t *testing.T) {
	for in, want := range map[string]Address{
		"tcp://127.0.0.1:10809":           {Network: "tcp", Target: "127.0.0.1:10809"},
		"tcp://:0":                        {Network: "tcp", Target: ":0"},
		"tcp://[::1]:1":                   {Network: "tcp", Target: "[::1]:1"},
		"unix:///run/x.sock":              {Network: "unix", Target: "/run/x.sock"},
		"unix:///run//./x.sock":           {Network: "unix", Target: "/run/x.sock"},
		"unix:///x?mode=0660&owner=a:b":   {Network: "unix", Target: "/x", Mode: 0o660, Owner: "a:b"},
		"unix:///x?owner=:disk&mode=0600": {Network: "unix", Target: "/x", Mode: 0o600, Owner: ":disk"},
		"vsock://any:10809":               {Network: "vsock", Target: "any:10809"},
		"vsock://3:1":                     {Network: "vsock", Target: "3:1"},
	} {
		got, err := ParseAddress(in)
		if err != nil || got != want {
			t.Errorf("ParseAddress(%q) = %v, %v; want %v", in, got, err, want)
		}
		if back, err := ParseAddress(got.String()); err != nil || back != got {
			t.Errorf("ParseAddress(%q): its spelling %q reads as %v, %v", in, got, back, err)
		}
	}
	for in, want := range map[string]string{
		"":                                     "want tcp://",
		"127.0.0.1:10809":                      "want tcp://",
		"udp://x:1":                            `scheme "udp"`,
		"tcp://localhost":                      "no port",
		"tcp://::1:10809":                      "brackets",
		"tcp://x:65536":                        "0 to 65535",
		"tcp://x:nbd":                          "0 to 65535",
		"unix://run/x":                         "not absolute",
		"unix:///run/":                         "folder",
		"unix:///" + strings.Repeat("x", 107):  "exceeds the 107",
		"unix:///a\x00b":                       "NUL",
		"unix:///a?mode=8":                     "octal",
		"unix:///a?mode=0":                     "octal",
		"unix:///a?mode=1777":                  "octal",
		"unix:///a?mode=0600&mode=0600":        "once",
		"unix:///a?owner=":                     "USER:GROUP",
		"unix:///a?owner=a:":                   "USER:GROUP",
		"unix:///a?colour=red":                 `option "colour"`,
		"unix:///a?":                           `option ""`,
		"vsock://any":                          "no port",
		"vsock://me:1":                         "any, local or host",
		"vsock://-1:1":                         "any, local or host",
		"vsock://1:4294967295":                 "0 to 4294967294",
		"tcp://127.0.0.1:10809/with/some/path": "0 to 65535",
	} {
		if _, err := ParseAddress(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseAddress(%q): error %v, want one with %q", in, err, want)
		}
	}
}

func TestParseDisk(t *testing.T) {
	for in, want := range map[string]Disk{
		"d=memory:1GiB":                         {Name: "d", Memory: GiB},
		"d=memory:1M,block-size=4096,read-only": {Name: "d", Memory: MiB, BlockSize: 4096, ReadOnly: true},
		"a b=file:/x=y:z,size=2M,description=one,, two": {
			Name: "a b", File: "/x=y:z", Size: 2 * MiB, Description: "one, two",
		},
		"d=file:rel/with,,comma":        {Name: "d", File: "rel/with,comma"},
		"d=file:/a,size=1M,preallocate": {Name: "d", File: "/a", Size: MiB, Preallocate: true},
		"d=memory:1M,read-only=false":   {Name: "d", Memory: MiB},
		"d=memory:1M,cache=writeback,cache-size=1M,cache-eviction=random,cache-seed=7,trace=/t,,t,hostile=lying-flush,hostile=ignored-fua": {
			Name: "d", Memory: MiB, Cache: "writeback", CacheSize: MiB, CacheEviction: "random", CacheSeed: 7, Trace: "/t,t",
			Hostile: []string{"lying-flush", "ignored-fua"},
		},
		"d=memory:1M,cache=none": {Name: "d", Memory: MiB, Cache: "none"},
		"d=memory:1M,hidden,tls-only,allow=a,,b,allow=c@d,connections=4": {
			Name: "d", Memory: MiB, Hidden: true, TLSOnly: true, Allow: []string{"a,b", "c@d"}, Connections: 4,
		},
	} {
		got, err := ParseDisk(in)
		if err != nil {
			t.Errorf("ParseDisk(%q): %v", in, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("ParseDisk(%q): -want +got\n%s", in, diff)
		}
		if back, err := ParseDisk(got.String()); err != nil || !cmp.Equal(back, got) {
			t.Errorf("ParseDisk(%q): its spelling %q reads as %+v, %v", in, got, back, err)
		}
	}
}

func TestParseDisk_Bad(t *testing.T) {
	for in, want := range map[string]string{
		"":                                          "want NAME=memory:SIZE",
		"d":                                         "want NAME=memory:SIZE",
		"d=1GiB":                                    "want NAME=memory:SIZE",
		"d=tape:1":                                  `medium "tape"`,
		"d=memory:":                                 "whole number",
		"d=memory:0":                                "at least one block",
		"d=memory:1000":                             "not a multiple of the block size 512: the next smaller is 512",
		"d=memory:6K,block-size=4K":                 "not a multiple",
		"d=memory:1M,block-size=1024":               "want 512 or 4096",
		"d=memory:1M,size=1M":                       "size belongs to a file",
		"d=memory:1M,preallocate":                   "preallocate is for a file",
		"d=file:/a,preallocate,read-only":           "that may be written",
		"d=memory:1M,colour=red":                    `option "colour" is not known: options are size=SIZE`,
		"d=memory:1M,colour":                        `option "colour" is not known: options are size=SIZE`,
		"d=memory:1M,readonly":                      `option "readonly" is not known: is read-only meant?`,
		"d=memory:1M,block_size=512":                `option "block_size" is not known: is block-size meant?`,
		"d=memory:1M,file=/x":                       `option "file" is not known: options are`,
		"d=memory:1M,description":                   "value is missing",
		"d=memory:1M,read-only,read-only":           "given twice",
		"d=memory:1M,read-only=maybe":               "true or false",
		"d=memory:1M,hidden=maybe":                  "hidden=\"maybe\": want true or false",
		"d=memory:1M,cache=maybe":                   "want none or writeback",
		"d=memory:1M,cache-size=1M":                 "want cache writeback",
		"d=memory:1M,cache=none,cache-seed=1":       "want cache writeback",
		"d=memory:1M,trace=/t":                      "want cache writeback",
		"d=memory:1M,hostile=lying-flush":           "want cache writeback",
		"d=memory:1M,cache=writeback,cache-size=1K": "from 64KiB to 4GiB",
		"d=memory:1M,cache=writeback,cache-eviction=lru": "want one of fifo, random, none",
		"d=memory:1M,cache=writeback,cache-seed=x":       "whole number",
		"d=memory:1M,cache=writeback,hostile=rot":        "want lying-flush or ignored-fua",
		"d=memory:1M,cache=writeback,cache=none":         "given twice",
		"d=memory:1M,allow=":                             "allow: a name is empty",
		"d=memory:1M,connections=0":                      "want 1 to 4096",
		"d=memory:1M,connections=-1":                     "want 1 to 4096",
		"d=memory:1M,block-size=0":                       "block-size is 0: want 512 or 4096",
		"d=memory:1M,cache=writeback,cache-size=0":       "cache-size is 0: want 64KiB to 4GiB",
		"d=memory:1M,connections=x":                      "want 1 to 4096",
		"d=file:":                                        "path is empty",
		"d=file:/x,size=0":                               "at least one block",
		"=memory:1M":                                     "name is empty",
		"a\x00b=memory:1M":                               "control character",
		" d=memory:1M":                                   "space",
		"\xff=memory:1M":                                 "not UTF-8",
		strings.Repeat("n", 256) + "=memory:1M":          "want 1 to 255",
	} {
		if _, err := ParseDisk(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseDisk(%q): error %v, want one with %q", in, err, want)
		}
	}
}

const full = `# everything
listen: [tcp://127.0.0.1:0, unix:///run/x.sock]
disks:
  - name: a
    memory: 64MiB
    description: scratch
  - {name: b, file: /b.img, size: 1GiB, block-size: 4096, read-only: true, hidden: true, tls-only: true, allow: [a, b], connections: 2}
http: none
admin: /run/a.sock
replies: simple
copy-reads: true
log: {format: json, level: debug}
limits:
  {memory: 256MiB, connections: 3, connections-per-peer: 2, connection-rate: 9, requests: 128, bytes-in-flight: 2MiB, payload: 1MiB, options: 7,
   option-bytes: 16KiB, handshake-timeout: 1s, reply-timeout: 2s, idle-timeout: 1h, drain-timeout: 5s}
tls: {certificates: /etc/pki/nbd, mode: required, verify-peer: true}
hba: {queues: 2, workers: 1, half-duplex: true, interrupts: line, strict-segments: true, verify: true, srb-timeout: 5s, reset-timeout: 2s}
faults:
  - name: slow
    disk: a
    match: {op: read, offset: 1MiB, length: 64KiB, probability: 0.5}
    action: {kind: latency, latency: {distribution: normal, mean: 5ms, deviation: 1ms}}
  - {name: gone, hostile: true, action: {kind: lost-write}, budget: 1}
hostile: true
read-only: false
`

func TestParse(t *testing.T) {
	f, err := Parse("c.yaml", []byte(full))
	if err != nil {
		t.Fatal(err)
	}
	want := &File{
		Listen: []Address{{Network: "tcp", Target: "127.0.0.1:0"}, {Network: "unix", Target: "/run/x.sock"}},
		Disks: []Disk{
			{Name: "a", Memory: 64 * MiB, Description: "scratch"},
			{Name: "b", File: "/b.img", Size: GiB, BlockSize: 4096, ReadOnly: true, Hidden: true, TLSOnly: true, Allow: []string{"a", "b"}, Connections: 2},
		},
		HTTP: "none", Admin: "/run/a.sock", Replies: RepliesSimple, CopyReads: true,
		Log: Log{Format: "json", Level: "debug"},
		Limits: Limits{
			Memory: 256 * MiB, Connections: 3, ConnectionsPerPeer: 2, ConnectionRate: 9, Requests: 128, BytesInFlight: 2 * MiB, Payload: MiB, Options: 7,
			OptionBytes: 16 * KiB, HandshakeTimeout: Duration(time.Second), ReplyTimeout: Duration(2 * time.Second),
			IdleTimeout: Duration(time.Hour), DrainTimeout: Duration(5 * time.Second),
		},
		TLS: TLS{Certificates: "/etc/pki/nbd", Mode: TLSRequired, VerifyPeer: true},
		HBA: HBA{Queues: 2, Workers: 1, HalfDuplex: true, Interrupts: InterruptsLine, StrictSegments: true, Verify: true, SRBTimeout: Duration(5 * time.Second), ResetTimeout: Duration(2 * time.Second)},
		Faults: []fault.Rule{
			{
				Name: "slow", Disk: "a", Match: fault.Match{Op: fault.Ops{"read"}, Offset: new(MiB), Length: 64 * KiB, Probability: new(0.5)},
				Action: fault.Action{Kind: fault.KindLatency, Latency: &fault.Latency{
					Distribution: fault.Normal, Mean: Duration(5 * time.Millisecond), Deviation: Duration(time.Millisecond),
				}},
			},
			{Name: "gone", Hostile: true, Action: fault.Action{Kind: fault.KindLostWrite}, Budget: 1},
		},
		Hostile: true,
	}
	if diff := cmp.Diff(want, f); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if _, err := f.Resolve("/run/vhbad.sock", false); err != nil {
		t.Errorf("Resolve: %v", err)
	}
}

func TestParse_Bad(t *testing.T) {
	for in, want := range map[string]string{
		"disks:\n  - name: a\n    sise: 1\n": `c.yaml:3: unknown key "sise": is size meant?`,
		"disks:\n- name: a\n  bytes: 1\n":    `c.yaml:3: unknown key "bytes": want allow, block-size, cache, cache-eviction, cache-seed, cache-size, connections, description, file, hidden, hostile, memory, name, preallocate, read-only, size, tls-only`,
		"tls:\n  verify: true\n":             `c.yaml:2: unknown key "verify": is verify-peer meant?`,
		"tls:\n  cipher: x\n":                `c.yaml:2: unknown key "cipher": want certificates, mode, verify-peer`,
		"limits: {idle-timeout: -1s}\n":      `c.yaml:1: duration "-1s"`,
		"unixsocket: /x\n":                   `c.yaml:1: unknown key "unixsocket": want admin, copy-reads, disks`,
		"hba:\n  queues: many\n":             "c.yaml:2: hba.queues many: want a whole number",
		"http: a\nhttp: b\n":                 "c.yaml:2: mapping key",
		"limits:\n\n  memory: 64MB\n":        `c.yaml:3: size "64MB"`,
		"disks:\n- {name: a, memory: 1M, description: &d 2.9}\n- {name: b, memory: 1M, connections: *d}\n": "c.yaml:3: disks[1].connections 2.9: want a whole number",
		"disks:\n- {<<: {connections: 2.9}, name: a, memory: 1M}\n":                                        "c.yaml:2: disks[0].connections 2.9: want a whole number",
		"limits: {drain-timeout: 5}\n": `c.yaml:1: duration "5"`,
		"listen: [tcp://x]\n":          "c.yaml:1: address",
		"a: [\n":                       "c.yaml:1: did not find expected node content",
		"a: b: c\n":                    "c.yaml:1: mapping values are not allowed in this context",
		"\ta: 1\n":                     "c.yaml:1: found character that cannot start any token: lines are indented",
		"http: a\nb: c: d\n":           "c.yaml:2: mapping values are not allowed in this context",
		"http: a\x01\n":                "c.yaml: control characters are not allowed",
		"\n\nhttp: a\x01\n":            "c.yaml: control characters are not allowed",
		"---\na: 1\n---\nb: 2\n":       "more than one YAML document",
		"disks:\n- name: a\n  memory: 1M\n- name: b\n  memory: 1000\n": `c.yaml:4: disk "b": size 1000 is not a multiple`,
		"disks:\n- name: a\n":                         `c.yaml:2: disk "a": want either memory (a size) or file (a path), not neither`,
		"disks:\n- {name: a, memory: 1M, file: /x}\n": "not both",
		"faults:\n- {name: a, action: {kind: busy}}\n- {name: b, action: {kind: nap}}\n":                    `c.yaml:3: fault "b": action.kind "nap": want status`,
		"faults:\n- name: a\n  action: {kind: busy, times: 3}\n":                                            `c.yaml:3: unknown key "times": want after, at, bits`,
		"faults:\n- name: a\n  match: {offset: 1MB}\n  action: {kind: busy}\n":                              `c.yaml:3: size "1MB"`,
		"faults:\n- name: a\n  match: {op: {}}\n  action: {kind: busy}\n":                                   `op: want a kind of command`,
		"faults:\n- name: a\n  action: {kind: latency, latency: {mean: 5}}\n":                               `c.yaml:3: duration "5"`,
		"faults:\n- name: a\n  action: {kind: latency, latency: {distribution: table, table: [{at: 1}]}}\n": `c.yaml:3: faults[0].action.latency.table[0].latency is missing`,
		"- a\n": "c.yaml:1: the file is a list: want keys: admin, copy-reads, disks",
		"root:x:0:0:root:/root:/bin/bash\nbin:x:1:1:bin:/bin:/bin/sh\n": `c.yaml:1: the file is "root:x:0:0:root:/root:/bin/bash bin:x:1:"…: want keys: admin`,
		"disks: 7\n":                  `c.yaml:1: disks is "7": want a list`,
		"disks:\n  a: {memory: 1M}\n": "c.yaml:2: disks has keys: want a list",
		"disks: [a]\n":                `c.yaml:1: disks[0] is "a": want keys: allow, block-size`,
		"disks:\n-\n":                 "c.yaml:2: disks[0] is missing",
		"sandbox: {paths: [~]}\n":     "c.yaml:1: sandbox.paths[0] is missing",
		"listen: tcp://:1\n":          `c.yaml:1: listen is "tcp://:1": want a list`,
		"sandbox: off\n":              `c.yaml:1: sandbox is "off": want keys: mode, paths`,
		"limits: {memory: [1M]}\n":    "c.yaml:1: limits.memory is a list: want one value",
		"http: {port: 1}\n":           "c.yaml:1: http has keys: want one value",

		"disks:\n- &d {name: a, memory: 1M}\n- {name: b, memory: 1M, allow: *d}\n": "c.yaml:3: disks[1].allow has keys: want a list",
		"disks:\n- {<<: [{connections: 0}], name: a, memory: 1M}\n":                "c.yaml:2: disks[0].connections is 0: want 1 to 4096",
		"listen: &l [\"tcp://:1\"]\nlimits: *l\n":                                  "c.yaml:2: limits is a list: want keys: bytes-in-flight",
		"limits: &l {connections: 5}\nhba: {queues: *l}\n":                         "c.yaml:2: hba.queues has keys: want one value",
		"faults:\n- {name: a, match: read, action: busy}\n":                        `c.yaml:2: faults[0].match is "read": want keys: after-count`,
	} {
		if _, err := Parse("c.yaml", []byte(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%q): error %v, want one with %q", in, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(full))
	f.Add([]byte("disks: [{name: a}]"))
	f.Add([]byte("x: &a [*a]"))
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := Parse("c.yaml", b)
		if err == nil {
			_, _ = file.Resolve("/run/vhbad.sock", false)
		}
		if err != nil && !strings.HasPrefix(err.Error(), "c.yaml") {
			t.Errorf("error without the file's name: %v", err)
		}
	})
}

func TestResolve_Defaults(t *testing.T) {
	f, err := Parse("c.yaml", nil)
	if err != nil {
		t.Fatal(err)
	}
	c, err := f.Resolve("/run/vhbad.sock", false)
	if err != nil {
		t.Fatal(err)
	}
	if c.Listen[0].String() != DefaultListen || c.HTTP != DefaultHTTP || c.Admin != "/run/vhbad.sock" {
		t.Errorf("got %v, %q, %q", c.Listen, c.HTTP, c.Admin)
	}
	if len(c.Disks) != 1 || c.Disks[0].Name != "disk0" || c.Disks[0].Memory != GiB || c.Disks[0].BlockSize != 512 {
		t.Errorf("disks %+v", c.Disks)
	}
	if c.Limits.Memory != DefaultMemory || c.HBA.Interrupts != InterruptsPerMessage {
		t.Errorf("limits %+v, hba %+v", c.Limits, c.HBA)
	}
	if c, err := f.Resolve("/run/vhbad.sock", true); err != nil || len(c.Listen) != 0 {
		t.Errorf("with inherited sockets: %v, %v; want nothing to listen on", c.Listen, err)
	}
}

func TestResolve_Bad(t *testing.T) {
	disk := Disk{Name: "a", Memory: MiB}
	for want, f := range map[string]File{
		"two disks have this name":         {Disks: []Disk{disk, disk}},
		`belongs to disk "a" already`:      {Disks: []Disk{{Name: "a", File: "/x"}, {Name: "b", File: "/x"}}},
		"is given twice":                   {Listen: []Address{{Network: "tcp", Target: "x:1"}, {Network: "tcp", Target: "x:1"}}},
		`http "9810": "9810" has no port`:  {HTTP: "9810"},
		"admin: path \"x\" is not abs":     {Admin: "x"},
		"two different paths":              {Admin: "/x", Listen: []Address{{Network: "unix", Target: "/x"}}},
		`log format "xml": want auto`:      {Log: Log{Format: "xml"}},
		`log level "loud": want debug`:     {Log: Log{Level: "loud"}},
		"memory 1MiB: want 32MiB":          {Limits: Limits{Memory: MiB}},
		"connections -1: want 1 to":        {Limits: Limits{Connections: -1}},
		"requests 5: want 128 to":          {Limits: Limits{Requests: 5}},
		"queues 64: want 1 to 63":          {HBA: HBA{Queues: 64}},
		"srb-timeout 1.5s: want whole":     {HBA: HBA{SRBTimeout: Duration(1500 * time.Millisecond)}},
		"reset-timeout 48h0m0s: want":      {HBA: HBA{ResetTimeout: Duration(48 * time.Hour)}},
		`faults: fault "x": disk "b": th`:  {Disks: []Disk{disk}, Faults: []fault.Rule{{Name: "x", Disk: "b", Action: fault.Action{Kind: fault.KindBusy}}}},
		`start the daemon with --hostile`:  {Faults: []fault.Rule{{Name: "x", Hostile: true, Action: fault.Action{Kind: fault.KindLostWrite}}}},
		"workers 9999: want 1 to":          {HBA: HBA{Workers: 9999}},
		`interrupts "some": want per-me`:   {HBA: HBA{Interrupts: "some"}},
		"connections-per-peer -1: want":    {Limits: Limits{ConnectionsPerPeer: -1}},
		"connection-rate -1: want 1 to":    {Limits: Limits{ConnectionRate: -1}},
		"payload 1KiB: want 4KiB to":       {Limits: Limits{Payload: KiB}},
		"4KiB to 16MiB with memory 64MiB":  {Limits: Limits{Payload: 32 * MiB, Memory: 64 * MiB}},
		"bytes-in-flight 1GiB: want":       {Limits: Limits{BytesInFlight: GiB}},
		"options 65537: want 1 to 65536":   {Limits: Limits{Options: 65537}},
		"option-bytes 1KiB: want 8KiB to":  {Limits: Limits{OptionBytes: KiB}},
		"handshake-timeout 1ms: want":      {Limits: Limits{HandshakeTimeout: Duration(time.Millisecond)}},
		"reply-timeout 25h0m0s: want":      {Limits: Limits{ReplyTimeout: Duration(25 * time.Hour)}},
		"idle-timeout 1ms: want 10ms":      {Limits: Limits{IdleTimeout: Duration(time.Millisecond)}},
		`replies "old": want extended, st`: {Replies: "old"},
		`tls mode "some": want off, opt`:   {TLS: TLS{Mode: "some"}},
		"tls mode required: want cert":     {TLS: TLS{Mode: TLSRequired}},
		`sandbox mode "on": want auto or`:  {Sandbox: Sandbox{Mode: "on"}},
		`sandbox path "x": want an abso`:   {Sandbox: Sandbox{Paths: []string{"x"}}},
		"tls verify-peer: TLS is off":      {TLS: TLS{Certificates: "/x", Mode: TLSOff, VerifyPeer: true}},
		`disk "a": tls-only: TLS is off`:   {Disks: []Disk{{Name: "a", Memory: MiB, TLSOnly: true}}},
		`disk "a": allow: names are`:       {TLS: TLS{Certificates: "/x"}, Disks: []Disk{{Name: "a", Memory: MiB, Allow: []string{"x"}}}},
	} {
		if _, err := f.Resolve("/run/vhbad.sock", false); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
}

func TestResolve_ReadOnlyEverything(t *testing.T) {
	f := File{ReadOnly: true, Disks: []Disk{{Name: "a", Memory: MiB}}}
	c, err := f.Resolve("/run/vhbad.sock", false)
	if err != nil || !c.Disks[0].ReadOnly {
		t.Errorf("got %+v, %v; want a read-only disk", c, err)
	}
	if f.Disks[0].ReadOnly {
		t.Error("Resolve changed the file it was given")
	}
}

func TestResolve_TLSMode(t *testing.T) {
	for text, want := range map[string]TLSMode{
		"{}":                                 TLSOff,
		"tls: {certificates: /x}":            TLSOptional,
		"tls: {mode: off}":                   TLSOff,
		"tls: {certificates: /x, mode: off}": TLSOff,
		"tls: {certificates: /x, mode: required}": TLSRequired,
	} {
		f, err := Parse("c.yaml", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if c, err := f.Resolve("/a", false); err != nil || c.TLS.Mode != want {
			t.Errorf("%s: %+v, %v; want mode %s", text, c.TLS, err, want)
		}
	}
}

func FuzzParseAddress(f *testing.F) {
	for _, s := range []string{"tcp://[::1]:0", "unix:///run/x?mode=0660&owner=a:b", "vsock://any:1", "unix:///a?owner=:&mode=9", "unix:///."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseAddress(s)
		if err != nil {
			return
		}
		if back, err := ParseAddress(a.String()); err != nil || back != a {
			t.Errorf("ParseAddress(%q) = %+v, whose spelling %q reads as %+v, %v", s, a, a.String(), back, err)
		}
	})
}

func FuzzParseDisk(f *testing.F) {
	for _, s := range []string{"d=memory:1M", "d=file:/x,size=4K,allow=a,,b,allow=c,hidden,tls-only=false,connections=2,description=x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDisk(s)
		if err != nil {
			return
		}
		if back, err := ParseDisk(d.String()); err != nil || !cmp.Equal(back, d) {
			t.Errorf("ParseDisk(%q) = %+v, whose spelling %q reads as %+v, %v", s, d, d.String(), back, err)
		}
	})
}

// TestResolve_Loopback: nobody but this host is served unless somebody says so.
func TestResolve_Loopback(t *testing.T) {
	c, err := (&File{}).Resolve("/a.sock", false)
	if err != nil {
		t.Fatal(err)
	}
	addresses := []string{c.HTTP}
	for _, l := range c.Listen {
		addresses = append(addresses, l.Target)
	}
	for _, a := range addresses {
		host, _, err := net.SplitHostPort(a)
		if ip := net.ParseIP(host); err != nil || !ip.IsLoopback() {
			t.Errorf("default address %s: %v; want one of the loopback", a, err)
		}
	}
	if len(addresses) != 2 {
		t.Errorf("defaults %q: want one for NBD and one for HTTP", addresses)
	}
}

// TestResolve_Zero: 0 is not the default, but a number like any other: where it is
// impossible it is refused, with what is allowed; where no limit is written as 0, it means
// that.
func TestResolve_Zero(t *testing.T) {
	for text, want := range map[string]string{
		"limits: {memory: 0}":                                             "memory 0: want 32MiB to 64GiB",
		"limits: {connections: 0}":                                        "connections 0: want 1 to 4096",
		"limits: {connections-per-peer: 0}":                               "",
		"limits: {connection-rate: 0}":                                    "connection-rate 0: want 1 to 1048576",
		"limits: {requests: 0x0}":                                         "requests 0: want 128 to 4096",
		"limits: {bytes-in-flight: 0KiB}":                                 "bytes-in-flight 0: want 4KiB to 512MiB",
		"limits: {payload: 0}":                                            "payload 0: want 4KiB to 64MiB",
		"limits: {options: 0}":                                            "options 0: want 1 to 65536",
		"limits: {option-bytes: 0}":                                       "option-bytes 0: want 8KiB to 1MiB",
		"limits: {handshake-timeout: 0}":                                  "handshake-timeout 0s: want 10ms to 24h0m0s",
		"limits: {reply-timeout: 0s}":                                     "reply-timeout 0s: want 10ms to 24h0m0s",
		"limits: {idle-timeout: 0}":                                       "",
		"limits: {drain-timeout: 0ms}":                                    "drain-timeout 0s: want 1ms to 24h0m0s",
		"hba: {queues: 0}":                                                "queues 0: want 1 to 63",
		"hba: {workers: 0}":                                               "workers 0: want 1 to 1024",
		"hba: {srb-timeout: 0s}":                                          "srb-timeout 0s: want whole seconds, 1s to 24h0m0s",
		"hba: {reset-timeout: 0}":                                         "reset-timeout 0s: want whole seconds, 1s to 24h0m0s",
		"hba: {verify: false, queues: }":                                  "",
		"disks: [{name: a, memory: 0}]":                                   "c.yaml:1: disks[0].memory is 0: want at least one block",
		"disks: [{name: a, file: /x, size: 0}]":                           "c.yaml:1: disks[0].size is 0: want at least one block",
		"disks: [{name: a, memory: 1M, block-size: 0}]":                   "c.yaml:1: disks[0].block-size is 0: want 512 or 4096",
		"disks:\n- {name: a, memory: 1M}\n- {connections: 0}":             "c.yaml:3: disks[1].connections is 0: want 1 to 4096, or nothing for no limit",
		"disks: [{name: a, memory: 1M, cache-size: 0}]":                   "c.yaml:1: disks[0].cache-size is 0: want 64KiB to 4GiB",
		"disks: [{name: a, memory: 1M, cache: writeback, cache-seed: 0}]": "",
	} {
		f, err := Parse("c.yaml", []byte(text))
		if err == nil {
			_, err = f.Resolve("/run/vhbad.sock", false)
		}
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: error %v, want one with %q", text, err, want)
		}
	}
	f, err := Parse("c.yaml", []byte("limits: {connections: 0}"))
	if err != nil {
		t.Fatal(err)
	}
	f.Limits.Connections = 7
	f.Set("connections", false) // by the command line
	if c, err := f.Resolve("/run/vhbad.sock", false); err != nil || c.Limits.Connections != 7 {
		t.Errorf("set again: %v, want 7 connections", err)
	}
}
