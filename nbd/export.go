package nbd

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"unicode/utf8"
)

// An Export is a device under its canonical name, and who may use it.
type Export struct {
	Name string
	// Device can be compared by ==; a pointer can.
	Device Device

	// Hidden keeps the export out of what NBD_OPT_LIST shows; clients that know its
	// name can use it.
	Hidden bool
	// TLSOnly reserves the export for clients that use TLS: others are told to use
	// it, and do not see the export listed.
	TLSOnly bool
	// AllowedNames, unless empty, reserves the export for clients with one of these
	// names in a verified certificate: as its common name or as a subject
	// alternative name of type DNS, email or URI. It implies TLSOnly. Other clients
	// are refused, and do not see the export listed.
	AllowedNames []string
	// MaxConnections is how many connections may use the export at once; zero
	// means that only Limits.MaxConnections counts.
	MaxConnections int
}

// Exports is what a Server offers.
//
// Concurrency: any goroutine.
type Exports interface {
	// Lookup finds the export a client asks for. The empty name asks for the
	// default export; the result carries the canonical name. It must not wait.
	Lookup(name string) (Export, bool)

	// List returns what NBD_OPT_LIST shows, in order.
	List() []Export
}

// An ExportSet is a set of exports that can be replaced as a whole. Connections
// keep the device that they were opened on; Server.DrainDevice ends them.
//
// Concurrency: any goroutine.
type ExportSet struct {
	current atomic.Pointer[exportTable]
}

type exportTable struct {
	list   []Export
	byName map[string]Export
}

var _ Exports = (*ExportSet)(nil)

// NewExportSet returns a set of exports; see Replace.
func NewExportSet(exports ...Export) (*ExportSet, error) {
	s := &ExportSet{}
	if err := s.Replace(exports...); err != nil {
		return nil, err
	}
	return s, nil
}

// Replace makes exports the whole set from now on. The first is also the
// default export, unless one has the empty name.
//
// Errors: a name that is used twice, or that the protocol cannot carry; the set
// is unchanged then.
func (s *ExportSet) Replace(exports ...Export) error {
	t := &exportTable{list: slices.Clone(exports), byName: make(map[string]Export, len(exports)+1)}
	for _, e := range exports {
		if err := CheckName(e.Name); err != nil {
			return err
		}
		if _, ok := t.byName[e.Name]; ok {
			return fmt.Errorf("nbd: export name %q is used twice", e.Name)
		}
		if e.Device == nil {
			return fmt.Errorf("nbd: export %q has no device", e.Name)
		}
		t.byName[e.Name] = e
	}
	if _, ok := t.byName[""]; !ok && len(exports) > 0 {
		t.byName[""] = exports[0]
	}
	s.current.Store(t)
	return nil
}

// Lookup implements Exports.
func (s *ExportSet) Lookup(name string) (Export, bool) {
	t := s.current.Load()
	if t == nil {
		return Export{}, false
	}
	e, ok := t.byName[name]
	return e, ok
}

// List implements Exports.
func (s *ExportSet) List() []Export {
	t := s.current.Load()
	if t == nil {
		return nil
	}
	return slices.Clone(t.list)
}

// CheckName says whether name can be an export's name: valid UTF-8 of at most
// 4096 bytes without NUL.
//
// Source: proto.md, "Values", string.
func CheckName(name string) error {
	switch {
	case len(name) > maxStringBytes:
		return fmt.Errorf("nbd: export name of %d bytes: want at most %d", len(name), maxStringBytes)
	case strings.IndexByte(name, 0) >= 0:
		return fmt.Errorf("nbd: export name %q contains NUL", name)
	case !utf8.ValidString(name):
		return fmt.Errorf("nbd: export name %q is not UTF-8", name)
	}
	return nil
}
