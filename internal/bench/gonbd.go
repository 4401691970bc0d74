package main

import (
	"fmt"
	"net"
	"os"

	"github.com/pojntfx/go-nbd/pkg/backend"
	"github.com/pojntfx/go-nbd/pkg/server"
)

// serveGoNBD serves memory by the server of github.com/pojntfx/go-nbd.
func serveGoNBD(socket string, sizeBytes int64) error {
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	export := &server.Export{Backend: backend.NewMemoryBackend(make([]byte, sizeBytes))}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer func() { _ = c.Close() }()
			if err := server.Handle(c, []*server.Export{export}, &server.Options{SupportsMultiConn: true}); err != nil {
				_, _ = fmt.Fprintln(os.Stderr, "go-nbd:", err)
			}
		}()
	}
}
