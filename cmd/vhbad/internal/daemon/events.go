package daemon

import (
	"fmt"
	"log/slog"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/port"
)

// What the layers below tell becomes events here. None of it waits.

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

func (d *Daemon) resetDone(r port.ResetReport) {
	d.events.Publish(client.EventReset, d.diskOf(r.Unit),
		slog.String("level", r.Level.String()), slog.String("address", unitAddress(r.Unit)),
		slog.Bool("ok", r.OK), slog.Int("outstanding", r.Outstanding))
}

func (d *Daemon) violation(v port.Violation) {
	d.events.Publish(client.EventViolation, "", slog.String("check", v.Check.String()), slog.String("what", v.What))
}

// diskOf is the name of the disk on a unit, empty while there is none.
func (d *Daemon) diskOf(lu *port.LogicalUnit) string {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.machine == nil {
		return ""
	}
	for _, e := range d.machine.list() {
		if e.LogicalUnit() == lu {
			return e.name()
		}
	}
	return ""
}

// unitAddress is bus, target and unit, as in "0:0:3".
func unitAddress(lu *port.LogicalUnit) string {
	return fmt.Sprintf("%d:%d:%d", lu.Path(), lu.Target(), lu.Lun())
}
