package config

import (
	"cmp"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/vhbad/vhbad/hba/fault"
)

// Defaults.
const (
	DefaultListen = "tcp://127.0.0.1:10809"
	DefaultDisk   = "disk0=memory:1GiB"
	DefaultHTTP   = "127.0.0.1:9810"

	DefaultMemory      = 512 * MiB
	DefaultWorkers     = 16
	DefaultConnections = 256
	// DefaultConnectionRate is in connections a second.
	DefaultConnectionRate = 500
	DefaultRequests       = 256
	DefaultQueues         = 4
	DefaultDrainTimeout   = Duration(30 * time.Second)

	DefaultOptions          = 64
	DefaultOptionBytes      = 64 * KiB
	DefaultHandshakeTimeout = Duration(10 * time.Second)
	DefaultReplyTimeout     = Duration(time.Minute)

	DefaultSRBTimeout   = Duration(time.Minute)
	DefaultResetTimeout = Duration(10 * time.Second)
)

// Bounds of numbers, checked by Resolve.
const (
	MinMemory         = 32 * MiB
	MaxMemory         = 64 * GiB
	MaxWorkers        = 1024
	MaxQueues         = 63
	MaxConnections    = 4096
	MaxConnectionRate = 1 << 20
	MinRequests       = 128
	MaxRequests       = 4096
	MaxOptions        = 1 << 16
	MinOptionBytes    = 8 * KiB
	MaxOptionBytes    = MiB
	MinPayload        = 4 * KiB
	MaxPayload        = 64 * MiB
	// PayloadShare is the share of the memory, as a divisor, that the longest read or write
	// may take and that, by default, one connection may have in flight: others must find
	// some memory, too.
	PayloadShare = 4
	MinTimeout   = Duration(10 * time.Millisecond)
	MaxTimeout   = Duration(24 * time.Hour)
	// MinDrainTimeout is the shortest time for an orderly stop; in effect, none.
	MinDrainTimeout = Duration(time.Millisecond)
	// UnitsPerTarget is how many disks share a target address. MaxDisks is what one adapter
	// can address: 16 targets with that many units each.
	UnitsPerTarget = 128
	MaxDisks       = 16 * UnitsPerTarget
)

// Off takes the place of an address to switch a listener off.
const Off = "none"

// A File is a configuration file. A key that is absent keeps its zero value, for which
// Resolve fills in the default.
type File struct {
	Listen []Address `yaml:"listen"`
	Disks  []Disk    `yaml:"disks"`
	// HTTP is HOST:PORT for metrics and health, or "none".
	HTTP string `yaml:"http"`
	// Admin is the path of the control socket, or "none". The default is the environment
	// variable VHBAD_ADMIN, or else vhbad.sock in XDG_RUNTIME_DIR, or else
	// /run/vhbad.sock.
	Admin string `yaml:"admin"`
	// Replies is the most capable format of replies that clients can negotiate:
	// "extended", "structured" or "simple"; see docs/operate.md.
	Replies Replies `yaml:"replies"`
	// CopyReads copies reads of 64 KiB and more, as all others are, instead of sending them
	// from the disk's own pages: writes can then no longer change a reply on its way.
	CopyReads bool   `yaml:"copy-reads"`
	Log       Log    `yaml:"log"`
	Limits    Limits `yaml:"limits"`
	TLS       TLS    `yaml:"tls"`
	HBA       HBA    `yaml:"hba"`
	// Sandbox says which rights the daemon keeps.
	Sandbox Sandbox `yaml:"sandbox"`
	// ReadOnly makes every disk read-only.
	ReadOnly bool `yaml:"read-only"`
	// Faults are rules that are in force from the start.
	Faults []fault.Rule `yaml:"faults"`
	// Hostile allows disks and rules that break promises of a correct drive.
	Hostile bool `yaml:"hostile"`
	// Zeros are the keys of Limits and HBA that were explicitly set to 0, which does not
	// mean their defaults.
	Zeros map[string]bool `yaml:"-"`
}

// Set notes that a key of Limits or HBA has been set explicitly, and whether to 0.
func (f *File) Set(key string, isZero bool) {
	if f.Zeros == nil {
		f.Zeros = make(map[string]bool)
	}
	f.Zeros[key] = isZero
}

// Log says what is logged and how.
type Log struct {
	// Format is "text", "json" or "auto": text on a terminal, JSON otherwise.
	Format string `yaml:"format"`
	// Level is "debug", "info", "warn" or "error".
	Level string `yaml:"level"`
}

// Limits bounds what clients can make the daemon use.
type Limits struct {
	// Memory is the arena that all rings and buffers come from, rounded up to a
	// power of two. It is reserved, not used, until clients need it.
	Memory Size `yaml:"memory"`
	// Connections is how many connections there may be at once.
	Connections int `yaml:"connections"`
	// ConnectionsPerPeer is how many there may be from one IP address, user of a unix
	// socket or vsock context; zero means that peers have no limit of their own.
	ConnectionsPerPeer int `yaml:"connections-per-peer"`
	// ConnectionRate is how many connections are accepted in a second; further ones wait.
	ConnectionRate int `yaml:"connection-rate"`
	// Requests is how many requests one connection may have in flight.
	Requests int `yaml:"requests"`
	// BytesInFlight is how much memory the requests of one connection may hold. The
	// default is a quarter of Memory, at most 68 MiB.
	BytesInFlight Size `yaml:"bytes-in-flight"`
	// Payload is the longest read or write. The default is a quarter of Memory,
	// at most 64 MiB.
	Payload Size `yaml:"payload"`
	// Options is how many options a handshake may have.
	Options int `yaml:"options"`
	// OptionBytes is how much data one option may have.
	OptionBytes Size `yaml:"option-bytes"`
	// HandshakeTimeout is how long a handshake may take, TLS included.
	HandshakeTimeout Duration `yaml:"handshake-timeout"`
	// ReplyTimeout is how long a client may go without receiving any of a reply, or
	// without sending any more of a request that it has begun.
	ReplyTimeout Duration `yaml:"reply-timeout"`
	// IdleTimeout closes connections that have had no requests for this long; zero means
	// never.
	IdleTimeout Duration `yaml:"idle-timeout"`
	// DrainTimeout bounds an orderly stop.
	DrainTimeout Duration `yaml:"drain-timeout"`
}

// HBA configures the adapter and its driver.
type HBA struct {
	// Queues is the number of queue pairs.
	Queues int `yaml:"queues"`
	// Workers is how many goroutines run operations that block.
	Workers int `yaml:"workers"`
	// HalfDuplex makes the driver's StartIo and interrupt handler exclude each other.
	HalfDuplex bool `yaml:"half-duplex"`
	// Interrupts is "per-message", "all", "single" or "line".
	Interrupts Interrupts `yaml:"interrupts"`
	// StrictSegments cuts buffers at every page, for long scatter lists.
	StrictSegments bool `yaml:"strict-segments"`
	// Verify checks every rule of the port's contract.
	Verify bool `yaml:"verify"`
	// SRBTimeout is how long the adapter may take for a command before the port begins to
	// reset; a flush may take four times as long. It is in whole seconds, the unit that
	// the port counts in.
	SRBTimeout Duration `yaml:"srb-timeout"`
	// ResetTimeout is how long each reset may take, in whole seconds.
	ResetTimeout Duration `yaml:"reset-timeout"`
}

// Interrupts says how the adapter's interrupts exclude each other.
type Interrupts string

// The values of Interrupts.
const (
	InterruptsPerMessage Interrupts = "per-message" // a message and a lock for each queue pair
	InterruptsAll        Interrupts = "all"         // a message for each queue pair, one lock
	InterruptsSingle     Interrupts = "single"      // one message for all queue pairs
	InterruptsLine       Interrupts = "line"        // the interrupt line
)

// Replies says which formats of replies clients are offered.
type Replies string

// The values of Replies.
const (
	RepliesExtended   Replies = "extended"   // all, and extended headers
	RepliesStructured Replies = "structured" // no extended headers
	RepliesSimple     Replies = "simple"     // simple replies only, and no meta contexts
)

// A Config is a File that was checked and has its defaults filled in.
type Config struct {
	Listen []Address
	Disks  []Disk
	// HTTP and Admin are empty if switched off.
	HTTP    string
	Admin   string
	Replies Replies
	// CopyReads is File.CopyReads.
	CopyReads bool
	// LogFormat is "text", "json" or "auto".
	LogFormat string
	LogLevel  slog.Level
	Limits    Limits
	TLS       TLS
	HBA       HBA
	Sandbox   Sandbox
	Faults    []fault.Rule
	Hostile   bool
	// ReadOnly says that every disk is read-only, including those added later.
	ReadOnly bool
}

// WithDisks returns c with these disks in place of its own, checked as Resolve checks them.
func (c *Config) WithDisks(disks []Disk) (*Config, error) {
	with := *c
	with.Disks = append([]Disk(nil), disks...)
	if err := with.checkDisks(c.ReadOnly); err != nil {
		return nil, err
	}
	return &with, with.resolveTLS()
}

// CheckFaults checks the rules against the disks, as far as the configuration has their
// sizes: an image without a configured size is of unknown size.
func (c *Config) CheckFaults() error {
	var units []fault.Unit
	unknown := make(map[string]bool)
	for i := range c.Disks {
		d := &c.Disks[i]
		if d.Memory == 0 && d.Size == 0 {
			unknown[d.Name], unknown[""] = true, true // as may be a rule for every disk
			continue
		}
		units = append(units, fault.Unit{
			Disk: d.Name, BlockBytes: uint32(d.BlockSize), Blocks: uint64(d.Memory+d.Size) / uint64(d.BlockSize), PowerSwitch: d.Cache == CacheWriteback,
		})
	}
	var rules []fault.Rule
	for _, r := range c.Faults {
		if !unknown[r.Disk] {
			r.Match.AfterRule, r.Match.AfterCount = "", 0 // that rule may be among those left out
			rules = append(rules, r)
		}
	}
	if _, err := fault.NewSet(fault.Config{Rules: rules, Units: units, Hostile: c.Hostile}); err != nil {
		return fmt.Errorf("faults: %w", err)
	}
	return nil
}

// Resolve fills in defaults and checks everything that can be checked without touching the
// machine. defaultAdmin is the path of the control socket if f has none. If noListen, an
// empty list of addresses stays empty: sockets were inherited.
func (f *File) Resolve(defaultAdmin string, noListen bool) (*Config, error) {
	c := &Config{
		Listen:    f.Listen,
		Disks:     slices.Clone(f.Disks),
		Replies:   cmp.Or(f.Replies, RepliesExtended),
		CopyReads: f.CopyReads,
		Limits:    f.Limits,
		TLS:       f.TLS,
		HBA:       f.HBA,
		Sandbox:   f.Sandbox,
		Faults:    slices.Clone(f.Faults),
		Hostile:   f.Hostile,
		ReadOnly:  f.ReadOnly,
	}
	if err := c.fillEmpty(noListen); err != nil {
		return nil, err
	}
	if err := c.checkDisks(f.ReadOnly); err != nil {
		return nil, err
	}
	if err := c.resolveTLS(); err != nil {
		return nil, err
	}
	if _, err := fault.CheckRules(c.Faults, c.diskNames(), c.Hostile); err != nil {
		return nil, fmt.Errorf("faults: %w", err)
	}
	if err := c.resolvePlaces(f.HTTP, cmp.Or(f.Admin, defaultAdmin)); err != nil {
		return nil, err
	}
	switch c.Replies {
	case RepliesExtended, RepliesStructured, RepliesSimple:
	default:
		return nil, fmt.Errorf("replies %q: want %s, %s or %s", string(f.Replies), RepliesExtended, RepliesStructured, RepliesSimple)
	}
	if err := c.Sandbox.resolve(); err != nil {
		return nil, err
	}
	if err := c.resolveLog(f.Log); err != nil {
		return nil, err
	}
	return c, c.resolveNumbers(f.Zeros)
}

// fillEmpty gives c the default address and disk if it has none.
func (c *Config) fillEmpty(noListen bool) error {
	if len(c.Listen) == 0 && !noListen {
		a, err := ParseAddress(DefaultListen)
		if err != nil {
			return err
		}
		c.Listen = []Address{a}
	}
	if len(c.Disks) == 0 {
		d, err := ParseDisk(DefaultDisk)
		if err != nil {
			return err
		}
		c.Disks = []Disk{d}
	}
	return nil
}

// resolvePlaces decides where metrics and the control socket are, and checks that no two
// sockets, including those for clients, are at the same place.
func (c *Config) resolvePlaces(http, admin string) error {
	seen := make(map[Address]bool, len(c.Listen))
	for _, a := range c.Listen {
		if seen[a.place()] && !strings.HasSuffix(a.Target, ":0") {
			return fmt.Errorf("listen: %s is given twice", a.place())
		}
		seen[a.place()] = true
	}
	c.HTTP = cmp.Or(http, DefaultHTTP)
	if c.HTTP == Off {
		c.HTTP = ""
	} else if err := checkHostPort(c.HTTP); err != nil {
		return fmt.Errorf("http %q: %w: want HOST:PORT, or %q", c.HTTP, err, Off)
	}
	c.Admin = admin
	if c.Admin == Off {
		c.Admin = ""
	} else if err := CheckSocketPath(c.Admin); err != nil {
		return fmt.Errorf("admin: %w: want an absolute path, or %q", err, Off)
	}
	if seen[Address{Network: "unix", Target: c.Admin}] {
		return fmt.Errorf("admin: %s is an address to listen on too: want two different paths", c.Admin)
	}
	return nil
}

func (c *Config) diskNames() []string {
	names := make([]string, len(c.Disks))
	for i := range c.Disks {
		names[i] = c.Disks[i].Name
	}
	return names
}

func (c *Config) checkDisks(readOnly bool) error {
	if len(c.Disks) > MaxDisks {
		return fmt.Errorf("disks: %d of them: want at most %d", len(c.Disks), MaxDisks)
	}
	names := make(map[string]bool, len(c.Disks))
	files := make(map[string]string, len(c.Disks))
	for i := range c.Disks {
		d := &c.Disks[i]
		if err := d.check(); err != nil {
			return fmt.Errorf("disk %q: %w", d.Name, err)
		}
		if len(d.Hostile) > 0 && !c.Hostile {
			return fmt.Errorf("disk %q: hostile %s: no correct drive does that: start the daemon with --hostile to have one that does",
				d.Name, strings.Join(d.Hostile, ", "))
		}
		d.BlockSize = d.blockBytes()
		d.ReadOnly = d.ReadOnly || readOnly
		if names[d.Name] {
			return fmt.Errorf("disk %q: two disks have this name: want each its own", d.Name)
		}
		names[d.Name] = true
		for _, file := range []string{d.File, d.Trace} {
			if file == "" {
				continue
			}
			if other, ok := files[file]; ok {
				return fmt.Errorf("disk %q: file %q belongs to disk %q already", d.Name, file, other)
			}
			files[file] = d.Name
		}
	}
	return nil
}

func (c *Config) resolveLog(l Log) error {
	c.LogFormat = cmp.Or(l.Format, "auto")
	switch c.LogFormat {
	case "auto", "text", "json":
	default:
		return fmt.Errorf("log format %q: want auto, text or json", l.Format)
	}
	switch l.Level {
	case "", "info":
		c.LogLevel = slog.LevelInfo
	case "debug":
		c.LogLevel = slog.LevelDebug
	case "warn":
		c.LogLevel = slog.LevelWarn
	case "error":
		c.LogLevel = slog.LevelError
	default:
		return fmt.Errorf("log level %q: want debug, info, warn or error", l.Level)
	}
	return nil
}

// orDefault returns value or, if it is zero, def. A key in zeros is 0 on purpose and stays
// so.
func orDefault[T comparable](zeros map[string]bool, key string, value, def T) T {
	if zeros[key] {
		return value
	}
	return cmp.Or(value, def)
}

func (c *Config) resolveNumbers(zeros map[string]bool) error {
	l, h := &c.Limits, &c.HBA
	l.Memory = orDefault(zeros, "memory", l.Memory, DefaultMemory)
	if l.Memory < MinMemory || l.Memory > MaxMemory {
		return fmt.Errorf("memory %s: want %s to %s", l.Memory, MinMemory, MaxMemory)
	}
	share := l.Memory / PayloadShare
	for _, n := range []struct {
		name             string
		value            *Size
		def, least, most Size
	}{
		{"payload", &l.Payload, min(MaxPayload, share), MinPayload, min(MaxPayload, share)},
		{"bytes-in-flight", &l.BytesInFlight, min(68*MiB, share), MinPayload, l.Memory},
		{"option-bytes", &l.OptionBytes, DefaultOptionBytes, MinOptionBytes, MaxOptionBytes},
	} {
		*n.value = orDefault(zeros, n.name, *n.value, n.def)
		if *n.value < n.least || *n.value > n.most {
			return fmt.Errorf("%s %s: want %s to %s with memory %s", n.name, *n.value, n.least, n.most, l.Memory)
		}
	}
	for _, n := range []struct {
		name       string
		value      *Duration
		def, least Duration
	}{
		{"handshake-timeout", &l.HandshakeTimeout, DefaultHandshakeTimeout, MinTimeout},
		{"reply-timeout", &l.ReplyTimeout, DefaultReplyTimeout, MinTimeout},
		{"idle-timeout", &l.IdleTimeout, 0, MinTimeout},
		{"drain-timeout", &l.DrainTimeout, DefaultDrainTimeout, MinDrainTimeout},
	} {
		*n.value = orDefault(zeros, n.name, *n.value, n.def)
		if *n.value != n.def && (*n.value < n.least || *n.value > MaxTimeout) {
			return fmt.Errorf("%s %s: want %s to %s", n.name, *n.value, n.least, MaxTimeout)
		}
	}
	for _, n := range []struct {
		name  string
		value *Duration
		def   Duration
	}{
		{"srb-timeout", &h.SRBTimeout, DefaultSRBTimeout},
		{"reset-timeout", &h.ResetTimeout, DefaultResetTimeout},
	} {
		*n.value = orDefault(zeros, n.name, *n.value, n.def)
		if *n.value < Duration(time.Second) || *n.value > MaxTimeout || n.value.Std()%time.Second != 0 {
			return fmt.Errorf("%s %s: want whole seconds, 1s to %s", n.name, *n.value, MaxTimeout)
		}
	}
	h.Interrupts = cmp.Or(h.Interrupts, InterruptsPerMessage)
	switch h.Interrupts {
	case InterruptsPerMessage, InterruptsAll, InterruptsSingle, InterruptsLine:
	default:
		return fmt.Errorf("interrupts %q: want %s, %s, %s or %s", h.Interrupts, InterruptsPerMessage, InterruptsAll, InterruptsSingle, InterruptsLine)
	}
	for _, n := range []struct {
		name             string
		value            *int
		def, least, most int
	}{
		{"connections", &l.Connections, DefaultConnections, 1, MaxConnections},
		{"connections-per-peer", &l.ConnectionsPerPeer, 0, 0, MaxConnections},
		{"connection-rate", &l.ConnectionRate, DefaultConnectionRate, 1, MaxConnectionRate},
		{"requests", &l.Requests, DefaultRequests, MinRequests, MaxRequests},
		{"options", &l.Options, DefaultOptions, 1, MaxOptions},
		{"queues", &h.Queues, DefaultQueues, 1, MaxQueues},
		{"workers", &h.Workers, DefaultWorkers, 1, MaxWorkers},
	} {
		*n.value = orDefault(zeros, n.name, *n.value, n.def)
		if *n.value < n.least || *n.value > n.most {
			return fmt.Errorf("%s %d: want %d to %d", n.name, *n.value, n.least, n.most)
		}
	}
	return nil
}
