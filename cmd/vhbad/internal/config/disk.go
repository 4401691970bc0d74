package config

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxNameBytes is the longest name of a disk.
const MaxNameBytes = 255

// Block sizes that a disk may have, in bytes.
const (
	BlockBytes512  = 512
	BlockBytes4096 = 4096
)

// A Disk describes one disk: its name, which is also that of its export, where its bytes
// are, and its options.
type Disk struct {
	Name string `yaml:"name"`
	// Memory is the size of a disk in memory. Exactly one of Memory and File must be
	// set.
	Memory Size `yaml:"memory,omitempty"`
	// File is the path of an image.
	File string `yaml:"file,omitempty"`
	// Size creates the file with this size if it does not exist; zero uses the file as
	// it is.
	Size Size `yaml:"size,omitempty"`
	// Preallocate allocates space for the whole file on the file system.
	Preallocate bool `yaml:"preallocate,omitempty"`
	// BlockSize is the logical block size in bytes, 512 or 4096. Zero means 512.
	BlockSize   Size   `yaml:"block-size,omitempty"`
	ReadOnly    bool   `yaml:"read-only,omitempty"`
	Description string `yaml:"description,omitempty"`
	// Hidden keeps the disk out of the list of exports.
	Hidden bool `yaml:"hidden,omitempty"`
	// TLSOnly reserves the disk for clients that use TLS.
	TLSOnly bool `yaml:"tls-only,omitempty"`
	// Allow, unless empty, reserves the disk for clients with one of these names in
	// their certificate: common name, or DNS, email or URI alternative name.
	Allow []string `yaml:"allow,omitempty"`
	// Connections is how many clients may use the disk at once; zero means that the disk
	// has no limit of its own.
	Connections int `yaml:"connections,omitempty"`
	// Cache is "none" (default) or "writeback": a volatile write cache, whose power can
	// be cut. CacheSize, CacheEviction, CacheSeed, Trace and Hostile need it.
	Cache string `yaml:"cache,omitempty"`
	// CacheSize is how much the cache holds. The default is 64 MiB.
	CacheSize Size `yaml:"cache-size,omitempty"`
	// CacheEviction is "fifo" (default), "random" (drawn by CacheSeed) or "none".
	CacheEviction string `yaml:"cache-eviction,omitempty"`
	// CacheSeed varies what a random CacheEviction draws.
	CacheSeed uint64 `yaml:"cache-seed,omitempty"`
	// Trace is the path of a file that records what the disk does, so that power cuts
	// can be replayed.
	Trace string `yaml:"trace,omitempty"`
	// Hostile lists the promises that the disk breaks from the start: "lying-flush",
	// "ignored-fua".
	Hostile []string `yaml:"hostile,omitempty"`
}

// Kinds of write cache.
const (
	CacheNone      = "none"
	CacheWriteback = "writeback"
)

// HostileActs are what Disk.Hostile may hold.
var HostileActs = []string{"lying-flush", "ignored-fua"}

// CacheEvictions are what Disk.CacheEviction may be, the default first.
var CacheEvictions = []string{"fifo", "random", "none"}

// Limits of a write cache.
const (
	MinCacheSize = 64 * KiB
	MaxCacheSize = 4 * GiB
)

// Backend names the kind of medium.
func (d *Disk) Backend() string {
	if d.File != "" {
		return "file"
	}
	return "memory"
}

const (
	specForms   = "want NAME=memory:SIZE or NAME=file:PATH, with options after commas"
	specOptions = "options are size=SIZE and preallocate (file only), block-size=512|4096, read-only, hidden, tls-only, allow=NAME (several times), connections=N, cache=none|writeback, cache-size=SIZE, cache-eviction=fifo|random|none, cache-seed=N, trace=PATH, hostile=ACT (several times) and description=TEXT; a comma inside a value is written twice"
)

// ParseDisk reads the command line's form of a disk:
//
//	NAME=memory:SIZE[,OPTION]...
//	NAME=file:PATH[,size=SIZE][,preallocate][,OPTION]...
//
// where OPTION is block-size=512|4096, read-only, hidden, tls-only, allow=NAME,
// connections=N, cache=none|writeback, cache-size=SIZE, cache-eviction=HOW,
// cache-seed=N, trace=PATH, hostile=ACT or description=TEXT. A comma inside a value is written twice, as in qemu.
func ParseDisk(spec string) (Disk, error) {
	d, err := parseDisk(spec)
	if err != nil {
		return Disk{}, fmt.Errorf("disk %q: %w", spec, err)
	}
	return d, nil
}

func parseDisk(spec string) (Disk, error) {
	name, rest, ok := strings.Cut(spec, "=")
	if !ok {
		return Disk{}, errors.New(specForms)
	}
	kind, rest, ok := strings.Cut(rest, ":")
	if !ok {
		return Disk{}, errors.New(specForms)
	}
	parts := splitOptions(rest)
	d := Disk{Name: name}
	switch kind {
	case "memory":
		size, err := ParseSize(parts[0])
		if err != nil {
			return Disk{}, err
		}
		if size == 0 {
			return Disk{}, fmt.Errorf("size %w", zeroOfDisk("memory"))
		}
		d.Memory = size
	case "file":
		if parts[0] == "" {
			return Disk{}, errors.New("the path is empty: " + specForms)
		}
		d.File = parts[0]
	default:
		return Disk{}, fmt.Errorf("medium %q is not known: %s", kind, specForms)
	}
	seen := make(map[string]bool, len(parts))
	for _, option := range parts[1:] {
		key, value, hasValue := strings.Cut(option, "=")
		if seen[key] && key != "allow" && key != "hostile" {
			return Disk{}, fmt.Errorf("option %q is given twice", key)
		}
		seen[key] = true
		if err := d.setOption(key, value, hasValue); err != nil {
			return Disk{}, err
		}
	}
	return d, d.check()
}

func (d *Disk) setOption(key, value string, hasValue bool) error {
	flag := map[string]*bool{"read-only": &d.ReadOnly, "hidden": &d.Hidden, "tls-only": &d.TLSOnly, "preallocate": &d.Preallocate}[key]
	if flag != nil {
		*flag = true
		if hasValue {
			on, err := strconv.ParseBool(value)
			if err != nil {
				return fmt.Errorf("%s=%q: want true or false", key, value)
			}
			*flag = on
		}
		return nil
	}
	if !hasValue && slices.Contains(diskOptions(), key) {
		return fmt.Errorf("option %q: its value is missing: %s", key, specOptions)
	}
	switch key {
	case "size":
		return setSize(&d.Size, key, value)
	case "block-size":
		return setSize(&d.BlockSize, key, value)
	case "description":
		d.Description = value
		return nil
	case "allow":
		d.Allow = append(d.Allow, value)
		return nil
	case "connections":
		n, err := strconv.Atoi(value)
		if err != nil || n == 0 {
			return fmt.Errorf("connections=%q: want 1 to %d", value, MaxConnections)
		}
		d.Connections = n
		return nil
	}
	return d.setCacheOption(key, value)
}

// setSize sets an option that is a size.
func setSize(size *Size, key, value string) error {
	if err := size.Set(value); err != nil {
		return err
	}
	if *size == 0 {
		return fmt.Errorf("%s %w", key, zeroOfDisk(key))
	}
	return nil
}

// zeroOfDisk returns why a key of a disk cannot be 0, nil if it can. A key that is left out
// means another number.
func zeroOfDisk(key string) error {
	switch key {
	case "memory", "size":
		return errors.New("is 0: want at least one block")
	case "block-size":
		return fmt.Errorf("is 0: want %d or %d", BlockBytes512, BlockBytes4096)
	case "cache-size":
		return fmt.Errorf("is 0: want %s to %s, or cache %s", MinCacheSize, MaxCacheSize, CacheNone)
	case "connections":
		return fmt.Errorf("is 0: want 1 to %d, or nothing for no limit", MaxConnections)
	}
	return nil
}

func (d *Disk) setCacheOption(key, value string) (err error) {
	switch key {
	case "cache":
		d.Cache = value
		return nil
	case "cache-size":
		return setSize(&d.CacheSize, key, value)
	case "cache-eviction":
		d.CacheEviction = value
		return nil
	case "cache-seed":
		if d.CacheSeed, err = strconv.ParseUint(value, 10, 64); err != nil {
			return fmt.Errorf("cache-seed=%q: want a whole number", value)
		}
		return nil
	case "trace":
		d.Trace = value
		return nil
	case "hostile":
		d.Hostile = append(d.Hostile, value)
		return nil
	}
	return fmt.Errorf("option %q is not known: %s", key, meantOr(key, diskOptions(), specOptions))
}

// diskOptions lists the options that setOption knows: all keys of a disk but what comes
// before the first comma.
func diskOptions() []string {
	return slices.DeleteFunc(keys(reflect.TypeFor[Disk]().Name()), func(key string) bool {
		return key == "name" || key == "memory" || key == "file"
	})
}

// splitOptions splits at single commas and turns double ones into one.
func splitOptions(s string) []string {
	var parts []string
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] != ',':
			b.WriteByte(s[i])
		case i+1 < len(s) && s[i+1] == ',':
			b.WriteByte(',')
			i++
		default:
			parts = append(parts, b.String())
			b.Reset()
		}
	}
	return append(parts, b.String())
}

// blockBytes returns the block size, with its default.
func (d *Disk) blockBytes() Size {
	if d.BlockSize == 0 {
		return BlockBytes512
	}
	return d.BlockSize
}

// check reports what is wrong with d on its own.
func (d *Disk) check() error {
	if err := CheckName(d.Name); err != nil {
		return err
	}
	if (d.Memory != 0) == (d.File != "") {
		return fmt.Errorf("want either memory (a size) or file (a path), not %s", map[bool]string{true: "both", false: "neither"}[d.File != ""])
	}
	block := d.blockBytes()
	if block != BlockBytes512 && block != BlockBytes4096 {
		return fmt.Errorf("block-size %d: want %d or %d", block, BlockBytes512, BlockBytes4096)
	}
	if d.Memory < 0 || d.Size < 0 {
		return fmt.Errorf("size %d: want at least one block, %d bytes", int64(d.Memory+d.Size), int64(block))
	}
	if d.Memory != 0 && d.Size != 0 {
		return errors.New("size belongs to a file; a memory disk has its size after memory")
	}
	if d.Preallocate && (d.File == "" || d.ReadOnly) {
		return errors.New("preallocate is for a file that may be written: memory is allocated as it is written, and a read-only disk is not")
	}
	if size := d.Memory + d.Size; size%block != 0 {
		return fmt.Errorf("size %d is not a multiple of the block size %d: the next smaller is %d", size, block, size-size%block)
	}
	if len(d.Description) > 4096 || !utf8.ValidString(d.Description) || strings.ContainsRune(d.Description, 0) {
		return errors.New("description: want at most 4096 bytes of UTF-8 without NUL")
	}
	if d.Connections < 0 || d.Connections > MaxConnections {
		return fmt.Errorf("connections %d: want 1 to %d, or nothing for no limit", d.Connections, MaxConnections)
	}
	if err := d.checkCache(); err != nil {
		return err
	}
	if slices.Contains(d.Allow, "") {
		return errors.New("allow: a name is empty: want a common name, or a DNS, email or URI alternative name")
	}
	return nil
}

// checkCache is the part of check for the write cache.
func (d *Disk) checkCache() error {
	if d.Cache != "" && d.Cache != CacheNone && d.Cache != CacheWriteback {
		return fmt.Errorf("cache %q: want %s or %s", d.Cache, CacheNone, CacheWriteback)
	}
	if d.CacheEviction != "" && !slices.Contains(CacheEvictions, d.CacheEviction) {
		return fmt.Errorf("cache-eviction %q: want one of %s", d.CacheEviction, strings.Join(CacheEvictions, ", "))
	}
	for _, act := range d.Hostile {
		if !slices.Contains(HostileActs, act) {
			return fmt.Errorf("hostile %q: want %s", act, strings.Join(HostileActs, " or "))
		}
	}
	if d.CacheSize != 0 && (d.CacheSize < MinCacheSize || d.CacheSize > MaxCacheSize || d.CacheSize%d.blockBytes() != 0) {
		return fmt.Errorf("cache-size %d: want a multiple of the block size %d from %s to %s",
			d.CacheSize, d.blockBytes(), MinCacheSize, MaxCacheSize)
	}
	if d.Cache != CacheWriteback && (d.CacheSize != 0 || d.CacheEviction != "" || d.CacheSeed != 0 || d.Trace != "" || len(d.Hostile) != 0) {
		return fmt.Errorf("cache-size, cache-eviction, cache-seed, trace and hostile are about a write cache: want cache %s with them", CacheWriteback)
	}
	return nil
}

// CheckName reports why name cannot be that of a disk.
func CheckName(name string) error {
	switch {
	case name == "":
		return errors.New("the name is empty: want 1 to 255 bytes")
	case len(name) > MaxNameBytes:
		return fmt.Errorf("name of %d bytes: want 1 to %d", len(name), MaxNameBytes)
	case !utf8.ValidString(name):
		return fmt.Errorf("name %q is not UTF-8", name)
	case strings.ContainsFunc(name, unicode.IsControl):
		return fmt.Errorf("name %q contains a NUL or another control character", name)
	case strings.TrimSpace(name) != name:
		return fmt.Errorf("name %q begins or ends with a space", name)
	}
	return nil
}

// String returns the command line's form of d.
func (d Disk) String() string {
	quote := func(s string) string { return strings.ReplaceAll(s, ",", ",,") }
	var b strings.Builder
	b.WriteString(d.Name + "=")
	if d.File == "" {
		b.WriteString("memory:" + d.Memory.String())
	} else {
		b.WriteString("file:" + quote(d.File))
	}
	if d.Size != 0 {
		b.WriteString(",size=" + d.Size.String())
	}
	if d.Preallocate {
		b.WriteString(",preallocate")
	}
	if d.BlockSize != 0 {
		b.WriteString(",block-size=" + d.BlockSize.String())
	}
	if d.ReadOnly {
		b.WriteString(",read-only")
	}
	if d.Hidden {
		b.WriteString(",hidden")
	}
	if d.TLSOnly {
		b.WriteString(",tls-only")
	}
	for _, name := range d.Allow {
		b.WriteString(",allow=" + quote(name))
	}
	if d.Connections != 0 {
		b.WriteString(",connections=" + strconv.Itoa(d.Connections))
	}
	for _, o := range []struct{ key, value string }{{"cache", d.Cache}, {"cache-eviction", d.CacheEviction}} {
		if o.value != "" {
			b.WriteString("," + o.key + "=" + o.value)
		}
	}
	if d.CacheSize != 0 {
		b.WriteString(",cache-size=" + d.CacheSize.String())
	}
	if d.CacheSeed != 0 {
		b.WriteString(",cache-seed=" + strconv.FormatUint(d.CacheSeed, 10))
	}
	if d.Trace != "" {
		b.WriteString(",trace=" + quote(d.Trace))
	}
	for _, act := range d.Hostile {
		b.WriteString(",hostile=" + act)
	}
	if d.Description != "" {
		b.WriteString(",description=" + quote(d.Description))
	}
	return b.String()
}
