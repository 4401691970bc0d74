package nbd

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"testing"

	"github.com/vhbad/vhbad/nbd/socket"
)

// TestTLSStream_Read: one read fills all buffers, in their order, with what has arrived.
func TestTLSStream_Read(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := socketPair(t)
	records := newRecordConn(ours)
	server := tls.Server(records, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	want := bytes.Repeat([]byte("0123456789"), 20)
	sent := make(chan error, 1)
	go func() {
		client := tls.Client(theirs, &tls.Config{InsecureSkipVerify: true})
		_, err := client.Write(want) // one record
		sent <- errors.Join(err, client.CloseWrite())
	}()
	if err := server.Handshake(); err != nil {
		t.Fatal(err)
	}
	s := newTLSStream(server, records, newSocketStream(ours))
	s.begin()
	bufs := [][]byte{make([]byte, 3), nil, make([]byte, 5), make([]byte, 200)}
	n, err := s.read(bufs, false)
	if got := bytes.Join(bufs, nil); err != nil || n != len(want) || !bytes.Equal(got[:n], want) {
		t.Errorf("%d bytes, %q, and %v; want the %d that were sent", n, got[:n], err, len(want))
	}
	if n, err := s.read(bufs, false); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %d and %v", n, err)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

// socketPair makes both ends of a connection, ours taken from the runtime.
func socketPair(t *testing.T) (ours *socket.Conn, theirs net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	theirs, err = net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	nc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if ours, err = socket.Take(nc); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = ours.Close(), theirs.Close() })
	return ours, theirs
}
