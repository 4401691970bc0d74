package daemon

import (
	"fmt"
	"log/slog"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/port"
)

// What the layers below report becomes events here. None of this may wait, not even for one
// of the daemon's locks: whoever holds that may be waiting for the layer that reports.

func (d *Daemon) connectionOpened(c nbd.ConnStats) {
	d.events.Publish(client.EventConnectionOpened, c.Export,
		slog.Uint64("connection", c.ID), slog.String("remote", c.Remote), slog.String("tls", c.TLS),
		slog.String("client", c.ClientName), slog.String("replies", c.Replies))
}

func (d *Daemon) connectionClosed(c nbd.ConnStats, why nbd.CloseReason) {
	d.events.Publish(client.EventConnectionClosed, c.Export,
		slog.Uint64("connection", c.ID), slog.String("remote", c.Remote), slog.String("reason", why.String()),
		slog.Uint64("requests", c.Requests), slog.Uint64("received_bytes", c.ReceivedBytes), slog.Uint64("sent_bytes", c.SentBytes))
}

// logged is an attribute for err that the log has even if err is nil.
func logged(err error) slog.Attr {
	if err == nil {
		return slog.String("error", "")
	}
	return slog.Any("error", err)
}

func (d *Daemon) resetDone(m *machine, r port.ResetReport) {
	disk, address := "", fmt.Sprint(r.Path) // the address of a bus without units
	if r.Unit != nil {
		disk, address = m.diskOf(r.Unit), unitAddress(r.Unit)
	}
	d.events.Publish(client.EventReset, disk,
		slog.String("level", r.Level.String()), slog.String("address", address),
		slog.Bool("ok", r.OK), slog.Int("outstanding", r.Outstanding))
}

func (d *Daemon) violation(v port.Violation) {
	d.events.Publish(client.EventViolation, "", slog.String("check", v.Check.String()), slog.String("what", v.What))
}

// diskOf returns the name of the disk on a unit, empty if there is none.
func (m *machine) diskOf(lu *port.LogicalUnit) string {
	if e := m.exportAt(lu.Target(), lu.Lun()); e != nil {
		return e.name()
	}
	return ""
}

// unitAddress is bus, target and unit, as in "0:0:3".
func unitAddress(lu *port.LogicalUnit) string {
	return fmt.Sprintf("%d:%d:%d", lu.Path(), lu.Target(), lu.Lun())
}
