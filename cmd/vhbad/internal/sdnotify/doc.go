// Package sdnotify tells a service manager how a service is doing, as systemd's
// Type=notify wants it: see Send. It owns nothing; without a service manager it
// does nothing.
package sdnotify
