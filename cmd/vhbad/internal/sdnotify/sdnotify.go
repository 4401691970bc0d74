package sdnotify

import (
	"fmt"
	"net"
	"os"
	"strings"
)

// Variable is the environment variable that names the service manager's socket.
const Variable = "NOTIFY_SOCKET"

// Assignments of sd_notify(3).
const (
	Ready    = "READY=1"
	Stopping = "STOPPING=1"
)

// Status is a line for whoever asks the service manager.
func Status(line string) string { return "STATUS=" + strings.ReplaceAll(line, "\n", " ") }

// Send tells the service manager, if there is one, of all states at once.
//
// Source: sd_notify(3).
func Send(states ...string) error {
	path := os.Getenv(Variable)
	if path == "" {
		return nil
	}
	if path[0] != '/' && path[0] != '@' {
		return fmt.Errorf("%s=%q: want a path, or @ and an abstract name", Variable, path)
	}
	// The net package takes @ for an abstract name, as sd_notify does.
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Net: "unixgram", Name: path})
	if err != nil {
		return fmt.Errorf("%s: %w", Variable, err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write([]byte(strings.Join(states, "\n"))); err != nil {
		return fmt.Errorf("%s: %w", Variable, err)
	}
	return nil
}
