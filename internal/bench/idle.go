package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"
)

// The row that says what idle connections cost.
const (
	idleRow         = "idle-1000"
	idleConnections = 1000
	// idleSettle is how long they are left alone first: what the server keeps for a while
	// after the last request is given back by then, and what it looks at then rests.
	idleSettle = 12 * time.Second
	idleTime   = 10 * time.Second

	idleBytesTarget = 64 * kib
	// idleBusyTarget is as good as nothing, in percent of one processor.
	idleBusyTarget = 0.2
)

// verdicts judges what was measured.
func (r *idleResult) verdicts() []reportRow {
	if r == nil || r.Connections != idleConnections || r.Seconds == 0 {
		return nil
	}
	each, busy := float64(r.BytesEach)/kib, 100*r.Busy.Seconds()/r.Seconds
	return []reportRow{
		judged(reportRow{Row: idleRow, Metric: kibEach, Target: idleBytesTarget / kib, Ours: each}, []float64{each}),
		judged(reportRow{Row: idleRow, Metric: busyPercent, Target: idleBusyTarget, Ours: busy}, []float64{busy}),
	}
}

// idle measures what idle connections cost: bytes for each, and the processor time that the
// server uses while nothing happens.
func (b *bench) idle() (bytesEach int64, busy time.Duration, err error) {
	b.shop.extra = []string{"--connections", fmt.Sprint(idleConnections + 1)}
	p, err := b.shop.start(vhbadMemory, diskBytes, "")
	b.shop.extra = nil
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	u, err := url.Parse(strings.Replace(p.uri, "nbd+unix:///", "nbd+unix://x/", 1))
	if err != nil {
		return 0, 0, err
	}
	before, err := residentBytes(p.pid())
	if err != nil {
		return 0, 0, err
	}
	conns := make([]net.Conn, 0, idleConnections)
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	for range idleConnections {
		c, err := enter(u.Query().Get("socket"))
		if err != nil {
			return 0, 0, fmt.Errorf("connection %d: %w", len(conns)+1, err)
		}
		conns = append(conns, c)
	}
	<-time.After(idleSettle)
	after, err := residentBytes(p.pid())
	if err != nil {
		return 0, 0, err
	}
	begin, err := runTime(p.pid())
	if err != nil {
		return 0, 0, err
	}
	<-time.After(idleTime)
	end, err := runTime(p.pid())
	return (after - before) / idleConnections, end - begin, err
}

// enter makes a connection and enters transmission by EXPORT_NAME. It makes one read, so
// that the connection holds everything that a used one does.
func enter(socket string) (net.Conn, error) {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	hello := make([]byte, 18)
	if _, err := io.ReadFull(c, hello); err != nil {
		return c, err
	}
	b := binary.BigEndian.AppendUint32(nil, 3)
	b = append(b, "IHAVEOPT"...)
	b = binary.BigEndian.AppendUint32(b, optionExportName)
	b = binary.BigEndian.AppendUint32(b, 0)
	if _, err := c.Write(b); err != nil {
		return c, err
	}
	if _, err := io.ReadFull(c, make([]byte, 10)); err != nil {
		return c, err
	}
	request := slices.Concat([]byte{0x25, 0x60, 0x95, 0x13, 0, 0, 0, 0}, make([]byte, 16), binary.BigEndian.AppendUint32(nil, 4096))
	if _, err := c.Write(request); err != nil {
		return c, err
	}
	_, err = io.ReadFull(c, make([]byte, replyBytes+4096))
	return c, err
}
