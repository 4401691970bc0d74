package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// ErrNotRunning means that no daemon answers at the admin socket.
var ErrNotRunning = errors.New("no daemon there")

// maxBodyBytes bounds what a client accepts as one answer.
const maxBodyBytes = 64 << 20

// timeout bounds one call whose context has no deadline of its own.
const timeout = 30 * time.Second

// A Client talks to one daemon. Any goroutine may call any method.
type Client struct {
	path string
	http *http.Client
}

// DefaultPath is where the daemon and its clients put the admin socket unless
// told otherwise: vhbad.sock in $XDG_RUNTIME_DIR if that is set, or in /run.
func DefaultPath() string {
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "vhbad.sock")
	}
	return "/run/vhbad.sock"
}

// New returns a client of the daemon at path; empty means DefaultPath. It does
// not connect yet.
func New(path string) *Client {
	if path == "" {
		path = DefaultPath()
	}
	var d net.Dialer
	return &Client{path: path, http: &http.Client{
		Timeout: timeout,
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return d.DialContext(ctx, "unix", path)
			},
		},
	}}
}

// Path is the admin socket.
func (c *Client) Path() string { return c.path }

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Status asks the daemon about itself.
//
// Errors: ErrNotRunning; one that names the socket for anything else.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	s := &Status{}
	if err := c.get(ctx, "/v1/status", s); err != nil {
		return nil, err
	}
	return s, nil
}

func (c *Client) get(ctx context.Context, path string, out any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://vhbad"+path, nil)
	if err != nil {
		return err
	}
	res, err := c.http.Do(req)
	if err != nil {
		return c.explain(err)
	}
	defer func() { _ = res.Body.Close() }()
	body := json.NewDecoder(io.LimitReader(res.Body, maxBodyBytes))
	if res.StatusCode != http.StatusOK {
		var p Problem
		if err := body.Decode(&p); err != nil || p.Message == "" {
			p.Message = res.Status
		}
		return fmt.Errorf("admin socket %s: %s", c.path, p.Message)
	}
	if err := body.Decode(out); err != nil {
		return fmt.Errorf("admin socket %s: %s: %w", c.path, path, err)
	}
	return nil
}

// explain says what to do about a connection that failed.
func (c *Client) explain(err error) error {
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("admin socket %s: %w: is `vhbad serve` running, and with this --admin?", c.path, ErrNotRunning)
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return fmt.Errorf("admin socket %s: permission denied: only the user who runs the daemon, and root, may use it", c.path)
	}
	return fmt.Errorf("admin socket %s: %w", c.path, err)
}
