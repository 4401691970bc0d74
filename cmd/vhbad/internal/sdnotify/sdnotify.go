package sdnotify

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Variable is the environment variable that names the service manager's socket.
const Variable = "NOTIFY_SOCKET"

// Environment variables that say how often the service manager wants to hear
// Alive, and from which process.
const (
	watchdogVariable    = "WATCHDOG_USEC"
	watchdogPIDVariable = "WATCHDOG_PID"
)

// Assignments of sd_notify(3).
const (
	Ready    = "READY=1"
	Stopping = "STOPPING=1"
	Alive    = "WATCHDOG=1"
)

// Status returns the assignment of a line for people who ask the service manager.
func Status(line string) string { return "STATUS=" + strings.ReplaceAll(line, "\n", " ") }

// Reloading says that the configuration is being read again. Ready says that this is over.
//
// Source: systemd.service(5), Type=notify-reload, which wants the time of the monotonic
// clock.
func Reloading() string {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		panic(fmt.Sprintf("sdnotify: no monotonic clock: %v", err))
	}
	return "RELOADING=1\nMONOTONIC_USEC=" + strconv.FormatInt(now.Nano()/int64(time.Microsecond/time.Nanosecond), 10)
}

// Extend asks for that much more time to start, reload or stop, from now on.
func Extend(by time.Duration) string {
	return "EXTEND_TIMEOUT_USEC=" + strconv.FormatInt(by.Microseconds(), 10)
}

// Watchdog returns how long the service manager waits for Alive before it ends this
// process; zero means that it does not wait for Alive at all. Half that time is a good
// interval.
//
// Source: sd_watchdog_enabled(3).
func Watchdog() (time.Duration, error) {
	value := os.Getenv(watchdogVariable)
	if value == "" {
		return 0, nil
	}
	if pid := os.Getenv(watchdogPIDVariable); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return 0, nil // the watchdog is for another process
	}
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil || n <= 0 || n > int64(24*time.Hour/time.Microsecond) {
		return 0, fmt.Errorf("%s=%q: want microseconds, up to a day", watchdogVariable, value)
	}
	return time.Duration(n) * time.Microsecond, nil
}

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
