package nbd_test

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
)

// tlsAttacks are those on the way into TLS and out of it.
func tlsAttacks() []attack {
	upgrade := append(hx(fixedNoZer), option(startTLS, nil)...)
	behind := func(b []byte) []byte { return append(bytes.Clone(upgrade), b...) }
	long := bytes.Repeat(hx(reqMagic, "0000", "0000", cookie, "0000000000000000", "00010000"), 300)
	lists := bytes.Repeat(option(list, nil), 100)
	return []attack{
		{name: "STARTTLS and silence", run: crowd(60, upgrade), dataless: true},
		{name: "ClientHello and silence", run: crowd(60, behind(clientHello()))},
		{name: "garbage after STARTTLS", run: crowd(60, behind(bytes.Repeat([]byte{0xa5}, 4096))), dataless: true},
		{name: "options in plain text after STARTTLS", run: crowd(60, behind(lists)), dataless: true},
		{name: "half of a TLS record", run: crowd(60, behind(hx("16", "0301", "4000", "010000"))), dataless: true},
		{name: "empty TLS records", run: crowd(20, behind(bytes.Repeat(hx("16", "0303", "0000"), 3000))), dataless: true},
		{name: "STARTTLS over and over", run: crowd(20, behind(bytes.Repeat(option(startTLS, nil), 1000))), dataless: true},
		{name: "STARTTLS with data", run: crowd(20, append(hx(fixedNoZer), bytes.Repeat(option(startTLS, make([]byte, 9)), 1000)...)), dataless: true},
		{name: "plain text within TLS", run: overTLS(0, func(_ *tls.Conn, nc net.Conn) { _, _ = nc.Write(lists) })},
		{name: "renegotiation that TLS has not", run: overTLS(tls.VersionTLS12, func(_ *tls.Conn, nc net.Conn) {
			// HelloRequest and ClientHello without encryption.
			_, _ = nc.Write(bytes.Repeat(hx("16", "0303", "0004", "00000000", "16", "0303", "0005", "0100000100"), 100))
		})},
		{name: "close_notify amid requests", run: overTLS(0, func(c *tls.Conn, _ net.Conn) {
			_, _ = c.Write(append(into()[4:], long...))
			_ = c.CloseWrite()
		})},
		{name: "close_notify, then more", run: overTLS(0, func(c *tls.Conn, nc net.Conn) {
			_ = c.CloseWrite()
			_, _ = nc.Write(bytes.Repeat([]byte{0x17}, 4096))
		})},
		{name: "a cut within a record", run: overTLS(0, func(c *tls.Conn, nc net.Conn) {
			_, _ = c.Write(into()[4:])
			_, _ = nc.Write(hx("17", "0303", "4000", "5555"))
			_ = nc.(*net.UnixConn).CloseWrite()
		})},
		{name: "TLS replies never read", run: overTLS(0, func(c *tls.Conn, _ net.Conn) {
			_, _ = c.Write(append(into()[4:], long...))
		})},
	}
}

// clientHello is how a client begins TLS. The server signs something in return.
func clientHello() []byte {
	ours, theirs := net.Pipe()
	go func() { _ = tls.Client(ours, &tls.Config{ServerName: "localhost"}).Handshake() }() // it ends with the pipe
	record := make([]byte, 5, 4096)
	_, err := io.ReadFull(theirs, record)
	if err == nil {
		record = record[:5+binary.BigEndian.Uint16(record[3:])]
		_, err = io.ReadFull(theirs, record[5:])
	}
	if err = errors.Join(err, theirs.Close(), ours.Close()); err != nil {
		panic(err) // memory does not fail
	}
	return record
}

// overTLS makes connections that shake hands by TLS, of the given version unless
// that is zero, and then do something. Writes may fail, as the server may hang up.
func overTLS(version uint16, then func(c *tls.Conn, nc net.Conn)) func(v *victim) ([]net.Conn, error) {
	const n = 20
	return func(v *victim) (conns []net.Conn, err error) {
		for range n {
			nc := v.knock()
			conns = append(conns, nc)
			if _, err := nc.Write(append(hx(fixedNoZer), option(startTLS, nil)...)); err != nil {
				return conns, err
			}
			if _, err := io.CopyN(io.Discard, nc, int64(len(hello)+20)); err != nil {
				return conns, err
			}
			config := v.tls.Clone()
			config.MaxVersion = version
			c := tls.Client(nc, config)
			if err := c.Handshake(); err != nil {
				return conns, err
			}
			then(c, nc)
		}
		return conns, nil
	}
}
