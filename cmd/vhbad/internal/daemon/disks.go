package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/sandbox"
	"github.com/vhbad/vhbad/hba"
	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/hba/target"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/port"
	"github.com/vhbad/vhbad/port/disk"
)

// An export is a disk under its name: a medium, the unit on it, the port's view of the
// unit, and what clients are told. The daemon provides the description: a unit knows only
// its serial number.
type export struct {
	*disk.Disk // set by attach

	medium         media.Media
	failures       *failureLog
	power          *power
	unit           *target.Unit
	device         *hba.Device // set by place, with the address
	targetID, lun  uint8
	settings       atomic.Pointer[config.Disk]
	leaving        atomic.Bool // it is being removed
	unplugged      atomic.Bool // its unit has gone; see plug.go
	fromAPI        atomic.Bool // it is not in the configuration
	createdTheFile bool
}

var _ nbd.Greeter = (*export)(nil)

// config returns the export's configuration, which is only ever replaced as a whole.
func (e *export) config() *config.Disk { return e.settings.Load() }

func (e *export) name() string { return e.config().Name }

func (e *export) state() client.DiskState {
	if e.leaving.Load() {
		return client.DiskLeaving
	}
	if e.unplugged.Load() {
		return client.DiskUnplugged
	}
	return client.DiskServing
}

func (e *export) origin() client.DiskOrigin {
	if e.fromAPI.Load() {
		return client.OriginAPI
	}
	return client.OriginConfiguration
}

// Info implements nbd.Device.
func (e *export) Info() nbd.Info {
	i := e.Disk.Info()
	i.Description = e.config().Description
	return i
}

// Greet implements nbd.Greeter.
func (e *export) Greet(over func()) (stop func() bool) {
	return e.device.Handshake(e.targetID, e.lun, over)
}

// list returns the disks in their order. The slice must not be changed.
func (m *machine) list() []*export { return *m.disks.Load() }

// find returns the disk of that name, or nil.
func (m *machine) find(name string) *export {
	for _, e := range m.list() {
		if e.name() == name {
			return e
		}
	}
	return nil
}

// exportAt returns the disk at an address of the device, or nil.
func (m *machine) exportAt(targetID, lun uint8) *export {
	for _, e := range m.list() {
		if e.targetID == targetID && e.lun == lun {
			return e
		}
	}
	return nil
}

// publish makes disks the list. The exports become those of them that are plugged in and
// not leaving.
func (m *machine) publish(disks []*export) error {
	if err := m.exports.Replace(exportList(disks)...); err != nil {
		return err
	}
	m.disks.Store(&disks)
	return nil
}

func exportList(disks []*export) []nbd.Export {
	var out []nbd.Export
	for _, e := range disks {
		if c := e.config(); !e.leaving.Load() && !e.unplugged.Load() {
			out = append(out, nbd.Export{
				Name: c.Name, Device: e,
				Hidden: c.Hidden, TLSOnly: c.TLSOnly, AllowedNames: c.Allow, MaxConnections: c.Connections,
			})
		}
	}
	return out
}

// A mediaSet holds the open media and the names of their disks.
//
// Concurrency: any goroutine.
type mediaSet struct {
	mu sync.Mutex
	// +checklocks:mu
	names map[media.Media]string
}

func (s *mediaSet) add(md media.Media, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.names == nil {
		s.names = make(map[media.Media]string)
	}
	s.names[md] = name
}

// close closes a medium, unless it is closed already.
func (s *mediaSet) close(md media.Media) error {
	s.mu.Lock()
	_, there := s.names[md]
	delete(s.names, md)
	s.mu.Unlock()
	if !there {
		return nil
	}
	return md.Close()
}

// closeAll closes the rest.
func (s *mediaSet) closeAll(context.Context) error {
	s.mu.Lock()
	names := s.names
	s.names = nil
	s.mu.Unlock()
	var errs []error
	for md := range maps.Keys(names) {
		if err := md.Close(); err != nil {
			errs = append(errs, fmt.Errorf("disk %q: %w", names[md], err))
		}
	}
	return errors.Join(errs...)
}

// openDisks opens the disks of the configuration.
func (d *Daemon) openDisks(ctx context.Context, m *machine) error {
	d.push("media", m.media.closeAll)
	var disks []*export
	for i := range d.o.Config.Disks {
		e, err := d.openDisk(ctx, m, &d.o.Config.Disks[i])
		if err != nil {
			return err
		}
		disks = append(disks, e)
	}
	m.disks.Store(&disks)
	d.pushAlways("failures", func(context.Context) error {
		for _, e := range m.list() {
			e.failures.end()
		}
		return nil
	})
	return nil
}

// openDisk opens a disk's medium and makes its unit, which is not attached to anything yet.
// Slow operations end with ctx.
func (d *Daemon) openDisk(ctx context.Context, m *machine, c *config.Disk) (e *export, err error) {
	creates := false
	if c.File != "" && c.Size != 0 {
		_, err := os.Lstat(c.File)
		creates = errors.Is(err, fs.ErrNotExist)
	}
	open := d.o.OpenMedium
	if open == nil {
		open = func(c *config.Disk) (media.Media, error) {
			md, err := d.preallocate(ctx, c)
			if format := formatOf(md, c, err); format != "" {
				d.log.Warn("the image is no raw one: clients see its bytes as they are, and what they write may ruin it", "disk", c.Name, "file", c.File, "format", format)
			}
			return md, err
		}
	}
	md, err := open(c)
	if err != nil {
		return nil, fmt.Errorf("disk %q: %w", c.Name, err)
	}
	defer func() {
		if err != nil && creates {
			d.removeMade(c)
		}
	}()
	rec, err := d.record(md, c)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("disk %q: %w", c.Name, err), md.Close())
	}
	wc, err := withCache(md, c, d.o.Config.Hostile, rec.recorder())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("disk %q: %w", c.Name, err), rec.Close(), md.Close())
	}
	switch {
	case rec != nil:
		md = &recorded{wc, rec}
	case wc != nil:
		md = wc
	}
	m.media.add(md, c.Name)
	failures := &failureLog{log: d.log.With("disk", c.Name)}
	e = &export{medium: md, failures: failures, power: &power{cache: wc, trace: rec}, createdTheFile: creates}
	e.settings.Store(c)
	e.unit, err = target.NewUnit(md, target.Config{
		Serial: serial(c.Name), BlockBytes: uint32(c.BlockSize), ReadOnly: c.ReadOnly,
		// A file's writes are in the page cache until a flush, and clients know to
		// flush: writing through would cost an fdatasync each. Memory has nothing
		// before it.
		WriteCache: true, NoCache: isMemory(md),
		MediumFailed: failures.tell,
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("disk %q: %w", c.Name, err), m.media.close(md))
	}
	e.power.unit = e.unit
	e.power.nexus.Store(1)
	return e, nil
}

// removeMade removes a disk's file that was created in vain. In the sandbox, where files
// cannot be removed, it at least empties it.
func (d *Daemon) removeMade(c *config.Disk) {
	if err := os.Remove(c.File); err != nil {
		err = errors.Join(err, os.Truncate(c.File, 0))
		d.log.Warn("a file that was made for nothing is left", "file", c.File, "error", err)
	}
}

// isMemory reports whether a medium is memory, without a write cache of ours.
func isMemory(md media.Media) bool {
	_, is := md.(*media.Memory)
	return is
}

// A Progress shows how far something has come.
type Progress interface {
	// Update tells how much is done. When done reaches total, the task is over.
	Update(done, total int64)
	// End says that there will be no more updates, whether the task is done or not.
	End()
}

// preallocate opens a disk's medium, shows the progress of preallocating it if it is to be
// preallocated, and gives up with ctx.
func (d *Daemon) preallocate(ctx context.Context, c *config.Disk) (media.Media, error) {
	var shown Progress
	defer func() {
		if shown != nil {
			shown.End()
		}
	}()
	return openMedium(c, func(done, total int64) error {
		switch {
		case d.o.Progress != nil:
			if shown == nil { // the first piece is done
				shown = d.o.Progress("preallocating disk " + c.Name)
			}
			shown.Update(done, total)
		case done == total:
			d.log.Info("disk preallocated", "disk", c.Name, "size_bytes", total)
		}
		return ctx.Err()
	})
}

// formatOf returns the format of an opened image as far as its beginning tells, empty for a
// raw one.
func formatOf(md media.Media, c *config.Disk, err error) string {
	var begin [8]byte
	if err != nil || c.File == "" {
		return ""
	}
	if _, err := md.ReadAt(begin[:], 0); err != nil {
		return "" // reads will report the error
	}
	for magic, format := range map[string]string{"QFI\xfb": "qcow2", "KDMV": "vmdk", "vhdxfile": "vhdx"} {
		if strings.HasPrefix(string(begin[:]), magic) {
			if format == "qcow2" && begin[7] == 1 { // the end of the version: 2 and 3 are the newer format
				return "qcow"
			}
			return format
		}
	}
	return ""
}

func openMedium(c *config.Disk, progress func(done, total int64) error) (media.Media, error) {
	if c.File == "" {
		return media.NewMemory(media.MemoryConfig{SizeBytes: int64(c.Memory)})
	}
	if err := sandbox.Reaches(c.File); err != nil {
		return nil, err
	}
	f := fileConfig(c)
	f.Progress = progress
	return media.OpenFile(f)
}

func fileConfig(c *config.Disk) media.FileConfig {
	return media.FileConfig{
		Path: c.File, SizeBytes: int64(c.Size), BlockBytes: uint32(c.BlockSize), ReadOnly: c.ReadOnly, Preallocate: c.Preallocate,
	}
}

// place attaches a unit at the first address that is free.
func (m *machine) place(e *export) error {
	m.addressMu.Lock()
	i := slices.Index(m.addresses[:], false)
	if i >= 0 {
		m.addresses[i] = true
	}
	m.addressMu.Unlock()
	if i < 0 {
		return fmt.Errorf("%d disks are all that there is room for", config.MaxDisks)
	}
	e.device, e.targetID, e.lun = m.device, uint8(i/config.UnitsPerTarget), uint8(i%config.UnitsPerTarget)
	err := m.device.AddUnit(e.targetID, e.lun, e.unit)
	if err != nil {
		m.free(e)
	}
	return err
}

// free gives an address back. Neither the device nor the port has a unit there any more.
func (m *machine) free(e *export) {
	m.addressMu.Lock()
	defer m.addressMu.Unlock()
	m.addresses[int(e.targetID)*config.UnitsPerTarget+int(e.lun)] = false
}

// attachDisks makes a disk of each unit that the port has found.
func (d *Daemon) attachDisks(m *machine) error {
	for _, e := range m.list() {
		lu := m.units.at(e.targetID, e.lun)
		if lu == nil {
			return fmt.Errorf("disk %q: no logical unit has been found at [0:%d:%d]", e.name(), e.targetID, e.lun)
		}
		if err := d.attach(m, e, lu); err != nil {
			return err
		}
	}
	d.push("flush", m.flush)
	d.push("power", m.cuts.stop)
	return nil
}

// attach asks a unit what it is, and makes it the export's if it says so.
func (d *Daemon) attach(m *machine, e *export, lu *port.LogicalUnit) error {
	return m.onProcessor("attach", func(p *port.Processor) error {
		dk, err := disk.Attach(p, lu, disk.Options{Arena: m.arena, TimeoutSecs: seconds(d.o.Config.HBA.SRBTimeout), Log: d.log, Nexus: &e.power.nexus})
		if err != nil {
			return fmt.Errorf("disk %q: %w", e.name(), err)
		}
		if dk.Serial() != serial(e.name()) {
			return fmt.Errorf("disk %q: %s has serial number %q", e.name(), lu, dk.Serial())
		}
		e.Disk = dk
		return nil
	})
}

// maxSerialBytes is the longest serial number that a unit takes; see
// target.Config.
const maxSerialBytes = 32

// serial is the serial number of the disk's unit: its name, or a hash of it if
// the name is too long for one or is not ASCII. It does not change from one start
// to the next.
func serial(name string) string {
	foreign := func(r rune) bool { return r < ' ' || r > '~' }
	if len(name) <= maxSerialBytes && !strings.ContainsFunc(name, foreign) {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:maxSerialBytes/2])
}

// A unitWatch knows which units the port has, by what enumerations have found.
//
// Concurrency: any goroutine.
type unitWatch struct {
	// tell, unless nil, is called after each change. It must not wait.
	tell func()

	mu sync.Mutex
	// +checklocks:mu
	units []*port.LogicalUnit
	// changed is closed at the next change, if somebody waits for it.
	// +checklocks:mu
	changed chan struct{}
}

// update is a callback for port.Adapter.OnUnitsChanged.
func (w *unitWatch) update(added, removed []*port.LogicalUnit) {
	if w.tell != nil {
		defer w.tell()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.units = slices.DeleteFunc(w.units, func(lu *port.LogicalUnit) bool { return slices.Contains(removed, lu) })
	w.units = append(w.units, added...)
	if w.changed != nil {
		close(w.changed)
		w.changed = nil
	}
}

// at returns the unit at an address, or nil.
func (w *unitWatch) at(targetID, lun uint8) *port.LogicalUnit {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.atLocked(targetID, lun)
}

// +checklocks:w.mu
func (w *unitWatch) atLocked(targetID, lun uint8) *port.LogicalUnit {
	for _, lu := range w.units {
		if lu.Path() == 0 && lu.Target() == targetID && lu.Lun() == lun {
			return lu
		}
	}
	return nil
}

// wait waits until an address has a unit or, if there is false, until it has none, and
// returns the unit.
//
// Errors: that of ctx.
func (w *unitWatch) wait(ctx context.Context, targetID, lun uint8, there bool) (*port.LogicalUnit, error) {
	for {
		w.mu.Lock()
		lu := w.atLocked(targetID, lun)
		if (lu != nil) == there {
			w.mu.Unlock()
			return lu, nil
		}
		if w.changed == nil {
			w.changed = make(chan struct{})
		}
		changed := w.changed
		w.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
