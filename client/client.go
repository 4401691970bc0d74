package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// ErrNotRunning means that no daemon answers at the admin socket.
var ErrNotRunning = errors.New("no daemon there")

// maxBodyBytes bounds what a client accepts as one answer.
const maxBodyBytes = 64 << 20

// timeout bounds a query whose context has no deadline of its own. Calls that change the
// daemon have no such bound: draining a disk takes as long as it was asked to.
const timeout = 30 * time.Second

// A Client talks to one daemon. Any goroutine may call any method.
type Client struct {
	path string
	http *http.Client
}

// AdminVariable is the environment variable that holds the path of the admin socket.
const AdminVariable = "VHBAD_ADMIN"

// NoAdmin takes the place of the path where there is to be no admin socket. A file of that
// name is ./none.
const NoAdmin = "none"

// DefaultPath is where the daemon and its clients expect the admin socket unless told
// otherwise: the value of AdminVariable if that is set, from the working directory if it
// is relative, or NoAdmin; otherwise vhbad.sock in $XDG_RUNTIME_DIR if that is set, or else
// in /run.
func DefaultPath() string {
	if path := os.Getenv(AdminVariable); path != "" {
		if path == NoAdmin {
			return path
		}
		if rooted, err := filepath.Abs(path); err == nil {
			path = rooted
		}
		return path
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "vhbad.sock")
	}
	return "/run/vhbad.sock"
}

// New returns a client of the daemon at path; empty means DefaultPath. It does
// not connect yet. With NoAdmin there is no daemon to connect to.
func New(path string) *Client {
	if path == "" {
		path = DefaultPath()
	}
	var d net.Dialer
	return &Client{path: path, http: &http.Client{
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				if path == NoAdmin { // which may be a file here
					return nil, syscall.ENOENT
				}
				return d.DialContext(ctx, "unix", path)
			},
		},
	}}
}

// Path returns the path of the admin socket.
func (c *Client) Path() string { return c.path }

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Status asks the daemon about itself.
//
// Errors: ErrNotRunning; for anything else, an error that names the socket.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	s := &Status{}
	if err := c.get(ctx, "/v1/status", s); err != nil {
		return nil, err
	}
	return s, nil
}

// get fetches path, within timeout.
func (c *Client) get(ctx context.Context, path string, out any) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	return c.call(ctx, http.MethodGet, path, nil, out)
}

// call makes one request. path begins with a slash, and its segments are escaped; in is
// the body, nil for none; the answer goes into out unless that is nil.
func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	res, err := c.do(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, maxBodyBytes)).Decode(out); err != nil {
		return fmt.Errorf("admin socket %s: %s: %w", c.path, path, err)
	}
	return nil
}

// do makes a request and returns the response if it is a success. The caller must close
// its body.
func (c *Client) do(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://vhbad"+path, body)
	if err != nil {
		return nil, err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, c.explain(err)
	}
	if res.StatusCode/100 == 2 {
		return res, nil
	}
	defer func() { _ = res.Body.Close() }()
	var p Problem
	if err := json.NewDecoder(io.LimitReader(res.Body, maxBodyBytes)).Decode(&p); err != nil || p.Message == "" {
		return nil, fmt.Errorf("admin socket %s: %s %s: %s", c.path, method, path, res.Status)
	}
	return nil, &Error{Code: p.Code, Message: p.Message}
}

// segment escapes s as one segment of a path. Dots alone would be taken for relative
// steps.
func segment(s string) string {
	if s == "." || s == ".." {
		return strings.ReplaceAll(s, ".", "%2E")
	}
	return url.PathEscape(s)
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
